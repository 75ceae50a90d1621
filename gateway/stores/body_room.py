"""Room for request bodies: their bytes are counted per tenant and in all, before they are read.

A request gives its room back when it ends, however it ends. Knows no HTTP.
"""

from gateway.errors import Overloaded, RateLimited

_RETRY_SECONDS = 1.0  # when a body will end nobody knows


class BodyRoom:
    """The bytes of bodies that one process holds."""

    def __init__(self, *, tenant_bytes_max: int, bytes_max: int) -> None:
        self._tenant_bytes_max = tenant_bytes_max
        self._bytes_max = bytes_max
        self._held: dict[str, int] = {}  # by tenant; those with none are absent
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of all tenants."""
        return self._held_bytes

    def take(self, tenant_id: str, size_bytes: int) -> None:
        """Raises RateLimited where the tenant has no room left, Overloaded where nobody has."""
        held = self._held.get(tenant_id, 0) + size_bytes
        if held > self._tenant_bytes_max:
            raise RateLimited(
                f"tenant {tenant_id}: bodies of {held} bytes would be in progress, and"
                f" {self._tenant_bytes_max} may be at once (limits.tenant_body_bytes_max); wait for"
                " one to end",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self._held_bytes + size_bytes > self._bytes_max:
            raise Overloaded(
                f"Bodies of {self._held_bytes} bytes are in progress, and {self._bytes_max} may be"
                " at once (limits.worker_body_bytes_max); try again shortly.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._held[tenant_id] = held
        self._held_bytes += size_bytes

    def give_back(self, tenant_id: str, size_bytes: int) -> None:
        """What ``take`` took."""
        self._held_bytes -= size_bytes
        left = self._held[tenant_id] - size_bytes
        if left:
            self._held[tenant_id] = left
        else:
            del self._held[tenant_id]


class BodyLease:
    """The room of one request's body, which may grow while it arrives."""

    __slots__ = ("_room", "_size_bytes", "_tenant_id")

    def __init__(self, room: BodyRoom, tenant_id: str, size_bytes: int = 0) -> None:
        """size_bytes: what is known of it at once. Raises as ``take`` does."""
        if size_bytes:
            room.take(tenant_id, size_bytes)
        self._room: BodyRoom | None = room
        self._tenant_id = tenant_id
        self._size_bytes = size_bytes

    def take(self, size_bytes: int) -> None:
        """Take so much more. Raises RateLimited or Overloaded."""
        if self._room is not None and size_bytes:
            self._room.take(self._tenant_id, size_bytes)
            self._size_bytes += size_bytes

    def end(self) -> None:
        """Give all of it back. Idempotent."""
        room, self._room = self._room, None
        if room is not None and self._size_bytes:
            room.give_back(self._tenant_id, self._size_bytes)
