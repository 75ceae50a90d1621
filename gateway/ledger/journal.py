"""The journal: how a process that answers requests puts them on record.

Intents and settled events go to its own write-ahead log, money to the budgets. Whoever keeps the
books ships that log. Knows no HTTP and no policy's rules.
"""

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


class Journal:
    """What a gateway's process needs to book what it does."""

    def __init__(self, wal: WriteAheadLog, budgets: BudgetKeeper) -> None:
        self.budgets = budgets
        self._wal = wal
        self._failed = float("-inf")
        self._refusals = RefusalCounter(wal.append_refused)

    def refuse(self, refused: Refused) -> None:
        """Count a request that was turned away. Never raises."""
        self._refusals.count(refused)

    def flush(self) -> None:
        """Log what is only counted so far."""
        self._refusals.flush()

    def intend(self, intent: Intent) -> None:
        """Log an attempt; the upstream may be called once this returns.

        Raises MeteringUnavailable: then nothing may be sent.
        """
        try:
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

        Raises MeteringUnavailable: then recovery will settle the attempt from its checkpoint.
        """
        try:
            self._wal.append_final(plausible(event))
        except MeteringUnavailable:
            self._failed = time.monotonic()
            raise

    def durable(self) -> Awaitable[None] | None:
        """Until all of the above survives a power cut; None where the settings do not ask that."""
        return self._wal.durable() if self._wal.power_safe else None

    @property
    def healthy(self) -> bool:
        """False while the log refuses records. Cheap."""
        return time.monotonic() - self._failed >= _FAILURE_SECONDS

    @property
    def owner(self) -> str:
        """The name of this process in the log."""
        return self._wal.owner

    def close(self) -> None:
        """End the log. Whoever keeps the books settles an attempt that is still open."""
        self.flush()
        self._wal.close()


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
