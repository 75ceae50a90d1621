"""Booking: an exchange's attempts and cached answers as ledger records. Pure functions.

Knows prices, mark-ups and what "saved" means. Writes nothing.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any, cast

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.exchange import Attempt, Exchange
from gateway.ledger.event import (
    EVENT_PICO_MAX,
    CacheStatus,
    Decision,
    Intent,
    State,
    UsageEvent,
    plausible,
    unpriced,
)
from gateway.money import scale_half_even
from gateway.policy.snapshot import Model
from gateway.prices import Price
from gateway.wire.growth import growth_of
from gateway.wire.usage import Usage

_PPM = 1_000_000
_HELD_PICO_MAX = 2**63 - 1  # a log record's integers have 64 bits
_NOTHING = Usage(source="none")
_BOOKED_CACHE_STATUS: dict[str, CacheStatus] = {
    "miss": "miss",
    "bypass": "bypass",
    "hit-exact": "exact",
    "hit-semantic": "semantic",
}


def intent(exchange: Exchange, attempt: Attempt, prompt_tokens: int) -> Intent:
    """What must be on record before ``attempt`` is sent. prompt_tokens: an estimate."""
    attempt.identity = _identity(
        exchange,
        attempt.number,
        attempt.target,
        _price(attempt.target, exchange.started_us, prompt_tokens),
        _price(_baseline(exchange), exchange.started_us, prompt_tokens),
    )
    return Intent(
        **attempt.identity,
        prompt_tokens=prompt_tokens,
        held_pico=min(attempt.held_pico, _HELD_PICO_MAX),
        markup_ppm=exchange.tenant.charging.markup_ppm,
    )


def attempt_event(
    exchange: Exchange, attempt: Attempt, *, recorded_us: int, superseded: bool
) -> UsageEvent:
    """The final record of one attempt, priced, and without amounts that cannot be true."""
    usage = attempt.usage or _NOTHING
    price = _price_of(attempt.target, exchange.started_us, usage)
    cost = _cost_pico(price, usage)
    baseline_model = _baseline(exchange)
    if baseline_model is attempt.target:  # mostly: it costs what it costs
        baseline_price, baseline = price, cost
    else:
        baseline_price = _price_of(baseline_model, exchange.started_us, usage)
        baseline = _baseline_pico(exchange, attempt.target.name, usage, cost, baseline_price)
    error = attempt.error if superseded else (exchange.error or attempt.error)
    state: State = "final" if usage.source in ("provider", "none") else "estimated"
    identity = attempt.identity
    if identity is None:
        identity = _identity(exchange, attempt.number, attempt.target, price, baseline_price)
    else:  # the prompt was counted meanwhile, and another tier of prices may hold
        identity["price_id"] = price.price_id if price is not None else None
        identity["baseline_price_id"] = (
            baseline_price.price_id if baseline_price is not None else None
        )
    possible = 0
    if attempt.unknown is not None:
        state = "possible" if attempt.unknown == "possible" else "estimated"
        if price is not None:
            most = _most_pico(exchange, attempt, price)
            charged = attempt.unknown == "charged" or exchange.tenant.charging.failures
            cost, possible = (most, 0) if charged else (0, most)
            baseline = cost  # of unknown tokens nothing is saved and nothing lost
    event = plausible(
        UsageEvent(
            **identity,
            state=state,
            cache_status=_BOOKED_CACHE_STATUS[exchange.cache_status],
            status=error.status if error is not None else 200,
            error_type=error.code if error is not None else None,
            superseded=superseded,
            recorded_us=recorded_us,
            upstream_request_id=attempt.upstream_request_id,
            list_pico=cost,
            cost_pico=cost,
            charge_pico=charge_pico(exchange, cost),
            # What failed on the way saved nothing; only the answer is compared with the baseline.
            baseline_pico=0 if superseded and baseline is not None else baseline,
            overhead_pico=0 if superseded else _overhead_pico(exchange),
            duration_us=_span_us(attempt.started_monotonic, attempt.ended_monotonic),
            ttft_us=None if superseded else _ttft_us(exchange),
            usage=usage,
            possible_cost_pico=possible,
            possible_charge_pico=(charge_pico(exchange, possible) or 0) if possible else 0,
            request_us=None if superseded else _span_us(exchange.started, attempt.ended_monotonic),
        )
    )
    return _with_hold_pending(exchange, attempt, event) if unpriced(event) else event


def _with_hold_pending(exchange: Exchange, attempt: Attempt, event: UsageEvent) -> UsageEvent:
    """The event of an answer whose cost nobody knows, or believes: its hold stays pending.

    Were it free, a hard budget would let any number of such answers through; were its hold not in
    the books, a budget that is counted anew would forget it.
    """
    most = _most_pico(exchange, attempt, None)
    return msgspec.structs.replace(
        event,
        possible_cost_pico=most,
        possible_charge_pico=charge_pico(exchange, most) or 0,
    )


def _most_pico(exchange: Exchange, attempt: Attempt, price: Price | None) -> int:
    """What an attempt of unknown usage costs at most: what was held, or its own compute.

    Cut to what an event is believed to cost, mark-up included.
    """
    most = attempt.held_pico
    if price is not None and price.rates.compute_pico_per_second and not price.rates.output:
        took_us = _span_us(attempt.started_monotonic, attempt.ended_monotonic)
        most = min(most, price.cost_pico(Usage(compute_us=took_us)))
    return min(most, EVENT_PICO_MAX * _PPM // (_PPM + exchange.tenant.charging.markup_ppm))


def cache_event(exchange: Exchange, *, recorded_us: int, now: float) -> UsageEvent:
    """The record of an answer from a cache: no cost, the stored tokens as baseline."""
    entry = exchange.hit
    assert entry is not None, "only a hit is booked as one"
    served = exchange.policy.models.get(entry.served_model)  # None: no longer in the policy
    usage = entry.usage
    baseline_model = _baseline(exchange)
    baseline_price = _price_of(baseline_model, exchange.started_us, usage)
    price = baseline_price
    if served is not baseline_model:
        price = _price_of(served, exchange.started_us, usage)
    full = _cost_pico(baseline_price, _at_baseline(exchange, entry.served_model, usage))
    identity = _identity(exchange, 0, served, price, baseline_price)
    identity |= {"model_served": entry.served_model, "provider": entry.provider}
    return UsageEvent(
        **identity,
        recorded_us=recorded_us,
        cache_status=_BOOKED_CACHE_STATUS[exchange.cache_status],
        cache_ref=entry.cache_id,
        similarity=exchange.hit_similarity,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            source="cache",
        ),
        list_pico=0,
        cost_pico=0,
        charge_pico=cache_charge_pico(exchange, full),
        baseline_pico=_baseline_pico(exchange, entry.served_model, usage, 0, baseline_price),
        overhead_pico=_overhead_pico(exchange),
        status=200,
        duration_us=_span_us(exchange.started, now),
        request_us=_span_us(exchange.started, now),
    )


def hit_charge_pico(exchange: Exchange, entry: StoredAnswer) -> int:
    """What serving this stored answer charges the tenant; 0 where its baseline is unpriced."""
    price = _price_of(_baseline(exchange), exchange.started_us, entry.usage)
    saved = _cost_pico(price, _at_baseline(exchange, entry.served_model, entry.usage))
    return cache_charge_pico(exchange, saved) or 0


def charge_pico(exchange: Exchange, cost: int | None) -> int | None:
    """What the tenant is charged for a cost; unpriced stays unpriced."""
    markup_ppm = exchange.tenant.charging.markup_ppm
    if not cost or not markup_ppm:
        return cost
    return cost + scale_half_even(cost, markup_ppm, _PPM)


def plan_charge_pico(exchange: Exchange, worst_pico: Iterable[int]) -> int:
    """What the tenant is charged at most where every target is asked: each is rounded alone."""
    if not exchange.tenant.charging.markup_ppm:
        return sum(worst_pico)
    return sum(charge_pico(exchange, worst) or 0 for worst in worst_pico)


def cache_charge_pico(exchange: Exchange, saved: int | None) -> int | None:
    """What the tenant is charged for a cached answer: its tariff's share of its baseline price."""
    tariff_ppm = exchange.tenant.charging.cache_hits_ppm
    if saved is None:
        return None if tariff_ppm else 0
    return scale_half_even(saved, tariff_ppm, _PPM)


def worst_case_pico(exchange: Exchange, target: Model, output_tokens: int) -> int:
    """What one attempt at ``target`` can cost at most. Unpriced targets hold nothing."""
    if target.prices is None or exchange.endpoint == "count_tokens":
        return 0
    request = exchange.request
    # No tokenizer yields more tokens than there are bytes, once it has spelled out the text.
    prompt_tokens = request.prompt_bytes
    if exchange.tenant.budgets:
        if request.growth is None:
            request.growth = growth_of(request.body)
        prompt_tokens += request.growth
    if (request.enclosed or request.unsized) and target.context_tokens is not None:
        # A file becomes what it becomes, but no more than the model reads.
        prompt_tokens = max(prompt_tokens, target.context_tokens)
    return target.prices.worst_case_pico(
        exchange.started_us,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens + request.predicted_bytes,
        choices=request.choices,
        compute_seconds=ceil(target.provider.timeouts.total_seconds),
    )


def worst_cases_pico(
    exchange: Exchange, candidates: Iterable[Model], output_tokens: int
) -> tuple[int, ...]:
    """``worst_case_pico`` of each candidate: what is held where every one is tried, and paid."""
    return tuple([worst_case_pico(exchange, target, output_tokens) for target in candidates])


def _baseline(exchange: Exchange) -> Model | None:
    """The model a request would have paid for without us: of its own route, else the policy's.

    A pinned model is its own baseline: nothing is saved by doing as one is told. So is the one that
    is meant where the baseline cannot be asked at this endpoint, and would have cost nothing.
    """
    if exchange.way.pinned is not None:
        return exchange.way.pinned
    baseline = exchange.policy.baseline or exchange.route.large
    if baseline is None or exchange.endpoint in baseline.paths:
        return baseline
    return exchange.way.usual[0] if exchange.way.usual else baseline


def _baseline_pico(
    exchange: Exchange, served: str, usage: Usage, cost: int | None, price: Price | None
) -> int | None:
    """What the baseline model would have cost, as far as it is known to have done the same.

    Of another model's answer only the prompt's tokens count: whether the answer was worth as much,
    and as long, is not measured. That claims no more than the prompt saved, and hides no loss.
    """
    usage = _at_baseline(exchange, served, usage)
    full = _cost_pico(price, usage)
    meant = exchange.way.pinned or exchange.route.large
    if full is None or cost is None or meant is None or served == meant.name:
        return full
    prompt = _cost_pico(price, _prompt_of(usage))
    return min(full, max(prompt or 0, cost))


def _prompt_of(usage: Usage) -> Usage:
    """The same prompt, answered with nothing."""
    return msgspec.structs.replace(usage, compute_us=0, **_NO_COMPLETION)


_NO_COMPLETION = {
    name: 0
    for name in Usage.__struct_fields__
    if name.startswith("completion_") or name in ("reasoning_tokens", "citation_tokens")
}


def _at_baseline(exchange: Exchange, served: str, usage: Usage) -> Usage:
    """Usage without what the provider says it cost, where the baseline is another model."""
    if not usage.told_pico:
        return usage
    baseline = _baseline(exchange)
    if baseline is not None and baseline.name == served:
        return usage
    return msgspec.structs.replace(usage, told_pico=0)


def _overhead_pico(exchange: Exchange) -> int:
    """What deciding cost in own compute, at the price of this node's models."""
    price = exchange.policy.compute
    if not exchange.deciding_us or price is None:
        return 0
    return price.cost_pico(Usage(compute_us=exchange.deciding_us))


def _identity(
    exchange: Exchange,
    number: int,
    target: Model | None,
    price: Price | None,
    baseline_price: Price | None,
) -> dict[str, Any]:
    plan, hit, key, request = exchange.plan, exchange.hit, exchange.key, exchange.request
    if hit is not None:
        decision, reason = "cached", f"{exchange.cache_status}: {hit.cache_id}"
    elif plan is not None:
        # Asked again it is still the plan's; another target is a fallback.
        first = number == 1 or target is plan.candidates[0]
        decision, reason = (plan.decision if first else "fallback"), plan.reason
        error = exchange.attempts[0].error if exchange.attempts else None
        if not first and target is not None and error is not None:
            failed = plan.candidates[0].name
            reason += f"; {failed} failed with {error.status}: {target.name} instead"
    else:
        decision, reason = "refused", ""
    return {
        "event_id": f"{exchange.request_id}/{number}",
        "tags": dict(exchange.tags),
        "request_id": exchange.request_id,
        "attempt": number,
        "ts_us": exchange.started_us,
        "end_user": request.user,
        "client_request_id": exchange.client_request_id,
        "reason": reason,
        "difficulty": exchange.decision.difficulty if exchange.decision is not None else None,
        "tenant_id": exchange.tenant.id,
        "project_id": key.project_id,
        "key_id": key.id,
        "policy_version": exchange.policy.version,
        "route": exchange.route.name,
        "decision": cast(Decision, decision),
        "provider": target.provider.name if target is not None else "",
        "model_requested": request.model,
        "model_served": target.name if target is not None else "",
        "price_id": price.price_id if price is not None else None,
        "baseline_price_id": baseline_price.price_id if baseline_price is not None else None,
    }


def _price(model: Model | None, now_us: int, prompt_tokens: int) -> Price | None:
    if model is None or model.prices is None:
        return None
    return model.prices.at(now_us, prompt_tokens)


def _price_of(model: Model | None, now_us: int, usage: Usage) -> Price | None:
    """The price of an answer, in the service tier that served it."""
    if model is None or model.prices is None:
        return None
    if not usage.service_tier:
        return model.prices.at(now_us, usage.prompt_tokens)
    schedule = model.prices.of_tier(usage.service_tier)
    if schedule is None and usage.told_pico:
        schedule = model.prices  # the provider says what it cost, in whichever tier
    return schedule.at(now_us, usage.prompt_tokens) if schedule is not None else None


def _cost_pico(price: Price | None, usage: Usage) -> int | None:
    if price is None or not price.prices(usage):
        return None
    # What never reached a provider does not even cost the fee of a request.
    return price.cost_pico(usage) if usage.source != "none" else 0


def _span_us(start: float, end: float) -> int:
    """Microseconds between two monotonic moments, never negative."""
    return max(0, round((end - start) * 1e6))


def _ttft_us(exchange: Exchange) -> int | None:
    if exchange.first_byte is None:
        return None
    return _span_us(exchange.started, exchange.first_byte)
