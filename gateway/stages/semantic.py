"""semantic: the same meaning before? Only where the policy allows and the request is eligible."""

from gateway.errors import NotCached
from gateway.exchange import Exchange
from gateway.hits import serve_hit
from gateway.services import Services


def semantic(exchange: Exchange, services: Services) -> None:
    """Set ``hit`` where a stored answer serves this request. Raises NotCached."""
    rule, vector = exchange.route.semantic, exchange.vector
    control = exchange.headers.get(b"cache-control")
    if rule is None and control is None:
        return
    text, partition = exchange.request.last_user_text, exchange.partition
    control = (control or b"").lower()
    if rule is None or vector is None or partition is None or text is None:
        if rule is not None and exchange.bypass is None:
            services.metrics.cache_lookups_total.inc(("semantic", "skip"))
    elif b"no-cache" not in control:
        found = services.semantic.lookup(
            partition, text, vector, now_us=exchange.started_us, max_wrong=rule.max_wrong
        )
        services.metrics.cache_lookups_total.inc(("semantic", "hit" if found else "miss"))
        if found is not None and serve_hit(
            exchange, services, found.entry, "hit-semantic", found.similarity
        ):
            return
    if b"only-if-cached" in control:
        raise NotCached("Nothing is cached for this request, and it asked for nothing else.")
