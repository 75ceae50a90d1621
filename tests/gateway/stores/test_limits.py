"""Rate limits by property: time and traffic are invented, the promises are counted from outside."""

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.policy.snapshot import RateLimits
from gateway.stores.limits import Limiter, Reservation

MINUTE = 60.0
NONE = RateLimits()


class Ask(NamedTuple):
    """One request of an invented day."""

    after_seconds: float
    tokens_max: int
    used_share: float  # of tokens_max, when it settles
    settles_after: int  # later requests


ASKS = st.lists(
    st.builds(
        Ask,
        st.one_of(st.floats(0, 5), st.floats(0, 0.01), st.sampled_from([0.0, 1.0, 59.999, 60.0])),
        st.integers(1, 60),
        st.floats(0, 1),
        st.integers(0, 6),
    ),
    max_size=60,
)


def most_in_a_minute(events: list[tuple[float, int]]) -> int:
    """The largest sum over any sixty seconds, by brute force."""
    return max(
        (sum(n for at, n in events if start <= at < start + MINUTE) for start, _ in events),
        default=0,
    )


@given(ASKS, st.integers(1, 12), st.floats(0, 1e6))
@settings(max_examples=300, deadline=None)
def test_no_sixty_seconds_ever_see_more_requests_than_the_limit(
    asks: list[Ask], limit: int, now: float
) -> None:
    """Any window counts, not only calendar minutes, and the very first request is admitted."""
    limiter, limits = Limiter(), RateLimits(requests_per_minute=limit)
    admitted: list[tuple[float, int]] = []
    for ask in asks:
        now += ask.after_seconds
        try:
            limiter.reserve("t", limits, ask.tokens_max, 0, now)
        except RateLimited:
            continue
        admitted.append((now, 1))
    assert most_in_a_minute(admitted) <= limit
    assert bool(admitted) == bool(asks), "the first request of all is always admitted"


@given(ASKS, st.integers(60, 200), st.floats(0, 1e6))
@settings(max_examples=300, deadline=None)
def test_no_sixty_seconds_ever_see_more_tokens_than_the_limit_counting_true_use(
    asks: list[Ask], limit: int, now: float
) -> None:
    """A request counts at what is held until it settles, then at what it used."""
    limiter, limits = Limiter(), RateLimits(tokens_per_minute=limit)
    used: list[tuple[float, int]] = []
    running: list[tuple[int, Reservation, int, int]] = []  # due, reservation, index, tokens
    for number, ask in enumerate(asks):
        now += ask.after_seconds
        for due, reservation, index, tokens in list(running):
            if due <= number:
                reservation.settle(tokens)
                used[index] = (used[index][0], tokens)
                running.remove((due, reservation, index, tokens))
        try:
            reservation = limiter.reserve("t", limits, ask.tokens_max, 0, now)
        except RateLimited:
            continue
        tokens = round(ask.tokens_max * ask.used_share)
        running.append((number + ask.settles_after, reservation, len(used), tokens))
        used.append((now, ask.tokens_max))
        assert most_in_a_minute(used) <= limit


@given(ASKS, st.integers(1, 5), st.integers(60, 150), st.floats(0, 1e6))
@settings(max_examples=300, deadline=None)
def test_who_retries_when_told_is_admitted_and_who_comes_earlier_is_not(
    asks: list[Ask], requests: int, tokens: int, now: float
) -> None:
    """The advice is exact to a second, so that polite clients lose no time."""
    limits = RateLimits(requests_per_minute=requests, tokens_per_minute=tokens)
    limiter = Limiter()
    for ask in asks:
        now += ask.after_seconds
        for _ in range(3):
            try:
                limiter.reserve("t", limits, ask.tokens_max, 0, now).settle(ask.tokens_max)
                break
            except RateLimited as refused:
                wait = refused.retry_after_seconds
                assert wait is not None
                assert 0 < wait <= MINUTE + 1
                with pytest.raises(RateLimited):
                    limiter.reserve("t", limits, ask.tokens_max, 0, now + max(0.0, wait - 1.001))
                now += wait
        else:
            pytest.fail("told when to come back, three times in vain")


@pytest.mark.parametrize("now", [0.0, 0.3, 1e5 + 0.1, 2**31 + 0.7, 86_400 * 365 + 1 / 3])
def test_the_advice_to_retry_holds_after_it_was_rounded_into_a_header(now: float) -> None:
    """Whole seconds and milliseconds are rounded up, so a client that obeys is never refused."""
    limiter, limits = Limiter(), RateLimits(requests_per_minute=1)
    limiter.reserve("t", limits, 1, 0, now)
    with pytest.raises(RateLimited) as refused:
        limiter.reserve("t", limits, 1, 0, now + 0.123456)
    headers = dict(refused.value.headers())
    for wait in (int(headers[b"retry-after"]), int(headers[b"retry-after-ms"]) / 1000):
        again = Limiter()
        again.reserve("t", limits, 1, 0, now)
        again.reserve("t", limits, 1, 0, now + 0.123456 + wait)


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=40))
def test_tokens_are_conserved_what_is_held_and_not_used_comes_back(
    pairs: list[tuple[int, int]],
) -> None:
    """After everything settled, exactly the true use is missing from the allowance."""
    limiter, limits = Limiter(), RateLimits(tokens_per_minute=10_000)
    held = [limiter.reserve("t", limits, most, 0, 100.0) for most, _ in pairs]
    for reservation, (most, used) in zip(held, pairs, strict=True):
        reservation.settle(min(used, most))
        reservation.settle(10_000)  # each settles once
    left = limiter.reserve("t", limits, 0, 0, 100.9).allowance
    assert left.tokens_remaining == 10_000 - sum(min(used, most) for most, used in pairs)


def test_more_use_than_was_held_counts_against_the_minute() -> None:
    """95 tokens used where 10 were held leave 5 of 100, not 90."""
    limiter, limits = Limiter(), RateLimits(tokens_per_minute=100)
    limiter.reserve("t", limits, 10, 0, 0.0).settle(95)
    with pytest.raises(RateLimited):
        limiter.reserve("t", limits, 6, 0, 30.0)
    limiter.reserve("t", limits, 5, 0, 30.0)


def test_a_settlement_after_its_minute_touches_no_later_one() -> None:
    """A request longer than a minute gives nothing back to a window that it never filled."""
    limiter, limits = Limiter(), RateLimits(tokens_per_minute=100)
    late = limiter.reserve("t", limits, 100, 0, 0.0)
    later = limiter.reserve("t", limits, 40, 0, 70.0)
    assert later.allowance.tokens_remaining == 60
    late.settle(0)
    assert limiter.reserve("t", limits, 0, 0, 70.0).allowance.tokens_remaining == 60


def test_a_worst_case_above_the_limit_takes_the_whole_minute_and_no_more() -> None:
    """A billion possible tokens hold the minute's hundred, and 70 return when 30 were used."""
    limiter, limits = Limiter(), RateLimits(tokens_per_minute=100)
    held = limiter.reserve("t", limits, 10**9, 50, 0.0)
    assert held.allowance.tokens_remaining == 0
    held.settle(30)
    assert limiter.reserve("t", limits, 0, 0, 1.0).allowance.tokens_remaining == 70


def test_a_request_that_can_never_fit_is_told_so_and_not_to_retry() -> None:
    """A prompt of 101 tokens under a limit of 100 would otherwise be retried for ever."""
    with pytest.raises(RateLimited, match="shorten the prompt") as refused:
        Limiter().reserve("t", RateLimits(tokens_per_minute=100), 500, 101, 0.0)
    assert refused.value.retry_after_seconds is None
    assert dict(refused.value.headers())[b"x-should-retry"] == b"false"


def test_a_refusal_takes_nothing() -> None:
    """Neither a request, nor tokens, nor a slot, whichever of the three refused."""
    limits = RateLimits(requests_per_minute=2, tokens_per_minute=100, concurrent=2)
    limiter = Limiter()
    limiter.reserve("t", limits, 60, 0, 0.0).settle(60)
    for tokens in (50, 41):
        with pytest.raises(RateLimited, match="tokens per minute"):
            limiter.reserve("t", limits, tokens, 0, 1.0)
    assert limiter.concurrent("t") == 0
    last = limiter.reserve("t", limits, 40, 0, 1.0)
    assert last.allowance.requests_remaining == 0
    assert last.allowance.tokens_remaining == 0


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 5))
def test_no_more_run_at_once_than_may_and_every_slot_comes_back(
    steps: list[bool], most: int
) -> None:
    """Random begins and ends keep the count exact, and settling twice frees one slot only."""
    limiter, limits = Limiter(), RateLimits(concurrent=most)
    running: list[Reservation] = []
    for begin in steps:
        if begin:
            if len(running) < most:
                running.append(limiter.reserve("t", limits, 1, 0, 0.0))
            else:
                with pytest.raises(RateLimited, match="already in progress"):
                    limiter.reserve("t", limits, 1, 0, 0.0)
        elif running:
            running.pop().settle(1)
        assert limiter.concurrent("t") == len(running) <= most
    for reservation in running:
        reservation.settle(0)
        reservation.settle(0)
    assert limiter.concurrent("t") == 0


def test_tenants_do_not_share_a_limit() -> None:
    """One request a minute each admits three tenants; a tenant never seen runs nothing."""
    limiter, limits = Limiter(), RateLimits(requests_per_minute=1, concurrent=1)
    for tenant in ("a", "b", "c"):
        limiter.reserve(tenant, limits, 1, 0, 0.0)
    assert limiter.concurrent("a") == 1
    assert limiter.concurrent("nobody") == 0


def test_without_limits_everything_is_admitted_and_nothing_is_announced() -> None:
    """A thousand huge requests pass, and no rate-limit header promises anything."""
    limiter = Limiter()
    for _ in range(1000):
        allowance = limiter.reserve("t", NONE, 10**9, 10**9, 0.0).allowance
    assert allowance.requests_limit is None
    assert allowance.tokens_limit is None


def test_the_announced_allowance_counts_down_and_names_its_reset() -> None:
    """Clients pace themselves by these headers: at the announced reset the allowance is back."""
    limiter, limits = Limiter(), RateLimits(requests_per_minute=3, tokens_per_minute=100)
    seen = [limiter.reserve("t", limits, 30, 0, 10.0 + n).allowance for n in range(3)]
    assert [left.requests_remaining for left in seen] == [2, 1, 0]
    assert [left.tokens_remaining for left in seen] == [70, 40, 10]
    at_reset = 12.0 + seen[-1].requests_reset_seconds
    fresh = limiter.reserve("t", limits, 0, 0, at_reset).allowance
    assert (fresh.requests_remaining, fresh.tokens_remaining) == (2, 100)


def test_a_limit_that_a_new_policy_lowers_or_lifts_holds_at_once() -> None:
    """Requests of the old policy count under the new one, and a lifted limit lets pass."""
    limiter = Limiter()
    for _ in range(5):
        limiter.reserve("t", RateLimits(requests_per_minute=5), 1, 0, 0.0)
    with pytest.raises(RateLimited):
        limiter.reserve("t", RateLimits(requests_per_minute=2), 1, 0, 1.0)
    limiter.reserve("t", NONE, 1, 0, 1.0)
    limiter.reserve("t", RateLimits(requests_per_minute=6), 1, 0, 1.0)


def test_what_is_remembered_does_not_grow_with_traffic() -> None:
    """After 20,000 requests the limiter holds at most 62 seconds of a tenant."""
    limiter, limits = Limiter(), RateLimits(requests_per_minute=10**9, tokens_per_minute=10**9)
    rng = random.Random(1)
    now = 0.0
    for _ in range(20_000):
        now += rng.random()
        limiter.reserve("t", limits, 10, 0, now).settle(5)
    account = limiter._accounts["t"]
    assert len(account.requests.seconds) <= 62
    assert len(account.tokens.seconds) <= 62


STEPS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(["enter", "admit", "refuse", "cancel", "settle"])),
    max_size=60,
)


@given(STEPS)
def test_what_a_head_takes_comes_back_once_whatever_happens_to_its_request(
    steps: list[tuple[int, str]],
) -> None:
    """Refused and cancelled requests do not count; settled ones do, and hold no slot."""
    limiter, limits = (
        Limiter(),
        RateLimits(requests_per_minute=50, tokens_per_minute=100, concurrent=8),
    )
    entered: dict[int, Reservation] = {}
    running: set[int] = set()
    counted = 0
    for number, step in steps:
        if step == "enter" and number not in running and counted < 50:
            entered[number] = limiter.enter("t", limits, 1.0)
            running.add(number)
            counted += 1
        elif number in entered:
            match step:
                case "admit" if number in running:
                    limiter.admit(entered[number], "t", limits, 0, 0, 1.0)
                case "refuse" if number in running:
                    with pytest.raises(RateLimited):
                        limiter.admit(entered[number], "t", limits, 1, 101, 1.0)
                    running.discard(number)
                    counted -= 1
                case "cancel":
                    entered[number].cancel()
                    counted -= number in running
                    running.discard(number)
                case "settle":
                    entered[number].settle(0)
                    running.discard(number)
        assert limiter.concurrent("t") == len(running)
    left = limiter.reserve("t", RateLimits(requests_per_minute=1000), 0, 0, 1.0).allowance
    assert left.requests_remaining == 1000 - counted - 1
