"""Which models and requests are billed for more than text."""

from typing import Any

import pytest

from gateway.wire.fees import fee_of_model, media_asked, media_of_model


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
    assert media_asked(body) == buckets


def test_models_that_make_media_are_known_by_name() -> None:
    assert media_of_model("gemini-2.5-flash-image") == {"output_image"}
    assert media_of_model("gpt-4o-audio-preview") == {"output_audio"}
    assert media_of_model("gpt-4o") == set()
