"""The exact cache in Redis: a tenant's own unaltered answers, or nothing."""

import pickle
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.caches.entry import StoredAnswer
from gateway.caches.shared_exact import SharedExactCache
from gateway.stores.redis import Redis, RedisUnavailable
from tests.gateway.caches.cached_answers import NOW_US, stored
from tests.redis_server import RedisServer

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
ENTRY = stored("01A", expires_us=NOW_US + 60_000_000)
ANSWER_BYTES_MAX = 10_000


class Shared:
    """A cache on a connection of its own, as another process has one."""

    def __init__(self, redis: Redis, pepper: str = "") -> None:
        self.redis = redis
        self.counts: Counter[str] = Counter()
        self.cache = SharedExactCache(
            redis,
            prefix="test",
            tenant_secret=lambda tenant: f"{pepper}{tenant}".encode(),
            answer_bytes_max=ANSWER_BYTES_MAX,
            count=lambda result: self.counts.update((result,)),
        )

    async def put(self, entry: StoredAnswer = ENTRY, key: bytes = KEY) -> None:
        self.cache.put(key, entry, NOW_US)
        await self.redis.call("PING")  # behind all that was posted


@pytest.fixture
async def shared(redis_server: RedisServer) -> AsyncIterator[Shared]:
    redis = Redis(redis_server.url)
    await redis.connect()
    yield Shared(redis)
    await redis.close()


def name(key: bytes = KEY, tenant: str = "acme") -> str:
    return f"test:exact:{{{tenant}}}:{key.hex()}"


async def test_what_one_process_stores_another_finds_whole(shared: Shared) -> None:
    """Every field survives the way through Redis, and a key off by a byte is a miss."""
    await shared.put()
    other = Shared(shared.redis)
    assert await other.cache.get(KEY, "acme", NOW_US) == ENTRY
    assert await other.cache.get(OTHER_KEY, "acme", NOW_US) is None
    assert other.counts == {"hit": 1, "miss": 1}


async def test_an_entry_ends_when_it_expires(shared: Shared, redis_server: RedisServer) -> None:
    """For the reader at once, in Redis by itself."""
    await shared.put()
    assert 59_000 < redis_server.ask("PTTL", name()) <= 60_000
    assert await shared.cache.get(KEY, "acme", NOW_US + 60_000_000) is None
    await shared.put(msgspec.structs.replace(ENTRY, expires_us=NOW_US), OTHER_KEY)
    assert redis_server.ask("EXISTS", name(OTHER_KEY)) == 0


async def test_no_tenant_reads_another_s_entry_even_under_its_name(
    shared: Shared, redis_server: RedisServer
) -> None:
    """Neither copied over to it, nor found by a gateway with another pepper."""
    await shared.put()
    redis_server.ask("COPY", name(), name(tenant="globex"))
    redis_server.ask("COPY", name(), name(OTHER_KEY))
    assert await shared.cache.get(KEY, "globex", NOW_US) is None
    assert await shared.cache.get(OTHER_KEY, "acme", NOW_US) is None
    assert await Shared(shared.redis, pepper="x").cache.get(KEY, "acme", NOW_US) is None
    assert shared.counts == {"invalid": 2}


async def test_no_altered_value_is_ever_served(shared: Shared, redis_server: RedisServer) -> None:
    """Any one byte changed, any end cut, something added: a miss, counted."""
    await shared.put()
    value = redis_server.ask("GET", name())
    rng = random.Random(3)
    altered = [value[:cut] for cut in range(0, len(value), 7)] + [value + b"\x00"]
    for at in range(0, len(value), 3):
        flipped = bytearray(value)
        flipped[at] ^= 1 << rng.randrange(8)
        altered.append(bytes(flipped))
    for poisoned in altered:
        await shared.redis.call("SET", name(), poisoned)
        assert await shared.cache.get(KEY, "acme", NOW_US) is None
    assert shared.counts == {"invalid": len(altered)}


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (str(Path("/nonexistent/harm")),))


async def test_foreign_values_are_misses_and_never_code(
    shared: Shared, redis_server: RedisServer
) -> None:
    """A pickle, a well-marked value of another shape, a huge one, another type."""
    marked = [
        shared.cache._mark(KEY, "acme", content) + content
        for content in (b"", b"\xc1", msgspec.msgpack.encode({"answer": b"x"}), b"\x80" * 100)
    ]
    for value in (pickle.dumps(Bomb()), b"", b"x" * 50, bytes(ANSWER_BYTES_MAX * 2), *marked):
        redis_server.ask("SET", name(), value)
        assert await shared.cache.get(KEY, "acme", NOW_US) is None
    assert shared.counts["invalid"] == 8
    redis_server.ask("DEL", name())
    redis_server.ask("LPUSH", name(), "x")
    assert await shared.cache.get(KEY, "acme", NOW_US) is None
    assert shared.counts["unavailable"] == 1


@pytest.mark.parametrize(("size_bytes", "kept"), [(ANSWER_BYTES_MAX, 1), (ANSWER_BYTES_MAX + 1, 0)])
async def test_an_answer_above_the_limit_is_not_kept(
    shared: Shared, redis_server: RedisServer, size_bytes: int, kept: int
) -> None:
    """Exactly ANSWER_BYTES_MAX is kept, one byte more is not even sent to Redis."""
    entry = stored("01L", size_bytes=size_bytes)
    await shared.put(entry)
    assert redis_server.ask("EXISTS", name()) == kept
    assert await shared.cache.get(KEY, "acme", NOW_US) == (entry if kept else None)


async def test_purging_forgets_one_tenant_s_entries_or_all(
    shared: Shared, redis_server: RedisServer
) -> None:
    """A tenant's name is no pattern, acme2 is not acme, and foreign prefixes stay untouched."""
    redis_server.ask("SET", "elsewhere:exact:{acme}:1", "x")
    for tenant, number in (("acme", 1500), ("acme2", 5), ("globex", 7)):
        for n in range(number):
            entry = msgspec.structs.replace(ENTRY, tenant_id=tenant)
            shared.cache.put(n.to_bytes(32, "big"), entry, NOW_US)
    assert await shared.cache.purge("ac*") == 0
    assert await shared.cache.purge("acme") == 1500
    assert redis_server.ask("DBSIZE") == 13
    assert await shared.cache.purge(None) == 12
    assert redis_server.ask("KEYS", "*") == [b"elsewhere:exact:{acme}:1"]


async def test_without_redis_there_are_only_misses(tmp_path: Path) -> None:
    """An outage costs hits and no request, but an operator's purge says that it failed."""
    redis = Redis(f"unix://{tmp_path}/none")
    shared = Shared(redis)
    shared.cache.put(KEY, ENTRY, NOW_US)
    assert await shared.cache.get(KEY, "acme", NOW_US) is None
    assert shared.counts == {"unavailable": 1}
    with pytest.raises(RedisUnavailable):
        await shared.cache.purge(None)
    await redis.close()
