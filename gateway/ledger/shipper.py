"""The shipper: carries the write-ahead logs of all processes into the store, again and again.

It may be killed at any instant: what it books and how far it got are one transaction of the store.
Knows which processes live. Does not know what a record means.
"""

import fcntl
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gateway.ledger.frames import lock_name, segment_owner
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import is_held

RETENTION_SECONDS = 3600.0
TELL_SECONDS = 60.0  # between two lines of the log that say the same
STALLED_SECONDS = 10.0  # without a complete pass, before the probes say so
_log = logging.getLogger(__name__)


class Shipper:
    """Ships once per interval in a thread of its own; ``ship`` does the same at once.

    A failure of the store (disk full, file locked) is kept in ``last_error`` and tried again at
    the next interval: the records wait in the log.
    """

    def __init__(
        self,
        directory: Path,
        store: LedgerStore,
        *,
        now_us: Callable[[], int],
        interval_seconds: float = 1.0,
        retention_seconds: float = RETENTION_SECONDS,
        tell_seconds: float = TELL_SECONDS,
    ) -> None:
        """``directory`` holds the segments. Shipped ones stay for ``retention_seconds``."""
        self.last_error: str | None = None
        self._directory = directory
        self._store = store
        self._now_us = now_us
        self._interval_seconds = interval_seconds
        self._retention_seconds = retention_seconds
        self._shipping = threading.Lock()
        self._tell_seconds = tell_seconds
        self._told_at: float | None = None  # monotonic; None: nothing is wrong
        self.refused = 0  # records, since the start
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._caught_up = time.monotonic()
        self._booked = 0  # events, since the start
        self._complete: set[Path] = set()  # segments that grow no more and are booked

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="ledger-shipper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish what it does, and end it. What is left stays in the log."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def ship(self) -> int:
        """Book everything appended before this call; returns the number of events newly booked.

        Raises sqlite3.Error or OSError where the store cannot be written.
        """
        with self._shipping:
            owners = self._segments().keys() | self._store.open_owners()
            living = {owner for owner in owners if self._alive(owner)}
            # Listed again after looking who lives: the list of whoever is dead is complete.
            segments = self._segments()
            offsets = self._store.offsets()
            self._complete.clear()
            before = self._booked
            damaged = False
            for owner in owners:
                paths = segments.get(owner, [])
                for path in paths:
                    growing = owner in living and path == paths[-1]
                    if path.stat().st_size > offsets.get(path.name, 0):
                        damaged |= self._ship_segment(path, growing=growing)
                    if not growing:
                        self._complete.add(path)
                if owner not in living:
                    self._store.recover(owner, self._now_us())
            if not damaged:
                self._caught_up = time.monotonic()
            return self._booked - before

    def living(self) -> set[str]:
        """The processes that write logs here, just now."""
        return {owner for owner in self._segments() if self._alive(owner)}

    @property
    def lag_seconds(self) -> float:
        """Age at most of the oldest record that is not in the store; 0 when none is missing."""
        return self.stalled_seconds if self.wal_bytes else 0.0

    @property
    def stalled_seconds(self) -> float:
        """Time since the last pass that left nothing behind."""
        return time.monotonic() - self._caught_up

    @property
    def state(self) -> str:
        """``ok``, or for how long nothing has been booked."""
        stalled = self.stalled_seconds
        if self.last_error is None and stalled < STALLED_SECONDS:
            return "ok"
        return f"usage has not been booked for {stalled:.0f} s"

    @property
    def wal_bytes(self) -> int:
        """Bytes of the logs that are not yet in the store."""
        offsets = self._store.offsets()
        total = 0
        for paths in self._segments().values():
            for path in paths:
                try:
                    total += max(0, path.stat().st_size - offsets.get(path.name, 0))
                except FileNotFoundError:
                    continue
        return total

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.ship()
                self.tidy()
                self.last_error = None
                self._told_at = None
            except (sqlite3.Error, OSError) as error:
                self.last_error = (getattr(error, "strerror", None) or str(error)).lower()
                self._tell()
            self._wake.wait(self._interval_seconds)
            self._wake.clear()

    def _tell(self) -> None:
        """Log why nothing is booked: at once, and once a minute for as long as that lasts."""
        now = time.monotonic()
        if self._told_at is None or now - self._told_at >= self._tell_seconds:
            self._told_at = now
            _log.warning("%s, and waits in the log: %s", self.state, self.last_error)

    def _ship_segment(self, path: Path, *, growing: bool) -> bool:
        """Book one segment as far as it goes; True where damage in a growing one stops it."""
        while True:
            done = self._store.ingest(path, growing=growing)
            self._booked += done.events
            if done.rejected:
                self.refused += done.rejected
                _log.error("%s: %d records were refused; see ledger verify", path, done.rejected)
            if not done.more:
                return done.damaged

    def tidy(self) -> None:
        """Delete segments that are booked, ended and old enough, and locks of ended processes."""
        with self._shipping:
            files_now = _files_clock(self._directory) if self._complete else 0.0
            oldest = files_now - self._retention_seconds
            for path in self._complete:
                if path.stat().st_mtime <= oldest:
                    # The file first: if we die in between, an offset without a file is harmless,
                    # while a file without its offset would be read from the start again.
                    path.unlink()
                    self._store.forget(path.name)
            self._complete.clear()
            with_segments = {lock_name(owner) for owner in self._segments()}
            for lock in self._directory.glob("usage-*.lock"):
                if lock.name not in with_segments:
                    _remove_dead_lock(lock)

    def _segments(self) -> dict[str, list[Path]]:
        """Segments by owner, oldest first."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self._directory.glob("usage-*.wal")):
            parsed = segment_owner(path)
            if parsed is not None:
                found.setdefault(parsed[0], []).append(path)
        return found

    def _alive(self, owner: str) -> bool:
        return is_held(self._directory / lock_name(owner))


def _files_clock(directory: Path) -> float:
    """The time that a file written now would have: a network drive's clock may not be ours."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()  # a full disk must not keep us from making room


def _remove_dead_lock(path: Path) -> None:
    """Remove a lock file only while holding it, so that no starting process loses its name."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(file)
