"""What a provider told, completed: placeholders, tiers that were asked for, searches."""

from typing import Any

import msgspec
import pytest

from gateway.metering import completed
from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import Endpoint
from gateway.wire.usage import Usage
from tests.gateway.exchanges import SMALL

SEEN = Usage(prompt_tokens=7, completion_tokens=4, source="tokenizer")
SEARCHING = msgspec.structs.replace(SMALL, fee="search")
RESEARCHING = msgspec.structs.replace(SMALL, fee="other")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def booked(
    told: Usage | None,
    body: dict[str, Any] | None = None,
    *,
    endpoint: Endpoint = "chat",
    target: Any = SMALL,
    tier_named: str | None = None,
) -> Usage:
    request = DIALECTS[endpoint].parse(endpoint, msgspec.json.encode(CHAT | (body or {})), None)
    return completed(told, request, target, tier_named=tier_named, estimate=lambda: SEEN)


def test_a_usage_that_can_be_true_is_booked_as_it_was_told() -> None:
    """The provider's count is left untouched; an embedding needs no output tokens."""
    told = Usage(prompt_tokens=1, completion_tokens=1)
    assert booked(told) is told
    vectors = Usage(prompt_tokens=1)
    assert booked(vectors, {"input": "x"}, endpoint="embeddings") is vectors


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (Usage(), Usage(prompt_tokens=7, completion_tokens=4, source="tokenizer")),
        (
            Usage(completion_tokens=54),
            Usage(prompt_tokens=7, completion_tokens=54, source="tokenizer"),
        ),
        (
            Usage(prompt_tokens=90, cached_tokens=80),
            Usage(prompt_tokens=90, cached_tokens=80, completion_tokens=4, source="tokenizer"),
        ),
    ],
)
def test_a_zero_that_cannot_be_true_is_counted_and_marked(told: Usage, expected: Usage) -> None:
    """A placeholder zero would make an answer free, so our count takes its place."""
    assert booked(told) == expected


@pytest.mark.parametrize(("named", "tier"), [(None, "priority"), ("default", ""), ("flex", "")])
def test_a_tier_that_was_asked_for_served_unless_the_answer_names_another(
    named: str | None, tier: str
) -> None:
    """``told`` has the tier that the answer names; here it names none with a price of its own."""
    told = Usage(prompt_tokens=1, completion_tokens=1)
    usage = booked(told, {"service_tier": "priority"}, tier_named=named)
    assert usage.service_tier == tier


@pytest.mark.parametrize(
    ("body", "target", "expected"),
    [
        ({"web_search_options": {}}, SMALL, {"web_searches": 1}),
        ({"search_parameters": {"mode": "auto"}}, SMALL, {"web_searches": 1}),
        ({"search_parameters": {"mode": "off"}}, SMALL, {}),
        ({"plugins": [{"id": "web"}]}, SMALL, {"web_searches": 1}),
        ({"enable_search": True}, SMALL, {"web_searches": 1}),
        ({"enable_search": False}, SMALL, {}),
        ({"tools": [{"type": "openrouter:web_search"}]}, SMALL, {"web_searches": 1}),
        (
            {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]},
            SMALL,
            {"web_searches": 1},
        ),
        ({"tools": [{"type": "code_interpreter"}]}, SMALL, {"other_fees": True}),
        ({"tools": [{"type": "function", "function": {"name": "search"}}]}, SMALL, {}),
        ({}, SEARCHING, {"web_searches": 1}),
        ({}, RESEARCHING, {"other_fees": True}),
    ],
)
def test_what_a_chat_is_billed_for_beside_its_tokens_is_foreseen(
    body: dict[str, Any], target: Any, expected: dict[str, Any]
) -> None:
    """Web searches and other fees are found in the request under each provider's own name."""
    told = Usage(prompt_tokens=1, completion_tokens=1)
    assert booked(told, body, target=target) == msgspec.structs.replace(told, **expected)


def test_searches_that_the_provider_counted_are_not_guessed() -> None:
    """Three searches told by the provider stay three."""
    told = Usage(prompt_tokens=1, completion_tokens=1, web_searches=3)
    assert booked(told, {"web_search_options": {}}, target=SEARCHING) is told


def test_an_answer_without_usage_is_estimated_with_its_tier_and_its_fees() -> None:
    """An estimate without tier and search fee would be systematically wrong."""
    expected = msgspec.structs.replace(SEEN, service_tier="flex", web_searches=1)
    assert booked(None, {"web_search_options": {}}, tier_named="flex") == expected
