"""Figures, charts and CSV: what is shown is what was booked, rounded once, harmless to open."""

import csv
import io
import xml.etree.ElementTree as ET
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.reports import Summary
from gateway.web import figures
from gateway.web.charts import Bar, daily_chart, meter, nice_ceiling
from gateway.web.csv_export import write_csv
from gateway.web.exports import figures_csv, total

USD = 10**12


@pytest.mark.parametrize(
    ("pico", "shown"),
    [
        (0, "$0.00"),
        (1_234_567_890_000_000, "$1,234.57"),
        (12_000 * USD, "$12,000.00"),
        (-5 * USD, "−$5.00"),
        (USD // 10, "$0.10"),
        (123_400_000_000, "$0.123"),
        (123_000_000, "$0.000123"),
        (1, "$0.000000000001"),
        (999_900_000_000, "$1.00"),
        (1_005_000_000_000, "$1.00"),  # half-even, as the books round
        (1_015_000_000_000, "$1.02"),
        (9_007_199_254_740_993 * USD, "$9,007,199,254,740,993.00"),  # above 2**53
        (None, "–"),
    ],
)
def test_amounts_are_legible_at_every_size(pico: int | None, shown: str) -> None:
    """Cents above one dollar, three significant digits below."""
    assert figures.usd(pico) == shown


@given(st.integers(-(10**24), 10**24))
def test_a_shown_amount_is_the_booked_one_rounded_and_never_a_false_zero(pico: int) -> None:
    """Read back, it differs by half a unit of its last place; only zero shows as zero."""
    text = figures.usd(pico).replace("−", "-").replace("$", "").replace(",", "")
    shown, exact = Decimal(text), Decimal(pico).scaleb(-12)
    assert abs(shown - exact) <= max(Decimal("0.005") if abs(exact) >= 1 else 0, abs(exact) / 200)
    assert (shown == 0) == (pico == 0)


@given(st.lists(st.integers(-(10**18), 10**18), min_size=1, max_size=8))
def test_a_column_has_the_same_decimals_in_every_row_and_no_false_zero(column: list[int]) -> None:
    """Rows can be compared digit by digit; an amount too small for them says so."""
    places = figures.places_of(column)
    shown = [figures.usd_aligned(pico, places) for pico in column]
    assert len({len(text.partition(".")[2]) for text in shown}) == 1
    for pico, text in zip(column, shown, strict=True):
        if text.startswith(("<", ">")):
            assert 0 < abs(pico) < 10 ** (12 - places)
        else:
            read = Decimal(text.replace("−", "-").replace("$", "").replace(",", ""))
            assert abs(read - Decimal(pico).scaleb(-12)) <= Decimal(1).scaleb(-places) / 2
            assert (read == 0) == (pico == 0)


def test_small_amounts_of_a_column_keep_their_digits() -> None:
    """A cent and a bit less than a cent differ at a glance."""
    column = [14 * 10**9, 8_850_000_000]
    places = figures.places_of(column)
    assert [figures.usd_aligned(pico, places) for pico in column] == ["$0.0140", "$0.0088"]


@given(st.integers(-(10**24), 10**24))
def test_exported_amounts_have_every_digit(pico: int) -> None:
    """The export and the books agree to the pico-dollar."""
    assert Decimal(figures.usd_exact(pico)).scaleb(12) == pico


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(1, 3, "33.3 %"), (0, 5, "0.0 %"), (5, 5, "100.0 %"), (1, 0, "–"), (1, 99_999, "< 0.1 %"),
     (99_998, 99_999, "> 99.9 %"), (3, 2, "150.0 %")],
)  # fmt: skip
def test_a_share_never_claims_all_or_nothing_falsely(part: int, whole: int, shown: str) -> None:
    """One failure in a hundred thousand is not none."""
    assert figures.share(part, whole) == shown


def test_months_count_backwards_across_the_year() -> None:
    """January's neighbour is December."""
    assert figures.months_before("2026-02", 4) == ["2026-02", "2026-01", "2025-12", "2025-11"]
    assert figures.month_name("2025-12") == "December 2025"


@pytest.mark.parametrize(
    "text", ["", "2026-13", "2026-00", "2026-1", "2026/11", "٢٠٢٦-11", "1999-01"]
)
def test_what_is_no_month_is_refused(text: str) -> None:
    """Digits of other scripts included."""
    assert figures.parse_month(text) is None


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+1+1",
        "-1+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "＝1",
        "-x",
    ],
)
def test_a_cell_that_looks_like_a_formula_is_made_text(cell: str) -> None:
    """Tenant names come from outside; a spreadsheet must not run them."""
    written = list(csv.reader(io.StringIO(write_csv(["name"], [[cell]]), newline="")))
    assert written == [["name"], ["'" + cell]]


@pytest.mark.parametrize("cell", ["-0.000000000001", "-12.5", "12", 'Acme, "Inc"', "a=b", ""])
def test_numbers_and_ordinary_text_stay_as_they_are(cell: str) -> None:
    """A negative saving is still a number."""
    assert list(csv.reader(io.StringIO(write_csv(["h"], [["x", cell]]))))[1] == ["x", cell]


def test_the_export_sums_to_the_total_exactly() -> None:
    """Whoever adds up the column gets the figure on the page, to the last digit."""
    rows = [
        Summary(key=f"t{number}", requests=1, charge_pico=10**number + 1) for number in range(20)
    ]
    table = list(csv.DictReader(io.StringIO(figures_csv("2026-11", [("tenant", rows)]))))
    charged = sum((Decimal(row["charge_usd"]) for row in table), Decimal(0))
    assert charged.scaleb(12) == total(rows).charge_pico
    assert {row["period"] for row in table} == {"2026-11"}


def test_the_chart_is_well_formed_and_in_proportion() -> None:
    """Bar heights compare as amounts do, and hostile titles stay text."""
    bars = [
        Bar(label="1", title="<b>one</b>", spent_pico=2 * USD, saved_pico=USD),
        Bar(label="2", title='two"', spent_pico=4 * USD, saved_pico=-USD),
    ]
    root = ET.fromstring(daily_chart(bars, 'A "title" <i>'))
    rects = [element for element in root.iter() if element.tag == "rect"]
    heights = [float(rect.attrib["height"]) for rect in rects]
    assert [rect.attrib["class"] for rect in rects] == ["spent", "saved", "spent"]
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert root.attrib["aria-label"] == 'A "title" <i>'
    assert not [element for element in root.iter() if element.tag in ("b", "i")]


@given(st.integers(1, 10**20))
def test_the_axis_ends_at_a_round_amount_not_far_above(pico: int) -> None:
    """1, 2, 4, 5 or 10 times a power of ten, at most twice the largest day."""
    top = nice_ceiling(pico)
    assert pico <= top <= 2 * pico
    assert str(top).rstrip("0") in ("1", "2", "4", "5")


def test_a_meter_says_in_words_what_it_shows() -> None:
    """Colour never speaks alone."""
    root = ET.fromstring(meter(1_200_000, "120.0 %"))
    assert root.attrib["aria-label"] == "120.0 %"
    assert [rect.attrib["width"] for rect in root] == ["200", "200.0"]


def test_an_empty_chart_says_so_and_invents_no_scale() -> None:
    """Its only label is zero: no amount stands at the axis that nobody was charged."""
    days = [Bar(label=str(day), title=f"{day} May", spent_pico=0, saved_pico=0) for day in (1, 2)]
    texts = [e.text for e in ET.fromstring(daily_chart(days, "May")).iter() if e.text]
    assert [text for text in texts if text.startswith("$")] == ["$0.00"]
    assert "Nothing was charged or saved." in texts


def test_long_labels_at_the_axis_are_not_cut() -> None:
    """The plot makes room for them: text is anchored at its end, and begins inside the picture."""
    days = [Bar(label="1", title="1 May", spent_pico=3, saved_pico=0)]
    for tick in ET.fromstring(daily_chart(days, "May")).iter("text"):
        if tick.get("class") == "tick":
            assert float(tick.get("x") or 0) >= 8 * len(tick.text or "")
