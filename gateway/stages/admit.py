"""admit: may this tenant send this now? Takes its share of rates and concurrency."""

from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.wire.openai import WITHOUT_OUTPUT

_ASSUMED_OUTPUT_TOKENS = 1024  # of a request that sets no limit; corrected when it settles
_BYTES_PER_TOKEN = 4


def admit(exchange: Exchange, services: Services) -> None:
    """Set ``rate``. Raises RateLimited, or InvalidRequest for more output than is allowed."""
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
    exchange.rate = services.limiter.reserve(
        exchange.tenant.id,
        limits,
        # No tokenizer yields more tokens than there are bytes.
        request.prompt_bytes + output,
        request.prompt_bytes // _BYTES_PER_TOKEN + (request.max_output_tokens or 0),
        services.monotonic(),
    )
