"""Structs to rows and back: usage events with their entries and rollups, and the price book.

Every function works inside a transaction that its caller owns. Knows SQL and arithmetic.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import add, itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple

from gateway.ledger.event import Refused, UsageEvent
from gateway.prices import DAY_US, Price, Rates
from gateway.wire.usage import Usage

# The record's order is the tables' order: own fields, what many events share, own fields, usage.
_FIELDS = UsageEvent.__struct_fields__
_OWN, _SHARED, _OWN_TOO, _USAGE = map(
    _FIELDS.index, ("request_id", "tenant_id", "recorded_us", "usage")
)
_CONTEXT_COLUMNS = (*_FIELDS[_SHARED:_OWN_TOO], "usage_source", "billing_period")
_COUNTS = Usage.__struct_fields__.index("other_fees")  # what stands before it are counts
USAGE_FIELDS = Usage.__struct_fields__[:_COUNTS]
_FACT_COLUMNS = (
    "context_id", "counted", "tags", *_FIELDS[_OWN:_SHARED], *_FIELDS[_OWN_TOO:_USAGE],
    *USAGE_FIELDS, *_FIELDS[_USAGE + 1 :],
)  # fmt: skip
_SUMMED = (
    "counted", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens",
    "overhead_pico", "charge_pico", "cost_pico", "baseline_pico", "possible_cost_pico",
    "possible_charge_pico",
)  # fmt: skip
_summed_of = itemgetter(*map(_FACT_COLUMNS.index, _SUMMED))

CONTEXTS_MAX = 1_024  # remembered
_FACTS_AT_ONCE = 32
_GROUPS_PER_BREATH = 8
_YIELD_SECONDS = 50e-6
_LINE_PICO_MAX = 2**62
_FIND_CONTEXT = (
    "SELECT context_id FROM usage_context WHERE "  # noqa: S608 - constants
    + " AND ".join(f"{name} IS ?" for name in _CONTEXT_COLUMNS)
)
_INSERT_CONTEXT = (
    f"INSERT INTO usage_context ({', '.join(_CONTEXT_COLUMNS)})"  # noqa: S608 - constants
    f" VALUES ({', '.join(['?'] * len(_CONTEXT_COLUMNS))}) RETURNING context_id"
)
_PLACES = f"({', '.join(['?'] * len(_FACT_COLUMNS))})"
_INSERT_FACT = f"INSERT INTO usage_fact ({', '.join(_FACT_COLUMNS)}) VALUES {_PLACES}"  # noqa: S608
_INSERT_NEW_FACT = _INSERT_FACT.replace("INSERT", "INSERT OR FAIL")
_INSERT_NEW_FACTS = _INSERT_NEW_FACT + f", {_PLACES}" * (_FACTS_AT_ONCE - 1)
_INSERT_UNKNOWN_FACT = f"{_INSERT_FACT} ON CONFLICT (request_id, attempt) DO NOTHING"
_UPSERT_REFUSAL = (
    "INSERT INTO refusal VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET requests = requests + excluded.requests"
)
_INSERT_ENTRY = "INSERT INTO entry VALUES (?, ?, ?, ?)"

ROLLUP_KEYS = (
    "day", "billing_period", "tenant_id", "project_id", "key_id", "provider", "model_served",
    "route", "decision", "cache_status", "state",
)  # fmt: skip
ROLLUP_SUMS = (
    "requests", "attempts", "errors", "unpriced", "prompt_tokens", "cached_tokens",
    "completion_tokens", "reasoning_tokens", "cost_pico", "charge_pico", "baseline_pico",
    "overhead_pico", "gross_saved_pico", "possible_cost_pico", "possible_charge_pico",
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
    " sum(iif(gross_saved_pico IS NULL OR superseded OR state = 'possible', 0, baseline_pico))"
    " AS baseline_pico,"
    " sum(overhead_pico) AS overhead_pico, sum(coalesce(gross_saved_pico, 0)) AS gross_saved_pico,"
    " sum(possible_cost_pico) AS possible_cost_pico,"
    " sum(possible_charge_pico) AS possible_charge_pico"
    f" FROM usage_event GROUP BY {', '.join(ROLLUP_KEYS)}"
)


def yield_interpreter() -> None:
    """Let the thread that serves requests run: it waits while this one computes."""
    time.sleep(_YIELD_SECONDS)  # 0 would take the interpreter's lock again at once


class Contexts:
    """The ids of the contexts used lately, so that few have to be looked up."""

    def __init__(self) -> None:
        self._ids: dict[tuple[Any, ...], int] = {}

    def forget(self) -> None:
        """Forget all: their transaction has been rolled back, and perhaps they with it."""
        self._ids.clear()

    def id(self, connection: sqlite3.Connection, context: tuple[Any, ...]) -> int:
        """The id of a context, by ``_CONTEXT_COLUMNS``; a new one is entered."""
        context_id = self._ids.get(context)
        if context_id is None:
            row = connection.execute(_FIND_CONTEXT, context).fetchone()
            if row is None:
                row = connection.execute(_INSERT_CONTEXT, context).fetchone()
            context_id = int(row[0])
            if len(self._ids) >= CONTEXTS_MAX:
                self._ids.clear()
            self._ids[context] = context_id
        return context_id


class _Group(msgspec.Struct):
    """The new events of one day and context, which share one row of the rollups."""

    key: tuple[Any, ...]  # by ROLLUP_KEYS
    example: UsageEvent  # what the context says is the same in all
    facts: list[tuple[Any, ...]]  # by _FACT_COLUMNS


class Booking:
    """One transaction's bookings: events, and at its end their entries and rollups."""

    def __init__(self, connection: sqlite3.Connection, contexts: Contexts) -> None:
        self._connection = connection
        self._contexts = contexts
        self._groups: dict[tuple[int, int], _Group] = {}  # by day and context
        closed = connection.execute("SELECT period FROM billing_period WHERE status = 'Closed'")
        self._closed = {period for (period,) in closed}
        self._periods: dict[int, str] = {}  # by day

    def insert_new(self, events: Sequence[UsageEvent]) -> None:
        """Book events that are all new, which is usual, and much faster than one by one.

        Raises sqlite3.Error, OverflowError or ValueError where one is not, or is impossible: then
        the transaction has to be rolled back, and this object is spent.
        """
        for start in range(0, len(events), _FACTS_AT_ONCE):
            facts = []
            for event in events[start : start + _FACTS_AT_ONCE]:
                group, fact = self._fact(event, not event.superseded)
                group.facts.append(fact)
                facts.append(fact)
            if len(facts) == _FACTS_AT_ONCE:
                # One step for many rows. Each step gives the interpreter's lock away and, while
                # requests are served, has to wait to get it back.
                self._connection.execute(_INSERT_NEW_FACTS, tuple(chain.from_iterable(facts)))
            else:
                self._connection.executemany(_INSERT_NEW_FACT, facts)

    def insert(self, event: UsageEvent) -> bool:
        """Book one event; False where it has been booked before, and then nothing happens.

        Raises as ``insert_new`` does.
        """
        # A request counts once, on the attempt that answered it, however often it is booked.
        counted = not event.superseded and not self._is_counted(event.request_id)
        group, fact = self._fact(event, counted)
        inserted = self._connection.execute(_INSERT_UNKNOWN_FACT, fact).rowcount == 1
        if inserted:
            group.facts.append(fact)
        return inserted

    def add_refusals(self, refused: Refused) -> None:
        """Count requests that were turned away. Raises as ``insert_new`` does."""
        day = refused.ts_us // DAY_US
        period = self._periods.get(day) or self._open_period(day)
        self._connection.execute(_UPSERT_REFUSAL, (day, period, *refused.kind, refused.requests))

    def forget_refused(self) -> None:
        """To be called where a failed ``insert`` was rolled back: its context may be gone."""
        self._contexts.forget()
        # The next context may get its id, and must not find its group.
        self._groups = {key: group for key, group in self._groups.items() if group.facts}

    def finish(self) -> None:
        """Post what was inserted, and add it to the rollups, in the same transaction."""
        groups = [group for group in self._groups.values() if group.facts]
        if not groups:
            return
        rollups = []
        accounts: dict[str, int] = {}
        for number, group in enumerate(groups, start=1):
            if number % _GROUPS_PER_BREATH == 0:
                yield_interpreter()
            sums = _sums(group)
            rollups.append((*group.key, *sums.values()))
            for account, amount in _postings(group.example, sums):
                accounts[account] = accounts.get(account, 0) + amount
        self._connection.executemany(_UPSERT_ROLLUP, rollups)
        # The events of a transaction are those since the one before it.
        (txn,) = self._connection.execute("SELECT max(seq) FROM usage_fact").fetchone()
        lines = [line for account in accounts.items() for line in _lines(*account)]
        self._connection.executemany(
            _INSERT_ENTRY, [(txn, number, *line) for number, line in enumerate(lines, start=1)]
        )
        self._groups.clear()

    def _fact(self, event: UsageEvent, counted: bool) -> tuple[_Group, tuple[Any, ...]]:
        if event.event_id != f"{event.request_id}/{event.attempt}":
            raise ValueError(f"{event.event_id} is no attempt of {event.request_id}")
        day = event.ts_us // DAY_US
        period = self._periods.get(day) or self._open_period(day)
        usage = event.usage
        values = astuple(event)
        context = (*values[_SHARED:_OWN_TOO], usage.source, period)
        context_id = self._contexts.id(self._connection, context)
        group = self._groups.get((day, context_id))
        if group is None:
            key = (day, period, *[getattr(event, name) for name in ROLLUP_KEYS[2:]])
            group = self._groups[day, context_id] = _Group(key, event, [])
        tags = _json_text(event.tags) if event.tags else "{}"
        own = values[_OWN:_SHARED] + values[_OWN_TOO:_USAGE] + astuple(usage)[:_COUNTS]
        return group, (context_id, counted, tags, *own, *values[_USAGE + 1 :])

    def _is_counted(self, request_id: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM usage_fact WHERE request_id = ? AND counted", (request_id,)
        )
        return found.fetchone() is not None

    def _open_period(self, day: int) -> str:
        """The month of a day, or the next one that is open: closed books stay closed."""
        period = period_of(day * DAY_US)
        while period in self._closed:
            year, month = int(period[:4]), int(period[5:])
            period = f"{year + month // 12:04d}-{month % 12 + 1:02d}"
        self._periods[day] = period
        return period


def _sums(group: _Group) -> dict[str, int]:
    """What a group adds to its rollup, by ROLLUP_SUMS; ``PROJECTION`` says the same in SQL."""
    event = group.example
    (
        counted, prompt, cached, completion, reasoning, overhead, charges, costs, baselines,
        possible_costs, possible_charges,
    ) = zip(*map(_summed_of, group.facts), strict=True)  # fmt: skip
    requests, cost = sum(counted), _sum_known(costs)
    if event.state == "possible":
        baseline, saved = 0, 0
    elif event.superseded:
        baseline, saved = 0, -cost
    else:
        pairs = zip(baselines, costs, strict=True)
        both = [(b, b - c) for b, c in pairs if b is not None and c is not None]
        baseline, saved = sum(b for b, _ in both), sum(saved for _, saved in both)
    return {
        "requests": requests,
        "attempts": len(group.facts),
        "errors": requests if event.status >= 400 else 0,
        "unpriced": sum(
            cost is None and (event.state != "final" or tokens > 0)
            for cost, tokens in zip(costs, map(add, prompt, completion), strict=True)
        ),
        "prompt_tokens": sum(prompt),
        "cached_tokens": sum(cached),
        "completion_tokens": sum(completion),
        "reasoning_tokens": sum(reasoning),
        "cost_pico": cost,
        "charge_pico": _sum_known(charges),
        "baseline_pico": baseline,
        "overhead_pico": sum(overhead),
        "gross_saved_pico": saved,
        "possible_cost_pico": sum(possible_costs),
        "possible_charge_pico": sum(possible_charges),
    }


def _sum_known(amounts: Iterable[int | None]) -> int:
    return sum(filter(None, amounts))


def _postings(event: UsageEvent, sums: dict[str, int]) -> list[tuple[str, int]]:
    """Double entry: we owe the provider, the tenant owes us, the rest is margin. Sums to zero.

    What may be owed has accounts of its own, and sums to zero there.
    """
    settled = postings(event.provider, event.tenant_id, sums["cost_pico"], sums["charge_pico"])
    if not sums["possible_cost_pico"] and not sums["possible_charge_pico"]:
        return settled
    pending = postings(
        event.provider, event.tenant_id, sums["possible_cost_pico"], sums["possible_charge_pico"]
    )
    return settled + [(f"possible/{account}", amount) for account, amount in pending]


def postings(provider: str, tenant_id: str, cost: int, charge: int) -> list[tuple[str, int]]:
    """(account, amount) of what a provider is owed and a tenant owes. Sums to zero."""
    return [
        (f"provider/{provider}", -cost),
        (f"tenant/{tenant_id}", charge),
        ("margin", cost - charge),
    ]


def _lines(account: str, amount: int) -> Iterator[tuple[str, int]]:
    """An amount as lines that fit 64 bits; none for nothing."""
    while amount:
        line = max(-_LINE_PICO_MAX, min(amount, _LINE_PICO_MAX))
        yield account, line
        amount -= line


def _json_text(tags: dict[str, str]) -> str:
    return msgspec.json.encode(tags, order="sorted").decode()


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
