"""CPU per call of the Redis client, against a real redis-server.

    python tests/bench/bench_redis.py [--seconds 1] [--calls 64]

Redis runs in a process of its own; the figures are CPU of this process (time.process_time), which a
busy machine disturbs little. The baseline is the least a client could do: the same command over a
bare asyncio protocol that counts reply bytes and parses nothing, as many at a time.
"""

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import uvloop
from hiredis import pack_command

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gateway.caches.entry import StoredAnswer
from gateway.caches.shared_exact import SharedExactCache
from gateway.policy.snapshot import RateLimits
from gateway.stores.redis import Redis, Script
from gateway.stores.shared_limits import SharedLimiter
from gateway.wire.usage import Usage
from tests.redis_server import RedisServer

ROUNDS = 3
KEY = bytes(32)
LIMITS = RateLimits(requests_per_minute=10**9, tokens_per_minute=10**12, concurrent=10**6)
ENTRY = StoredAnswer(
    answer=b"x" * 1024, endpoint="chat", served_model="large", provider="p",
    usage=Usage(prompt_tokens=1), stored_us=1, expires_us=10**10, cache_id="01",
    route_identity=b"", tenant_id="bench", writer_key_id="k",
)  # fmt: skip
SCRIPT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


class Bare(asyncio.Protocol):
    """Writes the command again for every reply ``$1␍␊x␍␊``."""

    def __init__(self, command: bytes, at_once: int) -> None:
        self.command, self.at_once = command, at_once
        self.count = self.unread = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.WriteTransport, transport)
        self.transport.write(self.command * self.at_once)

    def data_received(self, data: bytes) -> None:
        replies, self.unread = divmod(self.unread + len(data), len(b"$1\r\nx\r\n"))
        self.count += replies
        self.transport.write(self.command * replies)


async def bare(server: RedisServer, seconds: float, at_once: int) -> int:
    """Commands of the baseline."""
    loop = asyncio.get_running_loop()
    command = cast(Any, pack_command)(("GET", "bench"))
    transport, protocol = await loop.create_unix_connection(
        lambda: Bare(command, at_once), str(server.socket)
    )
    await asyncio.sleep(seconds)
    transport.abort()
    return protocol.count


async def drive(
    url: str, seconds: float, at_once: int, call: Callable[[Redis], Awaitable[object]]
) -> int:
    """Commands of closed-loop callers."""
    redis = Redis(url, timeout_seconds=1.0)
    await redis.connect()
    deadline = time.monotonic() + seconds
    count = 0

    async def one() -> None:
        nonlocal count
        while time.monotonic() < deadline:
            await call(redis)
            count += 1

    await asyncio.gather(*(one() for _ in range(at_once)))
    await redis.close()
    return count


async def posts(url: str, seconds: float, at_once: int) -> int:
    """Posted commands, ``at_once`` in each turn, then one call that waits for all of them."""
    redis = Redis(url, timeout_seconds=1.0)
    await redis.connect()
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        for _ in range(at_once - 1):
            redis.post("SET", "bench", "x")
        await redis.call("GET", "bench")
        count += at_once
    await redis.close()
    return count


async def admit(limiter: SharedLimiter) -> None:
    """What one request with all three limits costs: reservation and settlement."""
    (await limiter.reserve("bench", LIMITS, 900, 1, time.monotonic())).settle(100)


async def look_up(cache: SharedExactCache) -> None:
    """A hit of 1 KB."""
    assert await cache.get(KEY, "bench", 1) is not None


async def drive_parts(url: str, seconds: float, at_once: int, part: str) -> int:
    """Requests of closed-loop callers through one part of the gateway."""
    redis = Redis(url, timeout_seconds=1.0)
    await redis.connect()
    limiter = SharedLimiter(redis, prefix="bench", processes=1)
    cache = SharedExactCache(
        redis, prefix="bench", tenant_secret=str.encode, answer_bytes_max=1 << 20,
        count=lambda _: None,
    )  # fmt: skip
    cache.put(KEY, ENTRY, 1)
    deadline = time.monotonic() + seconds
    count = 0

    async def one() -> None:
        nonlocal count
        while time.monotonic() < deadline:
            await (admit(limiter) if part == "admit" else look_up(cache))
            count += 1

    await asyncio.gather(*(one() for _ in range(at_once)))
    await redis.close()
    return count


def main() -> None:
    """Measure and print one line per case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--calls", type=int, default=64)
    options = parser.parse_args()
    seconds, calls = options.seconds, options.calls
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        url = server.url
        server.ask("SET", "bench", "x")
        cases: dict[str, Callable[[], Coroutine[Any, Any, int]]] = {
            f"bare protocol, GET, {calls} at once": lambda: bare(server, seconds, calls),
            f"GET, {calls} at once": lambda: drive(
                url, seconds, calls, lambda redis: redis.call("GET", "bench")
            ),
            f"script, {calls} at once": lambda: drive(
                url, seconds, calls, lambda redis: redis.run(SCRIPT, [b"count"], [1])
            ),
            f"posted SET, {calls} in a turn": lambda: posts(url, seconds, calls),
            f"limits of a request, {calls} at once": lambda: drive_parts(
                url, seconds, calls, "admit"
            ),
            f"exact hit of 1 KB, {calls} at once": lambda: drive_parts(
                url, seconds, calls, "look up"
            ),
            "bare protocol, GET, 1 at once": lambda: bare(server, seconds, 1),
            "GET, 1 at once": lambda: drive(
                url, seconds, 1, lambda redis: redis.call("GET", "bench")
            ),
        }
        print(f"Python {platform.python_version()}, uvloop {version('uvloop')},"
              f" hiredis {version('hiredis')}, {server.version}, {platform.machine()}")  # fmt: skip
        for name, case in cases.items():
            figures, rates = [], []
            for _ in range(ROUNDS):
                cpu, wall = time.process_time(), time.monotonic()
                count = uvloop.run(case())
                figures.append((time.process_time() - cpu) * 1e6 / count)
                rates.append(count / (time.monotonic() - wall))
            print(
                f"{name:32} {statistics.median(figures):6.2f} µs CPU"
                f" (spread {max(figures) - min(figures):.2f}), {max(rates):,.0f}/s"
            )


if __name__ == "__main__":
    main()
