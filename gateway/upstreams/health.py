"""Passive health: a circuit breaker fed by what requests experience. Knows no socket."""

from collections import deque
from collections.abc import Callable
from typing import Literal

Outcome = Literal["ok", "failed", "unknown"]
"""How a request went for its provider. unknown: the client left, or nobody was asked."""


class CircuitBreaker:
    """Opens when too large a share of recent requests failed; later lets a probe through.

    Fed when a request begins and when its answer ends, streams included. A probe that has not
    ended after ``eject_seconds``, or whose client left, is followed by another. What ends with an
    unknown outcome proves nothing either way. The clock is monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        window_seconds: float,
        min_requests: int,
        error_rate: float,
        eject_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._window_seconds = window_seconds
        self._min_requests = min_requests
        self._error_rate = error_rate
        self._eject_seconds = eject_seconds
        self._clock = clock
        self._seconds: deque[list[int]] = deque()  # [second, requests, failures]
        self._requests = 0
        self._failures = 0
        self._open_until: float | None = None
        self._probe_until = 0.0

    @property
    def healthy(self) -> bool:
        """Closed, or open for long enough that the next request may probe."""
        return self._open_until is None or self._clock() >= max(self._open_until, self._probe_until)

    def begin(self) -> None:
        """A request is about to be sent; while the breaker is open, it is the probe."""
        if self._open_until is not None:
            self._probe_until = self._clock() + self._eject_seconds

    def report(self, outcome: Outcome) -> None:
        """One request has ended."""
        if outcome == "unknown":
            self._probe_until = 0.0
            return
        failed = outcome == "failed"
        now = self._clock()
        if self._open_until is not None:
            if now < self._open_until:
                return  # begun before the breaker opened
            if failed:
                self._open_until = now + self._eject_seconds
            else:
                self._reset()
            return
        self._count(int(now), failed)
        if (
            failed
            and self._requests >= self._min_requests
            and self._failures >= self._error_rate * self._requests
        ):
            self._open_until = now + self._eject_seconds

    def _count(self, second: int, failed: bool) -> None:
        seconds = self._seconds
        while seconds and seconds[0][0] <= second - self._window_seconds:
            _, requests, failures = seconds.popleft()
            self._requests -= requests
            self._failures -= failures
        if not seconds or seconds[-1][0] != second:
            seconds.append([second, 0, 0])
        seconds[-1][1] += 1
        seconds[-1][2] += failed
        self._requests += 1
        self._failures += failed

    def _reset(self) -> None:
        self._open_until = None
        self._probe_until = 0.0
        self._seconds.clear()
        self._requests = self._failures = 0
