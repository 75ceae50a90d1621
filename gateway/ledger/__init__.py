"""The ledger: every request is booked once, whatever dies in between.

An intent goes to the write-ahead log before an upstream is called, the settled event before the
client's last byte; a thread carries both into the books. Knows no HTTP and no policy's rules.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Self

from gateway.errors import MeteringUnavailable
from gateway.ids import UlidFactory
from gateway.ledger.budgets import Budgets
from gateway.ledger.event import Intent, UsageEvent, plausible
from gateway.ledger.shipper import Shipper
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import SEGMENT_BYTES, Durability, WriteAheadLog, hold_lock

LAG_SECONDS_MAX = 120.0  # without a complete pass of the shipper, before metering counts as down
_FAILURE_SECONDS = 1.0  # a refused write makes us unhealthy for so long; then we try again


class Ledger:
    """Everything a gateway's process needs to book what it does."""

    def __init__(
        self, *, lock: int, wal: WriteAheadLog, store: LedgerStore, shipper: Shipper
    ) -> None:
        self.store = store
        self.shipper = shipper
        self.budgets = Budgets(self._charges)
        self._lock = lock
        self._wal = wal
        self._failed = float("-inf")

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        durability: Durability = "process",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        interval_seconds: float = 1.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Self:
        """Open the books of one state folder, after settling what an earlier process left.

        Raises MeteringUnavailable with a sentence where another process has them open, and
        ValueError where a newer release wrote them.
        """
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = hold_lock(state_dir / "ledger.lock")
        except BlockingIOError:
            raise MeteringUnavailable(
                f"another Tollhouse process has the ledger in {state_dir} open; "
                "stop it, or give this one a state_dir of its own"
            ) from None
        wal_directory = state_dir / "wal"
        store = None
        try:
            wal_directory.mkdir(mode=0o700, exist_ok=True)
            store = LedgerStore(state_dir / "ledger.sqlite")
            shipper = Shipper(
                wal_directory, store, now_us=now_us, interval_seconds=interval_seconds
            )
            shipper.ship()
            wal = WriteAheadLog(
                wal_directory,
                boot_id=UlidFactory()(),
                durability=durability,
                segment_bytes=segment_bytes,
            )
        except BaseException:
            if store is not None:
                store.close()
            os.close(lock)
            raise
        shipper.start()
        return cls(lock=lock, wal=wal, store=store, shipper=shipper)

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
        """False while the log refuses records or the books fall behind. Cheap."""
        refused = time.monotonic() - self._failed < _FAILURE_SECONDS
        return not refused and self.shipper.stalled_seconds < LAG_SECONDS_MAX

    async def drain(self) -> None:
        """Book everything logged so far. Raises sqlite3.Error or OSError where that fails."""
        await asyncio.to_thread(self._drain)

    def close(self) -> None:
        """Stop the shipper, book what is logged, and give the state folder up.

        An attempt that is still open is settled from its last checkpoint.
        """
        self.shipper.stop()
        self._wal.close()
        try:
            self.shipper.ship()
        finally:
            self.store.close()
            os.close(self._lock)

    def _drain(self) -> None:
        self._wal.sync()
        self.shipper.ship()

    def _charges(self, tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]) -> int:
        self.shipper.ship()
        return self.store.period_charges(tenant_id, from_us, to_us, tags)
