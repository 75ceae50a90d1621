"""Booking against the same arithmetic done with exact fractions of a dollar."""

from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import booking
from gateway.errors import BudgetExhausted, ClientClosed, UpstreamTimeout
from gateway.ledger.event import Identity, UsageEvent, gross_saved_pico, plausible, unpriced
from gateway.policy.snapshot import Charging, Model
from gateway.prices import ServiceTier, from_contract, from_machine_hour
from gateway.wire.usage import Usage
from tests.gateway.exchanges import (
    LARGE,
    NOW_US,
    SMALL,
    UNPRICED,
    attempt,
    contract,
    exchange,
    model,
    stored,
)

USD_PER_MTOK = {
    "small": {"input": "0.10", "output": "0.40"},
    "large": {"input": "2.50", "cached_input": "1.25", "output": "15.00"},
}
PPM = st.integers(0, 5_000_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt, completion = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**5))
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=completion,
        reasoning_tokens=draw(st.integers(0, completion)),
    )


def dollars(name: str, usage: Usage) -> Fraction:
    """The price list read by a person: each token at its rate."""
    rates = {bucket: Fraction(text) / 10**6 for bucket, text in USD_PER_MTOK[name].items()}
    cached = rates.get("cached_input", rates["input"])
    return (
        (usage.prompt_tokens - usage.cached_tokens) * rates["input"]
        + usage.cached_tokens * cached
        + usage.completion_tokens * rates["output"]
    )


def pico(amount: Fraction) -> int:
    """To the nearest pico-dollar, ties to even: what ``round`` does with a Fraction."""
    return round(amount * 10**12)


def booked(usage: Usage | None, target: Model = SMALL, **options: object) -> UsageEvent:
    made = exchange(**options)  # type: ignore[arg-type] # passed on
    last = attempt(target, usage)
    made.attempts.append(last)
    return booking.attempt_event(made, last, recorded_us=NOW_US + 5, superseded=False)


@given(usages(), PPM)
def test_an_answer_costs_its_list_price_and_is_charged_with_the_mark_up(
    usage: Usage, markup_ppm: int
) -> None:
    """Random usage and mark-ups agree with exact fractions to the last pico-dollar."""
    event = booked(usage, charging=Charging(markup_ppm=markup_ppm))
    cost = dollars("small", usage)
    assert event.cost_pico == event.list_pico == cost * 10**12, "to the last pico-dollar"
    assert event.charge_pico == pico(cost) + pico(cost * Fraction(markup_ppm, 10**6))
    assert event.state == "final"
    assert event.duration_us == 250_000


@given(usages())
def test_savings_are_what_the_baseline_would_have_cost_less_what_was_paid(usage: Usage) -> None:
    """A saving is the dearest model's bill for the same tokens minus the bill that came."""
    dearest = model("dearest", contract("dearest", input="5", cached_input="5", output="30"))
    event = booked(usage, LARGE, baseline=dearest)
    full = usage.prompt_tokens * 5 + usage.completion_tokens * 30
    assert event.baseline_pico == full * 10**6
    assert gross_saved_pico(event) == full * 10**6 - dollars("large", usage) * 10**12


@given(usages())
def test_an_answer_of_the_small_model_claims_no_saving_beyond_its_prompt_s(usage: Usage) -> None:
    """Whether it was worth the large one's is not measured; nor is a loss ever hidden."""
    saved = gross_saved_pico(booked(usage))
    assert saved is not None
    cost = dollars("small", usage) * 10**12
    prompt = msgspec.structs.replace(usage, completion_tokens=0, reasoning_tokens=0)
    assert saved == max(0, dollars("large", prompt) * 10**12 - cost)
    dear = model("dear", contract("dear", input="9", output="99"))
    loss = gross_saved_pico(booked(usage, dear, small=dear))
    full = usage.prompt_tokens * 9 + usage.completion_tokens * 99
    assert loss == dollars("large", usage) * 10**12 - full * 10**6


def test_the_cost_of_deciding_is_booked_once_and_taken_off_what_is_saved() -> None:
    """At the price of this node's own compute: 0.36 dollars an hour are 100 pico per µs."""
    compute = from_machine_hour(provider="onbox", model="e", machine_hour="0.36").prices[0]
    made = exchange()
    made.policy = msgspec.structs.replace(made.policy, compute=compute)
    made.deciding_us = 2_500
    first, last = attempt(SMALL, None), attempt(LARGE, Usage(prompt_tokens=1), 2)
    failed = booking.attempt_event(made, first, recorded_us=NOW_US, superseded=True)
    answered = booking.attempt_event(made, last, recorded_us=NOW_US, superseded=False)
    assert (failed.overhead_pico, answered.overhead_pico) == (0, 250_000)
    made.hit, made.cache_status = stored(Usage(prompt_tokens=9)), "hit-semantic"
    hit = booking.cache_event(made, recorded_us=NOW_US, now=100.0)
    assert hit.overhead_pico == 250_000


def test_what_nobody_knows_the_cost_of_is_charged_or_noted_at_what_was_held() -> None:
    """And saves nothing and loses nothing; own compute is known to have run no longer than this."""
    own = model("own", from_machine_hour(provider="onbox", model="own", machine_hour="0.36"))
    for unknown, policy_charges, charged in (
        ("charged", False, True), ("possible", False, False), ("possible", True, True),
    ):  # fmt: skip
        made = exchange(
            charging=Charging(markup_ppm=100_000, failures=policy_charges), pinned=LARGE
        )
        last = attempt(LARGE, None, unknown=unknown, held_pico=1_000)
        event = booking.attempt_event(made, last, recorded_us=NOW_US, superseded=False)
        assert event.state == ("possible" if unknown == "possible" else "estimated")
        assert (event.cost_pico, event.charge_pico) == ((1_000, 1_100) if charged else (0, 0))
        assert event.possible_cost_pico == (0 if charged else 1_000)
        assert event.possible_charge_pico == (0 if charged else 1_100)
        assert gross_saved_pico(event) == 0
    ours = attempt(own, None, unknown="charged", held_pico=10**12)
    event = booking.attempt_event(exchange(small=own), ours, recorded_us=NOW_US, superseded=False)
    assert event.cost_pico == 250_000 * 100
    absurd = attempt(LARGE, None, unknown="possible", held_pico=10**40)
    event = booking.attempt_event(made, absurd, recorded_us=NOW_US, superseded=False)
    assert plausible(event) is event


@given(usages())
def test_doing_as_one_is_told_saves_nothing(usage: Usage) -> None:
    """Where a client has chosen the model itself, the gateway must not boast of a saving."""
    event = booked(usage, pinned=SMALL)
    assert gross_saved_pico(event) == 0
    assert event.baseline_price_id == event.price_id


def test_the_route_s_large_model_is_the_baseline_where_the_policy_names_none() -> None:
    """A named baseline goes first; without one, savings count from the large model's price."""
    usage = Usage(prompt_tokens=10, completion_tokens=10)
    other = model("other", contract("other", input="1", output="1"))
    assert booked(usage, LARGE, baseline=other).baseline_pico == 20 * 10**6
    assert booked(usage, LARGE, baseline=None).baseline_pico == dollars("large", usage) * 10**12


def test_a_baseline_that_cannot_be_asked_saves_nothing() -> None:
    """Of a decision that only the local model can make, no saving over a chat model is claimed."""
    other = msgspec.structs.replace(LARGE, name="other", paths={"responses": "/responses"})
    event = booked(Usage(prompt_tokens=10, completion_tokens=10), LARGE, baseline=other)
    assert event.baseline_pico == event.cost_pico
    assert gross_saved_pico(event) == 0


@given(usages(), PPM, PPM)
def test_a_cached_answer_costs_nothing_and_is_charged_its_tariff_s_share_of_the_baseline(
    usage: Usage, markup_ppm: int, tariff_ppm: int
) -> None:
    """The hit names its source and likeness, and claims no output the small model wrote."""
    made = exchange(charging=Charging(markup_ppm=markup_ppm, cache_hits_ppm=tariff_ppm))
    made.hit, made.cache_status, made.hit_similarity = stored(usage, "large"), "hit-semantic", 0.97
    event = booking.cache_event(made, recorded_us=NOW_US, now=100.002)
    saved = dollars("large", usage)
    assert (event.cost_pico, event.list_pico) == (0, 0)
    assert event.baseline_pico == gross_saved_pico(event) == saved * 10**12
    assert event.charge_pico == pico(saved * Fraction(tariff_ppm, 10**6))
    assert (event.cache_status, event.decision) == ("semantic", "cached")
    assert (event.model_served, event.provider) == ("large", "large-provider")
    assert (event.cache_ref, event.similarity) == ("01CACHED", 0.97)
    assert event.usage.source == "cache"
    assert event.usage.prompt_tokens == usage.prompt_tokens
    assert event.duration_us == event.request_us == 2_000
    made.hit = stored(usage, "small")
    again = booking.cache_event(made, recorded_us=NOW_US, now=100.002)
    assert again.charge_pico == event.charge_pico
    prompt = msgspec.structs.replace(usage, completion_tokens=0, reasoning_tokens=0)
    assert again.baseline_pico == dollars("large", prompt) * 10**12, "the small one wrote it"
    assert event.event_id == "01ARZ3NDEKTSV4RRFFQ69G5FAV/0"


def test_a_cached_answer_of_a_model_that_is_gone_is_booked_under_its_own_name() -> None:
    """It has no price of its own any more, yet the saved prompt of the large model is counted."""
    made = exchange()
    made.hit, made.cache_status = stored(Usage(prompt_tokens=9), "retired"), "hit-exact"
    event = booking.cache_event(made, recorded_us=NOW_US, now=100.0)
    assert (event.model_served, event.price_id) == ("retired", None)
    assert event.cache_status == "exact"
    assert event.baseline_pico == dollars("large", Usage(prompt_tokens=9)) * 10**12


@pytest.mark.parametrize(("tariff_ppm", "charge"), [(0, 0), (500_000, None)])
def test_a_share_of_an_unknown_saving_is_unknown_unless_it_is_nothing(
    tariff_ppm: int, charge: int | None
) -> None:
    """Without a price of the baseline, a hit is charged nothing only where hits are free."""
    made = exchange(baseline=UNPRICED, charging=Charging(cache_hits_ppm=tariff_ppm))
    made.hit, made.cache_status = stored(Usage(prompt_tokens=9)), "hit-exact"
    event = booking.cache_event(made, recorded_us=NOW_US, now=100.0)
    assert (event.cost_pico, event.baseline_pico, event.charge_pico) == (0, None, charge)


def test_unpriced_stays_unpriced_in_cost_charge_and_savings() -> None:
    """A missing price must show as unknown, for zero would look like a free answer."""
    event = booked(
        Usage(prompt_tokens=5, completion_tokens=5), UNPRICED, charging=Charging(markup_ppm=10**5)
    )
    assert (event.cost_pico, event.list_pico, event.charge_pico) == (None, None, None)
    assert event.price_id is None
    assert gross_saved_pico(event) is None
    assert unpriced(event)


def test_an_unpriced_baseline_leaves_the_saving_unknown_and_the_cost_known() -> None:
    """The money paid is still booked exactly; only the comparison is left out."""
    event = booked(Usage(prompt_tokens=5), baseline=UNPRICED)
    assert event.cost_pico == 5 * 100_000
    assert event.baseline_pico is None
    assert gross_saved_pico(event) is None


@given(usages())
def test_an_attempt_that_another_replaced_costs_what_it_used_and_saves_nothing(
    usage: Usage,
) -> None:
    """It counts as a loss with its own error, not with the whole request's."""
    made = exchange(charging=Charging(markup_ppm=200_000))
    made.error = BudgetExhausted("of the whole request, which is not this attempt's")
    failed = attempt(SMALL, usage, error=UpstreamTimeout("too slow"))
    event = booking.attempt_event(made, failed, recorded_us=NOW_US, superseded=True)
    cost = int(dollars("small", usage) * 10**12)
    assert event.cost_pico == cost
    assert event.charge_pico == cost + round(Fraction(cost, 5))
    assert gross_saved_pico(event) == -cost
    assert (event.baseline_pico, event.ttft_us, event.superseded) == (0, None, True)
    assert (event.status, event.error_type) == (504, "upstream_timeout")


def test_an_unpriced_attempt_that_another_replaced_stays_unpriced() -> None:
    """Cost, charge and baseline are all unknown, for a zero would hide money that was spent."""
    made = exchange(baseline=UNPRICED)
    failed = attempt(UNPRICED, Usage(prompt_tokens=3), error=UpstreamTimeout("too slow"))
    event = booking.attempt_event(made, failed, recorded_us=NOW_US, superseded=True)
    assert (event.cost_pico, event.charge_pico, event.baseline_pico) == (None, None, None)


@pytest.mark.parametrize("extra", [{"web_searches": 2}, {"other_fees": True}])
def test_a_fee_that_no_price_covers_makes_the_answer_unpriced(extra: dict[str, Any]) -> None:
    """Its tokens alone would be too little, and would look like all of it."""
    event = booked(Usage(prompt_tokens=5, completion_tokens=1, **extra))
    assert (event.cost_pico, event.charge_pico) == (None, None)
    assert event.usage.prompt_tokens == 5


def test_an_answer_costs_the_price_of_the_service_tier_that_served_it() -> None:
    """Where the policy does not know that tier's price, the answer has none."""
    half = ServiceTier(name="flex", multiply={"input": "0.5", "output": "0.5"})
    terms = {"input": "1", "output": "1"}
    prices = from_contract(
        contract_id="C", provider="p", model="m", currency="USD", per_mtok=terms,
        service_tiers=[half],
    )  # fmt: skip
    target = model("tiered", prices)
    for tier, cost in (("", 10**7), ("flex", 5 * 10**6), ("priority", None)):
        event = booked(Usage(prompt_tokens=10, service_tier=tier), target, pinned=target)
        assert event.cost_pico == cost
        assert event.baseline_pico == cost, "pinned: nothing saved"
        assert (event.price_id is None) == (cost is None)


def test_what_the_provider_says_it_cost_is_no_price_of_another_model() -> None:
    """The provider's own figure is the cost, and the baseline keeps the list price."""
    usage = Usage(prompt_tokens=5, completion_tokens=1, told_pico=10**12)
    event = booked(usage)
    assert event.cost_pico == 10**12
    assert event.baseline_pico == dollars("large", usage) * 10**12


def test_what_contradicts_itself_is_booked_as_an_estimate() -> None:
    """Usage that does not add up is priced all the same, and marked as not final."""
    event = booked(Usage(prompt_tokens=5, completion_tokens=1, source="unclear"))
    assert (event.state, event.usage.source) == ("estimated", "unclear")
    assert event.cost_pico == dollars("small", event.usage) * 10**12


def test_what_never_reached_a_provider_costs_not_even_the_fee_of_a_request() -> None:
    """A fee of 7 pico-dollars per request is booked only with an answer that has usage."""
    prices = contract("fee", input="1", output="1")
    price = prices.prices[0]
    with_fee = msgspec.structs.replace(
        price, rates=msgspec.structs.replace(price.rates, request_pico=7)
    )
    target = model("fee", msgspec.structs.replace(prices, prices=(with_fee,)))
    assert booked(None, target).cost_pico == 0
    assert booked(Usage(prompt_tokens=1), target).cost_pico == 10**6 + 7


def test_a_client_that_left_is_booked_as_499_with_what_was_generated() -> None:
    """The tokens written until then are priced as an estimate, under the provider's request id."""
    made = exchange()
    made.error = ClientClosed("left")
    made.first_byte = 100.1
    usage = Usage(prompt_tokens=8, completion_tokens=2, source="partial_stream")
    last = attempt(SMALL, usage, upstream_request_id="req_1")
    event = booking.attempt_event(made, last, recorded_us=NOW_US, superseded=False)
    assert (event.status, event.error_type) == (499, "client_closed_request")
    assert event.state == "estimated"
    assert event.cost_pico == dollars("small", usage) * 10**12
    assert event.ttft_us == 100_000
    assert event.upstream_request_id == "req_1"


@pytest.mark.parametrize(
    ("source", "state"),
    [("provider", "final"), ("tokenizer", "estimated"), ("partial_stream", "estimated")],
)
def test_only_what_the_provider_counted_is_final(source: str, state: str) -> None:
    """Counts of our own are marked as estimates, so that a bill can tell the two apart."""
    usage = Usage(prompt_tokens=1, source=source)  # type: ignore[arg-type] # one of the literals
    assert booked(usage).state == state


def test_an_intent_names_everything_its_event_will() -> None:
    """If the process is killed, the intent alone tells tenant, project, key and money held."""
    made = exchange(charging=Charging(markup_ppm=70_000))
    second = attempt(LARGE, Usage(prompt_tokens=6), number=2, held_pico=123)
    intent = booking.intent(made, second, 6)
    event = booking.attempt_event(made, second, recorded_us=NOW_US, superseded=False)
    for name in Identity.__struct_fields__:
        assert getattr(intent, name) == getattr(event, name), name
    assert (intent.prompt_tokens, intent.held_pico, intent.markup_ppm) == (6, 123, 70_000)
    assert intent.event_id == "01ARZ3NDEKTSV4RRFFQ69G5FAV/2"
    assert intent.decision == "fallback"
    assert (intent.project_id, intent.key_id, intent.end_user) == ("web", "key_1", "u-1")


@given(usages(), st.integers(1, 4))
def test_no_answer_within_its_limits_costs_more_than_was_held_for_it(
    usage: Usage, choices: int
) -> None:
    """The prompt has at most as many tokens as bytes; each choice at most its limit."""
    text = "x" * min(usage.prompt_tokens, 5_000)
    body = msgspec.json.encode(
        {"model": "auto", "n": choices, "messages": [{"role": "user", "content": text}]}
    )
    made = exchange(body=body)
    prompt = min(usage.prompt_tokens, made.request.prompt_bytes)
    output = usage.completion_tokens // choices
    true = Usage(
        prompt_tokens=prompt,
        cached_tokens=min(usage.cached_tokens, prompt),
        completion_tokens=output * choices,
    )
    for target in (SMALL, LARGE):
        event = booking.attempt_event(
            made, attempt(target, true), recorded_us=NOW_US, superseded=False
        )
        cost = event.cost_pico
        assert cost is not None
        assert cost <= booking.worst_case_pico(made, target, output)
    assert booking.worst_case_pico(made, UNPRICED, output) == 0
