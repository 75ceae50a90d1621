"""enter: may this tenant send a request now? Asked before the body is read; refuses to know it."""

from gateway.exchange import Exchange
from gateway.services import Services


def enter(exchange: Exchange, services: Services) -> None:
    """Set ``rate``: a request of the minute and a concurrent slot. Raises RateLimited.

    Never waits: where limits are shared through Redis, it refuses what this process alone has
    filled, and ``admit`` asks Redis for the rest.
    """
    if exchange.rate is not None:
        return  # entered already: the endpoint asked before it read the body
    tenant, now = exchange.tenant, services.monotonic()
    shared = services.shared_limiter
    if shared is not None and tenant.limits.any:
        exchange.rate = shared.enter(tenant.id, tenant.limits, now)
    else:
        exchange.rate = services.limiter.enter(tenant.id, tenant.limits, now)
