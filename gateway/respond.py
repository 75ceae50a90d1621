"""The responder: owns an answer's way to its client, and the watch for a client that leaves.

Knows headers and how an exchange becomes bytes. Does not know how an answer is found.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.errors import ClientClosed, GatewayError
from gateway.exchange import EVENT_STREAM, Cancellable, Exchange
from gateway.money import format_usd
from gateway.stores.body_room import BodyLease
from gateway.stores.limits import Allowance, Reservation
from gateway.wire import cors
from gateway.wire.charge import with_charge
from gateway.wire.dialects import DIALECTS, error_body, error_event
from gateway.wire.openai import Endpoint

# A proxy keeps no event back: nginx reads the second, and no other header, for that.
_LIVE = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
_SHOWN_SECONDS_MIN = 50e-6  # a stage that took less is not worth its bytes


class Call(Protocol):
    """What ``server.py`` lets a responder know of a request and its connection."""

    on_lost: Callable[[], None] | None  # called once, when the client has left

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer. lines: header lines, each with its CRLF, without the length."""

    def start(self, status: int, lines: bytes) -> None:
        """Send the head of an answer whose length is not known yet."""

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Send a part of the body; what to wait for while the client does not read."""

    def end(self, data: bytes) -> None:
        """Send the body's last part."""


class Responder:
    """One answer on its way to one client. Implements ``exchange.Client``."""

    __slots__ = ("_call", "_forget", "_stopped", "_task", "gone", "lease", "rate", "started")

    def __init__(self, call: Call, forget: "Callable[[Responder], None]") -> None:
        """forget: called once the answer is released, or the client has left before it asked."""
        self.gone = False
        self.started = False
        self._stopped = False
        self._task: Cancellable | None = None
        self._call = call
        self._forget = forget
        self.lease: BodyLease | None = None  # room for the body, held until this is forgotten
        self.rate: Reservation | None = None  # likewise, unless it is settled before
        call.on_lost = self._left

    def watch(self, task: Cancellable | None) -> None:
        """Cancel ``task`` when the client leaves; None: nobody wants to know any more."""
        self._task = task
        if task is not None and (self.gone or self._stopped):
            task.cancel()

    def stop(self) -> None:
        """The drain deadline has passed: end what the client waits for, and tell it so."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    def _left(self) -> None:
        self.gone = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._forget(self)

    def start(self, exchange: Exchange, status: int, content_type: bytes) -> None:
        """Send the head of a stream."""
        self.started = True
        lines = b"content-type: %b\r\n%b%b"
        self._call.start(status, lines % (content_type, _LIVE, answer_lines(exchange)))

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Send bytes of the body; what to wait for while the client does not read."""
        if self.gone:
            raise ClientClosed("The client closed the connection.")
        return self._call.write(data)

    def release(self, exchange: Exchange) -> None:
        """Send what is left: the whole answer, a stream's end, or the error."""
        self._forget(self)
        if self.gone:
            return
        error = exchange.error
        if self.started:
            # A broken stream ends with an error event and without [DONE].
            self._call.end(_ending(exchange) if error is None else _last_event(error, exchange))
            return
        self.started = True
        if error is None:
            live = _LIVE if exchange.tail_content_type == EVENT_STREAM else b""
            head = b"content-type: %b\r\n%b%b"
            lines = head % (exchange.tail_content_type, live, answer_lines(exchange))
            self._call.answer(exchange.tail_status, lines, _ending(exchange))
        else:
            body = error_body(exchange.endpoint, error, exchange.request_id)
            self._call.answer(error.status, _error_lines(error, exchange), body)


def _ending(exchange: Exchange) -> bytes:
    """What is left to send: of a stream whose client reads usage, with the charge in it."""
    charge, tail = exchange.charge_pico, exchange.tail
    if charge is None or exchange.tail_content_type != EVENT_STREAM:
        return tail
    if DIALECTS[exchange.endpoint].name == "chat" and not exchange.request.include_usage:
        return tail
    return with_charge(tail, format_usd(charge))


def _last_event(error: GatewayError, exchange: Exchange) -> bytes:
    return error_event(exchange.endpoint, error, exchange.request_id, exchange.next_sequence)


def refuse(
    call: Call, error: GatewayError, request_id: str, endpoint: Endpoint | None, lines: bytes = b""
) -> None:
    """Answer with an error before there is an exchange. lines: header lines beside the error's.

    The connection stays open, so that the rest of a refused body is read and thrown away: closing
    with bytes unread would reset it, and the client might never see this answer.
    """
    lines += _advice(error) + id_lines(request_id, endpoint)
    call.answer(error.status, lines, error_body(endpoint, error, request_id))


def id_lines(request_id: str, endpoint: Endpoint | None) -> bytes:
    """The request's id, where the clients of this endpoint look for it."""
    own = endpoint is not None and DIALECTS[endpoint].own_request_id
    lines = f"x-request-id: {request_id}\r\n"
    return (lines + f"request-id: {request_id}\r\n" if own else lines).encode()


def _error_lines(error: GatewayError, exchange: Exchange) -> bytes:
    return _advice(error) + answer_lines(exchange)


def _advice(error: GatewayError) -> bytes:
    lines = [b"content-type: application/json\r\n"]
    lines += [b"%b: %b\r\n" % header for header in error.headers()]
    return b"".join(lines)


def answer_lines(exchange: Exchange) -> bytes:
    """The header lines of every answer of ``/v1``, as ``gateway/README.md`` lists them."""
    ended = exchange.marks[-1][1] if exchange.marks else exchange.started
    lines = (
        f"x-request-id: {exchange.request_id}\r\n"
        f"openai-processing-ms: {(ended - exchange.started) * 1e3:.0f}\r\n"
        f"x-tollhouse-policy: {exchange.policy.version}\r\n"
        f"x-tollhouse-cache: {exchange.cache_status}\r\n"
    )
    if hasattr(exchange, "route"):
        lines += f"x-tollhouse-route: {exchange.route.name}\r\n"
    timing = _server_timing(exchange)
    if timing:
        lines += f"server-timing: {timing}\r\n"
    hit = exchange.hit
    if hit is not None:
        age_seconds = max(0, (exchange.started_us - hit.stored_us) // 1_000_000)
        lines += f"x-tollhouse-model: {hit.served_model}\r\nage: {age_seconds}\r\n"
    elif exchange.attempts:
        last = exchange.attempts[-1]
        lines += f"x-tollhouse-model: {last.target.name}\r\n"
        provided = last.upstream_request_id
        if provided is not None and provided.isascii() and provided.isprintable():
            lines += f"x-tollhouse-upstream-request-id: {provided}\r\n"
        if last.output_cap is not None:
            lines += f"x-tollhouse-output-limit: {last.output_cap}\r\n"
    if exchange.cache_id is not None:
        lines += f"x-tollhouse-cache-id: {exchange.cache_id}\r\n"
    if exchange.plan is not None and (exchange.plan.instead or len(exchange.attempts) > 1):
        deviation = exchange.deviation
        if deviation:
            lines += f"x-tollhouse-decision: {deviation}\r\n"
    if exchange.decision is not None:
        lines += f"x-tollhouse-difficulty: {exchange.decision.difficulty:.3f}\r\n"
    if exchange.charge_pico is not None:  # what it costs whoever asked: what we pay stays here
        lines += f"x-tollhouse-cost-usd: {format_usd(exchange.charge_pico)}\r\n"
    degraded = exchange.degraded
    if exchange.rate is not None:
        left = exchange.rate.allowance
        if left.degraded:
            degraded = f"rate-limits, {degraded}" if degraded else "rate-limits"
        lines += _rate_lines(left)
    if degraded:
        lines += f"x-tollhouse-degraded: {degraded}\r\n"
    if DIALECTS[exchange.endpoint].own_request_id:
        lines += f"request-id: {exchange.request_id}\r\n"
    if exchange.policy.cors_origins:
        # Who is refused before a tenant is known may read why, wherever any page may ask.
        whose = exchange.tenant if hasattr(exchange, "tenant") else exchange.policy
        return lines.encode() + cors.answer_lines(exchange.headers, whose.cors_origins)
    return lines.encode()


def _server_timing(exchange: Exchange) -> str:
    """Milliseconds of each stage that took notable time (W3C Server Timing)."""
    previous = exchange.started
    notable = ""
    for name, at in exchange.marks:
        if at - previous >= _SHOWN_SECONDS_MIN:
            notable += f"{', ' if notable else ''}{name};dur={(at - previous) * 1e3:.2f}"
        previous = at
    return notable


def _rate_lines(left: Allowance) -> str:
    lines = ""
    if left.requests_limit is not None:
        lines += (
            f"x-ratelimit-limit-requests: {left.requests_limit}\r\n"
            f"x-ratelimit-remaining-requests: {left.requests_remaining}\r\n"
            f"x-ratelimit-reset-requests: {format_reset(left.requests_reset_seconds)}\r\n"
        )
    if left.tokens_limit is not None:
        lines += (
            f"x-ratelimit-limit-tokens: {left.tokens_limit}\r\n"
            f"x-ratelimit-remaining-tokens: {left.tokens_remaining}\r\n"
            f"x-ratelimit-reset-tokens: {format_reset(left.tokens_reset_seconds)}\r\n"
        )
    return lines


def format_reset(seconds: float) -> str:
    """A duration as OpenAI writes it: ``20ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    whole = round(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
