"""resolve: what is asked, and which rule of the policy answers it? No model is called.

Decodes the body, once, and only for a caller who is known.
"""

from collections.abc import Awaitable
from hashlib import sha256

from gateway.aside import aside
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.policy.facts import facts_of
from gateway.policy.lane import make_lane, permit
from gateway.services import Services
from gateway.wire.canonical import cacheable, canonical_body
from gateway.wire.dialects import DIALECTS
from gateway.wire.growth import growth_of
from gateway.wire.openai import ParsedRequest
from gateway.wire.structure import LARGE_BYTES

TAGS_MAX = 32
TAG_LENGTH_MAX = 128


def resolve(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``request``, ``lane``, ``tags``, ``facts``, ``way`` and ``route``.

    Raises InvalidRequest, ModelNotFound or MissingTags.
    """
    if not exchange.raw:
        raise InvalidRequest("The body is empty; it must be a JSON object.")
    if len(exchange.raw) > LARGE_BYTES:
        return _parse_aside(exchange, services)
    if exchange.deployment is None:
        known = services.repeats.get(exchange.tenant.id, exchange.endpoint, bytes(exchange.raw))
        exchange.request = known or _parse(exchange)
    else:
        exchange.request = _parse(exchange)
    _resolve(exchange, services)
    return None


def _parse(exchange: Exchange) -> ParsedRequest:
    endpoint = exchange.endpoint
    return DIALECTS[endpoint].parse(endpoint, exchange.raw, exchange.deployment)


async def _parse_aside(exchange: Exchange, services: Services) -> None:
    """A large body takes longer to decode than the event loop may be held up."""
    exchange.large = True
    exchange.request = await aside(_parse_large, exchange)
    exchange.raw = b""  # the memory of a large body is held once
    _resolve(exchange, services)


def _parse_large(exchange: Exchange) -> ParsedRequest:
    request = _parse(exchange)
    if exchange.tenant.budgets:
        request.growth = growth_of(request.body)
    if cacheable(request) is None:
        # What is hashed later is short.
        request.canonical = sha256(canonical_body(request)).digest()
    return request


def _resolve(exchange: Exchange, services: Services) -> None:
    """Find the lane of this key, endpoint and model, and in it the way that takes the request."""
    request, key = exchange.request, exchange.key
    header = exchange.headers.get(b"x-tollhouse-tags")
    if header is None:
        lane = services.lanes.get(
            exchange.policy,
            exchange.tenant,
            key_id=key.id,
            key_tags=key.tags,
            endpoint=exchange.endpoint,
            model=request.model,
        )
    else:  # its lane is its own: a client may send any number of tags
        # What an admin has fixed wins.
        tags = {**parse_tags(header), **exchange.tenant.tags, **key.tags}
        permit(exchange.policy, exchange.tenant, request.model, tags)
        lane = make_lane(
            exchange.policy,
            exchange.tenant,
            key_id=key.id,
            endpoint=exchange.endpoint,
            model=request.model,
            tags=tags,
        )
    exchange.lane, exchange.tags = lane, lane.tags
    exchange.facts = facts_of(request, tenant_id=exchange.tenant.id, key_id=key.id, tags=lane.tags)
    way = exchange.way = lane.way or lane.find(exchange.facts)
    exchange.route = way.route


def parse_tags(header: bytes) -> dict[str, str]:
    """Read ``name=value,name=value``. Raises InvalidRequest."""
    tags: dict[str, str] = {}
    try:
        text = header.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The header x-tollhouse-tags is not UTF-8.") from None
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not separator or not name or max(len(name), len(value)) > TAG_LENGTH_MAX:
            raise InvalidRequest(
                f"The header x-tollhouse-tags must be 'name=value,...', each at most"
                f" {TAG_LENGTH_MAX} characters; {pair[:40]!r} is not."
            )
        tags[name] = value
    if len(tags) > TAGS_MAX:
        raise InvalidRequest(f"The header x-tollhouse-tags has more than {TAGS_MAX} tags.")
    return tags
