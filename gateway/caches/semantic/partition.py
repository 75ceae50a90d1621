"""The hard partition: only requests that agree in everything but the last user turn meet here."""

import hmac
from typing import TYPE_CHECKING

import msgspec

from gateway.wire.canonical import canonical_body

if TYPE_CHECKING:
    from gateway.wire.openai import ParsedRequest

SCHEMA_VERSION = b"semantic-1"


def partition_key(
    *, tenant_secret: bytes, scope: str, route_identity: bytes, parsed: "ParsedRequest"
) -> bytes:
    """The 32-byte name of the private index this request may search: HMAC-SHA-256.

    Covers the tenant's secret, the scope, the route and the whole canonical body without the last
    message's text: earlier turns, system text, sampling fields and output limits must be equal.
    """
    body = dict(parsed.body)
    body["messages"] = [*body["messages"][:-1], {**body["messages"][-1], "content": ""}]
    rest = canonical_body(msgspec.structs.replace(parsed, body=body))
    parts = (SCHEMA_VERSION, scope.encode(), route_identity, rest)
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(tenant_secret, message, "sha256")
