"""Hedging: where a local answer is late to begin, ask a second time and take the first to come.

Only for the local model and the local embeddings, whose second answer costs no money; a provider
would be paid twice. Off unless ``local.hedge`` is on. Knows nothing of what is asked.
"""

import asyncio
import time
from collections import deque

import msgspec

from gateway.upstreams.base import Upstream, UpstreamRequest, UpstreamResponse
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.health import Outcome
from gateway.upstreams.retry_budget import RetryBudget

LATENCIES_KEPT = 100
LATENCIES_MIN = 20
"""Fewer say nothing about the slowest twentieth."""

_QUANTILE = 0.95


class Hedged:
    """An upstream that asks ``inner`` again after the 95th percentile of recent latencies.

    Second attempts count against the upstream's retry budget and need a free slot, so that a model
    that is slow because it is busy is not made busier. One attempt is booked: the winner's.
    """

    def __init__(self, inner: Upstream) -> None:
        self._inner = inner
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self.hedges = 0  # second attempts since the start

    @property
    def name(self) -> str:
        """The provider's name in the policy."""
        return self._inner.name

    @property
    def healthy(self) -> bool:
        """Ask the upstream that is hedged."""
        return self._inner.healthy

    @property
    def slots(self) -> Bulkhead:
        """Those of the upstream that is hedged."""
        return self._inner.slots

    @property
    def retries(self) -> RetryBudget:
        """Those of the upstream that is hedged."""
        return self._inner.retries

    def report(self, outcome: Outcome) -> None:
        """Pass the outcome on."""
        self._inner.report(outcome)

    async def close(self) -> None:
        """Close the upstream that is hedged."""
        await self._inner.close()

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """As ``Upstream.send``. Where both attempts fail, the first one's error is raised."""
        patience = self._patience()
        began = time.monotonic()
        if patience is None:
            response = await self._inner.send(request)
        else:
            response = await self._race(request, patience)
        self._latencies.append(time.monotonic() - began)
        return response

    def _patience(self) -> float | None:
        """Seconds after which an answer is late; None while too few are known."""
        if len(self._latencies) < LATENCIES_MIN:
            return None
        return sorted(self._latencies)[int(_QUANTILE * len(self._latencies))]

    async def _race(self, request: UpstreamRequest, patience: float) -> UpstreamResponse:
        loop = asyncio.get_running_loop()
        first = loop.create_task(self._inner.send(request))
        runners = [first]
        try:
            await asyncio.wait(runners, timeout=patience)
            if not first.done() and self._may_hedge():
                self.hedges += 1
                again = msgspec.structs.replace(request, request_id=f"{request.request_id}-hedge")
                runners.append(loop.create_task(self._inner.send(again)))
            return await _first_to_succeed(runners)
        finally:
            for runner in runners:
                _dismiss(runner)

    def _may_hedge(self) -> bool:
        slots = self._inner.slots
        return slots.in_use < slots.limit and self._inner.retries.take(time.monotonic())


async def _first_to_succeed(runners: "list[asyncio.Task[UpstreamResponse]]") -> UpstreamResponse:
    running = set(runners)
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for runner in runners:
            if runner in done and runner.exception() is None:
                runners.remove(runner)
                return runner.result()
    return runners[0].result()


def _dismiss(runner: "asyncio.Task[UpstreamResponse]") -> None:
    """Cancel an attempt that nobody waits for, or give up the answer that it got."""
    if not runner.done():
        runner.add_done_callback(_dismiss)
        runner.cancel()
    elif not runner.cancelled() and runner.exception() is None:
        runner.result().close()
