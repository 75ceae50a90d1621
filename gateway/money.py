"""Money: integers of pico-US-dollars (1 USD = 10**12 pico). Never a float.

Knows decimal text and rounding. Does not know prices or tenants.
"""

import re
from typing import NewType

Pico = NewType("Pico", int)

PICO_PER_USD = 10**12
_PLACES = 12
# ASCII digits only, and few of them: an exponent such as 1e999999999 would fill the memory.
_AMOUNT = re.compile(r"([+-]?)([0-9]{1,30})(?:\.([0-9]{1,30}))?", re.ASCII)


def parse_decimal(text: str, places: int) -> int:
    """Read plain decimal text exactly; returns the number of 10**-places units.

    Raises ValueError for exponents, blanks, other digits than ASCII's, and for text finer than
    ``places`` decimals (trailing zeros are fine).
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a plain decimal number such as 4.25")
    sign, whole, fraction = match.group(1), match.group(2), (match.group(3) or "").rstrip("0")
    if len(fraction) > places:
        raise ValueError(f"{text[:40]!r} is finer than {places} decimal places")
    units = int(whole + fraction.ljust(places, "0"))
    return -units if sign == "-" else units


def parse_usd(text: str) -> int:
    """Read an exact decimal amount of dollars such as ``"4.25"``; returns pico-USD.

    Raises ValueError for anything that is no plain decimal or is finer than one pico-dollar.
    """
    return parse_decimal(text, _PLACES)


def divide_half_even(dividend: int, divisor: int) -> int:
    """``dividend / divisor`` to the nearest integer, ties to the even one. ``divisor`` > 0."""
    quotient, remainder = divmod(dividend, divisor)
    twice = 2 * remainder
    if twice > divisor or (twice == divisor and quotient & 1):
        quotient += 1
    return quotient


def scale_half_even(pico: int, numerator: int, denominator: int) -> int:
    """``pico * numerator / denominator``, rounded half-even to a pico-dollar. Exact integers."""
    return divide_half_even(pico * numerator, denominator)


def exact_usd(pico: int) -> str:
    """Decimal text with every digit that counts, and four at least: nothing is rounded away."""
    text = format_usd(pico)
    kept = len(text.rstrip("0"))
    return text[: max(kept, len(text) - _PLACES + 4)]


def format_usd(pico: int, places: int = _PLACES) -> str:
    """Decimal text, rounded half-even to ``places`` (0 to 12) decimals, without an exponent."""
    units = divide_half_even(pico, 10 ** (_PLACES - places))
    whole, fraction = divmod(abs(units), 10**places)
    sign = "-" if units < 0 else ""
    return f"{sign}{whole}.{fraction:0{places}d}" if places else f"{sign}{whole}"
