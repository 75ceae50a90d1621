"""Bodies that were answered from the exact cache before, with what was read of them.

A body that repeats byte for byte, as most exact hits do, is neither decoded nor put into canonical
form again. Per tenant, so that nobody's timing tells what another has asked. Knows no answers.
"""

from gateway.caches.fair_order import FairOrder
from gateway.wire.openai import Endpoint, ParsedRequest

_ENTRIES_MAX = 512
_BODY_BYTES_MAX = 8 * 1024

_Key = tuple[str, Endpoint, bytes]


class Repeats:
    """The most recently repeated bodies, of each tenant its equal part at least."""

    def __init__(self) -> None:
        self._known: dict[_Key, ParsedRequest] = {}
        self._order: FairOrder[_Key] = FairOrder()

    def get(self, tenant_id: str, endpoint: Endpoint, raw: bytes) -> ParsedRequest | None:
        """What was read of the same bytes before; shared, so never to be changed."""
        return self._known.get((tenant_id, endpoint, raw))

    def learn(self, tenant_id: str, raw: bytes, request: ParsedRequest) -> None:
        """Remember a body that was answered from the cache."""
        if len(raw) > _BODY_BYTES_MAX:
            return
        key = (tenant_id, request.endpoint, raw)
        if key in self._known:
            self._order.touch(tenant_id, key)
            return
        if len(self._known) >= _ENTRIES_MAX:
            whose, oldest = self._order.next_out(tenant_id, 1)
            self._order.remove(whose, oldest)
            del self._known[oldest]
        self._known[key] = request
        self._order.add(tenant_id, key, 1)
