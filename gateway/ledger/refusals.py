"""Refused requests in the books: counted by tenant, key and reason, without a record for each.

The first few refusals of a kind are logged at once; while more of it come, they are counted and
logged together every few seconds. So a flood costs the disk no more than a trickle, and
``kill -9`` loses the count of a few seconds of a flood. Knows no HTTP and no database.
"""

import asyncio
import time
from collections.abc import Callable

from gateway.errors import MeteringUnavailable
from gateway.ledger.event import Refused

INTERVAL_SECONDS = 5.0
AT_ONCE_MAX = 20  # records of one kind in an interval; the others become one more
KINDS_MAX = 4_096  # counted at a time; beyond, and with a full disk, refusals are not counted

Kind = tuple[str, str, str, str, int]  # tenant, project, key, reason, status


class RefusalCounter:
    """Counts, and logs what it counted. Belongs to one event loop."""

    def __init__(
        self, append: Callable[[Refused], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """append: logs a record, or raises MeteringUnavailable; then it is tried again."""
        self._append = append
        self._monotonic = monotonic
        # Of each kind: when its interval began, and how many records it has had since.
        self._logged: dict[Kind, tuple[float, int]] = {}
        self._waiting: dict[Kind, Refused] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, refused: Refused) -> None:
        """Count a refused request. Never raises."""
        kind = refused.kind
        waiting = self._waiting.get(kind)
        if waiting is not None:
            waiting.requests += refused.requests
            return
        now = self._monotonic()
        began, records = self._logged.get(kind, (now, 0))
        if now - began >= INTERVAL_SECONDS:
            began, records = now, 0
        if records < AT_ONCE_MAX:
            if len(self._logged) >= KINDS_MAX:
                self._logged.clear()
            self._logged[kind] = began, records + 1
            if self._log(refused):
                return
        if len(self._waiting) < KINDS_MAX:
            self._waiting[kind] = refused
            self._flush_later()

    def flush(self) -> None:
        """Log all that is counted. What the disk does not take is kept for the next time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._monotonic()
        for kind, refused in tuple(self._waiting.items()):
            if not self._log(refused):
                break
            del self._waiting[kind]
            if kind in self._logged:
                self._logged[kind] = now, AT_ONCE_MAX  # a flood: none of it at once again

    def _log(self, refused: Refused) -> bool:
        try:
            self._append(refused)
        except MeteringUnavailable:
            return False
        return True

    def _flush_later(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(INTERVAL_SECONDS, self._flush_and_go_on)

    def _flush_and_go_on(self) -> None:
        self._timer = None
        self.flush()
        if self._waiting:
            self._flush_later()
