"""The books of one state folder: the database, and the shipper that fills it from every log.

One process keeps them, for all processes of a gateway. Knows no HTTP and no policy's rules.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from gateway.errors import MeteringUnavailable
from gateway.ledger.shipper import Shipper
from gateway.ledger.store import LedgerStore, Spent
from gateway.ledger.wal import hold_lock, is_held
from gateway.private_files import private_folder, tidy_state

_LOCK = "ledger.lock"
LAG_SECONDS_MAX = 120.0  # without a complete pass of the shipper, before metering counts as down


class Books:
    """Store and shipper, open together. The shipper's thread runs from ``start`` to ``close``."""

    def __init__(self, store: LedgerStore, shipper: Shipper, lock: int) -> None:
        self.store = store
        self.shipper = shipper
        self.lock = lock  # of the state folder

    @classmethod
    def open(
        cls,
        state_dir: Path,
        *,
        now_us: Callable[[], int],
        interval_seconds: float = 1.0,
        lock: int | None = None,
    ) -> Self:
        """Open the books, after settling what an earlier process left.

        lock: the state folder's, where the caller's parent holds it. Raises MeteringUnavailable
        with a sentence where another gateway has them open, and ValueError where a newer release
        wrote them.
        """
        held = hold_state(state_dir) if lock is None else lock
        store = None
        try:
            directory = private_folder(state_dir / "wal")
            store = LedgerStore(state_dir / "ledger.sqlite")
            shipper = Shipper(directory, store, now_us=now_us, interval_seconds=interval_seconds)
            shipper.ship()
        except BaseException:
            if store is not None:
                store.close()
            os.close(held)
            raise
        return cls(store, shipper, held)

    def start(self) -> None:
        """Begin to ship in the background."""
        self.shipper.start()

    @property
    def healthy(self) -> bool:
        """False while the books fall behind. Cheap."""
        return self.shipper.stalled_seconds < LAG_SECONDS_MAX

    @property
    def state(self) -> str:
        """``ok``, or what is wrong in a few words. For the probes."""
        return self.shipper.state if self.healthy else f"failing: {self.shipper.state}"

    def spent(self, tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]) -> Spent:
        """What a tenant spent in a span, up to this moment."""
        self.shipper.ship()
        return self.store.period_spent(tenant_id, from_us, to_us, tags)

    def close(self) -> None:
        """Stop the shipper, book what is logged, and give the state folder up."""
        self.shipper.stop()
        try:
            self.shipper.ship()
        finally:
            self.store.close()
            os.close(self.lock)


def hold_state(state_dir: Path) -> int:
    """Lock a state folder for one gateway; the lock is the descriptor, and its heirs' too.

    Raises MeteringUnavailable with a sentence where another gateway has it.
    """
    private_folder(state_dir)
    try:
        lock = hold_lock(state_dir / _LOCK)
    except BlockingIOError:
        raise MeteringUnavailable(
            f"another Tollhouse process has the ledger in {state_dir} open; "
            "stop it, or give this one a state_dir of its own"
        ) from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, (_lifetime(os.getpid()) or "").encode(), 0)
    except OSError:  # a full disk: whoever starts next only cannot tell that we are gone
        pass
    try:
        tidy_state(state_dir)
    except BaseException:
        os.close(lock)
        raise
    return lock


def is_abandoned(state_dir: Path) -> bool:
    """Whether the process that locked a state folder is gone while its children still hold it."""
    path = state_dir / _LOCK
    try:
        holder = path.read_text()
        process = int(holder.partition(" ")[0])
    except (OSError, ValueError):
        return False
    return is_held(path) and _lifetime(process) != holder


def _lifetime(process: int) -> str | None:
    """A process by its id and its start, as ids are used again; None where it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{process} {fields[18]}"  # field 22 of proc(5): starttime
