"""resolve: what is asked, and which rule of the policy answers it? No model is called.

Decodes the body, once, and only for a caller who is known.
"""

from collections.abc import Awaitable, Mapping
from hashlib import sha256

from gateway.aside import aside
from gateway.errors import InvalidRequest, MissingTags, ModelNotFound
from gateway.exchange import Exchange
from gateway.policy.evaluate import BYTES_PER_TOKEN, fixed_target
from gateway.policy.snapshot import RequestFacts
from gateway.services import Services
from gateway.wire.canonical import cacheable, canonical_body
from gateway.wire.dialects import DIALECTS
from gateway.wire.growth import growth_of
from gateway.wire.openai import ParsedRequest, shown
from gateway.wire.structure import LARGE_BYTES

TAGS_MAX = 32
TAG_LENGTH_MAX = 128


def resolve(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``request``, ``tags``, ``facts``, ``route`` and, where one target is certain, ``pinned``.

    Raises InvalidRequest, ModelNotFound or MissingTags.
    """
    if not exchange.raw:
        raise InvalidRequest("The body is empty; it must be a JSON object.")
    if len(exchange.raw) > LARGE_BYTES:
        return _parse_aside(exchange)
    if exchange.deployment is None:
        known = services.repeats.get(exchange.tenant.id, exchange.endpoint, bytes(exchange.raw))
        exchange.request = known or _parse(exchange)
    else:
        exchange.request = _parse(exchange)
    _resolve(exchange)
    return None


def _parse(exchange: Exchange) -> ParsedRequest:
    endpoint = exchange.endpoint
    return DIALECTS[endpoint].parse(endpoint, exchange.raw, exchange.deployment)


async def _parse_aside(exchange: Exchange) -> None:
    """A large body takes longer to decode than the event loop may be held up."""
    exchange.large = True
    exchange.request = await aside(_parse_large, exchange)
    exchange.raw = b""  # the memory of a large body is held once
    _resolve(exchange)


def _parse_large(exchange: Exchange) -> ParsedRequest:
    request = _parse(exchange)
    if exchange.tenant.budgets:
        request.growth = growth_of(request.body)
    if cacheable(request) is None:
        # What is hashed later is short.
        request.canonical = sha256(canonical_body(request)).digest()
    return request


def _resolve(exchange: Exchange) -> None:
    request = exchange.request
    tenant, policy = exchange.tenant, exchange.policy
    exchange.tags = _tags(exchange)
    missing = [tag for tag in tenant.required_tags if tag not in exchange.tags]
    if missing:
        raise MissingTags(
            f"The tenant '{tenant.id}' requires the tags {', '.join(missing)}:"
            " send them as 'x-tollhouse-tags: name=value,...'."
        )
    model = request.model
    if (model not in policy.known_models and not policy.knows(model)) or not tenant.may_use(model):
        raise ModelNotFound(
            f"The model '{shown(model)}' does not exist or you do not have access to it.",
            param="model",
        )
    exchange.facts = RequestFacts(
        tenant=tenant.id,
        key=exchange.key.id,
        model=model,
        endpoint=exchange.endpoint,
        tags=exchange.tags,
        input_tokens=request.prompt_bytes // BYTES_PER_TOKEN + 1,
        has_tools=request.has_tools,
        has_images=request.has_media,
        stream=request.stream,
        temperature=1.0 if request.temperature is None else request.temperature,
    )
    route = policy.resolve(exchange.facts)
    if route is None:
        raise ModelNotFound(
            f"No route of the policy takes the model '{shown(model)}'.", param="model"
        )
    exchange.route = route
    exchange.pinned = fixed_target(policy, route, model)


def _tags(exchange: Exchange) -> Mapping[str, str]:
    """Tags of the header, the tenant and the key; what an admin has fixed wins."""
    tags: Mapping[str, str] = exchange.tenant.tags
    if exchange.key.tags:
        tags = {**tags, **exchange.key.tags}
    header = exchange.headers.get(b"x-tollhouse-tags")
    return {**parse_tags(header), **tags} if header is not None else tags


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
