"""The ledger: every request is booked once, whatever dies in between.

An intent goes to the write-ahead log before an upstream is called, the settled event before the
client's last byte; a thread carries both into the books. Knows no HTTP and no policy's rules.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from gateway.ledger.books import Books
from gateway.ledger.budgets import Budgets
from gateway.ledger.journal import Journal, open_log
from gateway.ledger.wal import SEGMENT_BYTES, Durability, WriteAheadLog

__all__ = ["Books", "Journal", "Ledger"]


class Ledger(Journal):
    """Journal and books in one process: all that a gateway of one worker needs."""

    budgets: Budgets

    def __init__(self, wal: WriteAheadLog, books: Books) -> None:
        super().__init__(wal, Budgets(books.spent))
        self.books = books
        self.store = books.store
        self.shipper = books.shipper

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        durability: Durability = "process",
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        interval_seconds: float = 1.0,
        segment_bytes: int = SEGMENT_BYTES,
        lock: int | None = None,
    ) -> Self:
        """Open the books of one state folder, after settling what an earlier process left.

        lock: the state folder's, where the caller's parent holds it. Raises MeteringUnavailable
        with a sentence where another process has them open, and ValueError where a newer release
        wrote them.
        """
        books = Books.open(state_dir, now_us=now_us, interval_seconds=interval_seconds, lock=lock)
        try:
            wal = open_log(state_dir, durability=durability, segment_bytes=segment_bytes)
        except BaseException:
            books.close()
            raise
        books.start()
        return cls(wal, books)

    @property
    def healthy(self) -> bool:
        """False while the log refuses records or the books fall behind. Cheap."""
        return super().healthy and self.books.healthy

    async def drain(self) -> None:
        """Book everything so far. Raises sqlite3.Error or OSError where that fails."""
        self.flush()
        await asyncio.to_thread(self._drain)

    def close(self) -> None:
        """Stop the shipper, book what is logged, and give the state folder up.

        An attempt that is still open is settled from its last checkpoint.
        """
        self.shipper.stop()
        super().close()
        self.books.close()

    def _drain(self) -> None:
        self._wal.sync()
        self.shipper.ship()
