"""Structs to rows and back: usage events with their entries and rollups, and the price book.

Every function works inside a transaction that its caller owns. Knows SQL and arithmetic.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.ledger.event import UsageEvent, gross_saved_pico, unpriced
from gateway.prices import DAY_US, Price, Rates

# Columns of usage_event that are fields of UsageEvent, and of its usage, under the same name.
_EVENT_FIELDS = (
    "event_id", "request_id", "attempt", "state", "ts_us", "recorded_us", "tenant_id",
    "project_id", "key_id", "end_user", "client_request_id", "policy_version", "route", "decision",
    "reason", "difficulty", "cache_status", "cache_ref", "similarity", "provider",
    "model_requested", "model_served", "upstream_request_id", "price_id", "baseline_price_id",
    "list_pico", "cost_pico", "charge_pico", "baseline_pico", "overhead_pico", "status",
    "error_type", "duration_us", "ttft_us", "superseded",
)  # fmt: skip
USAGE_FIELDS = (
    "prompt_tokens", "cached_tokens", "cache_write_tokens", "prompt_audio_tokens",
    "prompt_image_tokens", "completion_tokens", "reasoning_tokens", "completion_audio_tokens",
    "compute_us", "cache_write_1h_tokens", "web_searches",
)  # fmt: skip
_OWN_COLUMNS = ("usage_source", "tags", "billing_period", "gross_saved_pico")
_COLUMNS = (*_EVENT_FIELDS, *USAGE_FIELDS, *_OWN_COLUMNS)
# A request counts once, on the attempt that answered it, however often an attempt is booked.
_INSERT_EVENT = (
    f"INSERT INTO usage_event ({', '.join(_COLUMNS)}, counted)"  # noqa: S608 - constants
    f" VALUES ({', '.join(['?'] * len(_COLUMNS))}, ? AND NOT EXISTS"
    " (SELECT 1 FROM usage_event WHERE request_id = ? AND counted))"
    " ON CONFLICT (event_id) DO NOTHING RETURNING counted"
)
_INSERT_ENTRY = "INSERT INTO entry VALUES (?, ?, ?, ?)"

ROLLUP_KEYS = (
    "day", "billing_period", "tenant_id", "project_id", "key_id", "provider", "model_served",
    "route", "decision", "cache_status", "state",
)  # fmt: skip
ROLLUP_SUMS = (
    "requests", "attempts", "errors", "unpriced", "prompt_tokens", "cached_tokens",
    "completion_tokens", "reasoning_tokens", "cost_pico", "charge_pico", "baseline_pico",
    "overhead_pico", "gross_saved_pico",
)  # fmt: skip
_UPSERT_ROLLUP = (
    f"INSERT INTO rollup ({', '.join(ROLLUP_KEYS + ROLLUP_SUMS)})"  # noqa: S608 - constants
    f" VALUES ({', '.join(['?'] * len(ROLLUP_KEYS + ROLLUP_SUMS))}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in ROLLUP_SUMS)
)
# The same projection from the events themselves: what rebuild writes and verify compares with.
# Within one key and day plain sums suffice; they would overflow at 9.2 million dollars.
PROJECTION = (
    f"SELECT ts_us / {DAY_US} AS day, {', '.join(ROLLUP_KEYS[1:])},"  # noqa: S608 - constants
    " sum(counted) AS requests, count(*) AS attempts,"
    " sum(counted AND status >= 400) AS errors,"
    " sum(cost_pico IS NULL AND (state <> 'final' OR prompt_tokens + completion_tokens > 0))"
    " AS unpriced, sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens,"
    " sum(completion_tokens) AS completion_tokens, sum(reasoning_tokens) AS reasoning_tokens,"
    " sum(coalesce(cost_pico, 0)) AS cost_pico, sum(coalesce(charge_pico, 0)) AS charge_pico,"
    " sum(iif(gross_saved_pico IS NULL OR superseded, 0, baseline_pico)) AS baseline_pico,"
    " sum(overhead_pico) AS overhead_pico, sum(coalesce(gross_saved_pico, 0)) AS gross_saved_pico"
    f" FROM usage_event GROUP BY {', '.join(ROLLUP_KEYS)}"
)


class Booking:
    """One transaction's bookings: events with their entries, and at its end their rollups."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._rollups: dict[tuple[Any, ...], list[int]] = {}
        closed = connection.execute("SELECT period FROM billing_period WHERE status = 'Closed'")
        self._closed = {period for (period,) in closed}

    def insert(self, event: UsageEvent) -> bool:
        """Book one event; False where it has been booked before, and then nothing happens."""
        usage = event.usage
        period = self._open_period(event.ts_us)
        saved = gross_saved_pico(event)
        values = (
            *[getattr(event, name) for name in _EVENT_FIELDS],
            *[getattr(usage, name) for name in USAGE_FIELDS],
            usage.source,
            msgspec.json.encode(event.tags, order="sorted").decode(),
            period,
            saved,
        )
        row = self._connection.execute(
            _INSERT_EVENT, (*values, not event.superseded, event.request_id)
        ).fetchone()
        if row is None:
            return False
        self._connection.executemany(_INSERT_ENTRY, _entries(event))
        counted = int(row[0])
        key = (
            event.ts_us // DAY_US,
            period,
            *[getattr(event, name) for name in ROLLUP_KEYS[2:]],
        )
        amounts = (
            counted,
            1,
            counted if event.status >= 400 else 0,
            int(unpriced(event)),
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            event.cost_pico or 0,
            event.charge_pico or 0,
            0 if saved is None or event.superseded else event.baseline_pico or 0,
            event.overhead_pico,
            saved or 0,
        )
        totals = self._rollups.setdefault(key, [0] * len(ROLLUP_SUMS))
        for position, amount in enumerate(amounts):
            totals[position] += amount
        return True

    def finish(self) -> None:
        """Add what was inserted to the rollups, in the same transaction."""
        self._connection.executemany(
            _UPSERT_ROLLUP, [(*key, *totals) for key, totals in self._rollups.items()]
        )
        self._rollups.clear()

    def _open_period(self, ts_us: int) -> str:
        """The month of the event, or the next one that is open: closed books stay closed."""
        period = period_of(ts_us)
        while period in self._closed:
            year, month = int(period[:4]), int(period[5:])
            period = f"{year + month // 12:04d}-{month % 12 + 1:02d}"
        return period


def period_of(ts_us: int) -> str:
    """The UTC month of a moment, as ``2026-11``."""
    return datetime.fromtimestamp(ts_us // 1_000_000, UTC).strftime("%Y-%m")


def rebuild_rollups(connection: sqlite3.Connection) -> None:
    """Replace all rollups by their projection from the events."""
    columns = ", ".join(ROLLUP_KEYS + ROLLUP_SUMS)
    connection.execute("DELETE FROM rollup")
    connection.execute(f"INSERT INTO rollup ({columns}) {PROJECTION}")


def insert_prices(connection: sqlite3.Connection, prices: Iterable[Price]) -> None:
    """Enter prices; an id that is known already names the same content."""
    connection.executemany(
        "INSERT INTO price_book (price_id, provider, model, currency, effective_from_us,"
        " effective_to_us, min_input_tokens, daily_from_us, daily_to_us, rates, source,"
        " source_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            (
                price.price_id,
                price.provider,
                price.model,
                price.currency,
                price.effective_from_us,
                price.effective_to_us,
                price.min_input_tokens,
                *(price.daily_window_us or (None, None)),
                msgspec.json.encode(price.rates).decode(),
                price.source,
                price.source_hash,
            )
            for price in prices
        ],
    )


def find_price(connection: sqlite3.Connection, price_id: str | None) -> Price | None:
    """The booked price of this id; None for None and for ids never entered."""
    if price_id is None:
        return None
    row = connection.execute(
        "SELECT provider, model, currency, effective_from_us, effective_to_us, min_input_tokens,"
        " daily_from_us, daily_to_us, rates, source, source_hash FROM price_book"
        " WHERE price_id = ?",
        (price_id,),
    ).fetchone()
    return None if row is None else _price(price_id, tuple(row))


def _price(price_id: str, row: Sequence[Any]) -> Price:
    provider, model, currency, from_us, to_us, min_tokens, daily_from, daily_to, *rest = row
    rates, source, source_hash = rest
    return Price(
        price_id=price_id,
        provider=provider,
        model=model,
        currency=currency,
        rates=msgspec.json.decode(rates, type=Rates),
        source=source,
        source_hash=source_hash,
        effective_from_us=from_us,
        effective_to_us=to_us,
        min_input_tokens=min_tokens,
        daily_window_us=None if daily_from is None else (daily_from, daily_to),
    )


def _entries(event: UsageEvent) -> list[tuple[str, int, str, int]]:
    """Double entry: we owe the provider, the tenant owes us, the rest is margin. Sums to zero."""
    cost, charge = event.cost_pico or 0, event.charge_pico or 0
    lines = (
        (f"provider/{event.provider}", -cost),
        (f"tenant/{event.tenant_id}", charge),
        ("margin", cost - charge),
    )
    return [
        (event.event_id, line, account, amount)
        for line, (account, amount) in enumerate(lines, start=1)
        if amount
    ]
