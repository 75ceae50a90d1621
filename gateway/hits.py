"""Serving a stored answer: held against the budgets like any other, then made the answer.

Shared by the two caches' stages, which may not import each other.
"""

from collections.abc import Awaitable

from gateway.booking import hit_charge_pico
from gateway.caches.entry import StoredAnswer
from gateway.errors import BudgetExhausted
from gateway.exchange import CacheStatus, Exchange
from gateway.ledger.budgets import Hold
from gateway.services import Services


def serve_hit(
    exchange: Exchange,
    services: Services,
    entry: StoredAnswer,
    status: CacheStatus,
    similarity: float | None = None,
) -> Awaitable[None] | None:
    """Answer from the cache, unless a budget sends its tenant to a cheaper model instead.

    Waits only where the hit has a tariff and budgets are shared. Raises BudgetExhausted or
    BudgetUnavailable where the tariff does not fit. What is free always fits.
    """
    tariff = exchange.tenant.charging.cache_hits_ppm
    charge = hit_charge_pico(exchange, entry) if tariff else 0
    if charge:
        budgets, now_us = services.ledger.budgets, exchange.started_us
        lacking = budgets.exceeded(exchange.tenant, exchange.tags, charge, now_us)
        if lacking is not None and lacking.on_exceeded == "downgrade":
            return None
        hold = budgets.reserve(exchange.tenant, exchange.tags, charge, now_us, exchange.request_id)
        if not isinstance(hold, Hold):
            return _wait(exchange, hold, entry, status, similarity)
        exchange.hold = hold
    exchange.answer_from_cache(entry, status, similarity)
    return None


async def _wait(
    exchange: Exchange,
    hold: Awaitable[Hold],
    entry: StoredAnswer,
    status: CacheStatus,
    similarity: float | None,
) -> None:
    """Answer when the shared budgets have."""
    try:
        exchange.hold = await hold
    except BudgetExhausted as error:
        for budget in exchange.tenant.budgets:
            if budget.name == error.budget_name and budget.on_exceeded == "downgrade":
                return
        raise
    exchange.answer_from_cache(entry, status, similarity)
