"""What a provider says that its answer cost: read for the books, and kept from clients.

OpenRouter, xAI and Perplexity write it into the usage. It is the gateway's cost; a tenant is told
its own charge. Knows the fields; no price.
"""

from typing import Any

from gateway.wire.sse import event_data
from gateway.wire.verbatim import decode, encode

_FIELDS = frozenset(("cost", "cost_details", "cost_in_usd_ticks", "is_byok"))
_OWNERS = ("response", "message")  # of the usage, in events that name their type


def tells_cost(usage: Any) -> bool:
    """Whether a usage object says what the answer cost."""
    return type(usage) is dict and not _FIELDS.isdisjoint(usage)


def without_cost(data: bytes) -> bytes:
    """A document whose usage says no cost; all else means what it meant."""
    document = decode(data)
    found = False
    if isinstance(document, dict):
        owners = (document, *map(document.get, _OWNERS))
        for owner in (owner for owner in owners if isinstance(owner, dict)):
            usage = owner.get("usage")
            if isinstance(usage, dict) and tells_cost(usage):
                found = True
                owner["usage"] = {n: v for n, v in usage.items() if n not in _FIELDS}
    try:
        return encode(document) if found else data
    except (TypeError, RecursionError):
        return data  # deeper than anything that is written here


def costless(event: bytes) -> bytes:
    """The same of an event."""
    data = event_data(event)
    if data is None or (shown := without_cost(data)) == data:
        return event
    name = next((line for line in event.splitlines() if line.startswith(b"event:")), None)
    return (name + b"\n" if name else b"") + b"data: " + shown + b"\n\n"
