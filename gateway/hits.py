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
) -> None:
    """Answer from the cache. Raises BudgetExhausted where the tariff for hits does not fit."""
    exchange.hold = services.ledger.budgets.reserve(
        exchange.tenant, exchange.tags, hit_charge_pico(exchange, entry), exchange.started_us
    )
    exchange.answer_from_cache(entry, status, similarity)
