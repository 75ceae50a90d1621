"""Which requests the semantic tier is asked about, and with whom they may meet."""

import time
from typing import Any

import pytest

from gateway.caches.semantic import eligible, facets, partition_key
from gateway.caches.semantic.eligibility import CHARACTERS_MAX
from tests.gateway.caches.cached_answers import chat

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    "text",
    [
        "How do I reset my password?",
        "What is the capital of Australia?",
        "Explain TCP slow start.",
        "Write a haiku about autumn.",
        "Is 5 mg of ibuprofen safe for an adult?",
        "Who won when Boston played against Mumbai?",
        "How can I cancel my order?",
        "Summarize: Our warehouse will close early on Friday for maintenance.",
        [{"type": "text", "text": "What is osmosis?"}],
    ],
)
def test_a_reusable_question_may_be_asked(text: Any) -> None:
    """General knowledge, how-tos and rewriting have answers that suit another asker as well."""
    assert eligible(chat(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "What is the weather in Paris?",
        "What's the latest iPhone?",
        "Who is the current president of France?",
        "What happened yesterday?",
        "What is the status of order #33370?",
        "Where is my package?",
        "What is my account balance?",
        "My name is Ann, write me a poem",
        "Book a table for two",
        "Please send the report to the team",
        "Remind me to call the plumber",
        "Give me a random number",
        "Try again",
        "Roll a dice",
        "Write to ann@example.org",
        "My card is 4111 1111 1111 1111, is it valid?",
        "Is sk-abcdefgh12345678 a key?",
        "The password is hunter2, is it strong?",
        "Why does this fail?\n```\nx = 1\n```",
        "12345",
        "word " * 200,
    ],
)
def test_volatile_personal_active_secret_or_long_texts_are_left_to_the_exact_tier(
    text: str,
) -> None:
    """A stored answer would be out of date, another person's, or would skip the action."""
    assert eligible(chat(text)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [TOOL]},
        {"n": 2},
        {"logprobs": True},
        {"store": True},
        {
            "history": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "4"},
            ]
        },
    ],
    ids=str,
)
def test_requests_that_are_more_than_a_question_are_left_to_the_exact_tier(
    changes: dict[str, Any],
) -> None:
    """Tools, several samples, logprobs and stored runs expect an answer made for them."""
    assert eligible(chat("What is osmosis?", **changes)) is not None


@pytest.mark.parametrize("piece", [" ", "a", ",", "1-", "a.", "(", "hi ", "#", "\n", "é"])
def test_no_text_makes_the_check_slow(piece: str) -> None:
    """The event loop's 20 ms are safe: judged, read and compared, at any length."""
    for length in (CHARACTERS_MAX, 1_000_000):
        text = (piece * length)[: length - 1] + "?"
        began = time.perf_counter()
        eligible(chat(text))
        facets.extract(text[:CHARACTERS_MAX])
        assert time.perf_counter() - began < 0.1


def test_a_prefilled_or_pictured_message_is_no_question() -> None:
    """The text alone does not decide the answer where a picture or a begun answer stands beside."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    prefilled = chat("What is osmosis?")
    prefilled.body["messages"].append({"role": "assistant", "content": "Osmosis is"})
    prefilled.last_user_text = None
    assert eligible(prefilled) is not None
    assert eligible(chat([{"type": "text", "text": "What is it?"}, picture])) is not None


def partition(text: str = "What is osmosis?", **changes: Any) -> bytes:
    named = {"tenant_secret": b"secret", "scope": "tenant:a", "route_identity": b"route"}
    named |= {name: changes.pop(name) for name in list(changes) if name in named}
    return partition_key(**named, parsed=chat(text, **changes))  # type: ignore[arg-type]


def test_re_wordings_meet_in_one_partition() -> None:
    """Only the last user turn may differ; transport fields are free."""
    assert partition() == partition("Explain osmosis", stream=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant_secret": b"other"},
        {"scope": "tenant:b"},
        {"route_identity": b"edited"},
        {"model": "large"},
        {"temperature": 0.5},
        {"max_tokens": 5},
        {"response_format": {"type": "json_object"}},
        {"history": [{"role": "system", "content": "Be terse."}]},
        {"history": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"x_vendor": 1},
    ],
    ids=str,
)
def test_anything_else_that_differs_keeps_them_apart(changes: dict[str, Any]) -> None:
    """Tenants, scopes, routes, earlier turns and sampling never share an index."""
    assert partition(**changes) != partition()
