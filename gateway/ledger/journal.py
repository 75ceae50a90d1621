"""The journal: how a process that answers requests puts them on record.

Intents and settled events go to its own write-ahead log, money to the budgets. Whoever keeps the
books ships that log. Knows no HTTP and no policy's rules.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from pathlib import Path

from gateway.errors import MeteringUnavailable
from gateway.ids import UlidFactory
from gateway.ledger.budgets import BudgetKeeper
from gateway.ledger.event import Intent, Refused, UsageEvent, plausible
from gateway.ledger.refusals import RefusalCounter
from gateway.ledger.wal import SEGMENT_BYTES, Durability, WriteAheadLog

_FAILURE_SECONDS = 1.0  # a refused write makes us unhealthy for so long; then we try again
KEPT_MAX = 10_000  # settled events that wait for a full disk, a kilobyte each
_log = logging.getLogger("tollhouse.ledger")


class Journal:
    """What a gateway's process needs to book what it does."""

    def __init__(self, wal: WriteAheadLog, budgets: BudgetKeeper) -> None:
        self.budgets = budgets
        self._wal = wal
        self._failed = float("-inf")
        self._refusals = RefusalCounter(wal.append_refused)
        self._kept: list[UsageEvent] = []  # settled, and refused by the disk
        self._retry: asyncio.TimerHandle | None = None

    def refuse(self, refused: Refused) -> None:
        """Count a request that was turned away. Never raises."""
        self._refusals.count(refused)

    def flush(self) -> None:
        """Log what is only counted or kept so far, as far as the disk takes it."""
        self._refusals.flush()
        with contextlib.suppress(MeteringUnavailable):
            self._append_kept()

    def intend(self, intent: Intent) -> None:
        """Log an attempt; the upstream may be called once this returns.

        Raises MeteringUnavailable: then nothing may be sent. Nothing is spent before what was is
        on record.
        """
        try:
            if self._kept:
                self._append_kept()
            self._wal.append_intent(intent)
        except MeteringUnavailable:
            self._failed = time.monotonic()
            raise

    def checkpoint(self, event_id: str, completion_tokens: int) -> None:
        """Log how far an answer has come. A failure is kept for ``healthy``: the answer goes on."""
        try:
            self._wal.append_checkpoint(event_id, completion_tokens)
        except MeteringUnavailable:
            self._failed = time.monotonic()

    def settle(self, event: UsageEvent) -> None:
        """Log a settled event; the client may get its last byte once this returns.

        An event that a full disk refuses is kept and logged as soon as there is room. The client
        gets what is paid for: the intent of the attempt is on record, so that, were this process
        killed meanwhile, recovery books the attempt at its checkpoint or at what was held. What
        has no intent, such as an answer from a cache, is not: MeteringUnavailable.
        """
        event = plausible(event)
        try:
            if self._kept:
                self._append_kept()
            self._wal.append_final(event)
        except MeteringUnavailable as error:
            self._failed = time.monotonic()
            if not event.attempt or not error.retryable or len(self._kept) >= KEPT_MAX:
                raise
            if not self._kept:
                _log.error("settled usage is kept in memory until the log takes it: %s", error)
            self._kept.append(event)
            self._append_later()

    def durable(self) -> Awaitable[None] | None:
        """Wait until every record so far is on the disk; None where the settings do not ask."""
        return self._wal.durable() if self._wal.power_safe else None

    @property
    def healthy(self) -> bool:
        """False while the log refuses records, or has not got all of them yet. Cheap."""
        return not self._kept and not self._failing

    @property
    def state(self) -> str:
        """``ok``, or what is wrong in a few words. For the probes."""
        if self._kept:
            return f"failing: {len(self._kept)} settled events wait for room on the disk"
        return "failing: the usage log cannot be written" if self._failing else "ok"

    @property
    def _failing(self) -> bool:
        return time.monotonic() - self._failed < _FAILURE_SECONDS

    @property
    def owner(self) -> str:
        """The name of this process in the log."""
        return self._wal.owner

    def close(self) -> None:
        """End the log. Whoever keeps the books settles an attempt that is still open."""
        self.flush()
        if self._retry is not None:
            self._retry.cancel()
        if self._kept:
            _log.error(
                "%d settled events are lost: they are booked at what was held", len(self._kept)
            )
        self._wal.close()

    def _append_kept(self) -> None:
        """Log what is kept, oldest first. Raises MeteringUnavailable; then the rest stays kept."""
        done = 0
        try:
            for event in self._kept:
                self._wal.append_final(event)
                done += 1
        finally:
            del self._kept[:done]
        if done:
            _log.warning("%d settled events that were kept in memory are logged", done)

    def _append_later(self) -> None:
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(_FAILURE_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        try:
            self._append_kept()
        except MeteringUnavailable:
            self._append_later()


def open_log(
    state_dir: Path, *, durability: Durability = "process", segment_bytes: int = SEGMENT_BYTES
) -> WriteAheadLog:
    """This process's own log in a state folder. Raises MeteringUnavailable."""
    return WriteAheadLog(
        state_dir / "wal",
        boot_id=UlidFactory()(),
        durability=durability,
        segment_bytes=segment_bytes,
    )
