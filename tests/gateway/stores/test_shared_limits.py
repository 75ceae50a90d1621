"""Limits shared through Redis: the same answers as in one process, and never one too many."""

import asyncio
import contextlib
import multiprocessing
import random
import time
from collections.abc import AsyncIterator
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from gateway.errors import RateLimited
from gateway.policy.snapshot import RateLimits
from gateway.stores.limits import Limiter, Reservation
from gateway.stores.redis import Redis
from gateway.stores.shared_limits import LEASE_SECONDS, SharedLimiter
from tests.gateway.stores.limits_hammer import PROCESSES, Span, hammer
from tests.redis_server import RedisServer

START_US = 1_795_168_800_250_000


class Clock:
    """Seconds for the one limiter, microseconds for the other: the same time."""

    def __init__(self) -> None:
        self.us = START_US

    @property
    def seconds(self) -> float:
        return self.us / 1e6

    def __call__(self) -> int:
        return self.us


class Shared:
    """A shared limiter, its connection and its clock."""

    def __init__(self, redis: Redis, *, processes: int = 1, real_time: bool = False) -> None:
        self.redis, self.clock = redis, Clock()
        self.degraded = 0
        self.limiter = SharedLimiter(
            redis, prefix="test", processes=processes, count_degraded=self._count,
            clock_us=(lambda: 0) if real_time else self.clock,
        )  # fmt: skip

    def _count(self) -> None:
        self.degraded += 1

    async def reserve(
        self, limits: RateLimits, tokens: int = 1, least: int = 0, tenant: str = "t"
    ) -> Reservation:
        return await self.limiter.reserve(tenant, limits, tokens, least, self.clock.seconds)


@contextlib.asynccontextmanager
async def sharing(
    server: RedisServer, *, processes: int = 1, real_time: bool = False
) -> AsyncIterator[Shared]:
    redis = Redis(server.url)
    await redis.connect()
    try:
        yield Shared(redis, processes=processes, real_time=real_time)
    finally:
        await redis.close()


@pytest.fixture
async def shared(server: RedisServer) -> AsyncIterator[Shared]:
    async with sharing(server) as made:
        yield made


async def seen(shared: Shared, limits: RateLimits, tokens: int) -> tuple[Reservation | None, str]:
    try:
        made = await shared.reserve(limits, tokens)
    except RateLimited as refused:
        wait = refused.retry_after_seconds
        return None, f"{refused.message} {wait:.5f} {refused.retryable}"
    return made, _announced(made)


def seen_alone(
    limiter: Limiter, limits: RateLimits, tokens: int, now: float
) -> tuple[Reservation | None, str]:
    try:
        made = limiter.reserve("t", limits, tokens, 0, now)
    except RateLimited as refused:
        wait = refused.retry_after_seconds
        return None, f"{refused.message} {wait:.5f} {refused.retryable}"
    return made, _announced(made)


def _announced(made: Reservation) -> str:
    left = made.allowance
    return (
        f"{left.requests_limit} {left.requests_remaining} {left.requests_reset_seconds:.5f}"
        f" {left.tokens_limit} {left.tokens_remaining} {left.tokens_reset_seconds:.5f}"
    )


@pytest.mark.parametrize("seed", range(6))
async def test_redis_and_one_process_decide_and_announce_the_same(
    shared: Shared, seed: int
) -> None:
    """300 requests over some minutes, each settled some time later; the clock is injected."""
    rng, alone, clock = random.Random(seed), Limiter(), shared.clock
    running: list[tuple[int, Reservation, Reservation]] = []
    limits = RateLimits(requests_per_minute=12, tokens_per_minute=400, concurrent=4)
    refusals = 0
    for _ in range(300):
        clock.us += rng.choice((0, 10_000, 900_000, 3_000_000, 7_000_000, 90_000_000))
        for due, theirs, ours in [entry for entry in running if entry[0] <= clock.us]:
            used = rng.randrange(120)
            theirs.settle(used)
            ours.settle(used)
            running.remove((due, theirs, ours))
        tokens = rng.randrange(1, 150)
        there, told = await seen(shared, limits, tokens)
        here, expected = seen_alone(alone, limits, tokens, clock.seconds)
        assert told == expected
        if there is None or here is None:
            refusals += 1
        else:
            lasts_us = rng.randrange(round(LEASE_SECONDS * 1e6) - 1)  # then the lease is renewed
            running.append((clock.us + lasts_us, there, here))
            if rng.random() < 0.1:  # a client that leaves at once
                running[-1] = (clock.us, there, here)
    assert 30 < refusals < 270


async def test_what_redis_keeps_of_a_tenant_does_not_grow_and_ends_by_itself(
    shared: Shared, server: RedisServer
) -> None:
    """300 requests leave one key of at most 126 fields, which expires within two minutes."""
    limits = RateLimits(requests_per_minute=10**6, tokens_per_minute=10**9, concurrent=100)
    for _ in range(300):
        shared.clock.us += 700_000
        (await shared.reserve(limits, 50)).settle(10)
    await shared.redis.call("PING")  # behind all that was posted
    keys = server.ask("KEYS", "*")
    assert keys == [b"test:limits:{t}:minute"]
    assert server.ask("HLEN", keys[0]) <= 4 + 2 * 61
    assert 0 < server.ask("TTL", keys[0]) <= 120


async def test_the_slots_of_a_killed_process_come_back_with_its_leases(
    shared: Shared, server: RedisServer
) -> None:
    """Its two slots block others until LEASE_SECONDS have passed, and then are free again."""
    limits = RateLimits(concurrent=2)
    async with sharing(server) as dead:
        await dead.reserve(limits)
        await dead.reserve(limits)
    with pytest.raises(RateLimited, match="already in progress"):
        await shared.reserve(limits)
    shared.clock.us += round((LEASE_SECONDS - 0.01) * 1e6)
    with pytest.raises(RateLimited, match="already in progress"):
        await shared.reserve(limits)
    shared.clock.us += 20_000
    await shared.reserve(limits)
    assert server.ask("ZCARD", "test:limits:{t}:running") == 1


async def test_a_long_stream_keeps_its_slot(server: RedisServer) -> None:
    """Its lease is renewed, and made anew where Redis has forgotten it."""
    key = "test:limits:{t}:running"
    async with sharing(server, real_time=True) as shared:
        running = [await shared.reserve(RateLimits(concurrent=2)) for _ in range(2)]
        leases = server.ask("ZRANGE", key, 0, -1)
        for forget in (("ZADD", key, "XX", 1, leases[0]), ("DEL", key)):
            server.ask(*forget)
            shared.limiter.renew()
            await shared.redis.call("PING")
            ends = [int(server.ask("ZSCORE", key, lease)) / 1e3 for lease in leases]
            assert all(LEASE_SECONDS - 5 < end - time.time() <= LEASE_SECONDS for end in ends)
        for reservation in running:
            reservation.settle(0)
        shared.limiter.renew()
        await shared.redis.call("PING")
        assert server.ask("EXISTS", key) == 0


async def test_a_clock_set_back_locks_nobody_out_and_gives_nothing_twice(
    shared: Shared,
) -> None:
    """Five seconds or an hour back, used limits stay used; a minute later they are all free."""
    limits = RateLimits(requests_per_minute=3, tokens_per_minute=300, concurrent=3)
    for tokens in (100, 50):
        (await shared.reserve(limits, tokens)).settle(tokens)
    await shared.reserve(limits, 10)  # its process dies
    for back_us in (5_000_000, 3_600_000_000):
        shared.clock.us -= back_us
        with pytest.raises(RateLimited, match="3 requests"):
            await shared.reserve(limits, 1)
        with pytest.raises(RateLimited, match="300 tokens"):
            await shared.reserve(limits, 200)
    shared.clock.us += 61_000_000
    fresh = [await shared.reserve(limits, 100) for _ in range(3)]
    assert fresh[-1].allowance.requests_remaining == 0
    assert fresh[-1].allowance.tokens_remaining == 0


async def test_a_client_that_leaves_while_redis_is_asked_leaves_no_lease(
    shared: Shared, server: RedisServer
) -> None:
    """The only slot is free for the next request, and no renewal goes on for a ghost."""
    limits = RateLimits(concurrent=1)
    leaver = asyncio.create_task(shared.reserve(limits))
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    (await shared.reserve(limits)).settle(0)
    assert not shared.limiter._running


async def test_a_request_that_can_never_fit_is_told_so_without_asking_redis(
    shared: Shared, server: RedisServer
) -> None:
    """A prompt of 101 tokens under a limit of 100 costs no round trip and leaves no key."""
    with pytest.raises(RateLimited, match="shorten the prompt") as refused:
        await shared.reserve(RateLimits(tokens_per_minute=100), 500, 101)
    assert not refused.value.retryable
    assert server.ask("DBSIZE") == 0


@pytest.mark.parametrize(
    "poison",
    [
        ("SET", "test:limits:{t}:minute", "x"),
        ("HSET", "test:limits:{t}:minute", "requests", "many"),
        ("SET", "test:limits:{t}:running", "x"),
    ],
)
async def test_what_somebody_else_wrote_under_our_keys_costs_no_request(
    shared: Shared, server: RedisServer, poison: tuple[str, ...]
) -> None:
    """The tenant is judged by this process alone for once, and other tenants as ever."""
    server.ask(*poison)
    limits = RateLimits(requests_per_minute=9, concurrent=9)
    assert (await shared.reserve(limits)).allowance.degraded
    assert not (await shared.reserve(limits, tenant="other")).allowance.degraded


# Without Redis


async def test_without_redis_the_shares_of_all_processes_stay_within_the_limits(
    tmp_path: Path,
) -> None:
    """Four processes admit two each of eleven: fewer than allowed, and never more."""
    limits = RateLimits(requests_per_minute=11, tokens_per_minute=1100, concurrent=11)
    admitted = used = 0
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(PROCESSES):
            shared = await stack.enter_async_context(
                sharing(RedisServer(tmp_path), processes=PROCESSES)
            )
            for _ in range(9):
                with contextlib.suppress(RateLimited):
                    reservation = await shared.reserve(limits, 100)
                    assert reservation.allowance.degraded
                    admitted += 1
                    used += 100
            assert shared.degraded == 9
            assert shared.limiter._local.concurrent("t") == 2
    assert admitted == 8 <= 11
    assert used <= 1100


@pytest.mark.parametrize(
    ("limits", "tokens", "says"),
    [
        (RateLimits(requests_per_minute=3), 1, "less than one"),
        (RateLimits(concurrent=1), 1, "less than one"),
        (RateLimits(tokens_per_minute=400), 101, "100 tokens per minute; this request may need"),
        (RateLimits(tokens_per_minute=3), 1, "less than one"),
    ],
)
async def test_a_share_that_is_too_small_is_refused_in_clear_words(
    tmp_path: Path, limits: RateLimits, tokens: int, says: str
) -> None:
    """Split by four, a small limit is less than one; the client is told to retry in a second."""
    async with sharing(RedisServer(tmp_path), processes=4) as shared:
        with pytest.raises(RateLimited, match="Redis is away") as refused:
            await shared.reserve(limits, tokens)
    assert says in refused.value.message
    assert refused.value.retryable
    assert refused.value.retry_after_seconds == 1.0


async def test_what_redis_admitted_counts_against_the_share_when_it_goes(tmp_path: Path) -> None:
    """One process that has used its part already gets no second one."""
    limits = RateLimits(requests_per_minute=20, tokens_per_minute=2000, concurrent=8)
    with RedisServer(tmp_path) as server:
        async with sharing(server, processes=4) as shared:
            running = [await shared.reserve(limits, 10) for _ in range(4)]
            server.stop()
            with pytest.raises(RateLimited, match="2 requests are already in progress"):
                await shared.reserve(limits, 10)
            for reservation in running:
                reservation.settle(10)
            assert (await shared.reserve(limits, 10)).allowance.degraded
            with pytest.raises(RateLimited, match="5 requests per minute"):
                await shared.reserve(limits, 10)


async def test_what_was_admitted_alone_is_told_to_redis_when_it_is_back(tmp_path: Path) -> None:
    """Five requests of the outage count at once, so a restart of Redis gives no second helping."""
    limits = RateLimits(requests_per_minute=20, tokens_per_minute=2000)
    server = RedisServer(tmp_path)
    async with sharing(server, processes=2) as shared:
        for _ in range(5):
            await shared.reserve(limits, 100)
        with server:
            async with asyncio.timeout(5):
                while not shared.redis.healthy:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            for expected in ((14, 1490), (13, 1480)):
                left = (await shared.reserve(limits, 10)).allowance
                assert not left.degraded
                assert (left.requests_remaining, left.tokens_remaining) == expected


# Many processes


@pytest.mark.slow
def test_four_processes_never_exceed_a_limit_by_one(server: RedisServer) -> None:
    """And the requests reach it: what one process leaves, another may take."""
    spawn = multiprocessing.get_context("spawn")
    results: Queue[list[Span]] = spawn.Queue()
    processes = [
        spawn.Process(target=hammer, args=(server.url, 1.5, seed, results))
        for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(10)
    spans = [span for admitted in found for span in admitted]
    assert len([span for span in spans if span.tenant == "requests"]) == 500
    assert 19_000 < sum(span.tokens for span in spans if span.tenant == "tokens") <= 20_000
    at_once = [(span.began, span.ended) for span in spans if span.tenant == "concurrent"]
    assert most_at_once(at_once) == 3
    assert len(at_once) > 100


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """An end counts before a beginning at the same instant."""
    running = most = 0
    for _, change in sorted([(b, 1) for b, _ in spans] + [(e, -1) for _, e in spans]):
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize(
    "damage",
    [
        ("SET", "test:limits:{t}:minute", "garbage"),
        ("SET", "test:limits:{t}:running", "garbage"),
        ("HSET", "test:limits:{t}:minute", "requests", "garbage"),
        ("HSET", "test:limits:{t}:minute", "oldest", "garbage"),
    ],
    ids=["no hash", "no sorted set", "no number", "no second"],
)
async def test_damage_in_redis_costs_one_request_its_shared_judgement_and_no_more(
    shared: Shared, server: RedisServer, damage: tuple[str, ...]
) -> None:
    """What cannot be read is dropped, so the next request is judged by all again."""
    limits = RateLimits(requests_per_minute=10, tokens_per_minute=100, concurrent=4)
    await shared.reserve(limits)
    server.ask(*damage)
    assert (await shared.reserve(limits)).allowance.degraded
    assert not (await shared.reserve(limits)).allowance.degraded
    assert shared.degraded == 1


async def test_a_head_is_refused_what_this_process_alone_has_filled_without_asking_redis(
    shared: Shared, server: RedisServer
) -> None:
    """Nothing is counted in Redis until ``reserve``; a refusal is not counted at all."""
    limits, now = RateLimits(concurrent=2), shared.clock.seconds
    entered = [shared.limiter.enter("t", limits, now) for _ in range(2)]
    with pytest.raises(RateLimited, match="2 requests are already in progress"):
        shared.limiter.enter("t", limits, now)
    assert server.ask("DBSIZE") == 0
    admitted = await shared.limiter.reserve("t", limits, 1, 0, now, entered[0])
    assert admitted is entered[0]
    for one in entered:
        one.settle(0)
        one.settle(0)
    assert shared.limiter.enter("t", limits, now)
    minute = RateLimits(requests_per_minute=2)
    for _ in range(2):
        (await shared.limiter.reserve("u", minute, 1, 0, now)).settle(1)
    with pytest.raises(RateLimited, match="2 requests per minute"):
        shared.limiter.enter("u", minute, now + 1)
    assert shared.limiter.enter("u", minute, now + 61)


async def test_a_request_that_redis_refuses_gives_back_what_its_head_took(
    shared: Shared,
) -> None:
    """A slot taken before the body was read is free again after the refusal."""
    limits, now = RateLimits(tokens_per_minute=10, concurrent=3), shared.clock.seconds
    (await shared.limiter.reserve("t", limits, 10, 0, now)).settle(10)
    entered = shared.limiter.enter("t", limits, now)
    with pytest.raises(RateLimited, match="10 tokens"):
        await shared.limiter.reserve("t", limits, 5, 0, now, entered)
    entered.settle(0)
    assert shared.limiter._local.concurrent("t") == 0
