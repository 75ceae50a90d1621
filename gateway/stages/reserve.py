"""reserve: hold the worst-case money of the whole plan, and put the intent on record.

From here on the request is in the ledger, whatever dies.
"""

from collections.abc import Awaitable

from msgspec import UNSET
from msgspec.structs import replace

from gateway.booking import intent, plan_charge_pico
from gateway.errors import BudgetExhausted, BudgetUnenforceable, InvalidRequest
from gateway.exchange import Attempt, Exchange, Plan
from gateway.ledger.budgets import Hold, covers, refuses
from gateway.plans import downgraded
from gateway.policy.snapshot import Budget, Model
from gateway.services import Services
from gateway.wire.fees import media_asked
from gateway.wire.openai import shown
from gateway.wire.usage_shapes import tier_of

_NO_MEDIA: frozenset[str] = frozenset()


def reserve(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``hold`` and begin the first of ``attempts``. Waits only where budgets are shared.

    Raises BudgetExhausted, BudgetUnavailable, BudgetUnenforceable, InvalidRequest or
    MeteringUnavailable.
    """
    plan = exchange.plan
    assert plan is not None, "plan comes before reserve"
    for target in plan.candidates:
        if target.prices is None:
            plan = exchange.plan = _without_unpriced(exchange, plan)
            break
    hold = _hold(exchange, services, plan)
    if isinstance(hold, Hold):
        exchange.hold = hold
        _begin(exchange, services, plan)
        return None
    return _wait(exchange, services, plan, hold)


async def _wait(exchange: Exchange, services: Services, plan: Plan, hold: Awaitable[Hold]) -> None:
    """Go on when the shared budgets have answered, with a cheaper plan where one says so."""
    try:
        exchange.hold = await hold
    except BudgetExhausted as error:
        budget = _downgrading(exchange, error)
        if budget is None:
            raise
        cheaper = downgraded(exchange, budget, plan.candidates[0])
        plan = exchange.plan = _without_unpriced(exchange, cheaper)
        again = _hold(exchange, services, plan)
        exchange.hold = again if isinstance(again, Hold) else await again
    _begin(exchange, services, plan)


def _hold(exchange: Exchange, services: Services, plan: Plan) -> Hold | Awaitable[Hold]:
    tools = exchange.request.provider_tools
    if tools is not None and not _tier_priced(exchange, plan, tools):
        _refuse_unbounded(exchange, f"'{shown(tools)}'")
    body = exchange.request.body
    media = exchange.request.has_media or "modalities" in body
    asked = media_asked(body) if media else _NO_MEDIA
    for target in plan.candidates:
        if target.fee is not None and not _fee_bounded(target):
            own = f"what the model '{target.name}' does of its own accord"
            _refuse_unbounded(exchange, own, param="model")
        if asked or target.media:
            _refuse_unrated(exchange, target, asked | target.media)
    unsized = exchange.request.unsized
    if exchange.request.enclosed and not all(t.context_tokens for t in plan.candidates):
        unsized = unsized or exchange.request.enclosed
    if unsized is not None:
        _refuse_unsized(exchange, unsized)
    return services.ledger.budgets.reserve(
        exchange.tenant,
        exchange.tags,
        plan_charge_pico(exchange, plan.worst_pico),
        exchange.started_us,
        exchange.request_id,
    )


def _begin(exchange: Exchange, services: Services, plan: Plan) -> None:
    """Put the intent of the first attempt on record."""
    attempt = Attempt(
        number=1,
        target=plan.candidates[0],
        started_us=exchange.started_us,
        started_monotonic=services.monotonic(),
        held_pico=plan.worst_pico[0],
    )
    prompt_tokens = exchange.request.prompt_bytes // 4 + 1
    services.ledger.intend(intent(exchange, attempt, prompt_tokens))
    exchange.attempts.append(attempt)


def _downgrading(exchange: Exchange, error: BudgetExhausted) -> Budget | None:
    """The budget that lacks the money, where it sends its tenant to a cheaper model."""
    for budget in exchange.tenant.budgets:
        if budget.name == error.budget_name and budget.on_exceeded == "downgrade":
            return budget
    return None


def _without_unpriced(exchange: Exchange, plan: Plan) -> Plan:
    """The plan less what a hard budget cannot be kept with: targets whose cost nobody knows.

    Raises BudgetUnenforceable where the first of them is one: another request would fare no better.
    """
    for budget in exchange.tenant.budgets:
        if refuses(budget) and covers(budget, exchange.tags):
            break
    else:
        return plan
    first = plan.candidates[0]
    if first.prices is None:
        raise BudgetUnenforceable(
            f"tenant {exchange.tenant.id}: the budget '{budget.name}' is hard and the model"
            f" '{first.name}' has no price, so it cannot be used: its price has to be written into"
            " the policy, or the budget made soft",
            param="model",
        )
    priced = [number for number, target in enumerate(plan.candidates) if target.prices is not None]
    candidates = tuple([plan.candidates[number] for number in priced])
    return replace(
        plan,
        candidates=candidates,
        worst_pico=tuple([plan.worst_pico[number] for number in priced]),
        stand_in=plan.stand_in if plan.stand_in in candidates else None,
    )


def _tier_priced(exchange: Exchange, plan: Plan, tools: str) -> bool:
    """Whether what makes the answer dearer is a service tier that has a price everywhere."""
    tier = tier_of(exchange.request.body.get("service_tier")) if tools == "service_tier" else ""
    return bool(tier) and all(
        target.prices is not None and target.prices.of_tier(tier) is not None
        for target in plan.candidates
    )


def _fee_bounded(target: Model) -> bool:
    """Whether a fee for each request pays for all searches: more of them cost no more."""
    prices = target.prices.prices if target.prices is not None else ()
    return target.fee == "search" and all(price.rates.request_pico for price in prices)


def _refuse_unrated(exchange: Exchange, target: Model, media: frozenset[str]) -> None:
    """Refuse media for whose tokens the target has no rate: the tokens would be unpriced."""
    prices = target.prices.prices if target.prices is not None else ()
    for bucket in sorted(media):
        if any(getattr(price.rates, bucket) is UNSET for price in prices):
            kind = f"'{bucket}', for which the model '{target.name}' has no price,"
            _refuse_unbounded(exchange, kind, param="model")


def _refuse_unbounded(exchange: Exchange, tool: str, param: str = "tools") -> None:
    """A tool that runs at the provider bills as much as it likes; a faster tier what it likes."""
    for budget in exchange.tenant.budgets:
        if refuses(budget) and covers(budget, exchange.tags):
            raise InvalidRequest(
                f"tenant {exchange.tenant.id}: the budget '{budget.name}' is hard, and {tool}"
                " is billed by the provider at a cost nobody knows beforehand: leave it out, or"
                " make the budget soft",
                param=param,
            )


def _refuse_unsized(exchange: Exchange, field: str) -> None:
    """A file, a recording or an unknown part may become more tokens than any budget holds.

    One that the body itself holds is bounded by the context of the models that may read it.
    """
    for budget in exchange.tenant.budgets:
        if refuses(budget) and covers(budget, exchange.tags):
            raise InvalidRequest(
                f"tenant {exchange.tenant.id}: the budget '{budget.name}' is hard, and nobody knows"
                f" beforehand how many tokens '{field}' becomes: send text or images, give the"
                " models their context if the request itself holds the file, or make the budget"
                " soft",
                param=field,
            )
