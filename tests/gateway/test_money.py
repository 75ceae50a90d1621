"""Money: exact text, exact arithmetic, checked against ``decimal`` and ``fractions``."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.money import divide_half_even, exact_usd, format_usd, parse_usd, scale_half_even

amounts = st.integers(min_value=-(10**30), max_value=10**30)


@given(amounts)
def test_an_amount_survives_text(pico: int) -> None:
    """No amount changes by being written down and read again, not by one pico-dollar."""
    assert parse_usd(format_usd(pico)) == pico


@given(amounts)
def test_an_exact_text_drops_zeros_alone(pico: int) -> None:
    """Four decimals at least, so that amounts read as money; "0.0002 of 0.0002" is no reason."""
    text = exact_usd(pico)
    assert parse_usd(text) == pico
    decimals = text.partition(".")[2]
    assert len(decimals) == 4 or (len(decimals) > 4 and not text.endswith("0"))


@given(amounts, st.integers(min_value=0, max_value=12))
def test_formatting_rounds_half_even_like_decimal(pico: int, places: int) -> None:
    """The standard library's decimal at 60 digits is the judge for any number of places."""
    with localcontext() as context:
        context.prec = 60
        expected = Decimal(pico).scaleb(-12).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
        assert Decimal(format_usd(pico, places)) == expected


@given(amounts, st.integers(0, 10**9), st.integers(1, 10**9))
def test_scaling_rounds_half_even_exactly(pico: int, numerator: int, denominator: int) -> None:
    """Mark-ups and shares agree with exact fractions, so that no bias builds up over many bills."""
    exact = Fraction(pico) * numerator / denominator
    assert scale_half_even(pico, numerator, denominator) == round(exact)


@pytest.mark.parametrize(("dividend", "expected"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2)])
def test_a_tie_goes_to_the_even_neighbour(dividend: int, expected: int) -> None:
    """Half of 1 is 0 and half of 3 is 2, for negative amounts too."""
    assert divide_half_even(dividend, 2) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".5", "5.", "1e3", "1e999999999", "NaN", "Infinity", " 1", "1_000", "1,5", "٣", "--1",
     "0.0000000000001"],
)  # fmt: skip
def test_anything_but_a_plain_decimal_is_refused(text: str) -> None:
    """Exponents, NaN, foreign digits and a 13th decimal place must not become a wrong price."""
    with pytest.raises(ValueError, match="decimal"):
        parse_usd(text)


def test_a_large_amount_keeps_its_last_pico_dollar() -> None:
    """28 digits, the default precision of decimal, would lose it."""
    text = "123456789012345678901.000000000001"
    assert parse_usd(text) == 123456789012345678901000000000001
    assert format_usd(parse_usd(text)) == text


def test_an_amount_below_one_dollar_keeps_its_sign() -> None:
    """A loss of one pico-dollar shows its minus; rounded away, it is 0 and not -0."""
    assert format_usd(-1) == "-0.000000000001"
    assert format_usd(-(10**11), 0) == "0"
