"""Slots of one upstream: so many requests at once, and no tenant may hold nearly all of them.

One upstream that hangs, or one tenant that floods, fills its own slots and nothing else. A request
that finds no slot waits a moment; then it is refused. Knows tenants by their ids only.
"""

import asyncio
from collections.abc import Iterable

from gateway.errors import UpstreamOverloaded

QUEUE_SECONDS = 0.1
QUEUE_MAX = 64
"""Requests that may wait at one hosted upstream."""

_RETRY_AFTER_SECONDS = 1.0


Place = tuple[str, "asyncio.Future[None]"]
"""A tenant in the queue, and what is set when it gets its slot."""


class Bulkhead:
    """Of ``limit`` slots a tenant holds ``tenant_share`` at most, and always one.

    Last in, first out: requests that have waited longest are about to be refused anyway.
    ``_order``, ``_leaver`` and ``_patience`` say so; a subclass may say otherwise. Belongs to one
    event loop.
    """

    def __init__(
        self, name: str, *, slots_max: int, tenant_share: float = 1.0, waiting_max: int = QUEUE_MAX
    ) -> None:
        self._name = name
        self.tenant_share = tenant_share
        self.slots_max = slots_max
        self._limit = self._tenant_limit = 0
        self._waiting_max = waiting_max
        self._waiting: list[Place] = []  # the latest last
        self._held: dict[str, int] = {}  # slots per tenant; none: not in it
        self.in_use = 0
        self.set_limit(slots_max)

    @property
    def limit(self) -> int:
        """Slots that may be taken now: 1 to ``slots_max``."""
        return self._limit

    def set_limit(self, limit: int) -> None:
        """Change how many may be taken. Who holds one keeps it."""
        self._limit = max(1, min(limit, self.slots_max))
        self._tenant_limit = max(1, int(self._limit * self.tenant_share))
        self._serve()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def take(self, tenant: str) -> bool:
        """Take a slot if there is one, and give it back with ``release``."""
        held = self._held.get(tenant, 0)
        if self.in_use >= self._limit or held >= self._tenant_limit:
            return False
        self._held[tenant] = held + 1
        self.in_use += 1
        return True

    async def wait(self, tenant: str, seconds: float) -> None:
        """Take a slot as soon as there is one.

        seconds: until the answer must have begun. Raises UpstreamOverloaded after ``_patience``.
        """
        patience = self._patience(tenant, seconds)
        place = (tenant, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        if len(self._waiting) > self._waiting_max:
            self._waiting.pop(self._leaver())[1].cancel()
        try:
            async with asyncio.timeout(patience):
                await asyncio.wait((place[1],))
        except TimeoutError:
            pass
        except BaseException:
            self._leave(place)
            raise
        if not place[1].done() or place[1].cancelled():
            self._leave(place)
            raise self._refusal(tenant)

    def release(self, tenant: str) -> None:
        """Give a slot back."""
        held = self._held[tenant] - 1
        if held:
            self._held[tenant] = held
        else:
            del self._held[tenant]
        self.in_use -= 1
        if self._waiting:
            self._serve()

    def _patience(self, tenant: str, seconds: float) -> float:
        """Seconds that a request of ``tenant`` may wait. Raises UpstreamOverloaded where none."""
        return min(QUEUE_SECONDS, seconds)

    def _order(self) -> Iterable[int]:
        """Places of the queue, first the one that is served first."""
        return range(len(self._waiting) - 1, -1, -1)

    def _leaver(self) -> int:
        """Place that leaves a queue that is too long."""
        return 0

    def _leave(self, place: Place) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        elif not place[1].cancelled():
            self.release(place[0])  # served while it was giving up

    def _serve(self) -> None:
        while self._waiting and self.in_use < self._limit:
            for index in self._order():
                tenant, served = self._waiting[index]
                if self.take(tenant):
                    del self._waiting[index]
                    served.set_result(None)
                    break
            else:
                return

    def _refusal(self, tenant: str) -> UpstreamOverloaded:
        whose = (
            f"of the tenant '{tenant}' " if self._held.get(tenant, 0) >= self._tenant_limit else ""
        )
        refusal = UpstreamOverloaded(
            f"'{self._name}' is busy: as many requests {whose}as may be are in progress.",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )
        refusal.unsent = True
        return refusal
