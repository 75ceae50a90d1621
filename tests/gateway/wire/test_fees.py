"""Which models and requests are billed for more than text."""

from typing import Any

import pytest

from gateway.wire.fees import choice_of_model, fee_asked, fee_of_model, media_asked, media_of_model


@pytest.mark.parametrize(
    ("name", "fee"),
    [
        ("gpt-4o-search-preview", "search"),
        ("gpt-4o-mini-search-preview-2025-03-11", "search"),
        ("gpt-5-search-api", "search"),
        ("anthropic/claude-sonnet-4:online", "search"),
        ("perplexity/sonar-pro", "search"),
        ("sonar", "search"),
        ("sonar-deep-research", "other"),
        ("o3-deep-research", "other"),
        ("groq/compound-mini", "other"),
        ("gpt-4o", None),
        ("claude-research-assistant", None),
        ("gemini-2.5-flash", None),
    ],
)
def test_models_that_search_of_their_own_accord_are_known_by_name(
    name: str, fee: str | None
) -> None:
    """A search costs a fee beside the tokens, which a hard budget must see before it allows one."""
    assert fee_of_model(name) == fee


@pytest.mark.parametrize(
    ("body", "buckets"),
    [
        ({}, set()),
        ({"modalities": ["text", "audio"]}, {"output_audio"}),
        ({"modalities": ["image", "text"]}, {"output_image"}),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, {"input_audio"}),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, set()),
    ],
)
def test_media_that_a_chat_may_need_a_price_for_are_seen(
    body: dict[str, Any], buckets: set[str]
) -> None:
    """Audio in or out and images out need prices of their own; an image sent in needs none."""
    assert media_asked(body) == buckets


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"models": ["openai/o1-pro"]}, "models"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks"),
        ({"provider": {"order": ["dear"]}}, "provider"),
        ({"preset": "@preset/dear"}, "preset"),
        ({"models": []}, None),
    ],
)
def test_fields_that_choose_another_model_at_a_broker_are_seen(
    body: dict[str, Any], field: str | None
) -> None:
    """Through models, fallbacks or a preset a tenant could get a dearer model than it may use."""
    assert choice_of_model(body) == field


@pytest.mark.parametrize(
    "body", [{"enable_search": 1}, {"web_search": {"enable": True}}, {"connectors": [{"id": "x"}]}]
)
def test_searches_are_seen_however_they_are_asked_for(body: dict[str, Any]) -> None:
    """Three vendors have three spellings, and each one costs a fee beside the tokens."""
    assert fee_asked(body) == (next(iter(body)), "search")


def test_models_that_make_media_are_known_by_name() -> None:
    """Image and audio models need a price for their output; a text model needs none."""
    assert media_of_model("gemini-2.5-flash-image") == {"output_image"}
    assert media_of_model("gpt-4o-audio-preview") == {"output_audio"}
    assert media_of_model("gpt-4o") == set()
