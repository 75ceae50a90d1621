"""One of several processes that ask for as much as they can get. Imports little: it is spawned."""

import asyncio
import contextlib
import random
import time
from multiprocessing.queues import Queue
from typing import NamedTuple

from gateway.errors import RateLimited
from gateway.policy.snapshot import RateLimits
from gateway.stores.redis import Redis
from gateway.stores.shared_limits import SharedLimiter

PROCESSES = 4
ASKERS = 4
LIMITS = {
    "requests": RateLimits(requests_per_minute=500),
    "tokens": RateLimits(tokens_per_minute=20_000),
    "concurrent": RateLimits(concurrent=3),
}


class Span(NamedTuple):
    """One admitted request; times are monotonic, the same clock in every process."""

    tenant: str
    began: float
    ended: float
    tokens: int


def hammer(url: str, seconds: float, seed: int, results: "Queue[list[Span]]") -> None:
    """Ask for all tenants at once; put what was admitted into ``results``."""
    results.put(asyncio.run(_hammer(url, seconds, random.Random(seed))))


async def _hammer(url: str, seconds: float, rng: random.Random) -> list[Span]:
    redis = Redis(url, timeout_seconds=2.0)
    await redis.connect()
    limiter = SharedLimiter(redis, prefix="test", processes=PROCESSES)
    admitted: list[Span] = []
    until = time.monotonic() + seconds

    async def ask(tenant: str) -> None:
        while (now := time.monotonic()) < until:
            tokens = rng.randrange(1, 300)
            with contextlib.suppress(RateLimited):
                held = await limiter.reserve(tenant, LIMITS[tenant], tokens, 0, now)
                assert not held.allowance.degraded
                began, used = time.monotonic(), rng.randrange(tokens + 1)
                await asyncio.sleep(rng.random() * 0.01)
                admitted.append(Span(tenant, began, time.monotonic(), used))
                held.settle(used)
            await asyncio.sleep(0)

    await asyncio.gather(*(ask(tenant) for tenant in LIMITS for _ in range(ASKERS)))
    await redis.close()
    return admitted
