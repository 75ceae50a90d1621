"""Questions to the books: sums by tenant, model, route or day, and single events.

Answers from rollups and from indexes, over connections that can only read. Money in pico-USD, and
exact: sums are taken in two parts, because SQLite's own overflow at 9.2 million dollars. Does not
know pages or formats.
"""

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from gateway.ledger.store import LedgerStore
from gateway.prices import DAY_US

EVENTS_MAX = 10_000  # returned at once; a cursor leads to the rest

Grouping = Literal["tenant", "project", "key", "model", "route", "day"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over one group of requests in one billing period."""

    key: str  # the tenant, project, key, model, route or day
    provider: str = ""  # of a model
    requests: int = 0
    attempts: int = 0
    errors: int = 0  # requests that ended with status 400 or above
    refused: int = 0  # turned away before any target was asked; none of the requests above
    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens
    completion_tokens: int = 0
    cost_pico: int = 0
    charge_pico: int = 0
    possible_cost_pico: int = 0  # of attempts that failed without an answer, at most; not in cost
    possible_charge_pico: int = 0  # the same with mark-up: pending, and not in the charge
    failures_charge_pico: int = 0  # of the charge, for such attempts, where the policy says so
    baseline_pico: int = 0  # of the attempts whose cost and baseline are both priced
    saved_cache_pico: int = 0  # baseline less cost of answers from our caches
    saved_routing_pico: int = 0  # baseline less cost of all other attempts; may be negative
    overhead_pico: int = 0  # own cost of deciding, not yet taken off the two above
    exact_hits: int = 0
    semantic_hits: int = 0
    small: int = 0  # answered by the small model of a route
    unpriced: int = 0  # attempts that consumed something without a price
    estimated: int = 0  # attempts settled without the provider's count
    interrupted: int = 0  # attempts settled from their last checkpoint
    possible: int = 0  # attempts that were sent and failed without an answer

    @property
    def saved_pico(self) -> int:
        """What was saved net of the cost of deciding."""
        return self.saved_cache_pico + self.saved_routing_pico - self.overhead_pico

    @property
    def cache_hits(self) -> int:
        """Answers from either cache."""
        return self.exact_hits + self.semantic_hits


class Refusals(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one tenant that were turned away for one reason."""

    tenant: str
    reason: str  # the error's code
    status: int
    requests: int


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """One booked attempt. The fields are those of the event and its usage."""

    seq: int  # the cursor: rises with each booking
    event_id: str
    request_id: str
    attempt: int
    ts_us: int
    recorded_us: int
    billing_period: str
    tenant: str
    project: str
    key_id: str
    end_user: str | None
    client_request_id: str | None
    tags: dict[str, str]
    route: str
    decision: str
    reason: str
    difficulty: float | None
    policy_version: str
    cache_status: str
    cache_ref: str | None
    similarity: float | None
    provider: str
    model_requested: str
    model_served: str
    upstream_request_id: str | None
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    compute_us: int
    usage_source: str
    price_id: str | None
    baseline_price_id: str | None
    list_pico: int | None
    cost_pico: int | None
    charge_pico: int | None
    baseline_pico: int | None
    overhead_pico: int
    status: int
    error_type: str | None
    duration_us: int  # of this attempt
    ttft_us: int | None
    state: str
    superseded: bool
    possible_cost_pico: int  # pending: at most; not in cost_pico
    possible_charge_pico: int
    request_us: int | None  # of the whole request, on the attempt that ended it


_GROUPS: dict[Grouping, tuple[str, str]] = {
    "tenant": ("tenant_id", "''"),
    "project": ("project_id", "''"),
    "key": ("key_id", "''"),
    "model": ("model_served", "provider"),
    "route": ("route", "''"),
    "day": ("day", "''"),
}
_REFUSED_BY: frozenset[Grouping] = frozenset({"tenant", "project", "key", "day"})
# Report column → the rows it sums, and what of them.
_COUNTS = {
    "requests": "requests",
    "attempts": "attempts",
    "errors": "errors",
    "prompt_tokens": "prompt_tokens",
    "cached_tokens": "cached_tokens",
    "completion_tokens": "completion_tokens",
    "exact_hits": "requests * (cache_status = 'exact')",
    "semantic_hits": "requests * (cache_status = 'semantic')",
    "small": "requests * (decision = 'easy')",
    "unpriced": "unpriced",
    "estimated": "attempts * (state = 'estimated')",
    "interrupted": "attempts * (state = 'interrupted')",
    "possible": "attempts * (state = 'possible')",
}
_HIT = "(cache_status IN ('exact', 'semantic'))"
_AMOUNTS = {
    "cost_pico": "cost_pico",
    "charge_pico": "charge_pico",
    "possible_cost_pico": "possible_cost_pico",
    "possible_charge_pico": "possible_charge_pico",
    "failures_charge_pico": "charge_pico * (state = 'possible')",
    "baseline_pico": "baseline_pico",
    "saved_cache_pico": f"gross_saved_pico * {_HIT}",
    "saved_routing_pico": f"gross_saved_pico * (NOT {_HIT})",
    "overhead_pico": "overhead_pico",
}
_SUMS = ", ".join(
    [f"sum({rows}) AS {name}" for name, rows in _COUNTS.items()]
    + [
        f"sum(({r}) / 1000000) AS {n}_micro, sum(({r}) % 1000000) AS {n}"
        for n, r in _AMOUNTS.items()
    ]
)
_EVENT_COLUMNS = ", ".join(
    {"tenant": "tenant_id AS tenant", "project": "project_id AS project"}.get(name, name)
    for name in EventRow.__struct_fields__
)


def tenant_summary(store: LedgerStore, period: str, tenant: str | None = None) -> list[Summary]:
    """One row per tenant, dearest first. ``period`` is a UTC month, ``2026-11``."""
    return summary(store, period, tenant, "tenant")


def by_model(store: LedgerStore, period: str, tenant: str | None = None) -> list[Summary]:
    """One row per provider and model, dearest first."""
    return summary(store, period, tenant, "model")


def by_route(store: LedgerStore, period: str, tenant: str | None = None) -> list[Summary]:
    """One row per route, dearest first."""
    return summary(store, period, tenant, "route")


def daily(store: LedgerStore, period: str, tenant: str | None = None) -> list[Summary]:
    """One row per UTC day on which something was booked, ``2026-11-21``, oldest first."""
    return summary(store, period, tenant, "day")


def summary(
    store: LedgerStore, period: str, tenant: str | None, grouping: Grouping
) -> list[Summary]:
    """Sums of one billing period by one property: days in their order, all else dearest first."""
    key, provider = _GROUPS[grouping]
    only, parameters = _narrowed("billing_period = ?", period, tenant)
    question = f"SELECT {key} AS key, {provider} AS provider, {_SUMS} FROM rollup"  # noqa: S608
    with store.reader() as connection:
        found = connection.execute(f"{question} WHERE {only} GROUP BY 1, 2", parameters).fetchall()
        refused: dict[str | int, int] = {}
        if grouping in _REFUSED_BY:  # before that there is no route and no model
            counts = f"SELECT {key}, sum(requests) FROM refusal WHERE {only} GROUP BY 1"  # noqa: S608
            refused = dict(map(tuple, connection.execute(counts, parameters)))
    rows = [_summary(row, grouping, refused.pop(row["key"], 0)) for row in found]
    rows += [Summary(key=_name(key, grouping), refused=count) for key, count in refused.items()]
    if grouping == "day":
        return sorted(rows, key=lambda row: row.key)
    return sorted(rows, key=lambda row: (-row.cost_pico, row.key, row.provider))


def refusals(store: LedgerStore, period: str, tenant: str | None = None) -> list[Refusals]:
    """Who was turned away in one billing period and why, the most frequent first."""
    only, parameters = _narrowed("billing_period = ?", period, tenant)
    question = (
        "SELECT tenant_id AS tenant, reason, status, sum(requests) AS requests FROM refusal"  # noqa: S608
        f" WHERE {only} GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3"
    )
    with store.reader() as connection:
        return [Refusals(**dict(row)) for row in connection.execute(question, parameters)]


def events(
    store: LedgerStore,
    tenant: str | None,
    from_us: int,
    to_us: int,
    limit: int = 100,
    cursor: int | None = None,
) -> list[EventRow]:
    """Attempts of requests begun in [from_us, to_us), the latest booked first.

    ``cursor`` is the ``seq`` of the last row of the page before; at most ``EVENTS_MAX`` rows.
    """
    only, parameters = _narrowed("ts_us >= ? AND ts_us < ?", from_us, to_us, tenant)
    if cursor is not None:
        only, parameters = f"{only} AND seq < ?", [*parameters, cursor]
    question = f"SELECT {_EVENT_COLUMNS} FROM usage_event WHERE {only}"  # noqa: S608 - constants
    with store.reader() as connection:
        found = connection.execute(
            f"{question} ORDER BY seq DESC LIMIT ?", [*parameters, min(limit, EVENTS_MAX)]
        )
        return [_event(row) for row in found]


def request(store: LedgerStore, request_id: str) -> list[EventRow]:
    """The attempts of one request, first to last; empty where it is unknown."""
    question = f"SELECT {_EVENT_COLUMNS} FROM usage_event WHERE request_id = ?"  # noqa: S608
    with store.reader() as connection:
        found = connection.execute(f"{question} ORDER BY attempt", (request_id,))
        return [_event(row) for row in found]


def period_bounds(period: str) -> tuple[int, int]:
    """[start, end) of a month such as ``2026-11``. Raises ValueError for anything else."""
    try:
        start = datetime.strptime(period, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"{period!r} is no month such as 2026-11") from None
    end = (start + timedelta(days=31)).replace(day=1)
    return int(start.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000


def _narrowed(condition: str, *parameters: Any) -> tuple[str, list[Any]]:
    """The condition for one tenant, the last parameter, or for all where it is None."""
    *fixed, tenant = parameters
    if tenant is None:
        return condition, fixed
    return f"{condition} AND tenant_id = ?", [*fixed, tenant]


def _summary(row: sqlite3.Row, grouping: Grouping, refused: int) -> Summary:
    return Summary(
        key=_name(row["key"], grouping),
        provider=row["provider"],
        refused=refused,
        **{name: row[name] for name in _COUNTS},
        **{name: row[f"{name}_micro"] * 1_000_000 + row[name] for name in _AMOUNTS},
    )


def _name(key: Any, grouping: Grouping) -> str:
    if grouping == "day":
        return datetime.fromtimestamp(key * DAY_US // 1_000_000, UTC).date().isoformat()
    return str(key)


def _event(row: sqlite3.Row) -> EventRow:
    values = dict(row)
    values["tags"] = msgspec.json.decode(values["tags"])
    values["superseded"] = bool(values["superseded"])
    return EventRow(**values)
