"""exact: the same request before? One hash, no model. Concurrent twins follow the first.

Refuses to merge what it does not understand: an unknown field is part of the key.
"""

import asyncio
from collections.abc import Awaitable

from gateway.caches.entry import StoredAnswer
from gateway.caches.exact import exact_key
from gateway.caches.shared_exact import SharedExactCache
from gateway.caches.single_flight import Flight
from gateway.errors import InvalidRequest, NotCached, UpstreamUnavailable
from gateway.exchange import EVENT_STREAM, Exchange
from gateway.hits import serve_hit
from gateway.services import Services
from gateway.wire.canonical import cacheable, canonical_body
from gateway.wire.openai import WITHOUT_OUTPUT
from gateway.wire.relay import DONE

_NO_CONTROL: dict[str, str] = {}
_AGE_DIGITS_MAX = 10
FOLLOW_SECONDS = 60.0  # how long a request waits for its twin's answer before it asks itself


def exact(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``hit`` or ``cache_key`` (and ``flight`` where others may wait for this answer).

    Sets ``bypass`` where no cache may be asked nor taught. Raises NotCached or InvalidRequest.
    """
    header = exchange.headers.get(b"cache-control")
    control = _NO_CONTROL if header is None else _cache_control(header)
    exchange.bypass = _bypass(exchange, control)
    if exchange.bypass is not None:
        if "only-if-cached" in control:
            raise NotCached(f"Nothing is cached for this request: {exchange.bypass}.")
        return None
    exchange.cache_status = "miss"
    rule = exchange.route.exact
    if rule is None or services.switches.thrown("exact", exchange.started_us):
        return None
    request = exchange.request
    if request.canonical is None:
        request.canonical = canonical_body(request)
    key = exchange.cache_key = exact_key(
        tenant_secret=services.keys.tenant_secret(exchange.tenant.id),
        scope=exchange.scope(rule.scope),
        route_identity=exchange.route.identity,
        canonical=request.canonical,
    )
    if "no-cache" in control:
        return None
    entry = services.exact.get(key, exchange.started_us)
    if entry is not None and _fresh_enough(exchange.started_us - entry.stored_us, control):
        services.metrics.cache_lookups_total.inc(("exact", "hit"))
        if exchange.deployment is None and not exchange.large:  # Azure's path holds the model, too
            services.repeats.learn(exchange.tenant.id, bytes(exchange.raw), exchange.request)
        return serve_hit(
            exchange, services, entry, "hit-exact"
        )  # None: a budget wants a cheaper model
    if services.shared_exact is not None:
        return _ask_others(exchange, services, services.shared_exact, key, control)
    return _miss(exchange, services, key)


async def _ask_others(
    exchange: Exchange, services: Services, shared: SharedExactCache, key: bytes,
    control: dict[str, str],
) -> None:  # fmt: skip
    """Has another process of the gateway stored the answer?"""
    entry = await shared.get(key, exchange.tenant.id, exchange.started_us)
    if entry is not None and _fresh_enough(exchange.started_us - entry.stored_us, control):
        services.exact.put(key, entry)
        services.metrics.cache_lookups_total.inc(("exact", "hit"))
        await _serve(exchange, services, entry)
        return
    waiting = _miss(exchange, services, key)
    if waiting is not None:
        await waiting


def _miss(exchange: Exchange, services: Services, key: bytes) -> Awaitable[None] | None:
    services.metrics.cache_lookups_total.inc(("exact", "miss"))
    stream = exchange.request.stream
    if stream and exchange.tenant.charging.cache_hits_ppm:
        return None  # its charge must be held before it begins, and is known when it has ended
    flight = services.flights.join(key, stream=stream, cache_id=exchange.request_id)
    if flight is None or flight.leads:
        exchange.flight = flight
        return None
    return _follow(exchange, services, key, flight)


async def _follow(exchange: Exchange, services: Services, key: bytes, flight: Flight) -> None:
    """Get what the leader gets; of those whom it fails, one leads the others anew."""
    until = services.monotonic() + FOLLOW_SECONDS
    stream = exchange.request.stream
    for last in (False, True):
        try:
            seconds = max(0.0, until - services.monotonic())
            if stream and await _follow_stream(exchange, services, flight, seconds):
                return
            entry = await flight.wait(seconds if not stream else 0.0)
            if entry is not None and entry.answer:
                await _serve(exchange, services, entry)
                return
        finally:
            flight.leave()
        if last:
            return
        following = services.flights.join(key, stream=stream, cache_id=exchange.request_id)
        if following is None or following.leads:
            exchange.flight = following
            return
        flight = following


async def _follow_stream(
    exchange: Exchange, services: Services, flight: Flight, seconds: float
) -> bool:
    """Pass the leader's frames on, from the first one; False if none came.

    The end is left in ``tail``. Raises UpstreamUnavailable where the leader's stream broke.
    """
    try:
        async with asyncio.timeout(seconds):
            frames = await flight.next()
    except TimeoutError:
        return False
    if not frames:
        return False
    exchange.cache_status, exchange.cache_id = "hit-exact", flight.cache_id
    exchange.first_byte = services.monotonic()
    exchange.client.start(exchange, 200, EVENT_STREAM)
    while frames:
        unread = exchange.client.write(frames)
        if unread is not None:
            await unread
        frames = await flight.next()
    if flight.entry is None:
        raise UpstreamUnavailable(flight.failure or "The shared stream was cut before its end.")
    exchange.tail = (flight.usage_event if exchange.request.include_usage else b"") + DONE
    exchange.tail_content_type = EVENT_STREAM
    exchange.answered, exchange.hit = True, flight.entry
    return True


async def _serve(exchange: Exchange, services: Services, entry: StoredAnswer) -> None:
    waiting = serve_hit(exchange, services, entry, "hit-exact")
    if waiting is not None:
        await waiting


def _bypass(exchange: Exchange, control: dict[str, str]) -> str | None:
    if exchange.route.exact is None and exchange.route.semantic is None:
        return "the route has no cache"
    if "no-store" in control:
        return "cache-control: no-store"
    asked = exchange.headers.get(b"x-tollhouse-cache")
    if asked is not None and asked.lower() == b"bypass":
        return "x-tollhouse-cache: bypass"
    rule = exchange.route.exact
    if rule is not None and rule.scope == "user" and exchange.request.user is None:
        return "the cache is per user and the request names none"
    if (
        rule is not None
        and rule.sampled == "deny"
        and exchange.request.temperature != 0
        and exchange.endpoint not in WITHOUT_OUTPUT
    ):
        return "the route does not cache sampled answers"
    return cacheable(exchange.request)


def _cache_control(header: bytes) -> dict[str, str]:
    """Directives of the request's ``cache-control`` (RFC 9111 §5.2.1), names in lower case."""
    directives: dict[str, str] = {}
    for part in header.decode("latin-1").split(","):
        name, _, value = part.strip().partition("=")
        directives[name.lower()] = value.strip('"')
    age = directives.get("max-age", "0")
    if not age.isdecimal() or len(age) > _AGE_DIGITS_MAX:
        raise InvalidRequest("cache-control: max-age must be a whole number of seconds.")
    return directives


def _fresh_enough(age_us: int, control: dict[str, str]) -> bool:
    return "max-age" not in control or age_us <= int(control["max-age"]) * 1_000_000
