"""Rate limits that several processes share through Redis: one Lua call, by Redis' own clock.

The rules are those of ``limits.py``; the scripts beside this file follow them. A concurrent slot is
a lease: renewed while its request runs, and back by itself soon after its process was killed.

While Redis is away, each process keeps to its share, the limit divided by all processes, so that
together they stay within it. What a process admits is counted in its own memory too, whoever
admitted it, so a share is not used twice; and what it admitted alone is told to Redis with the
first request after. What the *others* used just before Redis went is unknown to it: in that one
minute the sum may exceed the limit, by less than the limit. Knows no HTTP.
"""

import asyncio
import itertools
import secrets
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from gateway.errors import RateLimited
from gateway.policy.snapshot import RateLimits
from gateway.stores.limits import (
    WINDOW_SECONDS,
    Allowance,
    Limiter,
    Reservation,
    minute_is_full,
    never_fits,
    too_many_at_once,
)
from gateway.stores.redis import Redis, RedisRefused, RedisUnavailable, Script

LEASE_SECONDS = 30.0  # how long the slot of a killed process stays taken
_RENEWALS_PER_LEASE = 3
_LEASES_PER_COMMAND = 500
_UNLIMITED = -1
_CLOCK_SLACK_SECONDS = 2  # by which Redis' seconds and ours begin apart, and a late reply

_RESERVE, _SETTLE, _RENEW = (
    Script(Path(__file__).with_name(f"limits_{name}.lua").read_text())
    for name in ("reserve", "settle", "renew")
)


class _Owed(msgspec.Struct):
    """Admitted without Redis and not told to it yet."""

    requests: int = 0
    tokens: int = 0
    until: float = 0.0  # monotonic: when it no longer matters


class SharedLimiter:
    """The limits of every tenant, shared with every process that uses the same Redis."""

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        processes: int,
        count_degraded: Callable[[], None] = lambda: None,
        clock_us: Callable[[], int] = lambda: 0,
    ) -> None:
        """processes: of all gateways together. clock_us: 0 means Redis' own clock."""
        self._redis = redis
        self._prefix = prefix
        self._processes = processes
        self._count_degraded = count_degraded
        self._clock_us = clock_us
        self._local = Limiter()  # all that this process has admitted
        self._owed: dict[str, _Owed] = {}
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._keys: dict[str, tuple[bytes, bytes]] = {}  # by tenant: minute, running
        self._running: dict[str, bytes] = {}  # lease → the key of its tenant's leases

    def enter(self, tenant_id: str, limits: RateLimits, now: float) -> Reservation:
        """Refuse what this process alone has filled, without asking Redis. Raises RateLimited.

        So a body is not read in vain, and Redis is asked once, when the tokens are known.
        """
        return self._local.enter_shared(tenant_id, limits, now, _CLOCK_SLACK_SECONDS)

    async def reserve(
        self, tenant_id: str, limits: RateLimits, tokens_max: int, tokens_min: int, now: float,
        entered: Reservation | None = None,
    ) -> Reservation:  # fmt: skip
        """As ``Limiter.admit``; with Redis away, out of this process' share. Never waits long."""
        if entered is None:
            entered = self._local.open(tenant_id, limits, now)
        try:
            return await self._reserve(entered, tenant_id, limits, tokens_max, tokens_min, now)
        except RateLimited:
            entered.cancel()
            raise

    async def _reserve(
        self, entered: Reservation, tenant_id: str, limits: RateLimits, tokens_max: int,
        tokens_min: int, now: float,
    ) -> Reservation:  # fmt: skip
        per_minute = limits.tokens_per_minute
        if per_minute is not None and tokens_min > per_minute:
            raise never_fits(tenant_id, tokens_min, per_minute)
        tokens = tokens_max if per_minute is None else min(tokens_max, per_minute)
        minute, running = self._keys_of(tenant_id)
        lease = f"{self._process}:{next(self._numbers):x}"
        owed = self._owed.pop(tenant_id, None)
        try:
            reply = await self._ask(minute, running, limits, tokens, lease, owed, now)
        except RedisUnavailable as error:
            if isinstance(error, RedisRefused):  # what is counted there cannot be read: begin anew
                self._redis.post("UNLINK", minute, running)
                self._redis.dropped(f"the rate limits of tenant {tenant_id}")
            self._owe(tenant_id, owed)
            entered.cancel()  # it enters anew, within the share
            return self._alone(tenant_id, limits, tokens_max, now, running, lease)
        except asyncio.CancelledError:
            # The client has left. What was counted for it stays so until the minute is over.
            self._owe(tenant_id, owed)
            self._redis.post("ZREM", running, lease)
            raise
        self._refuse(tenant_id, limits, reply)
        if limits.concurrent is not None:
            self._running[lease] = running
        release = partial(self._release, minute, running, lease, reply[4], tokens, limits)
        entered.hold(limits, tokens, now, release)
        entered.allowance = _allowance(limits, *reply[1:])
        return entered

    async def keep(self) -> None:
        """Renew the leases of what runs, for ever."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / _RENEWALS_PER_LEASE)
            self.renew()

    def renew(self) -> None:
        """Put off the end of every lease whose request still runs."""
        by_key: defaultdict[bytes, list[str]] = defaultdict(list)
        for lease, key in self._running.items():
            by_key[key].append(lease)
        for key, leases in by_key.items():
            for start in range(0, len(leases), _LEASES_PER_COMMAND):
                some = leases[start : start + _LEASES_PER_COMMAND]
                self._redis.post("EVAL", _RENEW.source, 1, key, _ms(LEASE_SECONDS), *some)

    async def _ask(
        self, minute: bytes, running: bytes, limits: RateLimits, tokens: int, lease: str,
        owed: _Owed | None, now: float,
    ) -> list[int]:  # fmt: skip
        """The script's word. Raises RedisUnavailable, also where it makes no sense."""
        if owed is None or owed.until < now:
            owed = _Owed()
        reply = await self._redis.run(
            _RESERVE,
            (minute, running),
            (
                _number(limits.requests_per_minute), _number(limits.tokens_per_minute),
                _number(limits.concurrent), tokens, lease.encode(), _ms(LEASE_SECONDS),
                self._clock_us(), owed.requests, owed.tokens,
            ),
        )  # fmt: skip
        match reply:
            case [1] | [2 | 3, int()] | [0, int(), int(), int(), int()]:
                return list(reply)
        raise RedisUnavailable("Redis answered what the script cannot have returned")

    def _refuse(self, tenant_id: str, limits: RateLimits, reply: list[int]) -> None:
        """Raise RateLimited where the script refused."""
        match reply:
            case [1]:
                raise too_many_at_once(tenant_id, limits.concurrent or 0)
            case [2, wait_us]:
                limit = limits.tokens_per_minute or 0
                raise minute_is_full(tenant_id, limit, "tokens", wait_us / 1e6)
            case [3, wait_us]:
                limit = limits.requests_per_minute or 0
                raise minute_is_full(tenant_id, limit, "requests", wait_us / 1e6)

    def _alone(
        self, tenant_id: str, limits: RateLimits, tokens_max: int, now: float, running: bytes,
        lease: str,
    ) -> Reservation:  # fmt: skip
        """Judge by this process' share. Raises RateLimited, saying so."""
        self._count_degraded()
        share = _share(limits, self._processes)
        away = f"Redis is away, and each of {self._processes} processes keeps to its share"
        if 0 in (share.requests_per_minute, share.tokens_per_minute, share.concurrent):
            raise RateLimited(
                f"tenant {tenant_id}: {away} of the limits, which is less than one;"
                " this is over when Redis is back",
                retry_after_seconds=1.0,
            )
        if share.tokens_per_minute is not None and tokens_max > share.tokens_per_minute:
            raise RateLimited(
                f"tenant {tenant_id}: {away} of {share.tokens_per_minute} tokens per minute; this"
                f" request may need {tokens_max}",
                retry_after_seconds=1.0,
            )
        release = partial(self._end_lease, running, lease)
        try:
            taken = self._local.reserve(tenant_id, share, tokens_max, 0, now, release)
        except RateLimited as refused:
            raise RateLimited(
                f"{refused.message} ({away})", retry_after_seconds=refused.retry_after_seconds
            ) from None
        self._owe(tenant_id, _Owed(
            requests=int(limits.requests_per_minute is not None),
            tokens=0 if limits.tokens_per_minute is None else tokens_max,
            until=now + WINDOW_SECONDS + 1,
        ))  # fmt: skip
        if limits.concurrent is not None:
            self._running[lease] = running  # renewing it tells Redis once it is back
        taken.allowance = msgspec.structs.replace(taken.allowance, degraded=True)
        return taken

    def _keys_of(self, tenant_id: str) -> tuple[bytes, bytes]:
        """In a cluster's words: one slot per tenant."""
        keys = self._keys.get(tenant_id)
        if keys is None:
            key = f"{self._prefix}:limits:{{{tenant_id}}}:".encode()
            keys = self._keys[tenant_id] = (key + b"minute", key + b"running")
        return keys

    def _owe(self, tenant_id: str, more: _Owed | None) -> None:
        """Tell Redis with the next request. Counting twice what it knows is the safe side."""
        if more is None:
            return
        owed = self._owed.setdefault(tenant_id, _Owed())
        owed.requests += more.requests
        owed.tokens += more.tokens
        owed.until = max(owed.until, more.until)

    def _release(
        self, minute: bytes, running: bytes, lease: str, second: int, tokens: int,
        limits: RateLimits, tokens_used: int,
    ) -> None:  # fmt: skip
        if limits.tokens_per_minute is None:
            self._end_lease(running, lease, tokens_used)
            return
        self._running.pop(lease, None)
        difference = tokens_used - tokens
        self._redis.post("EVAL", _SETTLE.source, 2, minute, running, second, difference, lease)

    def _end_lease(self, running: bytes, lease: str, _: int) -> None:
        if self._running.pop(lease, None) is not None:
            self._redis.post("ZREM", running, lease)


def _share(limits: RateLimits, processes: int) -> RateLimits:
    """What one of so many processes may admit alone; rounded down."""
    requests, tokens, concurrent = (
        None if limit is None else limit // processes
        for limit in (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent)
    )
    return RateLimits(requests_per_minute=requests, tokens_per_minute=tokens, concurrent=concurrent)


def _allowance(
    limits: RateLimits, requests: int, tokens: int, now_us: int, second: int
) -> Allowance:
    requests_limit, tokens_limit = limits.requests_per_minute, limits.tokens_per_minute
    reset_seconds = second + WINDOW_SECONDS + 1 - now_us / 1e6
    return Allowance(
        requests_limit,
        0 if requests_limit is None else max(0, requests_limit - requests),
        0.0 if requests_limit is None else reset_seconds,
        tokens_limit,
        0 if tokens_limit is None else max(0, tokens_limit - tokens),
        0.0 if tokens_limit is None else reset_seconds,
    )


def _number(limit: int | None) -> int:
    return _UNLIMITED if limit is None else limit


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)
