"""plan: which targets, in which order, and why. The last decision before money is held."""

from msgspec.structs import replace

from gateway.booking import plan_charge_pico
from gateway.exchange import Exchange, Plan
from gateway.plans import downgraded, make_plan
from gateway.policy.snapshot import Budget
from gateway.policy.targets import targets
from gateway.services import Services


def plan(exchange: Exchange, services: Services) -> None:
    """Set ``plan``. Raises ContextTooLong, InvalidRequest or BudgetExhausted."""
    found = targets(
        exchange.lane,
        exchange.way,
        decision=exchange.decision,
        forced=exchange.forced,
        standing=services.upstream,
    )
    if found.degraded:
        exchange.degraded = found.degraded
    made = make_plan(exchange, found.candidates, found.kind, found.reason)
    if found.instead or found.stand_in is not None:
        made = replace(made, instead=found.instead, stand_in=found.stand_in)
    budget = _used_up(exchange, services, made)
    exchange.plan = made if budget is None else downgraded(exchange, budget, found.meant)


def _used_up(exchange: Exchange, services: Services, made: Plan) -> Budget | None:
    """The budget in which a plan does not fit, where it sends its tenant to another model."""
    if not exchange.tenant.budgets:
        return None
    budget = services.ledger.budgets.exceeded(
        exchange.tenant,
        exchange.tags,
        plan_charge_pico(exchange, made.worst_pico),
        exchange.started_us,
    )
    return budget if budget is not None and budget.on_exceeded == "downgrade" else None
