"""Exact cache: an identical request gets the stored answer.

Knows keys and bytes. Does not know HTTP, policies or money.
"""

import hmac
import threading
from collections.abc import Callable

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.caches.fair_order import FairOrder

SCHEMA_VERSION = b"exact-2 "

# The key, the structs, the two dictionary slots and the strings of an entry that holds an empty
# answer: 1.1 KiB by tracemalloc, rounded up.
ENTRY_OVERHEAD_BYTES = 1_280


def exact_key(
    *, tenant_secret: bytes, scope: str, route_identity: bytes, canonical: bytes
) -> bytes:
    """The 32-byte key of one request: HMAC-SHA-256 under the tenant's own secret.

    Who knows a body but not the secret cannot even ask whether it is stored. The parts' lengths
    lead, so that no two different lists of parts make the same message.
    """
    scoped = scope.encode()
    message = b"%b%d %d %d %b%b%b" % (
        SCHEMA_VERSION, len(scoped), len(route_identity), len(canonical),
        scoped, route_identity, canonical,
    )  # fmt: skip
    return hmac.digest(tenant_secret, message, "sha256")


class ExactStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start, and what is held now."""

    hits: int
    misses: int
    expired: int
    evicted: int
    refused: int  # larger than the whole budget
    entries: int
    size_bytes: int


class ExactCache:
    """The sum of sizes never exceeds ``bytes_max``. The tenant that holds most makes room, by its
    least recently used entry: no tenant evicts what another has in its equal part.
    """

    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._entries: dict[bytes, StoredAnswer] = {}
        self._order: FairOrder[bytes] = FairOrder()
        self._keys: dict[str, bytes] = {}  # cache_id → key
        self._size_bytes = 0
        self._hits = self._misses = self._expired = self._evicted = self._refused = 0

    def get(self, key: bytes, now_us: int) -> StoredAnswer | None:
        """The live entry under ``key``, now the most recently used; None when there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and not entry.alive(now_us):
                self._drop(key)
                self._expired += 1
                entry = None
            if entry is None:
                self._misses += 1
                return None
            self._order.touch(entry.tenant_id, key)
            self._hits += 1
            return entry

    def put(self, key: bytes, entry: StoredAnswer) -> None:
        """Store or replace; evicts until it fits. An entry above the whole budget is refused."""
        size_bytes = entry_size_bytes(entry)
        with self._lock:
            self._drop(key)
            if size_bytes > self._bytes_max:
                self._refused += 1
                return
            while self._size_bytes + size_bytes > self._bytes_max:
                self._drop(self._order.next_out(entry.tenant_id, size_bytes)[1])
                self._evicted += 1
            self._entries[key] = entry
            self._order.add(entry.tenant_id, key, size_bytes)
            self._keys[entry.cache_id] = key
            self._size_bytes += size_bytes

    def delete(self, cache_id: str) -> bool:
        """Forget one entry; whether it was there."""
        with self._lock:
            key = self._keys.get(cache_id)
            if key is None:
                return False
            self._drop(key)
            return True

    def delete_where(self, doomed: Callable[[StoredAnswer], bool]) -> int:
        """Forget every entry of which ``doomed`` holds; how many there were."""
        with self._lock:
            keys = [key for key, entry in self._entries.items() if doomed(entry)]
            for key in keys:
                self._drop(key)
        return len(keys)

    def clear(self) -> None:
        """Forget every entry; the counts stay."""
        with self._lock:
            self._entries.clear()
            self._order.clear()
            self._keys.clear()
            self._size_bytes = 0

    @property
    def stats(self) -> ExactStats:
        """The counts at this moment."""
        with self._lock:
            return ExactStats(
                hits=self._hits,
                misses=self._misses,
                expired=self._expired,
                evicted=self._evicted,
                refused=self._refused,
                entries=len(self._entries),
                size_bytes=self._size_bytes,
            )

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._size_bytes -= self._order.remove(entry.tenant_id, key)
        if self._keys.get(entry.cache_id) == key:
            del self._keys[entry.cache_id]


def entry_size_bytes(entry: StoredAnswer) -> int:
    """What one entry costs in memory, as the budget counts it."""
    return len(entry.answer) + ENTRY_OVERHEAD_BYTES
