"""authenticate: who is it? Reads the key, finds its tenant. Refuses to know the body."""

from collections.abc import Mapping

from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.stores.keys import KeyRecord


def authenticate(exchange: Exchange, services: Services) -> None:
    """Set ``key`` and ``tenant``, or raise AuthenticationFailed or PermissionDenied.

    OpenAI's clients send ``authorization: Bearer``, Azure's ``api-key``, Anthropic's ``x-api-key``.
    Of several credentials the first that is ours counts.
    """
    headers = exchange.headers
    authorization = headers.get(b"authorization")
    key = None
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme == b"Bearer" or scheme.lower() == b"bearer":
            key = _find(token, exchange, services)
    if key is None:
        # Claude's clients send their own account's token beside our key, in the other header.
        for name in (b"api-key", b"x-api-key"):
            token = headers.get(name, b"")
            if token and key is None:
                key = _find(token, exchange, services)
    if key is None or key.tenant_id is None:
        raise _refusal(headers)
    tenant = exchange.policy.tenants.get(key.tenant_id)
    if tenant is None:
        raise PermissionDenied(f"The tenant '{key.tenant_id}' of this key is not in the policy.")
    exchange.key = key
    exchange.tenant = tenant


def _find(token: bytes, exchange: Exchange, services: Services) -> KeyRecord | None:
    # latin-1 maps every byte, so that hostile bytes are an unknown key and nothing worse.
    return services.keys.authenticate(token.strip().decode("latin-1"), "api", exchange.started_us)


def _refusal(headers: Mapping[bytes, bytes]) -> AuthenticationFailed:
    if headers.get(b"api-key") or headers.get(b"x-api-key"):
        return AuthenticationFailed("Incorrect API key provided: unknown, revoked or expired.")
    scheme = headers.get(b"authorization")
    if scheme is None:
        return AuthenticationFailed(
            "You didn't provide an API key. Send it as 'authorization: Bearer th_...'."
        )
    if scheme.partition(b" ")[0].lower() != b"bearer":
        return AuthenticationFailed("The authorization header must be 'Bearer' and an API key.")
    return AuthenticationFailed("Incorrect API key provided: unknown, revoked or expired.")
