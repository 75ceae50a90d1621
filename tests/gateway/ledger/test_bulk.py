"""Booking in bulk is an optimisation: the books are those of records taken one at a time."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.ledger.event import EVENT_PICO_MAX
from gateway.ledger.frames import segment_name
from gateway.ledger.rows import CONTEXTS_MAX
from gateway.ledger.store import BATCH_RECORDS_MAX, LedgerStore
from gateway.ledger.wal import WriteAheadLog
from gateway.prices import all_prices
from gateway.wire.usage import Usage
from tests.gateway.ledger.books import NOW_US, PRICE, PRICES, append, final, intent, query

DAY_US = 86_400_000_000
USED = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=5, reasoning_tokens=2)
# What a final record may be, by number; the last two no database takes.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"superseded": True, "status": 502, "error_type": "upstream_error"},
    {"usage": USED, "tenant_id": "other", "tags": {"feature": "é"}, "ts_us": NOW_US - 30 * DAY_US},
    {"cost_pico": None, "charge_pico": None, "price_id": None, "ts_us": NOW_US + DAY_US},
    {"baseline_pico": None, "state": "estimated"},
    {"status": 429, "overhead_pico": 3, "cost_pico": 0, "charge_pico": 0, "price_id": None},
    {"cost_pico": 2**63},
    {"event_id": "of another/1"},
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["intent", "checkpoint", "final", "final", "final"]),
        st.integers(0, 5),  # request
        st.integers(1, 3),  # attempt
        st.integers(0, len(KINDS) - 1),
    ),
    max_size=40,
)
Step = tuple[str, int, int, int]


def write(directory: Path, boot_id: str, steps: list[Step]) -> Path:
    """A log of these steps; as in life, no intent after its final, no checkpoint before it."""
    log = WriteAheadLog(directory, boot_id=boot_id)
    begun, ended = set(), set()
    for step, request, attempt, kind in steps:
        name = f"r{request}"
        if step == "intent" and (request, attempt) not in ended:
            begun.add((request, attempt))
            log.append_intent(intent(name, attempt))
        elif step == "final":
            ended.add((request, attempt))
            log.append_final(final(name, attempt, **KINDS[kind]))
        elif (request, attempt) in begun:
            log.append_checkpoint(f"{name}/{attempt}", 10 * kind)
    log.close()
    return directory / segment_name(log.owner, 1)


def books(path: Path, segments: list[Path], limit: int) -> tuple[list[list[tuple[Any, ...]]], Any]:
    """Everything that is booked of two dead processes, taken ``limit`` records at a time."""
    store = LedgerStore(path)
    store.register_prices(all_prices([PRICES]))
    store.close_period("2026-10", now_us=NOW_US, by="finance")
    for segment in segments:
        while store.ingest(segment, limit=limit).more:
            pass
    for segment in segments:
        store.recover(segment.name.removeprefix("usage-")[: -len("-00000001.wal")], NOW_US)
    assert store.open_owners() == set()
    problems = [line for line in store.verify() if "could not be booked" not in line]
    store.close()
    tables = [
        query(path, f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("usage_event", "rollup", "rejected_record", "ingest_offset")
    ]
    accounts = query(path, "SELECT account, sum(amount_pico) FROM entry GROUP BY 1 ORDER BY 1")
    return [*tables, accounts], [line for line in problems if "priced again" not in line]


@settings(max_examples=25, deadline=None)
@given(first=steps, second=steps, damage=st.lists(st.integers(0, 4000), max_size=2))
@example(first=[("final", 1, 1, 0)] * 3, second=[("final", 1, 1, 3), ("final", 1, 2, 0)], damage=[])
@example(first=[("final", 1, 1, 6), ("final", 1, 1, 1)], second=[], damage=[])
@example(first=[("intent", 1, 1, 0), ("checkpoint", 1, 1, 2)], second=[], damage=[3])
def test_in_bulk_and_one_by_one_make_the_same_books(
    first: list[Step], second: list[Step], damage: list[int]
) -> None:
    """Repeats, second answers, impossible events, damage, attempts left open: in any order."""
    with TemporaryDirectory() as folder:
        home = Path(folder)
        segments = [write(home / "wal", "a", first), write(home / "wal", "b", second)]
        for place in damage:
            content = bytearray(segments[0].read_bytes())
            if content:
                content[place % len(content)] ^= 0x55
                segments[0].write_bytes(content)
        bulk, problems = books(home / "bulk.sqlite", segments, BATCH_RECORDS_MAX)
        single, _ = books(home / "single.sqlite", segments, 1)
        some, _ = books(home / "some.sqlite", segments, 3)
        assert bulk == single == some
        assert problems == []


def test_a_repeat_in_a_large_batch_costs_nothing_but_time(tmp_path: Path) -> None:
    """A thousand events of which one is known: the others are booked, and it is not again."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    append(log, final("r500"))
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.register_prices(all_prices([PRICES]))
    segment = tmp_path / "wal" / segment_name(log.owner, 1)
    store.ingest(segment)
    for number in range(900):
        append(log, final(f"r{number}"))
    log.close()
    done = store.ingest(segment)
    assert (done.events, done.repeated, done.rejected) == (899, 1, 0)
    assert store.verify() == []
    store.close()
    cost = PRICE.cost_pico(Usage(prompt_tokens=100, completion_tokens=20))
    totals = query(store.path, "SELECT sum(requests), sum(cost_pico) FROM rollup")
    assert totals == [(900, 900 * cost)]


def test_more_contexts_than_are_remembered_are_each_entered_once(tmp_path: Path) -> None:
    """Also where a batch that entered some of them had to be taken back."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    for number in range(CONTEXTS_MAX + 50):
        append(log, final(f"r{number}", key_id=f"k{number}"))
    append(log, final("r0", key_id="new to the batch that is taken back"))
    for number in range(100):
        append(log, final(f"again{number}", key_id=f"k{number}"))
    log.close()
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.register_prices(all_prices([PRICES]))
    while store.ingest(tmp_path / "wal" / segment_name(log.owner, 1), limit=700).more:
        pass
    assert store.verify() == []
    store.close()
    keys = query(store.path, "SELECT key_id, count(*) FROM usage_context GROUP BY 1")
    assert {f"k{number}": 1 for number in range(CONTEXTS_MAX + 50)}.items() <= dict(keys).items()
    events = query(store.path, "SELECT count(*), count(DISTINCT key_id) FROM usage_event")
    assert events == [(CONTEXTS_MAX + 150, CONTEXTS_MAX + 50)]


def test_a_transaction_of_amounts_beyond_64_bits_still_balances(tmp_path: Path) -> None:
    """In so many lines per account as it takes."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    for number in range(1000):
        append(
            log,
            final(
                f"r{number}",
                key_id=f"key-{number}",
                price_id=None,
                cost_pico=EVENT_PICO_MAX,
                charge_pico=EVENT_PICO_MAX,
            ),
        )
    log.close()
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.ingest(tmp_path / "wal" / segment_name(log.owner, 1))
    assert store.verify() == []
    store.close()
    lines = query(store.path, "SELECT amount_pico FROM entry WHERE account = 'tenant/acme'")
    assert sum(amount for (amount,) in lines) == 1000 * EVENT_PICO_MAX
    assert len(lines) == 3


def test_what_a_batch_left_unposted_or_somebody_deleted_is_found(tmp_path: Path) -> None:
    """The entries are a second account of the events, not a copy of their sums."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    for number in range(3):
        append(log, final(f"r{number}", key_id=f"k{number}"))
    log.close()
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.register_prices(all_prices([PRICES]))
    store.ingest(tmp_path / "wal" / segment_name(log.owner, 1))
    assert store.verify() == []
    connection = store._connection
    connection.execute("DROP TRIGGER usage_fact_no_delete")
    connection.execute("DELETE FROM usage_fact WHERE request_id = 'r1'")
    store.rebuild_rollups()
    found = store.verify()
    store.close()
    assert len(found) == 3
    assert all("differ from the events" in line for line in found)
