"""The audit of the books: finds every figure that does not follow from another.

Reads only. Knows the tables and prices; repairs nothing.
"""

import sqlite3
from collections.abc import Iterator

from gateway.ledger.rows import (
    PROJECTION,
    ROLLUP_KEYS,
    ROLLUP_SUMS,
    USAGE_FIELDS,
    find_price,
)
from gateway.prices import Price, content_hash
from gateway.wire.usage import Usage

PROBLEMS_MAX = 100  # reported; more say no more


def problems(connection: sqlite3.Connection) -> list[str]:
    """What contradicts what, one sentence each; at most ``PROBLEMS_MAX``."""
    found: list[str] = []
    for check in (_damage, _unbalanced, _unposted, _drifted, _prices, _mispriced):
        for problem in check(connection):
            if len(found) == PROBLEMS_MAX:
                return [*found, "there are more problems"]
            found.append(problem)
    return found


def _damage(connection: sqlite3.Connection) -> Iterator[str]:
    for (line,) in connection.execute("PRAGMA integrity_check(10)"):
        if line != "ok":
            yield f"the database file is damaged: {line}"
    rejected = connection.execute("SELECT segment, byte_offset, reason FROM rejected_record")
    for segment, offset, reason in rejected:
        yield f"{segment} at byte {offset} could not be booked: {reason}"


def _unbalanced(connection: sqlite3.Connection) -> Iterator[str]:
    sums = connection.execute(
        "SELECT event_id, sum(amount_pico) AS rest FROM entry GROUP BY event_id HAVING rest <> 0"
    )
    for event_id, rest in sums:
        yield f"the entries of {event_id} sum to {rest} pico-USD and not to zero"


def _unposted(connection: sqlite3.Connection) -> Iterator[str]:
    """Entries must say the same as their event, account by account."""
    rows = connection.execute(
        "SELECT e.event_id FROM usage_event e WHERE"
        " (SELECT coalesce(sum(amount_pico), 0) FROM entry WHERE event_id = e.event_id"
        "  AND account = 'tenant/' || e.tenant_id) <> coalesce(charge_pico, 0)"
        " OR (SELECT coalesce(sum(amount_pico), 0) FROM entry WHERE event_id = e.event_id"
        "  AND account = 'provider/' || e.provider) <> -coalesce(cost_pico, 0)"
        " UNION ALL SELECT event_id FROM entry"
        " WHERE event_id NOT IN (SELECT event_id FROM usage_event)"
    )
    for (event_id,) in rows:
        yield f"the entries of {event_id} differ from the event"


def _drifted(connection: sqlite3.Connection) -> Iterator[str]:
    columns = ", ".join(ROLLUP_KEYS + ROLLUP_SUMS)
    booked = f"SELECT {columns} FROM rollup"  # noqa: S608 - constants
    true = f"SELECT {columns} FROM ({PROJECTION})"  # noqa: S608 - constants
    for first, second in ((booked, true), (true, booked)):
        for row in connection.execute(f"{first} EXCEPT {second}"):
            key = dict(zip(ROLLUP_KEYS, row, strict=False))
            yield (
                f"a rollup of tenant {key['tenant_id']}, {key['billing_period']}, model"
                f" {key['model_served']} differs from its events; run `tollhouse ledger rebuild`"
            )


def _prices(connection: sqlite3.Connection) -> Iterator[str]:
    for (price_id,) in connection.execute("SELECT price_id FROM price_book").fetchall():
        price = find_price(connection, price_id)
        assert price is not None, "it was just listed"
        if content_hash(price) != price.source_hash:
            yield f"price {price_id} is not what it was when it was entered"


def _mispriced(connection: sqlite3.Connection) -> Iterator[str]:
    """Each event priced again from the price book. Reservations booked as cost have no tokens."""
    known: dict[str, Price | None] = {}
    rows = connection.execute(
        f"SELECT event_id, price_id, cost_pico, cache_status, {', '.join(USAGE_FIELDS)}"  # noqa: S608
        " FROM usage_event WHERE cost_pico IS NOT NULL AND price_id IS NOT NULL"
        " AND usage_source <> 'none'"
    )
    for event_id, price_id, cost, cache_status, *counts in rows:
        if cache_status in ("exact", "semantic"):
            if cost:
                yield f"{event_id} was answered from a cache and yet cost {cost} pico-USD"
            continue
        if price_id not in known:
            known[price_id] = find_price(connection, price_id)
        price = known[price_id]
        if price is None:
            yield f"{event_id} refers to price {price_id}, which is not in the price book"
            continue
        expected = price.cost_pico(Usage(**dict(zip(USAGE_FIELDS, counts, strict=True))))
        if expected != cost:
            yield f"{event_id} cost {cost} pico-USD and is priced again at {expected}"
