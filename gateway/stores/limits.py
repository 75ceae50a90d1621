"""Rate limits of one process: requests and tokens per minute, and concurrency, per tenant.

A sliding window of whole seconds: in no sixty seconds is a limit exceeded, not even by one.
``enter`` takes a request and a concurrent slot before the body is read, ``admit`` the tokens of the
worst case once they are known, ``settle`` corrects them to what was really used and frees the slot;
each happens once. What several processes share is ``shared_limits.py``. Knows no
HTTP.
"""

from collections import deque
from collections.abc import Callable

import msgspec

from gateway.errors import RateLimited
from gateway.policy.snapshot import RateLimits

WINDOW_SECONDS = 60


class Allowance(msgspec.Struct, frozen=True):
    """What is left after a reservation, for the ``x-ratelimit-*`` headers. None: unlimited."""

    requests_limit: int | None
    requests_remaining: int
    requests_reset_seconds: float
    tokens_limit: int | None
    tokens_remaining: int
    tokens_reset_seconds: float
    degraded: bool = False  # judged by this process' share of the limits: Redis is away


_UNTOLD = Allowance(None, 0, 0.0, None, 0, 0.0)


class _Window:
    """Amounts of the last minute by second; one counts until all of it is over a minute old."""

    __slots__ = ("seconds", "total")

    def __init__(self) -> None:
        self.seconds: deque[list[int]] = deque()  # [second, amount], oldest first
        self.total = 0

    def prune(self, now: float) -> int:
        """Forget what is over a minute old; what is left."""
        seconds, oldest_live = self.seconds, int(now) - WINDOW_SECONDS
        while seconds and seconds[0][0] < oldest_live:
            self.total -= seconds.popleft()[1]
        return self.total

    def take(self, amount: int, limit: int | None, now: float) -> list[int] | None:
        """Count ``amount`` where the limit allows: its second, for a later correction, or None."""
        second, seconds = int(now), self.seconds
        while seconds and seconds[0][0] < second - WINDOW_SECONDS:
            self.total -= seconds.popleft()[1]
        total = self.total + amount
        if limit is not None and total > limit:
            return None
        self.total = total
        if not seconds or seconds[-1][0] != second:
            seconds.append([second, 0])
        seconds[-1][1] += amount
        return seconds[-1]

    def count_since(self, oldest: int) -> int:
        """What is counted in this second and later ones."""
        return sum(amount for second, amount in self.seconds if second >= oldest)

    def correct(self, second: list[int], difference: int) -> None:
        if self.seconds and second[0] >= self.seconds[0][0]:
            second[1] += difference
            self.total += difference

    def seconds_until(self, amount: int, now: float) -> float:
        """How long until ``amount`` of what is counted has left the window."""
        for second, counted in self.seconds:
            amount -= counted
            if amount <= 0:
                return max(0.0, second + WINDOW_SECONDS + 1 - now)
        return float(WINDOW_SECONDS)

    def seconds_until_empty(self, now: float) -> float:
        """How long until all of it has left the window. It must hold something."""
        return max(0.0, self.seconds[-1][0] + WINDOW_SECONDS + 1 - now)


class _Account:
    __slots__ = ("concurrent", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = _Window()
        self.tokens = _Window()
        self.concurrent = 0

    def enter(self, limits: RateLimits, now: float) -> list[int] | None:
        """Count one request without asking; the second it is counted in."""
        self.concurrent += 1
        return None if limits.requests_per_minute is None else self.requests.take(1, None, now)


class Reservation:
    """One request's share of its tenant's limits: entered, perhaps admitted, settled."""

    __slots__ = ("_account", "_release", "_request", "_second", "_tokens", "allowance")

    def __init__(self, account: _Account, request: list[int] | None) -> None:
        """request: the second in which the request is counted."""
        self._account: _Account | None = account
        self._request = request
        self._second: list[int] | None = None
        self._tokens = 0
        self._release: Callable[[int], None] | None = None
        self.allowance = _UNTOLD  # until it is admitted

    def hold(
        self, limits: RateLimits, tokens: int, now: float,
        release: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """Count the tokens too. release: told once of those used, where others share the limits."""
        self._release = release
        account = self._account
        if account is None:  # its client has left meanwhile
            if release is not None:
                release(0)
            return
        self._tokens = tokens
        if limits.tokens_per_minute is not None:
            self._second = account.tokens.take(tokens, None, now)

    def cancel(self) -> None:
        """Take the request back: it was refused, and a refusal does not count."""
        account = self._account
        if account is not None and self._request is not None:
            account.requests.correct(self._request, -1)
        self.settle(0)

    @property
    def tokens(self) -> int:
        """Tokens reserved."""
        return self._tokens

    def settle(self, tokens_used: int) -> None:
        """Correct the reservation to what was used and free the slot. Idempotent."""
        account, self._account = self._account, None
        if account is None:
            return
        account.concurrent -= 1
        if self._second is not None:
            account.tokens.correct(self._second, tokens_used - self._tokens)
        if self._release is not None:
            self._release(tokens_used)


class Limiter:
    """The limits of every tenant of this process."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def enter(self, tenant_id: str, limits: RateLimits, now: float) -> Reservation:
        """Take one request and one concurrent slot, or nothing at all. now: monotonic seconds.

        Raises RateLimited, naming the limit and when to retry.
        """
        account = self._accounts.get(tenant_id) or self._account(tenant_id)
        if limits.concurrent is not None and account.concurrent >= limits.concurrent:
            raise too_many_at_once(tenant_id, limits.concurrent)
        per_minute, counted = limits.requests_per_minute, None
        if per_minute is not None:
            requests = account.requests
            counted = requests.take(1, per_minute, now)
            if counted is None:
                wait_seconds = requests.seconds_until(requests.total + 1 - per_minute, now)
                raise minute_is_full(tenant_id, per_minute, "requests", wait_seconds)
        account.concurrent += 1
        return Reservation(account, counted)

    def enter_shared(
        self, tenant_id: str, limits: RateLimits, now: float, slack_seconds: int
    ) -> Reservation:
        """As ``enter``, where others judge: refuse only what they surely refuse.

        slack_seconds: by which their minute may differ from ours.
        """
        account = self._account(tenant_id)
        if limits.concurrent is not None and account.concurrent >= limits.concurrent:
            raise too_many_at_once(tenant_id, limits.concurrent)
        per_minute, requests = limits.requests_per_minute, account.requests
        if per_minute is not None and requests.total >= per_minute:
            requests.prune(now)
            if requests.count_since(int(now) - WINDOW_SECONDS + slack_seconds) >= per_minute:
                wait_seconds = requests.seconds_until(requests.total + 1 - per_minute, now)
                raise minute_is_full(tenant_id, per_minute, "requests", wait_seconds)
        return Reservation(account, account.enter(limits, now))

    def admit(
        self, entered: Reservation, tenant_id: str, limits: RateLimits, tokens_max: int,
        tokens_min: int, now: float, release: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """Take the tokens of a request that has entered, or give back what it has.

        tokens_max is the worst case, which is held (at most the whole limit); tokens_min what the
        request surely needs: above the limit it can never be served. Raises RateLimited.
        """
        account = self._accounts.get(tenant_id) or self._account(tenant_id)
        try:
            tokens = _fitting(account, tenant_id, limits, tokens_max, tokens_min, now)
        except RateLimited:
            entered.cancel()
            raise
        entered.hold(limits, tokens, now, release)
        entered.allowance = _allowance(account, limits, now)

    def reserve(
        self, tenant_id: str, limits: RateLimits, tokens_max: int, tokens_min: int, now: float,
        release: Callable[[int], None] | None = None,
    ) -> Reservation:  # fmt: skip
        """``enter`` and ``admit`` at once."""
        account = self._account(tenant_id)
        if limits.concurrent is not None and account.concurrent >= limits.concurrent:
            raise too_many_at_once(tenant_id, limits.concurrent)
        tokens = _fitting(account, tenant_id, limits, tokens_max, tokens_min, now)
        entered = self.enter(tenant_id, limits, now)
        entered.hold(limits, tokens, now, release)
        entered.allowance = _allowance(account, limits, now)
        return entered

    def open(self, tenant_id: str, limits: RateLimits, now: float) -> Reservation:
        """Count one request and one slot without judging: others do."""
        account = self._account(tenant_id)
        return Reservation(account, account.enter(limits, now))

    def concurrent(self, tenant_id: str) -> int:
        """Requests of this tenant in progress."""
        account = self._accounts.get(tenant_id)
        return account.concurrent if account else 0

    def _account(self, tenant_id: str) -> _Account:
        account = self._accounts.get(tenant_id)
        if account is None:
            account = self._accounts[tenant_id] = _Account()
        return account


def _fitting(
    account: _Account, tenant_id: str, limits: RateLimits, tokens_max: int, tokens_min: int,
    now: float,
) -> int:  # fmt: skip
    """The tokens to hold. Raises RateLimited where they do not fit."""
    per_minute = limits.tokens_per_minute
    if per_minute is None:
        return tokens_max
    if tokens_min > per_minute:
        raise never_fits(tenant_id, tokens_min, per_minute)
    tokens = min(tokens_max, per_minute)
    over = account.tokens.prune(now) + tokens - per_minute
    if over > 0:
        wait_seconds = account.tokens.seconds_until(over, now)
        raise minute_is_full(tenant_id, per_minute, "tokens", wait_seconds)
    return tokens


def too_many_at_once(tenant_id: str, limit: int) -> RateLimited:
    """All slots are taken; when one ends nobody knows."""
    return RateLimited(
        f"tenant {tenant_id}: {limit} requests are already in progress; wait for one to end",
        retry_after_seconds=1.0,
    )


def minute_is_full(tenant_id: str, limit: int, what: str, wait_seconds: float) -> RateLimited:
    """What was asked for fits in again after wait_seconds."""
    return RateLimited(
        f"tenant {tenant_id}: the limit of {limit} {what} per minute is reached",
        retry_after_seconds=wait_seconds,
    )


def never_fits(tenant_id: str, tokens_min: int, limit: int) -> RateLimited:
    """The request is larger than a whole minute; waiting does not help."""
    never = RateLimited(
        f"tenant {tenant_id}: this request needs about {tokens_min} tokens and the"
        f" limit is {limit} per minute; shorten the prompt or max_tokens"
    )
    never.retryable = False
    return never


def _allowance(account: _Account, limits: RateLimits, now: float) -> Allowance:
    requests_limit, tokens_limit = limits.requests_per_minute, limits.tokens_per_minute
    requests, tokens = account.requests, account.tokens
    return Allowance(
        requests_limit,
        max(0, requests_limit - requests.total) if requests_limit is not None else 0,
        requests.seconds_until_empty(now) if requests.seconds else 0.0,
        tokens_limit,
        max(0, tokens_limit - tokens.total) if tokens_limit is not None else 0,
        tokens.seconds_until_empty(now) if tokens.seconds else 0.0,
    )
