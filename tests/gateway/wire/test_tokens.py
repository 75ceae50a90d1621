"""Counting tokens, against ids that tiktoken is published to give."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.openai import parse_request
from gateway.wire.tokens import TOKENIZERS, count_prompt, count_tokens, encoding_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-sonnet-4", None),
        ("simulated-large", None),
        (None, None),
    ],
)
def test_a_model_has_the_encoding_of_its_family(model: str | None, name: str | None) -> None:
    """OpenAI's models map to o200k or cl100k by prefix; other vendors' have no exact counter."""
    assert encoding_name(model) == name


def test_ids_are_those_of_tiktoken() -> None:
    """From the examples of OpenAI's cookbook, "How to count tokens with tiktoken"."""
    cl100k, o200k = TOKENIZERS.wait("cl100k_base"), TOKENIZERS.wait("o200k_base")
    assert cl100k.encode_ordinary("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert cl100k.encode_ordinary("antidisestablishmentarianism") == [
        519,
        85342,
        34500,
        479,
        8997,
        2191,
    ]
    assert cl100k.encode_ordinary("2 + 2 = 4") == [17, 489, 220, 17, 284, 220, 19]
    assert o200k.encode_ordinary("hello world") == [24912, 2375]


def test_special_tokens_in_a_text_are_ordinary_text() -> None:
    """A user who writes <|endoftext|> is charged several tokens and breaks no exact count."""
    TOKENIZERS.wait("o200k_base")
    tokens, exact = count_tokens("<|endoftext|>", model="gpt-4o")
    assert exact
    assert tokens > 1


@given(st.text(max_size=200))
@settings(deadline=None)
def test_an_exact_count_never_exceeds_the_bytes(text: str) -> None:
    """Budgets reserve one token for each byte; no random text breaks that bound."""
    TOKENIZERS.wait("o200k_base")
    tokens, exact = count_tokens(text, model="gpt-4o")
    assert exact
    assert tokens <= len(text.encode())
    assert (tokens == 0) == (text == "")


def test_other_models_are_estimated_and_it_is_said() -> None:
    """Four bytes make a token, rounded up, and the caller learns that the count is a guess."""
    assert count_tokens("ab" * 10, model="other") == (5, False)
    assert count_tokens("ä", model=None) == (1, False)


def test_a_prompt_is_counted_with_its_messages_marks() -> None:
    """Eight characters are two tokens, with four for the message and three for the answer."""
    raw = b'{"model":"m","messages":[{"role":"user","content":"12345678"}]}'
    tokens, exact = count_prompt(parse_request("chat", raw))
    assert not exact
    assert tokens == 2 + 4 + 3
