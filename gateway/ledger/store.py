"""The ledger's database: books records of the write-ahead log exactly once, in SQLite.

One lock admits one writer; reports use connections of their own. Knows files of the log and SQL.
Does not know processes, threads, budgets or HTTP.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.ledger import rows
from gateway.ledger.event import Checkpoint, Intent, Refused, UsageEvent, interrupted
from gateway.ledger.frames import (
    Corrupt,
    Head,
    IntentHead,
    decode_head,
    decode_record,
    no_record,
    read_frames,
    segment_owner,
)
from gateway.ledger.schema import migrate
from gateway.prices import DAY_US, Price
from gateway.private_files import private_file

BATCH_RECORDS_MAX = 2_000
_BUSY_SECONDS = 10.0
_RECORDS_PER_BREATH = 32
_IMPOSSIBLE = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, ValueError)
# Sums of parts: SQLite's sum() of pico-dollars overflows at 9.2 million dollars.
_SUM = (
    "SELECT coalesce(sum(charge_pico / 1000000), 0), coalesce(sum(charge_pico % 1000000), 0),"
    " coalesce(sum(possible_charge_pico / 1000000), 0),"
    " coalesce(sum(possible_charge_pico % 1000000), 0)"
    " FROM usage_event WHERE "
)
_CHARGES = _SUM + "tenant_id = ? AND ts_us >= ? AND ts_us < ?"
_REQUEST_CHARGE = _SUM + "request_id = ?"
_TAGGED = " AND EXISTS (SELECT 1 FROM json_each(tags) WHERE key = ? AND value = ?)"


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """What one ``ingest`` did."""

    events: int = 0  # newly booked
    repeated: int = 0  # already booked before: nothing happened
    rejected: int = 0  # damaged or refused; kept in ``rejected_record``
    byte_offset: int = 0  # of the segment, up to which everything is booked
    more: bool = False  # the segment has complete records beyond
    damaged: bool = False  # a growing segment has damage beyond


class Spent(NamedTuple):
    """What some requests took from their budgets, in pico-USD."""

    charged_pico: int
    pending_pico: int  # may be charged yet: of attempts that failed without an answer


class LedgerStore:
    """The books. Safe to use from several threads; one write at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings it up to date. Raises ValueError if too new."""
        self.path = path
        self._lock = threading.Lock()
        self._contexts = rows.Contexts()
        try:
            self._connection = sqlite3.connect(
                private_file(path),
                timeout=_BUSY_SECONDS,
                check_same_thread=False,
                isolation_level=None,
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            # One commit per batch: a full sync costs nothing, and segments are deleted after it.
            self._connection.execute("PRAGMA synchronous = FULL")
            # Pages that many commits touch are then copied into the file once, at 16 MiB.
            self._connection.execute("PRAGMA wal_autocheckpoint = 4000")
            migrate(self._connection)
        except sqlite3.Error as error:
            raise type(error)(f"{path} cannot be used: {error}") from None

    def close(self) -> None:
        """Close the writer's connection."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection that sees one consistent state for as long as it is open."""
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            yield connection

    def ingest(
        self, segment: Path, *, growing: bool = False, limit: int = BATCH_RECORDS_MAX
    ) -> Ingested:
        """Book the next records of a segment, and how far it is booked, in one transaction.

        Of a ``growing`` segment damage is left for later: it may be a write that is under way.
        """
        owner = segment_owner(segment)
        if owner is None:
            raise ValueError(f"{segment.name} is no segment of the usage log")
        with self._writing() as connection:
            batch = _Batch(segment.name, owner[0], _offset(connection, segment.name))
            damaged = batch.read(segment, limit=limit, patient=growing)
            more = batch.size == limit
            if batch.size:
                batch.book(connection, self._contexts)
            return Ingested(
                events=batch.inserted,
                repeated=len(batch.events) - batch.inserted - batch.refused,
                rejected=len(batch.corrupt) + batch.refused,
                byte_offset=batch.end,
                more=more,
                damaged=damaged,
            )

    def recover(self, owner: str, now_us: int) -> int:
        """Settle what a dead process left open; returns the number of attempts.

        Its segments must have been ingested to their ends. One transaction: killed at any
        instant, it has happened wholly or not at all.
        """
        with self._writing() as connection:
            booking = rows.Booking(connection, self._contexts)
            found = connection.execute(
                "SELECT event_id, intent, completion_tokens FROM open_intent WHERE owner = ?",
                (owner,),
            ).fetchall()
            for event_id, packed, completion_tokens in found:
                intent = decode_record(packed)
                assert isinstance(intent, Intent), "only intents are kept open"
                event = interrupted(
                    intent,
                    completion_tokens,
                    price=rows.find_price(connection, intent.price_id),
                    baseline=rows.find_price(connection, intent.baseline_price_id),
                    recorded_us=now_us,
                )
                booking.insert(event)
                connection.execute("DELETE FROM open_intent WHERE event_id = ?", (event_id,))
            booking.finish()
            return len(found)

    def offsets(self) -> dict[str, int]:
        """How far each segment is booked, by file name."""
        with self._lock:
            found = self._connection.execute("SELECT segment, byte_offset FROM ingest_offset")
            return dict(found.fetchall())

    def open_owners(self) -> set[str]:
        """The processes that have attempts without a final record."""
        with self._lock:
            found = self._connection.execute("SELECT DISTINCT owner FROM open_intent")
            return {owner for (owner,) in found}

    def forget(self, segment_name: str) -> None:
        """Drop the offset of a segment whose file has been deleted."""
        with self._writing() as connection:
            connection.execute("DELETE FROM ingest_offset WHERE segment = ?", (segment_name,))

    def register_prices(self, prices: Iterable[Price]) -> None:
        """Enter prices into the price book. A known id is left alone: ids name contents."""
        with self._writing() as connection:
            rows.insert_prices(connection, prices)

    def price(self, price_id: str) -> Price | None:
        """The price booked under this id."""
        with self._lock:
            return rows.find_price(self._connection, price_id)

    def period_spent(
        self, tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]
    ) -> Spent:
        """What a tenant spent on requests begun in [from_us, to_us) that carry ``tags``."""
        parameters = [part for pair in tags.items() for part in pair]
        with self._lock:
            found = self._connection.execute(
                _CHARGES + _TAGGED * len(tags), (tenant_id, from_us, to_us, *parameters)
            )
            return _spent(found.fetchone())

    def spent(
        self,
        tenant_id: str,
        from_us: int,
        to_us: int,
        tags: Mapping[str, str],
        request_ids: Sequence[str],
    ) -> tuple[Spent, dict[str, Spent]]:
        """``period_spent``, and the part of it that each of these requests has, at one moment."""
        parameters = [part for pair in tags.items() for part in pair]
        span = (tenant_id, from_us, to_us, *parameters)
        with self.reader() as connection:
            total = connection.execute(_CHARGES + _TAGGED * len(tags), span).fetchone()
            parts = {
                request_id: _spent(
                    connection.execute(
                        _CHARGES + _TAGGED * len(tags) + " AND request_id = ?", (*span, request_id)
                    ).fetchone()
                )
                for request_id in request_ids
            }
        return _spent(total), parts

    def request_spent(self, request_id: str) -> Spent:
        """What was spent on a request, with all its attempts."""
        with self.reader() as connection:
            return _spent(connection.execute(_REQUEST_CHARGE, (request_id,)).fetchone())

    def close_period(self, period: str, *, now_us: int, by: str) -> None:
        """Close a month ("2026-11") for good: later events of it go to the next open one."""
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO billing_period VALUES (?, 'Closed', ?, ?)"
                " ON CONFLICT (period) DO UPDATE SET status = excluded.status,"
                " closed_us = excluded.closed_us, closed_by = excluded.closed_by",
                (period, now_us, by),
            )

    def rebuild_rollups(self) -> None:
        """Recreate the rollups from the events."""
        with self._writing() as connection:
            rows.rebuild_rollups(connection)

    def verify(self) -> list[str]:
        """Every contradiction in the books, as sentences; none is how it should be."""
        from gateway.ledger.verify import problems  # the long way round, needed by one command

        with self.reader() as connection:
            return problems(connection)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._contexts.forget()
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


class _Batch:
    """Records of one segment on their way into one transaction."""

    def __init__(self, segment_name: str, owner: str, start: int) -> None:
        self.segment_name = segment_name
        self.owner = owner
        self.end = start
        self.size = 0
        self.intents: dict[str, tuple[bytes, int]] = {}  # payload and its end, where still open
        self.checkpoints: dict[str, int] = {}
        self.events: list[UsageEvent] = []
        self.offsets: list[int] = []  # of the events
        self.refusals: dict[tuple[object, ...], Refused] = {}  # by day and kind
        self.corrupt: list[Corrupt] = []
        self.inserted = 0
        self.refused = 0

    def read(self, segment: Path, *, limit: int, patient: bool) -> bool:
        """Take up to ``limit`` records; True where damage stops a patient reader."""
        for payload, end in islice(read_frames(segment, self.end), limit):
            record: Head | Corrupt
            try:
                record = payload if isinstance(payload, Corrupt) else decode_head(payload)
            except ValueError as error:
                assert isinstance(payload, bytes), "only those are decoded"
                record = no_record(payload, end, error)
            if isinstance(record, IntentHead):
                assert isinstance(payload, bytes), "it has just been decoded"
                self.intents[record.event_id] = payload, end
            elif isinstance(record, UsageEvent):
                self.events.append(record)
                self.offsets.append(self.end)
            elif isinstance(record, Checkpoint):
                known = self.checkpoints.get(record.event_id, 0)
                self.checkpoints[record.event_id] = max(known, record.completion_tokens)
            elif isinstance(record, Refused):
                self._add_refused(record)
            elif patient:
                return True
            else:
                self.corrupt.append(record)
            self.end = end
            self.size += 1
            if self.size % _RECORDS_PER_BREATH == 0:
                rows.yield_interpreter()
        return False

    def book(self, connection: sqlite3.Connection, contexts: rows.Contexts) -> None:
        """Insert what is new, close what is settled, remember what is open and how far we are."""
        booking = self._book_events(connection, contexts)
        for refused in self.refusals.values():
            try:
                booking.add_refusals(refused)
            except _IMPOSSIBLE as error:
                self._reject(connection, self.end, msgspec.msgpack.encode(refused), str(error))
        closed = []
        for event in self.events:
            self.checkpoints.pop(event.event_id, None)
            if self.intents.pop(event.event_id, None) is None:
                closed.append((event.event_id,))
        connection.executemany("DELETE FROM open_intent WHERE event_id = ?", closed)
        connection.executemany(
            "INSERT INTO open_intent VALUES (?, ?, ?, NULL) ON CONFLICT DO NOTHING",
            list(self._open_intents()),
        )
        connection.executemany(
            "UPDATE open_intent SET completion_tokens = max(coalesce(completion_tokens, 0), ?)"
            " WHERE event_id = ?",
            [(tokens, event_id) for event_id, tokens in self.checkpoints.items()],
        )
        for damage in self.corrupt:
            self._reject(connection, damage.offset, damage.content, damage.reason)
        connection.execute(
            "INSERT INTO ingest_offset VALUES (?, ?)"
            " ON CONFLICT (segment) DO UPDATE SET byte_offset = excluded.byte_offset",
            (self.segment_name, self.end),
        )

    def _add_refused(self, refused: Refused) -> None:
        key = (refused.ts_us // DAY_US, *refused.kind)
        known = self.refusals.setdefault(key, refused)
        if known is not refused:
            known.requests += refused.requests

    def _book_events(self, connection: sqlite3.Connection, contexts: rows.Contexts) -> rows.Booking:
        """All at once where all are new; else one by one, which tells the new ones."""
        booking = rows.Booking(connection, contexts)
        connection.execute("SAVEPOINT events")
        try:
            booking.insert_new(self.events)
            self.inserted = len(self.events)
        except _IMPOSSIBLE:
            connection.execute("ROLLBACK TO events")
            contexts.forget()
            booking = rows.Booking(connection, contexts)
            for event, offset in zip(self.events, self.offsets, strict=True):
                self._book_one(connection, booking, event, offset)
        booking.finish()
        connection.execute("RELEASE events")
        return booking

    def _book_one(
        self,
        connection: sqlite3.Connection,
        booking: rows.Booking,
        event: UsageEvent,
        offset: int,
    ) -> None:
        connection.execute("SAVEPOINT one_event")
        try:
            self.inserted += booking.insert(event)
        except _IMPOSSIBLE as error:
            # One impossible record must not stop the books for all that follow.
            connection.execute("ROLLBACK TO one_event")
            booking.forget_refused()
            self.refused += 1
            self._reject(connection, offset, msgspec.msgpack.encode(event), str(error))
        connection.execute("RELEASE one_event")

    def _open_intents(self) -> Iterator[tuple[str, str, bytes]]:
        for event_id, (payload, end) in self.intents.items():
            try:
                decode_record(payload)  # recovery will have to
            except ValueError as error:
                self.corrupt.append(no_record(payload, end, error))
            else:
                yield event_id, self.owner, payload

    def _reject(
        self, connection: sqlite3.Connection, offset: int, content: bytes, reason: str
    ) -> None:
        connection.execute(
            "INSERT INTO rejected_record VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.segment_name, offset, content, reason),
        )


def _spent(sums: tuple[int, int, int, int]) -> Spent:
    micro, rest, pending_micro, pending_rest = sums
    return Spent(
        int(micro) * 1_000_000 + int(rest), int(pending_micro) * 1_000_000 + int(pending_rest)
    )


def _offset(connection: sqlite3.Connection, segment_name: str) -> int:
    row = connection.execute(
        "SELECT byte_offset FROM ingest_offset WHERE segment = ?", (segment_name,)
    ).fetchone()
    return int(row[0]) if row else 0
