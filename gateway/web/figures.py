"""Figures as people read them: dollars, counts, shares, months, moments.

Every amount is formatted from integers, so that what is shown is what was booked, rounded once.
Knows no page and no database.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from gateway.money import PICO_PER_USD, format_usd

MINUS = "−"
ABSENT = "–"
_SIGNIFICANT_DIGITS = 3


def usd(pico: int | None) -> str:
    """Dollars with thousands separators: cents above one dollar, else three significant digits.

    So $1,234.56 and $0.000123; never $0.00 for an amount that is not zero.
    """
    if pico is None:
        return ABSENT
    sign = MINUS if pico < 0 else ""
    return f"{sign}${_rounded(abs(pico))}"


def _rounded(pico: int) -> str:
    places = 2
    if 0 < pico < PICO_PER_USD:
        # An amount of d digits in pico-dollars starts at decimal place 13 − d.
        places = max(2, min(12, 13 - len(str(pico)) + _SIGNIFICANT_DIGITS - 1))
    amount = Decimal(pico).scaleb(-12).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    whole, _, cents = f"{amount:f}".partition(".")
    cents = cents[:2] + cents[2:].rstrip("0")
    return f"{int(whole):,}.{cents}"


def places_of(amounts: Iterable[int | None]) -> int:
    """The decimals that make a column of amounts comparable: as many in every row.

    Enough for the smallest amount's first two digits, and fewer where the largest one is large:
    2 from 1,000 dollars on, 4 from one dollar on, else 12 at most.
    """
    sizes = [abs(pico) for pico in amounts if pico]
    if not sizes:
        return 2
    largest = max(sizes)
    most = 2 if largest >= 1_000 * PICO_PER_USD else 4 if largest >= PICO_PER_USD else 12
    # An amount of d digits in pico-dollars starts at decimal place 13 − d.
    return max(2, min(most, 13 - len(str(min(sizes))) + 1))


def usd_aligned(pico: int | None, places: int) -> str:
    """Dollars with so many decimals; an amount too small for them is "< $0.01", never zero."""
    if pico is None:
        return ABSENT
    sign = MINUS if pico < 0 else ""
    step = 10 ** (12 - places)
    if 0 < abs(pico) < step:
        return f"{'> ' if sign else '< '}{sign}${Decimal(1).scaleb(-places):f}"
    amount = Decimal(abs(pico)).scaleb(-12).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    return f"{sign}${amount:,f}"


def usd_exact(pico: int | None) -> str:
    """All twelve decimals, without sign of currency: for exports and machine-readable values."""
    return "" if pico is None else format_usd(pico)


def count(number: int | None) -> str:
    """A whole number with thousands separators."""
    return ABSENT if number is None else f"{number:,}".replace("-", MINUS)


def share(part: int, whole: int) -> str:
    """A percentage with one decimal, half-even; a dash where there is nothing to divide by."""
    if whole <= 0:
        return ABSENT
    tenths = (Decimal(part * 1000) / Decimal(whole)).quantize(Decimal(1), ROUND_HALF_EVEN)
    if tenths == 0 and part > 0:
        return "< 0.1 %"
    if tenths == 1000 and part < whole:
        return "> 99.9 %"
    return f"{tenths / 10:.1f} %".replace("-", MINUS)


def duration(microseconds: int | None) -> str:
    """Milliseconds below one second, else seconds."""
    if microseconds is None:
        return ABSENT
    if microseconds < 1_000_000:
        return f"{Decimal(microseconds) / 1000:.1f} ms"
    return f"{Decimal(microseconds) / 1_000_000:,.2f} s"


def moment(timestamp_us: int) -> str:
    """UTC to the second, as 2026-11-21 09:30:00."""
    return datetime.fromtimestamp(timestamp_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def month_name(period: str) -> str:
    """``2026-11`` as November 2026."""
    return datetime.strptime(period, "%Y-%m").replace(tzinfo=UTC).strftime("%B %Y")


def month_of(timestamp_us: int) -> str:
    """The UTC calendar month of a moment, as ``2026-11``."""
    return datetime.fromtimestamp(timestamp_us // 1_000_000, UTC).strftime("%Y-%m")


def months_before(period: str, how_many: int) -> list[str]:
    """``period`` and the months before it, newest first."""
    year, month = (int(part) for part in period.split("-"))
    first = year * 12 + month - 1
    return [
        f"{index // 12:04d}-{index % 12 + 1:02d}" for index in range(first, first - how_many, -1)
    ]


def parse_month(text: str) -> str | None:
    """``text`` where it is a calendar month such as ``2026-11``, else None."""
    if len(text) != 7 or text[4] != "-" or not (text[:4] + text[5:]).isascii():
        return None
    if not (text[:4] + text[5:]).isdigit() or not 1 <= int(text[5:]) <= 12 or int(text[:4]) < 2000:
        return None
    return text
