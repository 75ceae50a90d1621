"""What an attempt claims to have cost is believed only where it can be true."""

from types import SimpleNamespace
from typing import Any, cast

from gateway.exchange import Exchange
from gateway.ledger.budgets import Hold
from gateway.ledger.event import UsageEvent
from gateway.services import Services
from gateway.stages.settle import settle
from gateway.wire.usage import Usage
from tests.gateway.exchanges import LARGE, NOW_US, SMALL, attempt, exchange

HELD = 9_000_000
HELD_FOR_THE_FIRST = 700_000
ANSWER = Usage(prompt_tokens=10, completion_tokens=5, source="provider")
ABSURD = Usage(prompt_tokens=10**15, completion_tokens=1, source="provider")


def charged(first: Usage | None, last: Usage) -> int:
    """What two attempts take from the budget, pending or not; they release the rest of the hold."""
    posted: list[int] = []
    made: Exchange = exchange()
    made.hold = Hold("acme", {}, HELD, NOW_US)
    made.attempts += [
        attempt(SMALL, first, 1, held_pico=HELD_FOR_THE_FIRST),
        attempt(LARGE, last, 2, held_pico=HELD - HELD_FOR_THE_FIRST),
    ]
    events: list[UsageEvent] = []
    budgets = SimpleNamespace(
        settle=lambda hold, charge, now_us, pending: posted.append(charge + pending)
    )
    ledger = SimpleNamespace(settle=events.append, budgets=budgets)
    clock: Any = {"now_us": lambda: NOW_US, "monotonic": lambda: 101.0}
    settle(made, cast(Services, SimpleNamespace(ledger=ledger, **clock)))
    (taken,) = posted
    if made.charge_pico is not None and first is None:
        assert taken == made.charge_pico, "the rest is released"
    (last_event,) = events
    booked = (last_event.charge_pico or 0) + last_event.possible_charge_pico
    assert booked <= taken, "the books know it, so that counting anew forgets nothing"
    if first is None:
        assert booked == taken
    return taken


def test_a_failed_attempt_costs_what_it_used() -> None:
    """Ten tokens of a broken stream are charged beside the answer; an unused attempt is free."""
    assert charged(None, ANSWER) == 10 * 2_500_000 + 5 * 15_000_000
    used = Usage(prompt_tokens=10, source="partial_stream")
    assert charged(used, ANSWER) == charged(None, ANSWER) + 10 * 100_000


def test_an_absurd_claim_of_a_failed_attempt_costs_what_was_held_for_it() -> None:
    """A quadrillion tokens reported by a provider cannot empty a tenant's budget."""
    assert charged(ABSURD, ANSWER) == charged(None, ANSWER) + HELD_FOR_THE_FIRST


def test_an_absurd_claim_of_the_last_one_costs_what_was_held_for_it() -> None:
    """Even if every attempt lies, the tenant pays at most the whole hold."""
    assert charged(None, ABSURD) == HELD - HELD_FOR_THE_FIRST
    assert charged(ABSURD, ABSURD) == HELD


def test_an_answer_whose_cost_nobody_knows_spends_what_was_held_for_it() -> None:
    """Free, it would let a hard budget be passed any number of times."""
    searched = Usage(prompt_tokens=10, completion_tokens=5, web_searches=1)
    assert charged(None, searched) == HELD - HELD_FOR_THE_FIRST
    assert charged(searched, ANSWER) == charged(None, ANSWER) + HELD_FOR_THE_FIRST
