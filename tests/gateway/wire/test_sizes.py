"""A prompt's size: nothing that a model may read is left out, in any dialect and any shape."""

from typing import Any

import orjson
import pytest
from hypothesis import assume, given

from gateway.errors import InvalidRequest
from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import Endpoint, ParsedRequest
from gateway.wire.sizes import IMAGE_TOKENS_MAX
from tests.gateway.bodies import ALL_FIELDS, BODIES, PICTURE, body_of, texts_of


def parse(endpoint: Endpoint, body: dict[str, Any]) -> ParsedRequest:
    return DIALECTS[endpoint].parse(endpoint, orjson.dumps(body), None)


@given(BODIES)
def test_every_byte_that_may_be_read_counts(drawn: tuple[Endpoint, dict[str, Any]]) -> None:
    """Judged by an adversary that bills each byte of each text, known field or not, as a token,
    and for each picture what the dearest rule allows.
    """
    endpoint, body = drawn
    try:
        request = parse(endpoint, body)
    except InvalidRequest as error:  # it happens to name what the provider keeps
        assume("that the provider keeps" not in error.message)
        raise
    bytes_of_texts, pictures = texts_of(body)
    assert request.prompt_bytes >= bytes_of_texts + pictures * 45_000


@pytest.mark.parametrize(
    ("endpoint", "part", "field"),
    [
        ("chat", {"type": "video_url", "video_url": {"url": "u"}}, "messages[0].content[0].type"),
        ("chat", {"type": "hologram", "text": "x"}, "messages[0].content[0].type"),
        ("chat", {"type": ["text"], "text": "x"}, "messages[0].content[0].type"),
        ("responses", {"type": "input_file", "file_url": "u"}, "input[0].content[0].file_url"),
        ("messages", {"type": "document", "source": {"type": "url", "url": "u"}},
         "messages[0].content[0].source"),
        ("messages",
         {"type": "tool_result", "content": [{"type": "document", "source": {"type": "file"}}]},
         "messages[0].content[0].content[0].source"),
        ("chat", {"type": "image_url", "image_url": {"url": ["https://a", "https://b"]}},
         "messages[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_a_reference_of_unknown_size_is_named(
    endpoint: Endpoint, part: dict[str, Any], field: str
) -> None:
    """A hard budget can refuse a linked video or document by its path instead of guessing."""
    request = parse(endpoint, body_of(endpoint, [part]))
    assert request.unsized == field
    assert request.has_media
    assert request.prompt_bytes > IMAGE_TOKENS_MAX, "a floor, where no hard budget asks"


@pytest.mark.parametrize(
    ("endpoint", "part"),
    [
        ("messages", {"type": "document", "source": {
            "type": "base64", "media_type": "application/pdf", "data": "AAAA"}}),
        ("chat", {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}),
        ("chat", {"type": "image_url", "image_url": {"url": "data:application/pdf;base64,AAAA"}}),
        ("chat", {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        ("responses", {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}),
    ],
)  # fmt: skip
def test_a_file_in_the_body_is_bounded_by_the_models_context_alone(
    endpoint: Endpoint, part: dict[str, Any]
) -> None:
    """Four base64 bytes of a PDF or recording may be many tokens, so bytes are no bound."""
    request = parse(endpoint, body_of(endpoint, [part]))
    assert (request.enclosed is not None, request.unsized) == (True, None)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}),
        ("chat", {"chat_template": "{% for i in range(9999) %}words{% endfor %}"}),
        ("chat", {"messages": [{"role": "system", "content": "fileid://f-1"}]}),
        ("chat", {"context_id": "ctx-1"}),
    ],
)
def test_what_stands_beside_the_parts_is_named_too(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    """Templates, context ids and file references in plain text add prompt that no part shows."""
    assert parse(endpoint, {**body_of(endpoint, "x"), **body}).unsized is not None


def test_a_part_that_is_two_things_counts_as_both() -> None:
    """A long text cannot hide in an image part, nor in the field where its URL should be."""
    part = {"type": "image_url", "text": "t " * 1000, "image_url": {"url": PICTURE, "x": "u " * 99}}
    request = parse("chat", body_of("chat", [part]))
    assert request.prompt_bytes > IMAGE_TOKENS_MAX + 2198
    long = {"type": "image_url", "text": "x", "image_url": {"url": "t " * 100_000}}
    assert parse("chat", body_of("chat", [long])).prompt_bytes > 200_000


@pytest.mark.parametrize("endpoint", ["chat", "completions", "messages", "responses"])
def test_answers_that_are_not_shown_count_on_every_endpoint(endpoint: Endpoint) -> None:
    """best_of 5 is five answers to pay for, even where the endpoint is not known to take it."""
    assert parse(endpoint, {**body_of(endpoint, "x"), "n": 2, "best_of": 5}).choices == 5


def test_thoughts_that_the_provider_keeps_are_bounded_by_the_models_context_alone() -> None:
    """An item that is its id is read as what an earlier answer thought."""
    item = {"type": "reasoning", "id": "rs_1", "summary": []}
    request = parse("responses", {**body_of("responses", "x"), "input": [item]})
    assert (request.enclosed, request.unsized, request.has_media) == ("input[0]", None, False)
    whole = parse("responses", {**body_of("responses", "x"),
                                "input": [{**item, "encrypted_content": "gAAAA"}]})  # fmt: skip
    assert whole.enclosed is None


@pytest.mark.parametrize("field", ["prompt", "input"])
def test_texts_in_a_list_within_a_list_count_as_texts(field: str) -> None:
    """Some take pairs of texts where others take lists of tokens."""
    endpoint: Endpoint = "completions" if field == "prompt" else "embeddings"
    request = parse(endpoint, {"model": "m", field: [[1, 2, 3], ["x" * 1000, "y" * 1000]]})
    assert request.prompt_bytes >= 2003


def test_each_prompt_of_a_mixed_list_is_answered() -> None:
    """Three prompts with n 2 are six answers to pay; a plain list of token ids is one prompt."""
    body = {"model": "m", "prompt": [1, "x", "y", [2, 3]], "n": 2}
    assert parse("completions", body).choices == 6
    assert parse("completions", {"model": "m", "prompt": [1, 2, 3]}).choices == 1


def test_each_tool_of_anthropics_own_counts_as_the_page_that_it_adds() -> None:
    """Anthropic adds hidden instructions for bash and computer: over 3 kB for the two of them."""
    tools = [{"type": f"{kind}_20250124", "name": kind} for kind in ("bash", "computer")]
    plain = parse("messages", body_of("messages", "x"))
    assert parse("messages", {**body_of("messages", "x"), "tools": tools}).prompt_bytes > (
        plain.prompt_bytes + 3 * 1024
    )


def test_completions_are_sent_the_one_limit_that_their_providers_know() -> None:
    """A client's max_completion_tokens arrives as max_tokens and so limits the old endpoint too."""
    request = parse("completions", {"model": "m", "prompt": "x", "max_completion_tokens": 7})
    sent = DIALECTS["completions"].encode(
        request, upstream_model="m", max_output_tokens=None, limit_field=""
    )
    assert orjson.loads(sent)["max_tokens"] == 7


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({"max_tokens": 0}, 0), ({"max_tokens": 20.0}, 20), ({"max_tokens": 9, "best_of": 0}, 9)],
)
def test_limits_that_openai_takes_pass_as_they_came(fields: dict[str, Any], limit: int) -> None:
    """0 scores a prompt; 20.0 is an integer in JSON."""
    request = parse("completions", {"model": "m", "prompt": "x", "echo": True, **fields})
    assert request.max_output_tokens == limit
    assert request.choices == 1
    sent = DIALECTS["completions"].encode(
        request, upstream_model="m", max_output_tokens=None, limit_field=""
    )
    assert {name: orjson.loads(sent)[name] for name in fields} == fields


def test_the_adversary_draws_every_field_there_is() -> None:
    """The adversarial test of sizes means something only because it knows over forty fields."""
    assert len(ALL_FIELDS) > 40
