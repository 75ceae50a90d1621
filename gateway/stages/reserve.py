"""reserve: hold the worst-case money of the whole plan, and put the intent on record.

From here on the request is in the ledger, whatever dies.
"""

from gateway.booking import intent, worst_case_pico, worst_charge_pico
from gateway.exchange import Attempt, Exchange
from gateway.services import Services


def reserve(exchange: Exchange, services: Services) -> None:
    """Set ``hold`` and begin the first of ``attempts``.

    Raises BudgetExhausted, BudgetUnavailable or MeteringUnavailable.
    """
    plan, request = exchange.plan, exchange.request
    assert plan is not None, "plan comes before reserve"
    if exchange.tenant.budgets:
        exchange.hold = services.ledger.budgets.reserve(
            exchange.tenant,
            exchange.tags,
            worst_charge_pico(exchange, plan.candidates, plan.output_tokens_max),
            exchange.started_us,
        )
    attempt = Attempt(
        number=1,
        target=plan.candidates[0],
        started_us=exchange.started_us,
        started_monotonic=services.monotonic(),
        held_pico=worst_case_pico(exchange, plan.candidates[0], plan.output_tokens_max),
    )
    services.ledger.intend(intent(exchange, attempt, request.prompt_bytes // 4 + 1))
    exchange.attempts.append(attempt)
