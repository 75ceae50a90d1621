"""store: teach the caches what was just answered, and wake those who wait for the same.

Only complete answers that ended well, and only once they are booked.
"""

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.wire.assemble import complete
from gateway.wire.canonical import searches
from gateway.wire.openai import WITHOUT_OUTPUT
from gateway.wire.verbatim import encode

_DEPTH_CERTAIN = 200  # so many containers cannot be too deep to be written


def store(exchange: Exchange, services: Services) -> None:
    """Write the caches. A follower always hears, be it that there is nothing.

    Followers asked the same at the same time, so they share what may not be kept for later: an
    answer cut at its length, or a fallback's.
    """
    entry: StoredAnswer | None = None
    try:
        keeps = _worth_keeping(exchange)
        if keeps or (exchange.flight is not None and not _downgraded(exchange)):
            entry = _entry(exchange)
        if keeps and entry is not None:
            _write(exchange, services, entry)
    finally:
        if exchange.flight is not None:
            failure = exchange.error.message if exchange.error is not None else ""
            exchange.flight.finish(entry if entry is not None else exchange.hit, failure)


def _worth_keeping(exchange: Exchange) -> bool:
    """A complete answer of the target that the route wanted."""
    answer = exchange.answer
    if answer is None or exchange.bypass is not None:
        return False
    if exchange.degraded:
        return False
    plan, attempts = exchange.plan, exchange.attempts
    if plan is not None and attempts and attempts[-1].target is not plan.candidates[0]:
        return False  # a fallback's answer must not outlive the failure
    if _downgraded(exchange):
        return False
    if searches(exchange.attempts[-1].target.upstream_model):
        return False  # its name for clients need not say so
    return exchange.endpoint in WITHOUT_OUTPUT or complete(answer)


def _downgraded(exchange: Exchange) -> bool:
    """One budget is used up; whoever shares the key may have another, with money left."""
    return exchange.plan is not None and exchange.plan.decision == "downgraded"


def _entry(exchange: Exchange) -> StoredAnswer | None:
    answer, usage = exchange.answer, exchange.usage
    if exchange.error is not None or usage is None or not exchange.attempts:
        return None
    if not exchange.request.stream:
        kept = exchange.tail
        if exchange.endpoint not in WITHOUT_OUTPUT and not _can_be_written(kept, answer):
            return None
    else:  # of a stream too long to be kept the followers have the frames: they book, no more
        kept = encode(answer) if answer is not None else b""
    target = exchange.attempts[-1].target
    rule = exchange.route.exact
    ttl_seconds = rule.ttl_seconds if rule is not None else 0.0
    return StoredAnswer(
        answer=kept,
        endpoint=exchange.endpoint,
        served_model=target.name,
        provider=target.provider.name,
        usage=usage,
        stored_us=exchange.started_us,
        expires_us=exchange.started_us + round(ttl_seconds * 1e6),
        cache_id=exchange.request_id,
        route_identity=exchange.route.identity,
        tenant_id=exchange.tenant.id,
        writer_key_id=exchange.key.id,
    )


def _can_be_written(kept: bytes, answer: object) -> bool:
    """Whether a hit can be made of it: deeper documents are read than are written."""
    if kept.count(b"{") + kept.count(b"[") <= _DEPTH_CERTAIN:
        return True
    try:
        encode(answer)
    except (TypeError, RecursionError):
        return False
    return True


def _write(exchange: Exchange, services: Services, entry: StoredAnswer) -> None:
    exact, semantic = exchange.route.exact, exchange.route.semantic
    if exact is not None and exchange.cache_key is not None:
        services.exact.put(exchange.cache_key, entry)
        if services.shared_exact is not None:
            services.shared_exact.put(exchange.cache_key, entry, services.now_us())
        exchange.cache_id = entry.cache_id
    text = exchange.request.last_user_text
    vector, partition = exchange.vector, exchange.partition
    if semantic is not None and partition is not None and vector is not None and text is not None:
        until_us = entry.stored_us + round(semantic.ttl_seconds * 1e6)
        kept = msgspec.structs.replace(entry, expires_us=until_us)
        services.semantic.store(partition, text, vector, kept)
