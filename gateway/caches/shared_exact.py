"""The exact cache's second tier: answers that every process of the gateway finds in Redis.

A value is trusted only with the mark of its tenant's own secret over key and content: what was cut,
altered, moved to another key or written by somebody else is a miss. It is data (msgpack into one
known struct), never code. Redis away is a miss too, and what cannot be written is not. Knows Redis
and bytes. Does not know HTTP, policies or money.
"""

import hmac
import re
from collections.abc import Callable
from functools import lru_cache

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.stores.redis import Redis, RedisUnavailable

_MARK_BYTES = 32
_OVERHEAD_BYTES_MAX = 4096  # of a value, beside its answer
_SCAN_COUNT = 1000
_SECRETS_MAX = 1024  # remembered
_GLOB, _ESCAPED = re.compile(r"[*?\[\]\\^]"), r"\\\g<0>"  # what SCAN would read as a pattern
_VERSION = b"exact-value-1"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoredAnswer).decode


class SharedExactCache:
    """Answers by their exact key, in Redis."""

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        tenant_secret: Callable[[str], bytes],
        answer_bytes_max: int,
        count: Callable[[str], None],
    ) -> None:
        """count: told of each lookup, as ``hit``, ``miss``, ``invalid`` or ``unavailable``."""
        self._redis = redis
        self._prefix = prefix
        self._secret = lru_cache(_SECRETS_MAX)(
            lambda tenant: hmac.digest(tenant_secret(tenant), _VERSION, "sha256")
        )
        self._answer_bytes_max = answer_bytes_max
        self._count = count

    async def get(self, key: bytes, tenant_id: str, now_us: int) -> StoredAnswer | None:
        """The live entry under ``key``; None where there is none that can be trusted."""
        try:
            value = await self._redis.call("GET", self._name(key, tenant_id))
        except RedisUnavailable:
            self._count("unavailable")
            return None
        if value is None:
            self._count("miss")
            return None
        entry = self._read(key, tenant_id, value)
        if entry is None:
            self._count("invalid")
            return None
        alive = entry.alive(now_us)
        self._count("hit" if alive else "miss")
        return entry if alive else None

    def put(self, key: bytes, entry: StoredAnswer, now_us: int) -> None:
        """Store or replace, until the entry expires. Does not wait; a large answer is not kept."""
        remaining_ms = (entry.expires_us - now_us) // 1000
        if len(entry.answer) > self._answer_bytes_max or remaining_ms <= 0:
            return
        content = _encode(entry)
        value = self._mark(key, entry.tenant_id, content) + content
        self._redis.post("SET", self._name(key, entry.tenant_id), value, "PX", remaining_ms)

    async def purge(self, tenant_id: str | None) -> int:
        """Forget the entries of one tenant, or of all; how many. Raises RedisUnavailable."""
        whose = "*" if tenant_id is None else f"{{{_GLOB.sub(_ESCAPED, tenant_id)}}}:*"
        pattern = f"{self._prefix}:exact:{whose}"
        removed, cursor = 0, b"0"
        while True:
            cursor, names = await self._redis.call(
                "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT
            )
            if names:
                removed += await self._redis.call("UNLINK", *names)
            if cursor == b"0":
                return removed

    def _read(self, key: bytes, tenant_id: str, value: object) -> StoredAnswer | None:
        if not isinstance(value, bytes):
            return None
        if not _MARK_BYTES < len(value) <= self._answer_bytes_max + _OVERHEAD_BYTES_MAX:
            return None
        mark, content = value[:_MARK_BYTES], value[_MARK_BYTES:]
        if not hmac.compare_digest(mark, self._mark(key, tenant_id, content)):
            return None
        try:
            return _decode(content)
        except msgspec.DecodeError:  # ours, but of another version
            return None

    def _mark(self, key: bytes, tenant_id: str, content: bytes) -> bytes:
        return hmac.digest(self._secret(tenant_id), key + content, "sha256")

    def _name(self, key: bytes, tenant_id: str) -> str:
        return f"{self._prefix}:exact:{{{tenant_id}}}:{key.hex()}"
