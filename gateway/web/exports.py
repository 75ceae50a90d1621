"""Summary for machines: the columns of the CSV files and of ``GET /admin/usage``, defined once.

Amounts are exact decimal dollars as text, because JSON numbers and spreadsheets keep 53 bits.
"""

from collections.abc import Sequence

from gateway.ledger.reports import Summary
from gateway.web.csv_export import write_csv
from gateway.web.figures import usd_exact

COUNTS = (
    "requests",
    "attempts",
    "errors",
    "refused",
    "exact_hits",
    "semantic_hits",
    "small",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "unpriced",
    "estimated",
    "interrupted",
    "possible",
)
AMOUNTS = (
    "charge_pico",
    "failures_charge_pico",
    "possible_charge_pico",
    "cost_pico",
    "possible_cost_pico",
    "baseline_pico",
    "saved_cache_pico",
    "saved_routing_pico",
    "overhead_pico",
    "saved_pico",
)


# What no tenant's own key is shown.
OURS = frozenset({"cost_pico", "overhead_pico", "possible_cost_pico"})


def document(figures: Summary, *, whole: bool = True) -> dict[str, str | int]:
    """One row by column name; ``…_pico`` becomes ``…_usd``, as exact decimal text.

    whole: with what we pay; else ``figures`` come from ``as_charged``.
    """
    row: dict[str, str | int] = {"key": figures.key, "provider": figures.provider}
    row |= {name: getattr(figures, name) for name in COUNTS}
    for name in AMOUNTS:
        if whole or name not in OURS:
            row[name.replace("_pico", "_usd")] = usd_exact(getattr(figures, name))
    return row


def figures_csv(
    period: str, sections: Sequence[tuple[str, Sequence[Summary]]], *, whole: bool = True
) -> str:
    """One table; its first columns name the month and what the row is a sum by."""
    header = ["period", "by", *document(Summary(key=""), whole=whole)]
    rows = [
        [period, by, *document(figures, whole=whole).values()]
        for by, section in sections
        for figures in section
    ]
    return write_csv(header, rows)


def total(rows: Sequence[Summary]) -> Summary:
    """The sum of several rows; exact, since all of it is integers."""
    names = (*COUNTS, *(name for name in AMOUNTS if name != "saved_pico"))
    return Summary(key="", **{name: sum(getattr(row, name) for row in rows) for name in names})
