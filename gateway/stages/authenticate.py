"""authenticate: who is it? Reads the key, finds its tenant. Refuses to know the body."""

from gateway.errors import AuthenticationFailed, PermissionDenied
from gateway.exchange import Exchange
from gateway.services import Services


def authenticate(exchange: Exchange, services: Services) -> None:
    """Set ``key`` and ``tenant``, or raise AuthenticationFailed or PermissionDenied.

    OpenAI's clients send ``authorization: Bearer``, Azure's ``api-key``, Anthropic's ``x-api-key``.
    """
    if hasattr(exchange, "tenant"):
        return  # known already: the endpoint asked before it read the body
    headers = exchange.headers
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(b" ")
        if scheme != b"Bearer" and scheme.lower() != b"bearer":
            raise AuthenticationFailed("The authorization header must be 'Bearer' and an API key.")
    else:
        token = headers.get(b"api-key") or headers.get(b"x-api-key") or b""
        if not token:
            raise AuthenticationFailed(
                "You didn't provide an API key. Send it as 'authorization: Bearer th_...'."
            )
    # latin-1 maps every byte, so that hostile bytes are an unknown key and nothing worse.
    key = services.keys.authenticate(token.strip().decode("latin-1"), "api", exchange.started_us)
    if key is None or key.tenant_id is None:
        raise AuthenticationFailed("Incorrect API key provided: unknown, revoked or expired.")
    tenant = exchange.policy.tenants.get(key.tenant_id)
    if tenant is None:
        raise PermissionDenied(f"The tenant '{key.tenant_id}' of this key is not in the policy.")
    exchange.key = key
    exchange.tenant = tenant
