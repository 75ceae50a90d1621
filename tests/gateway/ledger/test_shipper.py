"""The shipper: live logs are followed, dead processes settled, and both exactly once."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.ledger import reports
from gateway.ledger.shipper import Shipper
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


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """The folder of the logs."""
    return tmp_path / "wal"


@pytest.fixture
def shipper(wal: Path, store: LedgerStore) -> Shipper:
    """A shipper that keeps nothing it has shipped; driven by hand."""
    wal.mkdir()
    return Shipper(wal, store, now_us=lambda: NOW_US + 5, retention_seconds=0)


Open = Callable[..., WriteAheadLog]


@pytest.fixture
def start(wal: Path) -> Iterator[Open]:
    """Starts a process's log; whatever is still open is closed at the end."""
    opened: list[WriteAheadLog] = []

    def start(boot_id: str, segment_bytes: int = 1 << 20) -> WriteAheadLog:
        opened.append(WriteAheadLog(wal, boot_id=boot_id, segment_bytes=segment_bytes))
        return opened[-1]

    yield start
    for log in opened:
        log.close()


def test_a_live_log_is_followed(shipper: Shipper, store: LedgerStore, start: Open) -> None:
    """What is complete is booked; what runs is left running."""
    log = start("a")
    log.append_intent(intent("r"))
    assert shipper.ship() == 0
    assert reports.request(store, "r") == []
    log.append_final(final("r"))
    assert shipper.ship() == 1
    assert shipper.ship() == 0
    assert [row.state for row in reports.request(store, "r")] == ["final"]
    assert shipper.wal_bytes == 0
    assert shipper.lag_seconds == 0


def test_an_attempt_of_a_dead_process_is_settled_from_its_last_checkpoint(
    shipper: Shipper, store: LedgerStore, start: Open
) -> None:
    """Estimated prompt and the tokens seen so far, priced from the price book, marked up."""
    log = start("a")
    log.append_intent(intent("r", markup_ppm=100_000))
    log.append_checkpoint("r/1", 64)
    shipper.ship()
    log.append_checkpoint("r/1", 128)
    log.append_checkpoint("r/1", 96)
    log.close()
    shipper.ship()
    (row,) = reports.request(store, "r")
    cost = PRICE.cost_pico(Usage(prompt_tokens=100, completion_tokens=128))
    assert (row.state, row.completion_tokens, row.usage_source) == (
        "interrupted",
        128,
        "partial_stream",
    )
    assert (row.cost_pico, row.charge_pico) == (cost, cost + cost // 10)
    assert store.verify() == []


def test_without_a_checkpoint_the_reservation_is_what_it_cost(
    shipper: Shipper, store: LedgerStore, start: Open
) -> None:
    """Nobody knows better; an attempt without a price stays unpriced, never free."""
    log = start("a")
    log.append_intent(intent("held"))
    log.append_intent(intent("unpriced", price_id=None))
    log.close()
    shipper.ship()
    costs = dict(query(store.path, "SELECT request_id, cost_pico FROM usage_event"))
    assert costs == {"held": 10**10, "unpriced": None}
    (row,) = reports.tenant_summary(store, "2026-11")
    assert (row.requests, row.estimated, row.unpriced, row.saved_pico) == (2, 2, 1, 0)
    assert store.verify() == []


def test_an_unpriced_attempt_keeps_the_tokens_of_its_checkpoint(
    shipper: Shipper, store: LedgerStore, start: Open
) -> None:
    """And where the price book lacks the price, the reservation is booked."""
    log = start("a")
    log.append_intent(intent("unpriced", price_id=None))
    log.append_intent(intent("unknown", price_id="nowhere/none"))
    log.append_checkpoint("unpriced/1", 9)
    log.append_checkpoint("unknown/1", 9)
    log.close()
    shipper.ship()
    question = "SELECT request_id, state, completion_tokens, cost_pico FROM usage_event ORDER BY 1"
    assert query(store.path, question) == [
        ("unknown", "estimated", 0, 10**10),
        ("unpriced", "interrupted", 9, None),
    ]


def test_recovery_happens_once(shipper: Shipper, store: LedgerStore, start: Open) -> None:
    """Also where the log is read again from its beginning."""
    log = start("a")
    for number in range(3):
        log.append_intent(intent(f"r{number}"))
    log.append_final(final("r0"))
    log.close()
    shipper.ship()
    before = query(store.path, "SELECT * FROM usage_event")
    rewind = sqlite3.connect(store.path, isolation_level=None)
    rewind.execute("DELETE FROM ingest_offset")
    rewind.close()
    shipper.ship()
    assert query(store.path, "SELECT * FROM usage_event") == before
    assert len(before) == 3
    assert query(store.path, "SELECT * FROM open_intent") == []


def test_only_the_dead_are_settled(shipper: Shipper, store: LedgerStore, start: Open) -> None:
    """A neighbour's attempts go on, though its log lies in the same folder."""
    dead, living = start("dead"), start("living")
    dead.append_intent(intent("d"))
    living.append_intent(intent("l"))
    dead.close()
    shipper.ship()
    assert reports.request(store, "l") == []
    assert len(reports.request(store, "d")) == 1
    living.append_final(final("l"))
    shipper.ship()
    assert [row.state for row in reports.request(store, "l")] == ["final"]


def test_shipped_segments_of_ended_processes_are_deleted_with_their_locks(
    shipper: Shipper, store: LedgerStore, start: Open, wal: Path
) -> None:
    """A living process keeps its last segment and its lock; nothing unshipped goes."""
    dead, living = start("dead", 800), start("living", 800)
    for number in range(10):
        append(dead, final(f"d{number}"))
        append(living, final(f"l{number}"))
    dead.close()
    shipper.tidy()
    assert len(list(wal.glob("*.wal"))) > 4
    shipper.ship()
    shipper.tidy()
    (kept,) = wal.glob("*.wal")
    (lock,) = wal.glob("*.lock")
    assert living.owner in kept.name
    assert living.owner in lock.name
    assert set(store.offsets()) == {kept.name}
    append(living, final("more"))
    assert shipper.ship() == 1
    assert len(query(store.path, "SELECT * FROM usage_event")) == 21


def test_a_segment_is_kept_for_its_retention(store: LedgerStore, start: Open, wal: Path) -> None:
    """So that books restored from yesterday's copy can read it again."""
    log = start("a")
    log.append_final(final("r"))
    log.close()
    shipper = Shipper(wal, store, now_us=lambda: NOW_US, retention_seconds=3600)
    shipper.ship()
    shipper.tidy()
    assert len(list(wal.glob("*.wal"))) == 1


def test_books_restored_from_a_copy_catch_up(
    shipper: Shipper, store: LedgerStore, start: Open, tmp_path: Path, wal: Path
) -> None:
    """The copy is older than the log; nothing is missing and nothing doubled afterwards."""
    log = start("a")
    append(log, final("before"))
    shipper.ship()
    with store.reader() as connection:
        connection.execute("ROLLBACK")
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copy.sqlite"),))
    append(log, final("after"))
    shipper.ship()
    restored = LedgerStore(tmp_path / "copy.sqlite")
    Shipper(wal, restored, now_us=lambda: NOW_US).ship()
    question = "SELECT event_id, cost_pico FROM usage_event ORDER BY 1"
    assert query(restored.path, question) == query(store.path, question)
    assert restored.verify() == []
    restored.close()


def test_damage_in_a_growing_segment_waits_and_in_an_ended_one_is_kept(
    shipper: Shipper, store: LedgerStore, start: Open, wal: Path
) -> None:
    """What may be a write under way is not given up; what is damage is shown by verify."""
    log = start("a")
    append(log, final("a"))
    append(log, final("b"))
    (path,) = wal.glob("*.wal")
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[20] ^= 1
    path.write_bytes(broken)
    assert shipper.ship() == 0
    path.write_bytes(whole)
    assert shipper.ship() == 2
    append(log, final("c"))
    append(log, final("d"))
    broken = bytearray(path.read_bytes())
    broken[len(whole) + 20] ^= 1
    path.write_bytes(broken)
    log.close()
    assert shipper.ship() == 1
    assert {row.request_id for row in reports.events(store, None, 0, 2**60)} == {"a", "b", "d"}
    (problem,) = store.verify()
    assert "damaged frame" in problem


def test_foreign_files_are_left_alone(shipper: Shipper, wal: Path) -> None:
    """They are no segments."""
    (wal / "usage-notes.wal").write_text("hello")
    assert shipper.ship() == 0
    shipper.tidy()
    assert (wal / "usage-notes.wal").exists()


def test_a_store_that_fails_is_tried_again(wal: Path, store: LedgerStore, start: Open) -> None:
    """The thread goes on, says why in ``last_error``, and the records wait in the log."""
    append(start("a"), final("r"))
    shipper = Shipper(wal, store, now_us=lambda: NOW_US, interval_seconds=0.005)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._connection.execute("PRAGMA busy_timeout = 1")
    shipper.start()
    _until(lambda: shipper.last_error is not None)
    assert "locked" in str(shipper.last_error)
    other.close()
    _until(lambda: shipper.last_error is None)
    shipper.stop()
    assert len(reports.request(store, "r")) == 1


def test_books_that_stand_still_say_so_again_and_again(
    wal: Path, store: LedgerStore, start: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at once, one per interval after that, and in between what the probes show."""
    append(start("a"), final("r"))
    shipper = Shipper(wal, store, now_us=lambda: NOW_US, interval_seconds=0.005, tell_seconds=0.1)
    assert shipper.state == "ok"
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._connection.execute("PRAGMA busy_timeout = 1")
    began = time.monotonic()
    shipper.start()

    def told() -> int:
        return sum("usage has not been booked for" in line for line in caplog.messages)

    _until(lambda: told() >= 3)
    assert told() <= 1 + (time.monotonic() - began) / 0.1
    assert shipper.state.startswith("usage has not been booked for")
    other.close()
    _until(lambda: shipper.state == "ok")
    shipper.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited ten seconds in vain"
        time.sleep(0.002)
