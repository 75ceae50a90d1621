"""The books: each event once, entries that balance, rollups that follow, months that close."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.ledger import reports
from gateway.ledger.event import EVENT_PICO_MAX, Record, UsageEvent, plausible
from gateway.ledger.frames import segment_name
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import WriteAheadLog
from gateway.prices import all_prices
from gateway.wire.usage import Usage
from tests.gateway.ledger.books import NOW_US, PRICE, PRICES, append, final, intent, query


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LedgerStore]:
    """Empty books that know the test's price."""
    opened = LedgerStore(tmp_path / "ledger.sqlite")
    opened.register_prices(all_prices([PRICES]))
    yield opened
    opened.close()


def book(store: LedgerStore, *records: Record, boot_id: str = "boot") -> Path:
    """Write records to a log and ingest it; returns the segment."""
    directory = store.path.parent / "wal"
    log = WriteAheadLog(directory, boot_id=boot_id)
    for record in records:
        append(log, record)
    log.close()
    segment = directory / segment_name(log.owner, 1)
    while store.ingest(segment).more:
        pass
    return segment


def booked(store: LedgerStore) -> dict[str, int | None]:
    """Cost by event id."""
    return dict(query(store.path, "SELECT event_id, cost_pico FROM usage_event"))


def test_an_event_comes_back_as_it_was_booked(store: LedgerStore) -> None:
    """Every column that finance may ask for."""
    event = final("r", tags={"feature": "chat"}, difficulty=0.25, end_user="u", ttft_us=5)
    book(store, event)
    (row,) = reports.request(store, "r")
    assert row.tenant == "acme"
    assert row.tags == {"feature": "chat"}
    for name in ("event_id", "ts_us", "difficulty", "end_user", "cost_pico", "ttft_us", "state"):
        assert getattr(row, name) == getattr(event, name)
    assert (row.prompt_tokens, row.completion_tokens) == (100, 20)
    assert store.verify() == []


def test_the_same_records_twice_change_nothing(store: LedgerStore) -> None:
    """Also where they come from another segment with another offset."""
    records = [record for n in range(20) for record in (intent(f"r{n}"), final(f"r{n}"))]
    book(store, *records)
    before = query(store.path, "SELECT * FROM rollup")
    book(store, *records, *records, boot_id="replay")
    assert query(store.path, "SELECT * FROM rollup") == before
    assert len(booked(store)) == 20
    assert query(store.path, "SELECT * FROM open_intent") == []
    assert store.verify() == []


def test_small_batches_book_what_one_large_batch_does(store: LedgerStore, tmp_path: Path) -> None:
    """Intents, checkpoints and finals may fall into different transactions."""
    records: list[Record] = [intent(f"r{n}") for n in range(6)]
    records += [final(f"r{n}") for n in range(5)]
    segment = book(store, *records)
    other = LedgerStore(tmp_path / "other.sqlite")
    other.register_prices(all_prices([PRICES]))
    while other.ingest(segment, limit=1).more:
        pass
    for question in (*[f"SELECT * FROM {t}" for t in ("usage_event", "rollup", "open_intent")],
                     "SELECT account, sum(amount_pico) FROM entry GROUP BY 1"):  # fmt: skip
        assert query(other.path, question) == query(store.path, question)
    assert other.verify() == []
    other.close()


def test_entries_sum_to_zero_and_to_the_event(store: LedgerStore) -> None:
    """We owe the provider, the tenant owes us, the margin is between them."""
    event = final("r")
    assert event.cost_pico is not None
    assert event.charge_pico is not None
    book(store, event)
    entries = dict(query(store.path, "SELECT account, amount_pico FROM entry"))
    assert entries == {
        "provider/openai": -event.cost_pico,
        "tenant/acme": event.charge_pico,
        "margin": event.cost_pico - event.charge_pico,
    }


def test_a_request_counts_once_whatever_its_attempts(store: LedgerStore) -> None:
    """Retries cost, but are no requests and no errors of a request that was answered."""
    book(
        store,
        final("r", 1, status=502, error_type="upstream_error", superseded=True),
        final("r", 2),
        final("s", 1, status=502, error_type="upstream_error"),
        final("s", 2, status=502),  # a second "last" attempt is not counted either
    )
    (row,) = reports.tenant_summary(store, "2026-11")
    assert (row.requests, row.attempts, row.errors) == (2, 4, 1)


def test_savings_are_net_and_a_superseded_attempt_is_a_loss(store: LedgerStore) -> None:
    """Baseline minus all costs, the cost of deciding too; unpriced attempts say nothing."""
    cost = PRICE.cost_pico(Usage(prompt_tokens=100, completion_tokens=20))
    hit: dict[str, Any] = {"cache_status": "exact", "decision": "cached", "cost_pico": 0}
    book(
        store,
        final("a", overhead_pico=7),
        final("b", 1, superseded=True),
        final("b", 2),
        final("c", cost_pico=None, charge_pico=None),
        final("d", **hit, charge_pico=0, usage=USED),
    )
    (row,) = reports.tenant_summary(store, "2026-11")
    assert row.saved_routing_pico == (2 * cost - cost) - cost + (2 * cost - cost)
    assert row.saved_cache_pico == 2 * cost
    assert row.overhead_pico == 7
    assert row.saved_pico == 3 * cost - 7
    assert row.unpriced == 1
    assert row.cost_pico == 3 * cost
    assert (row.exact_hits, row.semantic_hits) == (1, 0)


USED = Usage(prompt_tokens=100, completion_tokens=20, source="cache")


def test_sums_are_exact_beyond_64_bits(store: LedgerStore) -> None:
    """SQLite's sum() of pico-dollars raises at 9.2 million dollars."""
    events = [
        final(
            f"r{n}",
            key_id=f"key-{n}",
            price_id=None,
            cost_pico=EVENT_PICO_MAX - n,
            charge_pico=EVENT_PICO_MAX - n,
            baseline_pico=0,
        )
        for n in range(1500)
    ]
    book(store, *events)
    expected = sum(EVENT_PICO_MAX - n for n in range(1500))
    assert expected > 2**63
    (row,) = reports.tenant_summary(store, "2026-11")
    assert row.cost_pico == expected
    assert row.saved_routing_pico == -expected
    assert store.period_spent("acme", NOW_US, NOW_US + 1, {}).charged_pico == expected


def test_charges_are_narrowed_by_time_and_tags(store: LedgerStore) -> None:
    """Half-open spans; tags compare as text, whatever is in them."""
    odd = {'a"b': "x' OR 1=1"}
    book(
        store,
        final("a", charge_pico=1),
        final("b", charge_pico=10, tags=odd),
        final("c", charge_pico=100, ts_us=NOW_US + 60_000_000),
        final("d", charge_pico=1000, tenant_id="other"),
        final("e", charge_pico=None, cost_pico=None),
    )
    span = (NOW_US, NOW_US + 60_000_000)
    assert store.period_spent("acme", *span, {}).charged_pico == 11
    assert store.period_spent("acme", *span, odd).charged_pico == 10
    assert store.period_spent("acme", *span, {"a": "x"}).charged_pico == 0
    assert store.period_spent("acme", NOW_US, NOW_US + 60_000_001, {}).charged_pico == 111


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_event SET cost_pico = 0",
        "DELETE FROM usage_event",
        "UPDATE entry SET amount_pico = 0",
        "DELETE FROM entry",
        "UPDATE price_book SET rates = '{}'",
        "DELETE FROM price_book",
    ],
)
def test_what_is_booked_cannot_be_changed(store: LedgerStore, statement: str) -> None:
    """Not even with SQL at hand."""
    book(store, final("r"))
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        query(store.path, statement)


def test_a_closed_month_takes_nothing_and_stays_closed(store: LedgerStore) -> None:
    """A late event of it is booked into the next open month; its own time is kept."""
    book(store, final("a"))
    store.close_period("2026-11", now_us=NOW_US, by="finance")
    store.close_period("2026-12", now_us=NOW_US, by="finance")
    book(store, final("late"), boot_id="late")
    (row,) = reports.request(store, "late")
    assert (row.billing_period, row.ts_us) == ("2027-01", NOW_US)
    assert [r.requests for r in reports.tenant_summary(store, "2026-11")] == [1]
    with pytest.raises(sqlite3.IntegrityError, match="closed"):
        store.close_period("2026-11", now_us=NOW_US, by="again")
    assert store.verify() == []


def test_an_impossible_record_stops_nothing_and_is_shown(store: LedgerStore) -> None:
    """One row the database refuses, between two good ones."""
    book(store, final("a"), final("b", cost_pico=2**63), final("c"))
    assert sorted(booked(store)) == ["a/1", "c/1"]
    (problem,) = store.verify()
    assert "could not be booked" in problem


@pytest.mark.parametrize(
    "lie",
    [
        {"usage": Usage(prompt_tokens=2**52)},
        {"cost_pico": 2**70},
        {"charge_pico": -(2**70)},
        {"overhead_pico": 2**70},
    ],
)
def test_an_implausible_event_is_booked_without_its_amounts(
    store: LedgerStore, lie: dict[str, Any]
) -> None:
    """A lying provider can neither overflow nor stop the books."""
    event = plausible(final("r", **lie))
    book(store, event)
    (row,) = reports.request(store, "r")
    assert (row.cost_pico, row.prompt_tokens) == (None, 0)
    assert (row.state, row.error_type) == ("estimated", "implausible_usage")
    assert plausible(final("r")) == final("r")


def test_verify_finds_what_does_not_follow(store: LedgerStore) -> None:
    """A wrong cost, an unknown price, a hit that cost, and a rollup that drifted."""
    book(
        store,
        final("wrong", cost_pico=1, charge_pico=1),
        final("unknown", price_id="nowhere/none"),
        final("hit", cache_status="exact", usage=USED, cost_pico=5, charge_pico=5),
    )
    query_write(store, "UPDATE rollup SET requests = requests + 1")
    found = store.verify()
    assert any("wrong/1 cost 1 pico-USD and is priced again at" in line for line in found)
    assert any("unknown/1 refers to price nowhere/none" in line for line in found)
    assert any("hit/1 was answered from a cache" in line for line in found)
    assert any("differs from its events" in line for line in found)
    store.rebuild_rollups()
    assert not any("differs from its events" in line for line in store.verify())


def test_verify_finds_forged_prices_and_entries(store: LedgerStore) -> None:
    """Somebody with the file and no respect for triggers."""
    book(store, final("r"))
    query_write(store, "DROP TRIGGER price_book_no_update", "DROP TRIGGER entry_no_update")
    query_write(store, "UPDATE price_book SET effective_from_us = 5")
    query_write(store, "UPDATE entry SET amount_pico = amount_pico + 1 WHERE line = 1")
    found = store.verify()
    assert any("is not what it was" in line for line in found)
    assert any("sum to 1 pico-USD" in line for line in found)
    assert any("differ from the events" in line for line in found)


def test_rollups_rebuilt_equal_rollups_kept(store: LedgerStore) -> None:
    """Random events: the projection and the increments are two ways to one table."""
    rng = random.Random(1)
    events: list[UsageEvent] = []
    for n in range(300):
        usage = Usage(prompt_tokens=rng.randrange(500), completion_tokens=rng.randrange(50))
        cost = rng.choice([None, PRICE.cost_pico(usage)])
        events.append(
            final(
                f"r{n // 2}",
                n,
                ts_us=NOW_US + rng.randrange(-20, 20) * 86_400_000_000,
                tenant_id=rng.choice("ab"),
                model_served=rng.choice("xy"),
                decision=rng.choice(["easy", "hard"]),
                state=rng.choice(["final", "estimated", "interrupted"]),
                status=rng.choice([200, 429, 502]),
                superseded=rng.random() < 0.3,
                usage=usage,
                cost_pico=cost,
                charge_pico=cost,
                baseline_pico=rng.choice([None, 10**9]),
                overhead_pico=rng.randrange(5),
            )
        )
    book(store, *events)
    assert store.verify() == []
    question = "SELECT * FROM rollup"
    kept = query(store.path, question)
    store.rebuild_rollups()
    assert query(store.path, question) == kept
    total = sum(event.cost_pico or 0 for event in events)
    periods = ("2026-10", "2026-11", "2026-12")
    for ask in (reports.tenant_summary, reports.by_model, reports.by_route, reports.daily):
        assert sum(row.cost_pico for period in periods for row in ask(store, period)) == total


def test_pages_of_events_follow_each_other(store: LedgerStore) -> None:
    """The cursor neither repeats nor skips; times outside the span and others are left out."""
    book(store, *[final(f"r{n}") for n in range(7)], final("old", ts_us=1), boot_id="b")
    book(store, final("theirs", tenant_id="other"), boot_id="c")
    seen: list[str] = []
    cursor = None
    while page := reports.events(store, "acme", NOW_US, NOW_US + 1, limit=3, cursor=cursor):
        seen += [row.request_id for row in page]
        cursor = page[-1].seq
    assert seen == [f"r{n}" for n in reversed(range(7))]


def test_a_reader_cannot_write(store: LedgerStore) -> None:
    """Reports hold no pen."""
    with store.reader() as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM rollup")


def test_books_of_the_first_release_become_present_ones(tmp_path: Path) -> None:
    """What they did not count then is zero."""
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    connection.close()
    store = LedgerStore(path)
    try:
        store.register_prices(all_prices([PRICES]))
        book(store, final("r"))
        counts = query(path, "SELECT cache_write_1h_tokens, web_searches FROM usage_event")
        assert counts == [(0, 0)]
        assert store.verify() == []
    finally:
        store.close()


def test_books_of_a_newer_release_are_left_alone(tmp_path: Path) -> None:
    """Opening them says so instead of guessing."""
    path = tmp_path / "ledger.sqlite"
    LedgerStore(path).close()
    query(path, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(ValueError, match="newer"):
        LedgerStore(path)


def test_books_of_the_second_version_become_a_star_without_losing_a_figure(
    store: LedgerStore, tmp_path: Path
) -> None:
    """Every column of every event, the entries, open attempts; and they go on."""
    book(
        store,
        final("a", tags={"feature": "chat"}, difficulty=0.25, end_user="u", ttft_us=5),
        final("b", 1, superseded=True, status=502, error_type="upstream_error"),
        final("b", 2, tenant_id="other", price_id=None, cost_pico=None, charge_pico=None),
        final("c", cost_pico=0, usage=USED, cache_status="exact", cache_ref="x", similarity=0.9),
        intent("open"),
    )
    path = tmp_path / "first.sqlite"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(
        f"{MIGRATIONS[0]} {MIGRATIONS[1]} PRAGMA user_version = 2; ATTACH '{store.path}' AS now;"
    )
    columns = ", ".join(row[1] for row in old.execute("PRAGMA main.table_info(usage_event)"))
    old.execute(f"INSERT INTO usage_event ({columns}) SELECT {columns} FROM now.usage_event")
    for table in ("rollup", "open_intent", "price_book", "ingest_offset"):
        kept = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
        old.execute(f"INSERT INTO {table} ({kept}) SELECT {kept} FROM now.{table}")
    for line, account, amount in (
        (1, "'provider/' || provider", "-cost_pico"),
        (2, "'tenant/' || tenant_id", "charge_pico"),
        (3, "'margin'", "cost_pico - charge_pico"),
    ):
        old.execute(
            f"INSERT INTO entry SELECT event_id, {line}, {account}, {amount} FROM now.usage_event"
            f" WHERE coalesce({amount}, 0) <> 0"
        )
    old.close()
    migrated = LedgerStore(path)
    everything = f"SELECT {columns} FROM usage_event"
    assert query(path, everything) == query(store.path, everything)
    assert len(query(path, everything)) == 4
    assert migrated.verify() == store.verify()
    book(migrated, final("open"), final("a"), boot_id="later")
    assert len(query(path, everything)) == 5
    assert query(path, "SELECT * FROM open_intent") == []
    assert migrated.verify() == store.verify()
    migrated.close()


def test_books_of_the_third_version_go_on_with_all_they_had(
    store: LedgerStore, tmp_path: Path
) -> None:
    """Contexts move to a new table; triggers still refuse changes; pending costs can be booked."""
    book(store, final("a"), final("b", superseded=True, status=502), intent("open"))
    path = tmp_path / "third.sqlite"
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(
        "".join(MIGRATIONS[:3]) + f"PRAGMA user_version = 3; ATTACH '{store.path}' AS now;"
    )
    tables = ("usage_context", "usage_fact", "entry", "rollup", "open_intent", "price_book")
    for table in tables:
        kept = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
        old.execute(f"INSERT INTO {table} ({kept}) SELECT {kept} FROM now.{table}")
    old.close()
    migrated = LedgerStore(path)
    for table in tables:
        assert query(path, f"SELECT * FROM {table}") == query(store.path, f"SELECT * FROM {table}")
    assert migrated.verify() == []
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        query_write(migrated, "UPDATE usage_context SET state = 'final'")
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        query_write(migrated, "DELETE FROM usage_fact")
    book(migrated, possible("c"), boot_id="later")
    assert migrated.verify() == []
    migrated.close()


def possible(request_id: str, attempt: int = 1, **changes: Any) -> UsageEvent:
    """An attempt that was sent and failed without an answer."""
    fields: dict[str, Any] = {
        "state": "possible", "status": 504, "error_type": "upstream_timeout",
        "usage": Usage(source="none"), "cost_pico": 0, "charge_pico": 0, "list_pico": 0,
        "baseline_pico": 0, "possible_cost_pico": 700, "possible_charge_pico": 770,
    }  # fmt: skip
    return final(request_id, attempt, **(fields | changes))


def test_a_possible_cost_has_accounts_and_a_line_of_its_own(store: LedgerStore) -> None:
    """It is no part of cost, charge or savings; what is charged for failures is told apart."""
    charged = {"cost_pico": 50, "charge_pico": 55, "possible_cost_pico": 0,
               "possible_charge_pico": 0, "superseded": True}  # fmt: skip
    book(
        store,
        possible("a"),
        possible("b", 1, **charged),
        final("b", 2, baseline_pico=0, cost_pico=0, charge_pico=0),
    )
    entries = dict(query(store.path, "SELECT account, amount_pico FROM entry"))
    assert entries == {
        "provider/openai": -50, "tenant/acme": 55, "margin": -5,
        "possible/provider/openai": -700, "possible/tenant/acme": 770, "possible/margin": -70,
    }  # fmt: skip
    (row,) = reports.tenant_summary(store, "2026-11")
    assert (row.possible, row.possible_cost_pico, row.possible_charge_pico) == (2, 700, 770)
    assert (row.cost_pico, row.charge_pico, row.failures_charge_pico) == (50, 55, 55)
    assert (row.saved_pico, row.baseline_pico, row.unpriced) == (0, 0, 0)
    spent = store.period_spent("acme", NOW_US, NOW_US + 1, {})
    assert (spent.charged_pico, spent.pending_pico) == (55, 770)


@pytest.mark.parametrize("period", ["2026", "2026-13", "11-2026", "2026-11-01", ""])
def test_a_period_that_is_no_month_is_refused(period: str) -> None:
    """With a sentence."""
    with pytest.raises(ValueError, match="is no month such as"):
        reports.period_bounds(period)


def query_write(store: LedgerStore, *statements: str) -> None:
    """Change the file behind the store's back."""
    connection = sqlite3.connect(store.path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
