"""admit: may this tenant send so much now? Takes its share of the tokens per minute."""

from collections.abc import Awaitable

from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.stores.limits import Reservation
from gateway.wire.openai import WITHOUT_OUTPUT

_ASSUMED_OUTPUT_TOKENS = 1024  # of a request that sets no limit; corrected when it settles
_BYTES_PER_TOKEN = 4


def admit(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Complete ``rate``. Raises RateLimited, or InvalidRequest for more output than is allowed.

    Waits only where limits are shared through Redis and this tenant has any.
    """
    request, limits = exchange.request, exchange.tenant.limits
    if request.endpoint in WITHOUT_OUTPUT:
        output = 0
    else:
        allowed, asked = limits.max_output_tokens, request.max_output_tokens
        if allowed is not None and asked is not None and asked > allowed:
            raise InvalidRequest(
                f"max_tokens is {asked} and the tenant '{exchange.tenant.id}' may ask for"
                f" {allowed} at most.",
                param="max_tokens",
            )
        output = asked or min(allowed or _ASSUMED_OUTPUT_TOKENS, _ASSUMED_OUTPUT_TOKENS)
    output *= request.choices
    # No tokenizer yields more tokens than there are bytes.
    tokens_max = request.prompt_bytes + output
    tokens_min = request.prompt_bytes // _BYTES_PER_TOKEN + (request.max_output_tokens or 0)
    now, shared = services.monotonic(), services.shared_limiter
    entered, tenant_id = exchange.rate, exchange.tenant.id
    assert entered is not None, "enter comes before admit"
    if shared is not None and limits.any:
        return _wait(
            exchange, shared.reserve(tenant_id, limits, tokens_max, tokens_min, now, entered)
        )
    services.limiter.admit(entered, tenant_id, limits, tokens_max, tokens_min, now)
    return None


async def _wait(exchange: Exchange, reservation: Awaitable[Reservation]) -> None:
    exchange.rate = await reservation
