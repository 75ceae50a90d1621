"""reserve: hold the worst-case money of the whole plan, and put the intent on record.

From here on the request is in the ledger, whatever dies.
"""

from gateway.booking import charge_pico, intent
from gateway.errors import BudgetUnavailable, InvalidRequest
from gateway.exchange import Attempt, Exchange, Plan
from gateway.ledger.budgets import covers, refuses
from gateway.services import Services


def reserve(exchange: Exchange, services: Services) -> None:
    """Set ``hold`` and begin the first of ``attempts``.

    Raises BudgetExhausted, BudgetUnavailable, InvalidRequest or MeteringUnavailable.
    """
    plan, request = exchange.plan, exchange.request
    assert plan is not None, "plan comes before reserve"
    _refuse_unpriced(exchange, plan)
    if request.provider_tools is not None:
        _refuse_unbounded(exchange, request.provider_tools)
    exchange.hold = services.ledger.budgets.reserve(
        exchange.tenant,
        exchange.tags,
        charge_pico(exchange, sum(plan.worst_pico)) or 0,
        exchange.started_us,
    )
    attempt = Attempt(
        number=1,
        target=plan.candidates[0],
        started_us=exchange.started_us,
        started_monotonic=services.monotonic(),
        held_pico=plan.worst_pico[0],
    )
    services.ledger.intend(intent(exchange, attempt, request.prompt_bytes // 4 + 1))
    exchange.attempts.append(attempt)


def _refuse_unpriced(exchange: Exchange, plan: Plan) -> None:
    """A hard budget cannot be kept where nobody knows what a target costs."""
    unpriced = [target.name for target in plan.candidates if target.prices is None]
    if not unpriced:
        return
    for budget in exchange.tenant.budgets:
        if refuses(budget) and covers(budget, exchange.tags):
            raise BudgetUnavailable(
                f"tenant {exchange.tenant.id}: the budget '{budget.name}' is hard and the model"
                f" '{unpriced[0]}' has no price: give it one, or make the budget soft"
            )


def _refuse_unbounded(exchange: Exchange, tool: str) -> None:
    """A tool that runs at the provider reads and bills as much as it likes."""
    for budget in exchange.tenant.budgets:
        if refuses(budget) and covers(budget, exchange.tags):
            raise InvalidRequest(
                f"tenant {exchange.tenant.id}: the budget '{budget.name}' is hard, and '{tool}'"
                " runs at the provider, at a cost that nobody knows beforehand: leave it out, or"
                " make the budget soft",
                param="tools",
            )
