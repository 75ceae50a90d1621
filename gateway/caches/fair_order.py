"""Who makes room in a cache that tenants share: the one that holds most.

Of that tenant the least recently used entry goes. So a tenant that holds no more than its equal
part of the cache loses nothing to another, however much the other stores; and one that is alone has
all of it. Knows keys and weights, and no answers.
"""

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
_STALE_PER_TENANT_MAX = 8  # entries of the heap


class FairOrder(Generic[Key]):
    """The order in which entries leave. Not safe between threads: its cache has a lock."""

    def __init__(self) -> None:
        self._orders: dict[str, OrderedDict[Key, int]] = {}  # by tenant: key → weight, oldest first
        self._held: dict[str, int] = {}  # by tenant: the sum of its weights
        self._heap: list[tuple[int, str]] = []  # (-held, tenant), of now or of earlier

    def add(self, tenant_id: str, key: Key, weight: int) -> None:
        """Note a new entry, the most recently used one of its tenant."""
        order = self._orders.get(tenant_id)
        if order is None:
            order = self._orders[tenant_id] = OrderedDict()
        order[key] = weight
        held = self._held[tenant_id] = self._held.get(tenant_id, 0) + weight
        heappush(self._heap, (-held, tenant_id))
        if len(self._heap) > _STALE_PER_TENANT_MAX * (len(self._held) + 8):
            self._heap = [(-held, tenant_id) for tenant_id, held in self._held.items()]
            heapify(self._heap)

    def touch(self, tenant_id: str, key: Key) -> None:
        """Note that an entry is used."""
        self._orders[tenant_id].move_to_end(key)

    def remove(self, tenant_id: str, key: Key) -> int:
        """Forget an entry; its weight."""
        order = self._orders[tenant_id]
        weight = order.pop(key)
        if order:
            self._held[tenant_id] -= weight
        else:
            del self._orders[tenant_id], self._held[tenant_id]
        return weight

    def next_out(self, tenant_id: str, weight: int) -> tuple[str, Key]:
        """(tenant, key) of the entry that makes room for so much more of ``tenant_id``."""
        most = self._most()
        own = self._held.get(tenant_id, 0)
        if own and own + weight >= self._held[most]:
            most = tenant_id
        return most, next(iter(self._orders[most]))

    def clear(self) -> None:
        """Forget everything."""
        self._orders.clear()
        self._held.clear()
        self._heap.clear()

    def _most(self) -> str:
        """The tenant that holds most. The heap knows of every increase, and of no decrease."""
        while True:
            known, tenant_id = self._heap[0]
            held = self._held.get(tenant_id, 0)
            if held == -known:
                return tenant_id
            if 0 < held < -known:
                heapreplace(self._heap, (-held, tenant_id))
            else:
                heappop(self._heap)
