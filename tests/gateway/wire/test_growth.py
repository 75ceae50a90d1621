"""Texts of which a tokenizer may make more tokens than they have bytes."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.growth import growth_of

FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
GROWING = "\ufdfa\u0958\u33ff\u00bd\U0001d160\ufb2c\u0130"


def size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@given(st.text(st.one_of(st.sampled_from(GROWING), st.characters(categories=["L", "N", "S", "P"]))))
def test_no_normal_form_is_longer_than_bytes_and_growth(text: str) -> None:
    """Some tokenizers normalize first, so a budget's bound must hold for the longer text too."""
    for form in FORMS:
        for written in (text, text.lower()):
            normal = unicodedata.normalize(form, written)
            assert size(normal) <= size(text) + growth_of({"any": [text]})


@pytest.mark.parametrize(
    "text",
    ["", "Good morning", "Ça va très bien", "Доброе утро", "早上好,世界", "おはよう", "a\nb"],
)
def test_ordinary_texts_do_not_grow(text: str) -> None:
    """Texts in four scripts keep their tight bound and are not refused for budget too early."""
    assert growth_of({"messages": [text]}) == 0


def test_half_a_surrogate_pair_hides_nothing() -> None:
    """It is written as an escape, and with it the whole text."""
    assert growth_of("\ufdfa" * 9 + "\ud800") >= 9 * 30
