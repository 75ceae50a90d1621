"""The retry budget: a tenth of the requests may be tried again, and a few of a quiet upstream."""

import random

from gateway.upstreams.retry_budget import RATIO, RESERVE, WINDOW_SECONDS, RetryBudget


def test_a_quiet_upstream_may_be_asked_again_a_few_times() -> None:
    """A tenth of one request would be none, so RESERVE retries are always there."""
    budget = RetryBudget()
    budget.request(100.0)
    assert [budget.take(100.0) for _ in range(RESERVE + 2)] == [True] * RESERVE + [False] * 2


def test_a_busy_one_a_tenth_of_its_requests() -> None:
    """Of a thousand failed requests a hundred are tried again, so an outage is not made worse."""
    budget = RetryBudget()
    for _ in range(1000):
        budget.request(100.0)
    assert sum(budget.take(100.5) for _ in range(1000)) == 100


def test_what_left_the_window_counts_no_more() -> None:
    """Retries are granted for ten seconds of traffic, then only the reserve is left."""
    budget = RetryBudget()
    for _ in range(1000):
        budget.request(100.9)
    assert sum(budget.take(100.9 + WINDOW_SECONDS - 1) for _ in range(200)) == 100
    assert sum(budget.take(101.0 + WINDOW_SECONDS - 1) for _ in range(200)) == 0, "all are used"
    assert sum(budget.take(101.0 + 2 * WINDOW_SECONDS) for _ in range(200)) == RESERVE


def test_calls_never_exceed_a_tenth_more_than_the_requests_of_any_steady_load() -> None:
    """Whatever asks for retries whenever, over minutes: the chain of windows keeps the sum."""
    for seed in range(20):
        rng = random.Random(seed)
        budget, now, requests, again = RetryBudget(), 1000.0, 0, 0
        per_second = rng.randint(6, 200)
        eagerness = rng.random()
        while now < 1180.0:
            now += rng.expovariate(per_second)
            budget.request(now)
            requests += 1
            while rng.random() < eagerness and budget.take(now):
                again += 1
        assert again <= RATIO * requests + RESERVE
        assert again >= min(RATIO, eagerness) * 0.5 * requests, "and it is not needlessly mean"


def test_a_clock_that_steps_back_breaks_nothing() -> None:
    """Requests out of order neither raise nor win more than the reserve of retries."""
    budget = RetryBudget()
    for now in (100.0, 99.5, 100.2, 90.0, 111.0):
        budget.request(now)
    assert sum(budget.take(111.0) for _ in range(20)) == RESERVE
