"""Making a plan, and the cheaper one where a budget says so.

Shared by two stages, which may not import each other: budgets of one process are asked when the
plan is made, shared ones answer when money is reserved.
"""

from msgspec.structs import replace

from gateway.booking import worst_cases_pico
from gateway.errors import BudgetExhausted
from gateway.exchange import Exchange, Plan
from gateway.policy.capability import unfit
from gateway.policy.snapshot import Budget, Model
from gateway.wire.openai import WITHOUT_OUTPUT


def make_plan(
    exchange: Exchange, candidates: tuple[Model, ...], decision: str, reason: str
) -> Plan:
    """The plan of these candidates. Raises ContextTooLong or InvalidRequest."""
    refusal = unfit(candidates[0], exchange.facts)
    if refusal is not None:
        raise refusal
    output_tokens = _worst_output(exchange, candidates)
    return Plan(
        candidates=candidates,
        decision=decision,
        reason=reason,
        output_tokens_max=output_tokens,
        worst_pico=worst_cases_pico(exchange, candidates, output_tokens),
    )


def downgraded(exchange: Exchange, budget: Budget, first: Model) -> Plan:
    """The plan that a used-up budget leaves. Raises as ``make_plan`` does, and BudgetExhausted
    where the cheaper model does not speak the request's dialect.
    """
    cheaper = budget.downgrade_to
    assert cheaper is not None, "schema.py: on_exceeded: downgrade names it"
    if exchange.endpoint not in cheaper.paths:
        raise BudgetExhausted(
            f"tenant {exchange.tenant.id}: the budget '{budget.name}' is used up, and the model"
            f" '{cheaper.name}' that it leaves does not speak {exchange.endpoint}"
        )
    reason = f"budget '{budget.name}' used up: {cheaper.name} instead of {first.name}"
    instead = f"downgraded; budget={budget.name}; from={first.name}"
    return replace(make_plan(exchange, (cheaper,), "downgraded", reason), instead=instead)


def _worst_output(exchange: Exchange, candidates: tuple[Model, ...]) -> int:
    if exchange.endpoint in WITHOUT_OUTPUT:
        return 0
    asked = exchange.request.max_output_tokens
    if asked:
        return asked
    limit = max(model.output_tokens_max for model in candidates)
    if asked == 0:
        return limit  # it is sent on as it came, and not every provider means none by it
    tenant_max = exchange.tenant.limits.max_output_tokens
    return min(limit, tenant_max) if tenant_max is not None else limit
