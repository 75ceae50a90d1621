"""Usage in every documented spelling: the table in gateway/wire/README.md, and what must hold."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import Endpoint
from gateway.wire.usage import Usage, UsageSource, count_of
from gateway.wire.usage_reading import merged, parse_usage

README = Path(__file__).parents[3] / "gateway" / "wire" / "README.md"
_ROW = re.compile(r"^\| ([^|`]+) \| (\w+) \| `(\{.+\})` \| `([^`]+)` \| (.+) \|$", re.MULTILINE)
ROWS = _ROW.findall(README.read_text())


def usage_from(text: str) -> Usage:
    """A cell "read as": names and values of Usage."""
    values: dict[str, Any] = {}
    for pair in text.split():
        name, _, value = pair.partition("=")
        values[name] = int(value) if value.isdigit() else value == "yes" or value
    return Usage(**values)


@pytest.mark.parametrize(
    ("endpoint", "fragment", "read_as"),
    [row[1:4] for row in ROWS],
    ids=[f"{number}-{row[0]}" for number, row in enumerate(ROWS)],
)
def test_each_documented_spelling_is_read_as_the_table_says(
    endpoint: str, fragment: str, read_as: str
) -> None:
    """The README's table is the contract: each of its rows is parsed and compared."""
    told = DIALECTS[cast(Endpoint, endpoint)].usage(orjson.loads(fragment))
    assert told == usage_from(read_as)


def test_the_table_names_a_source_for_every_provider() -> None:
    """Seventeen vendors each have a row that the tests can read, with its source beside it."""
    assert len(ROWS) == README.read_text().count('`{"')
    providers = " ".join(row[0] for row in ROWS)
    for name in (
        "OpenAI", "Azure", "Anthropic", "Gemini", "xAI", "DeepSeek", "Moonshot", "Groq", "Mistral",
        "Voyage", "Perplexity", "OpenRouter", "vLLM", "Together", "Cohere", "llama.cpp", "Ollama",
    ):  # fmt: skip
        assert name in providers
    assert all(row[4].strip() for row in ROWS)


# Writers: the same consumption in each provider's own words.


def openai(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def responses(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def xai(usage: Usage) -> dict[str, Any]:
    return openai(usage) | {"completion_tokens": usage.completion_tokens - usage.reasoning_tokens}


def deepseek(usage: Usage) -> dict[str, Any]:
    document = openai(usage) | {
        "prompt_cache_hit_tokens": usage.cached_tokens,
        "prompt_cache_miss_tokens": usage.prompt_tokens - usage.cached_tokens,
    }
    del document["prompt_tokens_details"]
    return document


def moonshot(usage: Usage) -> dict[str, Any]:
    return openai(usage) | {"cached_tokens": usage.cached_tokens, "prompt_tokens_details": None}


def gemini(usage: Usage) -> dict[str, Any]:
    return {
        "promptTokenCount": usage.prompt_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "candidatesTokenCount": usage.completion_tokens - usage.reasoning_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
    }


def anthropic(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def in_strings(usage: Usage) -> dict[str, Any]:
    texts = {name: str(count) for name, count in moonshot(usage).items() if type(count) is int}
    return moonshot(usage) | texts


def in_floats(usage: Usage) -> dict[str, Any]:
    floats = {name: float(count) for name, count in deepseek(usage).items() if type(count) is int}
    return deepseek(usage) | floats


WRITERS = (
    openai, responses, xai, deepseek, moonshot, gemini, anthropic, in_strings, in_floats
)  # fmt: skip


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=completion,
        reasoning_tokens=draw(st.integers(0, completion)),
    )


@given(usages())
def test_the_same_consumption_has_one_normal_form_in_every_spelling(usage: Usage) -> None:
    """Only a coincidence of sums may leave it open which part a total means."""
    for write in WRITERS:
        told = parse_usage(write(usage))
        if write in (xai, gemini) and usage.cached_tokens == usage.reasoning_tokens:
            continue
        assert told == usage, write.__name__


@given(usages(), st.sampled_from(WRITERS), st.randoms(use_true_random=False))
def test_usage_told_in_pieces_is_the_same_in_any_order(
    usage: Usage, write: Callable[[Usage], dict[str, Any]], rng: random.Random
) -> None:
    """Earlier, smaller counts, zeros, nulls and absent fields take nothing back."""
    whole = write(usage)
    pieces = [whole, dict.fromkeys(whole), {name: 0 for name in whole if rng.random() < 0.5}]
    pieces.append({name: value for name, value in whole.items() if rng.random() < 0.5})
    pieces.append({name: value // 2 for name, value in whole.items() if type(value) is int})
    rng.shuffle(pieces)
    told: dict[str, Any] = {}
    for piece in pieces:
        before = told
        told = merged(told, piece)
        for name, count in before.items():
            assert (count_of(told[name]) or 0) >= (count_of(count) or 0), "counts never fall"
    assert parse_usage(told) == parse_usage(whole)


NAMES = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens",
     "cached_tokens", "prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "reasoning_tokens",
     "thoughtsTokenCount", "toolUsePromptTokenCount", "citation_tokens", "num_search_queries",
     "cache_read_input_tokens", "cache_creation_input_tokens", "cost", "service_tier", "prompt_n",
     "cache_n", "audio_tokens", "image_tokens", "ephemeral_1h_input_tokens", "modality"]
)  # fmt: skip
SECTIONS = st.sampled_from(
    ["prompt_tokens_details", "completion_tokens_details", "cached_tokens_details", "cost",
     "cache_creation", "server_tool_use", "promptTokensDetails", "billed_units", "cost_details"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-5, 2**54) | st.floats(-2.0, 2e9)
    | st.sampled_from(["12", "12.0", "x", "", "flex", "nan", "inf", "1e400"])
)  # fmt: skip
DOCUMENTS = st.recursive(
    st.dictionaries(NAMES, SCALARS),
    lambda inner: st.dictionaries(
        NAMES | SECTIONS, SCALARS | inner | st.lists(inner, max_size=2), max_size=9
    ),
    max_leaves=12,
)


@given(DOCUMENTS, DOCUMENTS)
def test_no_usage_object_breaks_the_books(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Whatever comes, alone or together: parts stay within their totals (Usage asserts it)."""
    endpoints: tuple[Endpoint, ...] = ("chat", "messages", "responses")
    for document in (first, second, merged(first, second)):
        for endpoint in endpoints:
            usage = DIALECTS[endpoint].usage({"usage": document, "output": []})
            assert usage is None or usage.source in get_args(UsageSource)
            assert usage is None or msgspec.msgpack.encode(usage), "fits the log"


@given(
    usages(),
    st.sampled_from(["tool_use_prompt_tokens", "reasoning_tokens", "citation_tokens"]),
    st.integers(1, 10**6),
)
def test_what_a_provider_tells_beside_its_sums_is_never_dropped(
    usage: Usage, name: str, count: int
) -> None:
    """It is billed or marked: totals grow by it, or the usage is not certain any more."""
    document = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens + count,
        name: count,
    }
    told = parse_usage(document)
    assert told is not None
    assert told.prompt_tokens + told.completion_tokens == document["total_tokens"]
    del document[name]
    unnamed = parse_usage(document)
    assert unnamed is not None
    assert unnamed.completion_tokens == usage.completion_tokens + count
    assert unnamed.source == "unclear"


@pytest.mark.parametrize(
    "extra",
    [
        {"hologram_tokens": 4},
        {"search_units": 1},
        {"num_sources_used": 3},
        {"prompt_tokens_details": {"smell_tokens": 2}},
        {"server_tool_use": {"code_execution_requests": 1}},
        {"speed": "fast"},
        {"image_pixels": 4_000},
    ],
)
def test_a_count_without_a_meaning_here_makes_the_price_unknown(extra: dict[str, Any]) -> None:
    """A new kind of token or fee must not be booked as if it were free."""
    document = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    told = parse_usage(document | extra)
    assert told == Usage(prompt_tokens=10, completion_tokens=5, other_fees=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"total_tokens": 14},
        {"prompt_tokens_details": {"cached_tokens": 11}},
        {"cached_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
        {"prompt_cache_hit_tokens": 3, "prompt_cache_miss_tokens": 4},
        {"completion_tokens_details": {"reasoning_tokens": 6}},
        {"completion_tokens": -1},
    ],
)
def test_what_does_not_add_up_is_unclear_and_not_certain(changes: dict[str, Any]) -> None:
    """Parts above their total or rival counts are booked, but as a sum that needs a look."""
    document = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15} | changes
    told = parse_usage(document)
    assert told is not None
    assert told.source == "unclear"


def test_measurements_beside_the_counts_mean_nothing() -> None:
    """Times, speeds and stop reasons must not make a sound bill look uncertain."""
    document = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    measured = {"total_time": 3, "completion_tokens_per_sec": 40, "queue_time": 1.0, "stop": "eos"}
    assert parse_usage(document | measured) == parse_usage(document)
