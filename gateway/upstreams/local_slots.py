"""Slots of a local model, and the line before them: fair, bounded, as patient as the budget.

An answer of a local model takes seconds, so a request may wait for seconds: as long as its latency
budget allows. One that would get its slot too late is refused at once, and a route's large model
can be asked while there is time. Knows tenants and times; no socket.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

from gateway.errors import UpstreamOverloaded
from gateway.upstreams.bulkhead import QUEUE_MAX, Bulkhead

WAIT_SHARE = 0.8
"""Of the seconds until an answer must have begun, those a request may wait. The rest is for its
prompt to be read."""

RELEASES_SEEN = 16
"""Slots that came back last, from which the wait is foretold: a stall is forgotten with them."""

RELEASES_MIN = 4
"""Fewer foretell nothing."""

_RETRY_AFTER_SECONDS_MAX = 60.0


class LocalSlots(Bulkhead):
    """A bulkhead whose next slot goes to the tenant that holds the fewest, and there to the oldest.

    A queue that is too long loses the latest request of the tenant that has the most in it, so a
    tenant that floods the queue pushes out nobody else.
    """

    def __init__(
        self,
        name: str,
        *,
        slots_max: int,
        tenant_share: float = 1.0,
        waiting_max: int = QUEUE_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._releases: deque[float] = deque(maxlen=RELEASES_SEEN)  # while somebody waited
        super().__init__(
            name, slots_max=slots_max, tenant_share=tenant_share, waiting_max=waiting_max
        )

    def release(self, tenant: str) -> None:
        """Give a slot back, and learn how often that happens while the model is in demand."""
        if self._waiting:
            self._releases.append(self._clock())
        else:
            self._releases.clear()
        super().release(tenant)

    def expected_seconds(self, tenant: str) -> float:
        """How long one more request of ``tenant`` would wait; 0 where nobody knows."""
        if len(self._releases) < RELEASES_MIN:
            return 0.0
        waiting = Counter(waiter for waiter, _ in self._waiting)
        own = waiting.pop(tenant, 0)
        before = own + sum(min(others, own + 1) for others in waiting.values())
        period = (self._clock() - self._releases[0]) / len(self._releases)
        return (before + 1) * period

    def _patience(self, tenant: str, seconds: float) -> float:
        allowed = WAIT_SHARE * max(0.0, seconds)
        expected = self.expected_seconds(tenant)
        if expected <= allowed:
            return allowed
        refusal = UpstreamOverloaded(
            f"'{self._name}' is busy: it would begin to answer in about {expected:.0f} s, and"
            f" {allowed:.0f} s of waiting are allowed.",
            retry_after_seconds=min(max(1.0, expected - allowed), _RETRY_AFTER_SECONDS_MAX),
        )
        refusal.unsent = True
        raise refusal

    def _order(self) -> Iterable[int]:
        held = self._held
        return sorted(
            range(len(self._waiting)), key=lambda index: held.get(self._waiting[index][0], 0)
        )

    def _leaver(self) -> int:
        waiting = Counter(tenant for tenant, _ in self._waiting)
        return max(
            range(len(self._waiting)), key=lambda index: (waiting[self._waiting[index][0]], index)
        )
