"""Refused requests are counted exactly, soon, and for little."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import MeteringUnavailable
from gateway.ledger import reports
from gateway.ledger.event import Refused
from gateway.ledger.frames import segment_name
from gateway.ledger.refusals import AT_ONCE_MAX, INTERVAL_SECONDS, KINDS_MAX, RefusalCounter
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import WriteAheadLog
from tests.gateway.ledger.books import NOW_US, PRICE, final

DAY_US = 86_400_000_000


def refused(
    tenant: str = "acme", reason: str = "insufficient_quota", ts_us: int = NOW_US, count: int = 1
) -> Refused:
    return Refused(
        ts_us=ts_us, tenant_id=tenant, project_id="default", key_id="key-1", reason=reason,
        status=429, requests=count,
    )  # fmt: skip


class Disk:
    """Takes records, or refuses them; a clock that a test moves."""

    def __init__(self) -> None:
        self.records: list[Refused] = []
        self.full = False
        self.now = 100.0
        self.counter = RefusalCounter(self._append, lambda: self.now)

    def _append(self, record: Refused) -> None:
        if self.full:
            raise MeteringUnavailable("the disk is full")
        self.records.append(record)

    @property
    def requests(self) -> int:
        return sum(record.requests for record in self.records)


async def test_the_first_few_are_logged_at_once_and_a_flood_in_one_record() -> None:
    """10,000 refusals cost one record, and the count is exact after each flush."""
    disk = Disk()
    for number in range(AT_ONCE_MAX):
        disk.counter.count(refused())
        assert disk.requests == number + 1
    for _ in range(10_000):
        disk.counter.count(refused())
    disk.counter.count(refused(reason="missing_tags"))
    assert len(disk.records) == disk.requests == AT_ONCE_MAX + 1
    disk.counter.flush()
    assert (len(disk.records), disk.requests) == (AT_ONCE_MAX + 2, AT_ONCE_MAX + 10_001)
    disk.counter.count(refused())
    assert disk.requests == AT_ONCE_MAX + 10_001
    disk.counter.flush()
    disk.now += INTERVAL_SECONDS
    disk.counter.count(refused())
    assert disk.requests == AT_ONCE_MAX + 10_003


async def test_a_full_disk_delays_the_count_and_does_not_change_it() -> None:
    """Seven refusals that could not be written are one record of seven afterwards."""
    disk = Disk()
    disk.full = True
    for _ in range(7):
        disk.counter.count(refused())
    disk.counter.flush()
    assert disk.records == []
    disk.full = False
    disk.counter.flush()
    assert (len(disk.records), disk.requests) == (1, 7)


async def test_no_number_of_tenants_fills_the_memory() -> None:
    """While nothing can be written, at most KINDS_MAX different refusals are held."""
    disk = Disk()
    disk.full = True
    for number in range(KINDS_MAX + 500):
        disk.counter.count(refused(tenant=f"t{number}"))
    disk.full = False
    disk.counter.flush()
    assert len(disk.records) == KINDS_MAX


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LedgerStore]:
    opened = LedgerStore(tmp_path / "ledger.sqlite")
    opened.register_prices([PRICE])
    yield opened
    opened.close()


def test_the_books_say_who_was_turned_away_and_why(store: LedgerStore, tmp_path: Path) -> None:
    """Also of tenants that were never answered; no request, no attempt and no cost of it."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    log.append_final(final("r"))
    for record in (
        refused(), refused(count=4), refused(reason="missing_tags"),
        refused("initech", count=3), refused("initech", ts_us=NOW_US + DAY_US, count=2),
    ):  # fmt: skip
        log.append_refused(record)
    log.close()
    segment = tmp_path / "wal" / segment_name(log.owner, 1)
    assert store.ingest(segment, limit=3).more
    store.ingest(segment)
    assert store.ingest(segment).events == 0, "again changes nothing"
    assert [
        (row.tenant, row.reason, row.status, row.requests)
        for row in reports.refusals(store, "2026-11")
    ] == [
        ("acme", "insufficient_quota", 429, 5),
        ("initech", "insufficient_quota", 429, 5),
        ("acme", "missing_tags", 429, 1),
    ]
    assert [row.requests for row in reports.refusals(store, "2026-11", "acme")] == [5, 1]
    acme, initech = reports.tenant_summary(store, "2026-11")
    assert (acme.key, acme.requests, acme.errors, acme.refused) == ("acme", 1, 0, 6)
    assert (initech.key, initech.requests, initech.refused) == ("initech", 0, 5)
    assert [(row.key, row.refused) for row in reports.daily(store, "2026-11")] == [
        ("2026-11-20", 9), ("2026-11-21", 2),
    ]  # fmt: skip
    (model,) = reports.by_model(store, "2026-11")
    assert model.refused == 0
    assert store.verify() == []


def test_a_closed_month_takes_no_more_refusals(store: LedgerStore, tmp_path: Path) -> None:
    """A late count goes to the next month, and an impossible date is set aside for inspection."""
    store.close_period("2026-11", now_us=NOW_US, by="finance")
    log = WriteAheadLog(tmp_path / "wal", boot_id="a")
    log.append_refused(refused())
    log.append_refused(refused(ts_us=2**62))
    log.close()
    done = store.ingest(tmp_path / "wal" / segment_name(log.owner, 1))
    assert reports.refusals(store, "2026-11") == []
    assert [row.requests for row in reports.refusals(store, "2026-12")] == [1]
    assert not done.more
    assert len(store.verify()) == 1, "no calendar has such a day: it is kept apart"


async def test_what_waits_is_logged_without_a_further_refusal() -> None:
    """A timer does it."""
    disk = Disk()
    loop = asyncio.get_running_loop()
    for _ in range(AT_ONCE_MAX + 3):
        disk.counter.count(refused())
    (timer,) = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    timer._run()
    assert disk.requests == AT_ONCE_MAX + 3
