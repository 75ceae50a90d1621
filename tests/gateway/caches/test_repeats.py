"""Bodies that repeat byte for byte are read once, per tenant."""

from gateway.caches.repeats import Repeats
from gateway.wire.openai import ParsedRequest, parse_request


def body(text: str) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % text.encode()


def parsed(raw: bytes) -> ParsedRequest:
    return parse_request("chat", raw)


def test_a_repeated_body_is_known_to_its_own_tenant_and_endpoint_only() -> None:
    """The same bytes of another tenant or path, or one more space, are parsed anew."""
    repeats, raw = Repeats(), body("hello")
    request = parsed(raw)
    repeats.learn("acme", raw, request)
    assert repeats.get("acme", "chat", raw) is request
    assert repeats.get("globex", "chat", raw) is None
    assert repeats.get("acme", "completions", raw) is None
    assert repeats.get("acme", "chat", raw + b" ") is None


def test_memory_is_bounded_and_the_longest_unused_go_first() -> None:
    """A body in use outlives 511 others, an unused one does not, and 10 kB are never kept."""
    repeats = Repeats()
    first, second = body("first"), body("second")
    repeats.learn("acme", first, parsed(first))
    repeats.learn("acme", second, parsed(second))
    for number in range(511):
        raw = body(str(number))
        repeats.learn("acme", raw, parsed(raw))
        repeats.learn("acme", second, parsed(second))
    assert repeats.get("acme", "chat", first) is None
    assert repeats.get("acme", "chat", second) is not None
    large = body("x" * 10_000)
    repeats.learn("acme", large, parsed(large))
    assert repeats.get("acme", "chat", large) is None
