"""Serving a stored answer: held against the budgets like any other, then made the answer.

Shared by the two caches' stages, which may not import each other.
"""

from gateway.booking import hit_charge_pico
from gateway.caches.entry import StoredAnswer
from gateway.exchange import CacheStatus, Exchange
from gateway.services import Services


def serve_hit(
    exchange: Exchange,
    services: Services,
    entry: StoredAnswer,
    status: CacheStatus,
    similarity: float | None = None,
) -> bool:
    """Answer from the cache; False where a budget sends its tenant to a cheaper model instead.

    Raises BudgetExhausted where the tariff for hits does not fit. What is free always fits.
    """
    tariff = exchange.tenant.charging.cache_hits_ppm
    charge = hit_charge_pico(exchange, entry) if tariff else 0
    if charge:
        budgets, now_us = services.ledger.budgets, exchange.started_us
        lacking = budgets.exceeded(exchange.tenant, exchange.tags, charge, now_us)
        if lacking is not None and lacking.on_exceeded == "downgrade":
            return False
        exchange.hold = budgets.reserve(exchange.tenant, exchange.tags, charge, now_us)
    exchange.answer_from_cache(entry, status, similarity)
    return True
