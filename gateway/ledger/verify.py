"""The audit of the books: finds every figure that does not follow from another.

Reads only. Knows the tables and prices; repairs nothing.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import itemgetter

from gateway.ledger.rows import (
    PROJECTION,
    ROLLUP_KEYS,
    ROLLUP_SUMS,
    USAGE_FIELDS,
    find_price,
    postings,
)
from gateway.prices import Price, content_hash
from gateway.wire.usage import Usage

PROBLEMS_MAX = 100  # reported; more say no more


def problems(connection: sqlite3.Connection) -> list[str]:
    """What contradicts what, one sentence each; at most ``PROBLEMS_MAX``."""
    found: list[str] = []
    for check in (_damage, _misposted, _drifted, _prices, _mispriced):
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


def _misposted(connection: sqlite3.Connection) -> Iterator[str]:
    """Each transaction sums to zero, and says of every account what its events say."""
    for txn, posted, owed in _transactions(connection):
        if rest := sum(posted.values()):
            yield f"the entries of transaction {txn} sum to {rest} pico-USD and not to zero"
        for account in sorted(posted.keys() | owed.keys()):
            entered, true = posted.get(account, 0), owed.get(account, 0)
            if entered != true:
                yield (
                    f"the entries of transaction {txn} differ from the events: account {account}"
                    f" has {entered} pico-USD and the events say {true}"
                )


def _transactions(
    connection: sqlite3.Connection,
) -> Iterator[tuple[int, dict[str, int], dict[str, int]]]:
    """(number, entries, what the events say) by account; a last one for events after all."""
    lines = connection.execute("SELECT txn, account, amount_pico FROM entry ORDER BY txn")
    events = connection.execute(
        "SELECT seq, provider, tenant_id, coalesce(cost_pico, 0), coalesce(charge_pico, 0),"
        " possible_cost_pico, possible_charge_pico FROM usage_event ORDER BY seq"
    )
    event = next(events, None)
    endless: tuple[int, Iterable[tuple[int, str, int]]] = (2**63, ())
    for txn, entries in chain(groupby(lines, key=itemgetter(0)), [endless]):
        posted: Counter[str] = Counter()
        for _, account, amount in entries:
            posted[account] += amount
        owed: Counter[str] = Counter()
        while event is not None and event[0] <= txn:
            _, provider, tenant_id, cost, charge, possible_cost, possible_charge = event
            for account, amount in postings(provider, tenant_id, cost, charge):
                owed[account] += amount
            for account, amount in postings(provider, tenant_id, possible_cost, possible_charge):
                owed[f"possible/{account}"] += amount
            event = next(events, None)
        yield txn, posted, owed


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
