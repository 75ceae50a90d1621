"""The ledger's database: books records of the write-ahead log exactly once, in SQLite.

One lock admits one writer; reports use connections of their own. Knows files of the log and SQL.
Does not know processes, threads, budgets or HTTP.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import msgspec

from gateway.ledger import rows
from gateway.ledger.event import Checkpoint, Intent, UsageEvent, interrupted
from gateway.ledger.frames import Corrupt, read_segment, segment_owner
from gateway.ledger.schema import migrate
from gateway.prices import Price

BATCH_RECORDS_MAX = 2_000
_BUSY_SECONDS = 10.0
# Sums of parts: SQLite's sum() of pico-dollars overflows at 9.2 million dollars.
_CHARGES = (
    "SELECT coalesce(sum(charge_pico / 1000000), 0), coalesce(sum(charge_pico % 1000000), 0)"
    " FROM usage_event WHERE tenant_id = ? AND ts_us >= ? AND ts_us < ?"
)
_TAGGED = " AND EXISTS (SELECT 1 FROM json_each(tags) WHERE key = ? AND value = ?)"


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """What one ``ingest`` did."""

    events: int = 0  # newly booked
    repeated: int = 0  # already booked before: nothing happened
    rejected: int = 0  # damaged or refused; kept in ``rejected_record``
    byte_offset: int = 0  # of the segment, up to which everything is booked
    more: bool = False  # the segment has complete records beyond
    damaged: bool = False  # a growing segment has damage beyond


class LedgerStore:
    """The books. Safe to use from several threads; one write at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings it up to date. Raises ValueError if too new."""
        self.path = path
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        # One commit per batch: a full sync costs nothing there, and segments are deleted after it.
        self._connection.execute("PRAGMA synchronous = FULL")
        migrate(self._connection)

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
            start = _offset(connection, segment.name)
            records = read_segment(segment, start)
            batch = _Batch(segment.name, owner[0], start)
            damaged = False
            for record, next_offset in islice(records, limit):
                if growing and isinstance(record, Corrupt):
                    damaged = True
                    break
                batch.add(record, next_offset)
            more = batch.size == limit
            if batch.size:
                batch.book(connection)
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
            booking = rows.Booking(connection)
            found = connection.execute(
                "SELECT event_id, intent, completion_tokens FROM open_intent WHERE owner = ?",
                (owner,),
            ).fetchall()
            for event_id, packed, completion_tokens in found:
                intent = msgspec.msgpack.decode(packed, type=Intent)
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

    def period_charges(
        self, tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]
    ) -> int:
        """What a tenant was charged for requests begun in [from_us, to_us) that carry ``tags``."""
        parameters = [part for pair in tags.items() for part in pair]
        with self._lock:
            micro, rest = self._connection.execute(
                _CHARGES + _TAGGED * len(tags), (tenant_id, from_us, to_us, *parameters)
            ).fetchone()
        return int(micro) * 1_000_000 + int(rest)

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
        self.intents: dict[str, Intent] = {}  # still open at the end of the batch
        self.checkpoints: dict[str, int] = {}
        self.events: list[tuple[UsageEvent, int]] = []
        self.corrupt: list[Corrupt] = []
        self.inserted = 0
        self.refused = 0

    def add(self, record: Intent | Checkpoint | UsageEvent | Corrupt, next_offset: int) -> None:
        match record:
            case Intent():
                self.intents[record.event_id] = record
            case Checkpoint():
                known = self.checkpoints.get(record.event_id, 0)
                self.checkpoints[record.event_id] = max(known, record.completion_tokens)
            case UsageEvent():
                self.events.append((record, self.end))
            case Corrupt():
                self.corrupt.append(record)
        self.end = next_offset
        self.size += 1

    def book(self, connection: sqlite3.Connection) -> None:
        """Insert what is new, close what is settled, remember what is open and how far we are."""
        booking = rows.Booking(connection)
        for event, offset in self.events:
            connection.execute("SAVEPOINT one_event")
            try:
                self.inserted += booking.insert(event)
            except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
                # One impossible record must not stop the books for all that follow.
                connection.execute("ROLLBACK TO one_event")
                self.refused += 1
                content = msgspec.msgpack.encode(event)
                self._reject(connection, offset, content, str(error))
            connection.execute("RELEASE one_event")
            self.checkpoints.pop(event.event_id, None)
            if self.intents.pop(event.event_id, None) is None:
                connection.execute("DELETE FROM open_intent WHERE event_id = ?", (event.event_id,))
        booking.finish()
        for damage in self.corrupt:
            self._reject(connection, damage.offset, damage.content, damage.reason)
        connection.executemany(
            "INSERT INTO open_intent VALUES (?, ?, ?, NULL) ON CONFLICT DO NOTHING",
            [(key, self.owner, msgspec.msgpack.encode(i)) for key, i in self.intents.items()],
        )
        connection.executemany(
            "UPDATE open_intent SET completion_tokens = max(coalesce(completion_tokens, 0), ?)"
            " WHERE event_id = ?",
            [(tokens, event_id) for event_id, tokens in self.checkpoints.items()],
        )
        connection.execute(
            "INSERT INTO ingest_offset VALUES (?, ?)"
            " ON CONFLICT (segment) DO UPDATE SET byte_offset = excluded.byte_offset",
            (self.segment_name, self.end),
        )

    def _reject(
        self, connection: sqlite3.Connection, offset: int, content: bytes, reason: str
    ) -> None:
        connection.execute(
            "INSERT INTO rejected_record VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (self.segment_name, offset, content, reason),
        )


def _offset(connection: sqlite3.Connection, segment_name: str) -> int:
    row = connection.execute(
        "SELECT byte_offset FROM ingest_offset WHERE segment = ?", (segment_name,)
    ).fetchone()
    return int(row[0]) if row else 0
