"""What follows a failed attempt, as a table: pure, without a provider, a clock or chance."""

from typing import Any

import msgspec
import pytest

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.exchange import Exchange, Plan
from gateway.retries import Limits, Next, after
from tests.gateway.exchanges import LARGE, SMALL, attempt, exchange, model

SPARE = model("spare", None)


def failing(error: UpstreamError, *, unsent: bool = False, stale: bool = False) -> UpstreamError:
    """The error of an attempt, as the upstream raises it."""
    error.unsent, error.stale = unsent, stale
    return error


def status(code: int, *, retryable: bool = False, pause: float | None = None) -> UpstreamError:
    """What a provider answered."""
    error = UpstreamStatus("refused", status=code, retry_after_seconds=pause)
    error.retryable = retryable
    return error


def planned(*candidates: Any, first: Any = LARGE, stand_in: Any = None) -> Exchange:
    """A routed request whose first target has been asked."""
    made = exchange(small=SMALL, large=LARGE)
    made.plan = Plan(
        candidates=candidates or (LARGE,), decision="hard", reason="", output_tokens_max=9,
        worst_pico=(0,) * len(candidates or (LARGE,)), stand_in=stand_in,
    )  # fmt: skip
    made.attempts = [attempt(first, None)]
    return made


def following(made: Exchange, error: UpstreamError, *, budget: bool = True, **given: Any) -> Next:
    """What follows the last attempt, half a jitter in, with room for three attempts."""
    last = made.attempts[-1]
    last.error = error
    ordinary = {"attempts_max": 3, "now": 100.0, "deadline": 160.0, "jitter": 0.5}
    return after(made, last, error, Limits(**(ordinary | given), may_retry=lambda now: budget))


@pytest.mark.parametrize(
    ("error", "target"),
    [
        (status(500), "spare"),
        (status(429), "spare"),
        (failing(UpstreamTimeout("late")), "spare"),
        (status(529), "spare"),
        (status(400), None),
        (status(404), None),
        (failing(UpstreamUnavailable("gone"), unsent=True), "spare"),
    ],
)
def test_a_failure_goes_to_the_fallback_that_its_route_names(
    error: UpstreamError, target: str | None
) -> None:
    """By default 5xx, 429, timeouts and overload; a mistake of the client's goes nowhere."""
    found = following(planned(LARGE, SPARE), error)
    assert (found.target and found.target.name) == target
    assert found.wait_seconds == 0.0


def test_the_retry_budget_bounds_fallbacks_that_add_load() -> None:
    """Without room nothing follows; a target that was never reached costs no room."""
    assert following(planned(LARGE, SPARE), status(500), budget=False).target is None
    unreached = failing(UpstreamUnavailable("refused"), unsent=True)
    assert following(planned(LARGE, SPARE), unreached, budget=False).target is SPARE


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (status(503, retryable=True), 0.05),
        (status(503, retryable=True, pause=2.0), 2.05),
        (status(503, retryable=False), None),
        (status(504, retryable=True), None),
        (status(408, retryable=True), None),
        (failing(UpstreamTimeout("late")), None),
        (failing(UpstreamUnavailable("refused"), unsent=True), 0.05),
        (failing(UpstreamUnavailable("broke off")), None),
        (UpstreamProtocolError("no JSON"), None),
        (failing(UpstreamOverloaded("full"), unsent=True), None),
        (status(503, retryable=True, pause=3600.0), None),
    ],
)
def test_the_same_target_is_asked_again_only_where_nothing_is_paid_twice(
    error: UpstreamError, waits: float | None
) -> None:
    """After the pause it asks for and some jitter; never where it may have worked already."""
    found = following(planned(), error)
    assert (found.target is LARGE) is (waits is not None)
    assert found.wait_seconds == pytest.approx(waits or 0.0)


def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    """The client would be answered too late anyway."""
    slow = status(503, retryable=True, pause=30.0)
    assert following(planned(), slow, deadline=130.0).target is None
    assert following(planned(), slow, deadline=131.0).target is LARGE


def test_an_ended_connection_is_no_attempt() -> None:
    """It is asked again at once, however many attempts were made, and needs no budget."""
    made = planned()
    found = following(made, failing(UpstreamUnavailable("ended"), stale=True), attempts_max=1)
    assert found == Next(target=LARGE)
    made.attempts.append(attempt(LARGE, None, number=2))
    assert following(made, status(503, retryable=True), attempts_max=2).target is LARGE


def test_nothing_follows_once_the_client_has_a_byte() -> None:
    """A second answer cannot be begun behind the first."""
    made = planned(LARGE, SPARE)
    made.first_byte = 100.1
    assert following(made, status(500)).target is None


def test_a_small_model_s_failure_always_goes_to_the_large_one() -> None:
    """Whatever the route's fallbacks say."""
    made = planned(SMALL, LARGE, first=SMALL)
    made.route = msgspec.structs.replace(made.route, fallback_on=frozenset())
    assert following(made, failing(UpstreamTimeout("late"))).target is LARGE


def test_the_last_attempt_is_kept_for_the_model_that_stands_in() -> None:
    """Where the large one is away: the answer is degraded, and says so."""
    made = planned(LARGE, SPARE, SMALL, stand_in=SMALL)
    found = following(made, status(500), attempts_max=2)
    assert found == Next(target=SMALL, degraded="large-away")
    assert following(planned(LARGE, SPARE, SMALL, stand_in=SMALL), status(500)).target is SPARE
    alone = following(planned(LARGE), status(500), attempts_max=1)
    assert alone == Next(degraded="large-away")
    assert following(planned(LARGE, SMALL, stand_in=SMALL), status(400)).target is None
