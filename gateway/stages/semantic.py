"""semantic: the same meaning before? Only where the policy allows and the request is eligible."""

from collections.abc import Awaitable

from gateway.errors import NotCached
from gateway.exchange import Exchange
from gateway.hits import serve_hit
from gateway.services import Services


def semantic(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``hit`` where a stored answer serves this request. Raises NotCached.

    Waits only where hits have a tariff and budgets are shared.
    """
    rule, vector = exchange.route.semantic, exchange.vector
    control = exchange.headers.get(b"cache-control")
    if rule is None and control is None:
        return None
    text, partition = exchange.request.last_user_text, exchange.partition
    control = (control or b"").lower()
    if rule is None or vector is None or partition is None or text is None:
        if rule is not None and exchange.bypass is None:
            services.metrics.cache_lookups_total.inc(("semantic", "skip"))
    elif b"no-cache" not in control:
        began = services.monotonic()
        found = services.semantic.lookup(
            partition, text, vector, now_us=exchange.started_us, max_wrong=rule.max_wrong
        )
        exchange.deciding_us += round((services.monotonic() - began) * 1e6)
        services.metrics.cache_lookups_total.inc(("semantic", "hit" if found else "miss"))
        if found is not None:
            waiting = serve_hit(exchange, services, found.entry, "hit-semantic", found.similarity)
            if waiting is not None:
                return _wait(exchange, waiting, control)
    _check(exchange, control)
    return None


async def _wait(exchange: Exchange, waiting: Awaitable[None], control: bytes) -> None:
    await waiting
    _check(exchange, control)


def _check(exchange: Exchange, control: bytes) -> None:
    if not exchange.answered and b"only-if-cached" in control:
        raise NotCached("Nothing is cached for this request, and it asked for nothing else.")
