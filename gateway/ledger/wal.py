"""The write-ahead log of one process: each record is in the kernel's hands when ``append`` returns.

So ``kill -9`` loses nothing; ``durability="power"`` adds a grouped fsync that ``durable`` waits
for. Knows records and files. Does not know the database, budgets or who reads the log.
"""

import asyncio
import fcntl
import os
import threading
from pathlib import Path
from typing import Literal

import msgspec

from gateway.errors import MeteringUnavailable
from gateway.ledger.event import Checkpoint, Intent, Record, Refused, UsageEvent
from gateway.ledger.frames import FRAME_BYTES_MAX, lock_name, seal, segment_name
from gateway.private_files import private_folder

Durability = Literal["process", "power"]
SEGMENT_BYTES = 16 << 20
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_CLOSED = -1
_encode = msgspec.msgpack.Encoder().encode


class WriteAheadLog:
    """An append-only series of segment files, owned by this process as long as it lives.

    Safe to use from several threads. Every failure is a MeteringUnavailable; the record then is
    not in the log, and later appends work again as soon as the disk does.
    """

    def __init__(
        self,
        directory: Path,
        *,
        boot_id: str,
        durability: Durability = "process",
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """``boot_id`` is unique to this start of this process: letters and digits only."""
        if not (boot_id.isascii() and boot_id.isalnum()):
            raise ValueError(f"boot_id {boot_id!r} must be letters and digits")
        self.owner = f"{boot_id}-{os.getpid()}"
        self._directory = directory
        self.power_safe = durability == "power"
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._number = 0
        self._size = 0
        self._file = _CLOSED
        self._is_closed = False
        self._appended = 0  # records
        self._synced = 0  # of them, on the disk itself
        self._sync: asyncio.Future[None] | None = None
        private_folder(directory)
        # Waits only for a shipper that is just looking whether the owner lives.
        self._owner_lock = hold_lock(directory / lock_name(self.owner), wait=True)
        try:
            self._open_segment()
        except OSError as error:
            os.close(self._owner_lock)
            raise _unavailable(error) from error

    def append_intent(self, intent: Intent) -> None:
        """Log what is about to be asked of an upstream; it may be called once this returns."""
        self._append(intent)

    def append_checkpoint(self, event_id: str, completion_tokens: int, text_bytes: int = 0) -> None:
        """Log how far a running answer has come."""
        self._append(
            Checkpoint(
                event_id=event_id, completion_tokens=completion_tokens, text_bytes=text_bytes
            )
        )

    def append_final(self, event: UsageEvent) -> None:
        """Log the settled event; the client may get its last byte once this returns."""
        self._append(event)

    def append_refused(self, refused: Refused) -> None:
        """Log requests that were turned away."""
        self._append(refused)

    async def durable(self) -> None:
        """Wait until everything appended so far survives a power cut (only with ``power``).

        All waiters share one fsync. Raises MeteringUnavailable where the disk refuses.
        """
        if not self.power_safe:
            return
        goal = self._appended
        while self._synced < goal:
            if self._sync is None or self._sync.done():
                self._sync = asyncio.ensure_future(asyncio.to_thread(self.sync))
                self._sync.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(self._sync)

    def sync(self) -> None:
        """Force everything appended so far to the disk. Raises MeteringUnavailable."""
        with self._lock:
            if self._file == _CLOSED:
                return
            # A duplicate, so that a rotation during the fsync cannot close it under our feet.
            file, goal = os.dup(self._file), self._appended
        try:
            os.fdatasync(file)
        except OSError as error:
            raise _unavailable(error) from error
        finally:
            os.close(file)
        with self._lock:
            self._synced = max(self._synced, goal)

    def close(self) -> None:
        """Give up ownership. Intents without a final record will be settled by recovery."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._close_segment()
            os.close(self._owner_lock)

    def _append(self, record: Record) -> None:
        frame = seal(_encode(record))
        size = len(frame)
        if size > FRAME_BYTES_MAX:
            error = MeteringUnavailable(f"a usage record of {size} bytes exceeds {FRAME_BYTES_MAX}")
            error.retryable = False  # no disk will ever take it
            raise error
        with self._lock:
            if self._is_closed:
                raise MeteringUnavailable("the usage log is closed: the gateway is shutting down")
            try:
                if self._file == _CLOSED or self._size + size > self._segment_bytes:
                    self._rotate()
                # Not a mapped file, though that costs 1.1 us less under load: when ext4 turns
                # read-only it takes such stores without an error and loses them, or sends SIGBUS.
                written = os.write(self._file, frame)
            except OSError as error:
                self._cut_back()
                raise _unavailable(error) from error
            if written != size:
                self._cut_back()
                raise MeteringUnavailable("the usage log cannot be written: the disk is full")
            self._size += size
            self._appended += 1

    def _rotate(self) -> None:
        """Go on in a new segment; where none can be opened, the old one just grows."""
        if self._file != _CLOSED and self._size == 0:
            return  # one record larger than a segment
        previous = self._file
        if previous != _CLOSED and self.power_safe:
            os.fdatasync(previous)
        try:
            self._open_segment()
        except OSError:
            if previous == _CLOSED:
                raise
            return
        if previous != _CLOSED:
            os.close(previous)

    def _open_segment(self) -> None:
        path = self._directory / segment_name(self.owner, self._number + 1)
        self._file = os.open(path, _FILE_FLAGS, 0o600)
        self._number += 1
        self._size = 0
        if self.power_safe:
            _sync_directory(self._directory)

    def _close_segment(self) -> None:
        if self._file != _CLOSED:
            if self.power_safe:
                os.fdatasync(self._file)
            os.close(self._file)
            self._file = _CLOSED

    def _cut_back(self) -> None:
        """Remove a half-written frame. Where even that fails, leave the segment for a new one."""
        if self._file == _CLOSED:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            os.close(self._file)
            self._file = _CLOSED


def hold_lock(path: Path, *, wait: bool = False) -> int:
    """Create and lock a file for as long as this process lives; returns its descriptor.

    Raises BlockingIOError where another process holds it, unless told to wait. The kernel frees
    it at any death, and no re-used process id can be mistaken for the owner.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _names(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # somebody tidied the name away before we held it


def _names(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a living process holds this lock. False where the file does not exist."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _unavailable(error: OSError) -> MeteringUnavailable:
    return MeteringUnavailable(f"the usage log cannot be written: {error.strerror}")
