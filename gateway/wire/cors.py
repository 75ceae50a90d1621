"""Cross-origin requests (Fetch standard, CORS): what a browser must be told before it lets a page
of another origin read an answer. Knows header lines. Does not know who may ask.
"""

import re
from collections.abc import Collection, Mapping

ANY = "*"
_TOLD = (
    b"x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens,"
    b" x-tollhouse-policy, x-tollhouse-cache, x-tollhouse-cache-id, x-tollhouse-route,"
    b" x-tollhouse-model, x-tollhouse-decision, x-tollhouse-difficulty, x-tollhouse-cost-usd,"
    b" x-tollhouse-output-limit, x-tollhouse-degraded, x-tollhouse-upstream-request-id,"
    b" server-timing, age"
)
_PREFLIGHT_SECONDS = 600
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,4096}")


def answer_lines(headers: Mapping[bytes, bytes], origins: Collection[str]) -> bytes:
    """The header lines of an answer, where ``origins`` may read it. ``vary`` even where not."""
    found = _allowed(headers, origins)
    if found is None:
        return b"vary: origin\r\n"
    lines = b"vary: origin\r\naccess-control-allow-origin: %b\r\n%b%b\r\n"
    return lines % (found, b"access-control-expose-headers: ", _TOLD)


def preflight_lines(
    headers: Mapping[bytes, bytes], origins: Collection[str], methods: bytes
) -> bytes:
    """The header lines of the answer to OPTIONS, where pages of ``origins`` may ask."""
    lines = b"vary: origin, access-control-request-method, access-control-request-headers\r\n"
    found = _allowed(headers, origins)
    if found is None:
        return lines
    lines += b"access-control-allow-origin: %b\r\naccess-control-allow-methods: %b\r\n" % (
        found,
        methods,
    )
    asked = headers.get(b"access-control-request-headers", b"")
    if _NAMES.fullmatch(asked):  # whatever a client's library adds to its requests
        lines += b"access-control-allow-headers: %b\r\n" % asked
    return lines + b"access-control-max-age: %d\r\n" % _PREFLIGHT_SECONDS


def _allowed(headers: Mapping[bytes, bytes], origins: Collection[str]) -> bytes | None:
    """What to answer to the request's origin; None: nothing, so that the browser refuses."""
    origin = headers.get(b"origin")
    if origin is None:
        return None
    if ANY in origins:
        return ANY.encode()
    return origin if origin.decode("latin-1").lower() in origins else None
