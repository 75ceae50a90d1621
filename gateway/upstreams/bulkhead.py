"""Slots of one upstream: so many requests at once, and no tenant may hold nearly all of them.

One upstream that hangs, or one tenant that floods, fills its own slots and nothing else. Who finds
none waits a moment; then the request is refused. Knows tenants by their ids only.
"""

import asyncio

from gateway.errors import UpstreamOverloaded

QUEUE_SECONDS = 0.1
QUEUE_MAX = 64
_RETRY_AFTER_SECONDS = 1.0


class Bulkhead:
    """Of ``limit`` slots a tenant holds ``tenant_share`` at most, and always one.

    Who waits last is served first: those who have waited longest have the least time left, and
    while more come than can be served somebody must be refused. Belongs to one event loop.
    """

    def __init__(self, name: str, *, slots_max: int, tenant_share: float = 1.0) -> None:
        self._name = name
        self._tenant_share = tenant_share
        self.slots_max = slots_max
        self._limit = self._tenant_limit = 0
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # the latest last
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
        self._tenant_limit = max(1, int(self._limit * self._tenant_share))
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

    async def wait(self, tenant: str) -> None:
        """Take a slot as soon as there is one. Raises UpstreamOverloaded after QUEUE_SECONDS."""
        place = (tenant, asyncio.get_running_loop().create_future())
        if len(self._waiting) >= QUEUE_MAX:
            self._waiting.pop(0)[1].cancel()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
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

    def _leave(self, place: tuple[str, "asyncio.Future[None]"]) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        elif not place[1].cancelled():
            self.release(place[0])  # served while it was giving up

    def _serve(self) -> None:
        index = len(self._waiting)
        while index and self.in_use < self._limit:
            index -= 1
            tenant, served = self._waiting[index]
            if self.take(tenant):
                del self._waiting[index]
                served.set_result(None)

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
