"""How the simulated provider misbehaves: an honest reply and a fault's name become a script.

Pure. A script is what is written to the socket, byte for byte, and how it ends. ``FAULTS`` names
every fault; "-N" stands for a number that the request chooses.
"""

import gzip
import re
from collections.abc import Callable
from typing import Final, Literal

import msgspec
import orjson

from gateway.simulator.documents import Dialect, Event, Reply, UsageHonesty

FAULTS: Final[dict[str, str]] = {
    "status-N": "answers with that status and an OpenAI error document; 429 with retry-after: 1",
    "error-leaks-key": "answers 400 with the authorization it was sent inside the message",
    "redirect": "answers 302 to the cloud's metadata address",
    "hang": "accepts the request and says nothing",
    "hang-after-head": "sends the head and then nothing",
    "close-before-head": "closes the connection at once",
    "reset-before-head": "resets the connection at once",
    "garbage-head": "speaks another protocol",
    "huge-head": "sends 128 KiB of headers",
    "early-hints": "sends 103 Early Hints first, then a good answer",
    "close-delimited": "a good answer without length or chunks, ended by the connection's end",
    "gzip": "compresses the answer although identity was asked for",
    "wrong-length": "promises more bytes than it sends",
    "not-json": "answers 200 with a page of HTML",
    "no-usage": "leaves the usage out",
    "lying-usage": "reports more cached tokens than prompt tokens, and a wrong total",
    "reset-after-N": "resets the connection after N bytes of the body",
    "cut-after-N": "closes the connection after N tokens (bytes of the body, if not streaming)",
    "end-after-N": "ends the stream properly after N tokens, without finish reason or [DONE]",
    "stall-after-N": "falls silent after N tokens (bytes)",
    "malformed-event-after-N": "sends an event of broken JSON after N tokens",
    "error-event-after-N": "sends an error document as an event after N tokens",
    "half-utf8": "ends in the middle of a character",
    "huge-line": "sends one event, or a document, of 8 MiB",
    "pings": "a good stream with a comment before each event",
    "crlf": "a good stream with CRLF line endings",
    "no-done": "a good stream that ends after the finish reason, without [DONE]",
}
_IN_PROMPT = re.compile(rb"\[\[fault:([a-z0-9-]{1,64})\]\]")
_NUMBER = re.compile(r"(.*)-(\d{1,9})")
_REASONS = {200: b"OK", 302: b"Found", 400: b"Bad Request", 429: b"Too Many Requests"}
_ANTHROPIC_TYPES = {
    413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip
_HUGE_BYTES = 8 << 20
SETTLE_SECONDS = 0.03  # before a stream breaks: what was written before is to arrive before
_JSON = b"content-type: application/json\r\n"
_EVENTS = b"content-type: text/event-stream; charset=utf-8\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_LAST_CHUNK = b"0\r\n\r\n"

End = Literal["done", "hang", "reset", "close"]


class Fault(msgspec.Struct, frozen=True):
    """A fault of the table; ``count`` is its N."""

    name: str
    count: int = 0

    @property
    def usage(self) -> UsageHonesty:
        """What the reply says of its usage under this fault."""
        return {"no-usage": "none", "lying-usage": "lying"}.get(self.name, "true")  # type: ignore[return-value] # mypy widens the literals

    def __str__(self) -> str:
        return f"{self.name}-{self.count}" if f"{self.name}-N" in FAULTS else self.name


class Caller(msgspec.Struct, frozen=True):
    """What a faulty answer may repeat of its request."""

    request_id: bytes  # the provider's own id of this request
    authorization: bytes = b""


class Step(msgspec.Struct, frozen=True):
    """After a pause, write ``data``, which carries ``tokens``."""

    data: bytes
    tokens: int = 0
    pause_seconds: float = 0.0


class Script(msgspec.Struct, frozen=True):
    """What is written, and how it ends; ``done`` keeps the connection open for more."""

    status: int
    steps: list[Step]
    end: End = "done"


def read_fault(name: str) -> Fault:
    """A fault by name. Raises ValueError, in words, for one that is not in the table."""
    if name in FAULTS and not name.endswith("-N"):
        return Fault(name)
    found = _NUMBER.fullmatch(name)
    if found is not None and f"{found[1]}-N" in FAULTS:
        return Fault(found[1], int(found[2]))
    raise ValueError(f"there is no fault '{name}'; there are {', '.join(FAULTS)}")


def fault_of(raw: bytes, model: str) -> Fault | None:
    """The fault that a request asks for, in its text or by its model's name."""
    if b"[[fault:" in raw:
        found = _IN_PROMPT.search(raw)
        if found is not None:
            return read_fault(found[1].decode())
    if model.startswith("fault-"):
        return read_fault(model.removeprefix("fault-"))
    return None


def script(reply: Reply, fault: Fault | None, caller: Caller) -> Script:
    """What is written for ``reply`` under ``fault``."""
    if fault is not None and fault.name in _INSTEAD:
        return _INSTEAD[fault.name](reply, fault, caller)
    if reply.events is not None:
        return _stream(reply.events, fault, caller, reply.dialect)
    return _document(reply, fault, caller)


def answer(status: int, body: bytes, caller: Caller, lines: bytes = _JSON) -> bytes:
    """A complete response. lines: headers, each with its line ending."""
    return _head(status, caller, lines + b"content-length: %d\r\n" % len(body)) + body


def error_body(
    message: str,
    kind: str = "api_error",
    code: str | None = None,
    dialect: Dialect = "chat",
) -> bytes:
    """OpenAI's error document, or Anthropic's."""
    if dialect == "messages":
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _failure_event(dialect: Dialect) -> bytes:
    """The event that says that the model failed."""
    message = "The simulated model failed."
    if dialect == "messages":
        return (
            b"event: error\ndata: "
            + error_body(message, "overloaded_error", None, dialect)
            + (b"\n\n")
        )
    if dialect == "responses":
        reason = {"code": "server_error", "message": message}
        document = {"type": "response.failed", "response": {"output": [], "error": reason}}
        return b"event: response.failed\ndata: " + orjson.dumps(document) + b"\n\n"
    return b"data: " + error_body(message, "server_error") + b"\n\n"


def _head(status: int, caller: Caller, lines: bytes) -> bytes:
    reason = _REASONS.get(status, b"Simulated")
    line = b"HTTP/1.1 %d %b\r\nx-request-id: %b\r\n" % (status, reason, caller.request_id)
    return line + lines + b"\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _document(reply: Reply, fault: Fault | None, caller: Caller) -> Script:
    body = reply.body
    whole = answer(200, body, caller)
    name, count = (fault.name, fault.count) if fault is not None else ("", 0)
    part = whole[: len(whole) - len(body) + min(count, len(body))]
    match name:
        case "reset-after":
            return Script(200, [Step(part)], "reset")
        case "cut-after" | "end-after":
            return Script(200, [Step(part)], "close")
        case "stall-after":
            return Script(200, [Step(part)], "hang")
        case "malformed-event-after":
            return Script(200, [Step(answer(200, body[:-1], caller))])
        case "error-event-after":
            failure = error_body("The simulated model failed.", "server_error")
            return Script(200, [Step(answer(200, failure, caller))])
        case "half-utf8":
            broken = body.replace(b"[simulated]", b"\xe4\xb8", 1)
            return Script(200, [Step(answer(200, broken, caller), reply.completion_tokens)])
        case "huge-line":
            padded = body[:-1] + b',"padding":"' + b"x" * _HUGE_BYTES + b'"}'
            return Script(200, [Step(answer(200, padded, caller), reply.completion_tokens)])
        case _:
            return Script(200, [Step(whole, reply.completion_tokens)])


def _stream(
    events: list[Event], fault: Fault | None, caller: Caller, dialect: Dialect = "chat"
) -> Script:
    name, count = (fault.name, fault.count) if fault is not None else ("", 0)
    end: End = "done"
    if name == "reset-after":
        events, end = _first_bytes(events, count), "reset"
    elif name.endswith("-after"):
        events, end = _interrupted(events, name, count, _failure_event(dialect))
    elif name == "huge-line":
        huge = b'data: {"padding":"' + b"x" * _HUGE_BYTES + b'"}\n\n'
        events = [*events[:2], Event(huge), *events[2:]]
    elif name == "half-utf8":
        broken = b'data: {"choices":[{"index":0,"delta":{"content":"\xe4\xb8'
        events, end = [*events[:4], Event(broken, 0, SETTLE_SECONDS)], "close"
    elif name == "pings":
        events = [Event(b": ping\n\n" + event.data, event.tokens) for event in events]
    elif name == "crlf":
        events = [Event(event.data.replace(b"\n", b"\r\n"), event.tokens) for event in events]
    elif name == "no-done":
        events = events[:-1]
    steps = [Step(_head(200, caller, _EVENTS + _CHUNKED))]
    steps += [Step(_chunk(event.data), event.tokens, event.pause_seconds) for event in events]
    if end == "done":
        steps.append(Step(_LAST_CHUNK))
    return Script(200, steps, end)


def _first_bytes(events: list[Event], count: int) -> list[Event]:
    kept: list[Event] = []
    for event in events:
        if len(event.data) >= count:
            return [*kept, Event(event.data[:count])] if count else kept
        kept.append(event)
        count -= len(event.data)
    return kept


def _interrupted(
    events: list[Event], name: str, count: int, failure: bytes
) -> tuple[list[Event], End]:
    """The events up to ``count`` tokens, what follows them, and the end."""
    position, tokens = 0, 0
    while position < len(events) and tokens < count:
        tokens += events[position].tokens
        position += 1
    before, after = events[:position], events[position:]
    match name:
        case "malformed-event-after":
            broken = Event(b"data: {not json}\n\n", 0, SETTLE_SECONDS)
            return [*before, broken, *after], "done"
        case "error-event-after":
            return [*before, Event(failure, 0, SETTLE_SECONDS)], "done"
        case "cut-after":
            return before, "close"
        case "stall-after":
            return before, "hang"
        case _:
            return before, "done"


def _status(reply: Reply, fault: Fault, caller: Caller) -> Script:
    status = fault.count if 300 <= fault.count <= 599 else 500
    lines = b"retry-after: 1\r\n" if status == 429 else b""
    kind = "api_error" if status >= 500 else "invalid_request_error"
    if reply.dialect == "messages" and status in _ANTHROPIC_TYPES:
        kind = _ANTHROPIC_TYPES[status]
    message = f"The simulated provider answers {status}."
    body = error_body(message, kind, f"simulated_{status}", reply.dialect)
    return Script(status, [Step(answer(status, body, caller, _JSON + lines))])


def _leak(reply: Reply, fault: Fault, caller: Caller) -> Script:
    key = caller.authorization.decode("latin-1")
    message = f"Incorrect key provided: {key}."
    body = error_body(message, "invalid_request_error", "invalid_value", reply.dialect)
    return Script(400, [Step(answer(400, body, caller))])


def _redirect(reply: Reply, fault: Fault, caller: Caller) -> Script:
    lines = b"location: http://169.254.169.254/latest/meta-data/\r\n"
    return Script(302, [Step(answer(302, b"", caller, lines))])


def _only(data: bytes, end: End) -> Callable[[Reply, Fault, Caller], Script]:
    return lambda reply, fault, caller: Script(0, [Step(data)] if data else [], end)


def _head_only(reply: Reply, fault: Fault, caller: Caller) -> Script:
    lines = _EVENTS + _CHUNKED if reply.events is not None else _JSON + b"content-length: 100\r\n"
    return Script(200, [Step(_head(200, caller, lines))], "hang")


def _early_hints(reply: Reply, fault: Fault, caller: Caller) -> Script:
    good = script(reply, None, caller)
    hint = Step(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n")
    return Script(200, [hint, *good.steps])


def _flat(reply: Reply) -> tuple[bytes, bytes]:
    """(body, its content-type line) in one piece, streamed or not."""
    if reply.events is None:
        return reply.body, _JSON
    return b"".join(event.data for event in reply.events), _EVENTS


def _close_delimited(reply: Reply, fault: Fault, caller: Caller) -> Script:
    body, lines = _flat(reply)
    head = _head(200, caller, lines + b"connection: close\r\n")
    return Script(200, [Step(head + body, reply.completion_tokens)], "close")


def _gzip(reply: Reply, fault: Fault, caller: Caller) -> Script:
    body, lines = _flat(reply)
    packed = answer(200, gzip.compress(body), caller, lines + b"content-encoding: gzip\r\n")
    return Script(200, [Step(packed, reply.completion_tokens)])


def _wrong_length(reply: Reply, fault: Fault, caller: Caller) -> Script:
    body, lines = _flat(reply)
    head = _head(200, caller, lines + b"content-length: %d\r\n" % (len(body) + 10))
    return Script(200, [Step(head + body, reply.completion_tokens)], "close")


def _html(reply: Reply, fault: Fault, caller: Caller) -> Script:
    page = b"<html><body>Welcome to the simulated captive portal.</body></html>"
    return Script(200, [Step(answer(200, page, caller, b"content-type: text/html\r\n"))])


def _huge_head(reply: Reply, fault: Fault, caller: Caller) -> Script:
    lines = _JSON + b"x-large: %b\r\n" % (b"x" * (128 << 10))
    return Script(200, [Step(answer(200, reply.body, caller, lines))])


_INSTEAD: Final[dict[str, Callable[[Reply, Fault, Caller], Script]]] = {
    "status": _status,
    "error-leaks-key": _leak,
    "redirect": _redirect,
    "hang": _only(b"", "hang"),
    "hang-after-head": _head_only,
    "close-before-head": _only(b"", "close"),
    "reset-before-head": _only(b"", "reset"),
    "garbage-head": _only(b"220 mail.example ESMTP ready\r\n\r\n", "close"),
    "huge-head": _huge_head,
    "early-hints": _early_hints,
    "close-delimited": _close_delimited,
    "gzip": _gzip,
    "wrong-length": _wrong_length,
    "not-json": _html,
}
