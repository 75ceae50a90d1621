"""Who is asked after a failed attempt, and after which pause: past attempts and an error decide.

Pure: knows no clock, no socket and no upstream but what it is told. The retry budget is asked by a
function of the caller's, and only where one more call would add load to an upstream in trouble.
"""

from collections.abc import Callable

import msgspec

from gateway.errors import UpstreamError, UpstreamOverloaded, UpstreamStatus
from gateway.exchange import Attempt, Exchange, Plan
from gateway.policy.snapshot import Model
from gateway.policy.targets import LARGE_AWAY
from gateway.wire.openai import RETRY_AFTER_SECONDS_MAX
from gateway.wire.reported import names_a_lost_model

_BACKOFF_SECONDS = 0.05
_GAVE_UP = (408, 504)  # a proxy has lost patience; the model behind it may be writing still


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """What follows a failed attempt."""

    target: Model | None = None  # None: nothing, the client gets the error
    wait_seconds: float = 0.0
    degraded: str = ""  # what is not as the policy wants it, for the header


_GIVE_UP = Next()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds the next attempt. ``now`` and ``deadline`` are monotonic seconds."""

    attempts_max: int
    now: float
    deadline: float
    jitter: float  # in [0, 1], random
    may_retry: Callable[[float], bool]  # takes from the retry budget of the failed target


def after(exchange: Exchange, attempt: Attempt, error: UpstreamError, limits: Limits) -> Next:
    """What follows ``attempt``, the last one, which failed with ``error``.

    Where a large model is away, the last attempt is kept for the small one that may stand in. It
    costs the provider nothing, so no retry budget is asked.
    """
    plan = exchange.plan
    assert plan is not None, "there is a plan once there is an attempt"
    found = _usual(exchange, attempt, error, plan, limits)
    if error.stale or not _large_away(exchange, attempt, plan, error):
        return found
    attempts_left = limits.attempts_max - _heard(exchange)
    if plan.stand_in is not None and (
        attempts_left == 1 or (attempts_left and found.target is None)
    ):
        found = Next(target=plan.stand_in)
    if found.target is None or found.target is plan.stand_in:
        return msgspec.structs.replace(found, degraded=LARGE_AWAY)
    return found


def is_stale(attempt: Attempt) -> bool:
    """Whether its kept connection ended before anybody can have answered."""
    return isinstance(attempt.error, UpstreamError) and attempt.error.stale


def _usual(
    exchange: Exchange, attempt: Attempt, error: UpstreamError, plan: Plan, limits: Limits
) -> Next:
    if exchange.first_byte is not None:
        return _GIVE_UP
    if error.stale:
        return Next(target=attempt.target)  # as a client does that finds its connection closed
    if _heard(exchange) >= limits.attempts_max:
        return _GIVE_UP
    tried = {past.target.name for past in exchange.attempts}
    untried = [
        model for model in plan.candidates if model.name not in tried and model is not plan.stand_in
    ]
    answered = isinstance(error, UpstreamStatus)
    refused = error.status < 500 and error.status != 429
    if untried and _falls_back(exchange, attempt, error):
        # Where nobody was reached, or what was asked was refused, the other target's call is no
        # additional load on one that is in trouble.
        if (error.unsent and (not answered or refused)) or limits.may_retry(limits.now):
            return Next(target=untried[0])
        return _GIVE_UP
    return _again(attempt, error, limits)


def _again(attempt: Attempt, error: UpstreamError, limits: Limits) -> Next:
    """The same target once more, after a pause, where that can help and costs nothing twice."""
    answered = isinstance(error, UpstreamStatus)
    if not error.retryable:
        return _GIVE_UP
    if isinstance(error, UpstreamOverloaded):
        return _GIVE_UP  # it sheds load: whoever comes back at once is that load
    if (not error.unsent and not answered) or error.status in _GAVE_UP:
        return _GIVE_UP  # a paid provider may have worked on it: asking again would pay twice
    pause = error.retry_after_seconds or 0.0
    if pause >= RETRY_AFTER_SECONDS_MAX:
        return _GIVE_UP  # it may have asked for more, and is never asked earlier than it wants
    # Full jitter, from the delay the provider asked for where it did.
    wait = pause + limits.jitter * _BACKOFF_SECONDS * 2**attempt.number
    if limits.now + wait >= limits.deadline or not limits.may_retry(limits.now):
        return _GIVE_UP
    return Next(target=attempt.target, wait_seconds=wait)


def _heard(exchange: Exchange) -> int:
    """How many attempts count: those whose target can have heard of them."""
    return sum(not is_stale(past) for past in exchange.attempts)


def _large_away(exchange: Exchange, attempt: Attempt, plan: Plan, error: UpstreamError) -> bool:
    """Whether a request that was to be routed finds the large model unable to answer at all."""
    if error.status < 500 or exchange.first_byte is not None or exchange.way.pinned is not None:
        return False
    return attempt.target is not plan.stand_in and attempt.target is not exchange.route.small


def _falls_back(exchange: Exchange, attempt: Attempt, error: UpstreamError) -> bool:
    """The small model's failure always goes to the large one; others as the route says."""
    if attempt.target is exchange.route.small:
        return True
    conditions, status = exchange.route.fallback_on, error.status
    answered = isinstance(error, UpstreamStatus)
    if answered and names_a_lost_model(error.code, status):
        return "404" in conditions
    if status == 429:
        return "429" in conditions
    if status in (408, 504) and "timeout" in conditions:
        return True
    if status in (503, 529) and "overloaded" in conditions:
        return True
    return status >= 500 and (answered or status != 504) and "5xx" in conditions
