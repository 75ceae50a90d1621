"""The circuit breaker: opens on a share of failures, lets one probe through, closes on success."""

import pytest

from gateway.upstreams.health import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(
        window_seconds=10, min_requests=4, error_rate=0.5, eject_seconds=5, clock=clock
    )


def healthy(breaker: CircuitBreaker) -> bool:
    """Asked anew each time, which a type checker does not expect of a property."""
    return breaker.healthy


def report(breaker: CircuitBreaker, outcomes: str) -> None:
    """One letter per request: f for failed."""
    for outcome in outcomes:
        breaker.begin()
        breaker.report("failed" if outcome == "f" else "ok")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("", True),
        ("fff", True),
        ("ffff", False),
        ("ssff", False),
        ("sssff", True),
        ("sssfff", False),
        ("ffffs", False),
        ("s" * 100 + "f" * 99, True),
        ("s" * 100 + "f" * 100, False),
    ],
)
def test_it_opens_at_the_share_of_failures_and_not_before_the_least_number(
    breaker: CircuitBreaker, outcomes: str, expected: bool
) -> None:
    """Three failures of three prove nothing; four requests with half of them failed do."""
    report(breaker, outcomes)
    assert healthy(breaker) is expected


def test_failures_are_forgotten_after_the_window(breaker: CircuitBreaker, clock: Clock) -> None:
    """Old trouble ten seconds ago must not eject a provider that works now."""
    report(breaker, "fff")
    clock.now += 10
    report(breaker, "f")
    assert healthy(breaker)
    report(breaker, "fff")
    assert not healthy(breaker)


def test_a_slow_drip_of_failures_adds_up_within_the_window(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """Failures 2.5 seconds apart still open it at the fourth, with no burst among them."""
    for _ in range(3):
        report(breaker, "f")
        clock.now += 2.5
    assert healthy(breaker)
    report(breaker, "f")
    assert not healthy(breaker)


def test_after_a_while_one_request_probes_and_the_others_wait(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A provider that is just back meets one request, and starts anew if it answers."""
    report(breaker, "ffff")
    clock.now += 4.9
    assert not healthy(breaker)
    clock.now += 0.1
    assert healthy(breaker)
    breaker.begin()
    assert not healthy(breaker), "the probe is under way"
    breaker.report("ok")
    assert healthy(breaker)
    report(breaker, "fff")
    assert healthy(breaker), "what was counted before the probe is forgotten"


def test_a_failed_probe_keeps_it_open_as_long_again(breaker: CircuitBreaker, clock: Clock) -> None:
    """After the failed probe another five seconds pass before the next one is sent."""
    report(breaker, "ffff")
    clock.now += 5
    report(breaker, "f")
    clock.now += 4.9
    assert not healthy(breaker)
    clock.now += 0.1
    assert healthy(breaker)


def test_a_probe_that_never_ends_does_not_close_the_door_for_ever(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A lost probe blocks for the ejection time only, then the next request may probe."""
    report(breaker, "ffff")
    clock.now += 5
    breaker.begin()
    clock.now += 5
    assert healthy(breaker)


def test_answers_to_requests_from_before_it_opened_change_nothing(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A late success of an old request neither closes the breaker early nor moves its clock."""
    breaker.begin()
    report(breaker, "ffff")
    clock.now += 1
    breaker.report("ok")
    assert not healthy(breaker)
    clock.now += 3.9
    assert not healthy(breaker)


def test_a_client_that_leaves_is_neither_a_success_nor_a_failure(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A hundred that left neither dilute the failures nor add to them."""
    for _ in range(100):
        breaker.begin()
        breaker.report("unknown")
    report(breaker, "fff")
    assert healthy(breaker), "three of four that count"
    report(breaker, "f")
    assert not healthy(breaker)


def test_a_probe_whose_client_leaves_is_followed_by_another_at_once(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    """A client that hangs up says nothing of the provider, which must not stay out for that."""
    report(breaker, "ffff")
    clock.now += 5
    breaker.begin()
    assert not healthy(breaker)
    breaker.report("unknown")
    assert healthy(breaker), "nothing is known of the provider, so the next request may probe"
    report(breaker, "f")
    assert not healthy(breaker)
