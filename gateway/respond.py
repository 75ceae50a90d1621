"""The ASGI responder: owns the send loop and the watch for a client that leaves.

Knows headers and how an exchange becomes bytes. Does not know how an answer is found.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from gateway import pipeline
from gateway.errors import ClientClosed, GatewayError
from gateway.exchange import Exchange
from gateway.money import format_usd
from gateway.services import Services

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]


class Connection(Protocol):
    """What ``server.py`` lets a responder know of its connection."""

    on_lost: Callable[[], None] | None  # called once, when the client has left


class Responder:
    """One answer on its way to one client. Implements ``exchange.Client``."""

    def __init__(self, connection: Connection, send: Send) -> None:
        self.gone = False
        self.started = False
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self._connection = connection
        connection.on_lost = self._left

    def watch(self, task: "asyncio.Task[object] | None") -> None:
        """Cancel ``task`` when the client leaves; None: nobody wants to know any more."""
        self._task = task
        if task is not None and self.gone:
            task.cancel()

    def _left(self) -> None:
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    async def start(self, exchange: Exchange, status: int, content_type: bytes) -> None:
        """Send the head of a stream."""
        self.started = True
        headers = [(b"content-type", content_type), (b"cache-control", b"no-cache")]
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers + answer_headers(exchange),
            }
        )

    async def write(self, data: bytes) -> None:
        """Send bytes of the body; waits while the client does not read."""
        if self.gone:
            raise ClientClosed("The client closed the connection.")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def release(self, exchange: Exchange) -> None:
        """Send what is left: the whole answer, a stream's end, or the error."""
        error = exchange.error
        if self.gone:
            return
        if self.started:
            # A broken stream ends with an error event and without [DONE].
            await self._end(exchange.tail if error is None else error.event())
            return
        self.started = True
        if error is None:
            status, body = exchange.tail_status, exchange.tail
            headers = [(b"content-type", exchange.tail_content_type)]
        else:
            status, body = error.status, error.body()
            headers = [(b"content-type", b"application/json"), *error.headers()]
        headers.append((b"content-length", b"%d" % len(body)))
        headers += answer_headers(exchange)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._end(body)

    async def _end(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def close(self) -> None:
        """Stop watching the connection, unless the next request does already."""
        if self._connection.on_lost == self._left:
            self._connection.on_lost = None


async def respond(exchange: Exchange, services: Services, responder: Responder) -> None:
    """Run the pipeline for one exchange and send its answer."""
    try:
        await pipeline.run(exchange, services, responder.release)
    finally:
        responder.close()


async def refuse(send: Send, error: GatewayError, request_id: str) -> None:
    """Answer with an error before there is an exchange."""
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *error.headers(),
    ]
    # The connection stays open, so that the rest of a refused body is read and thrown away:
    # closing with bytes unread would reset it, and the client might never see this answer.
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def answer_headers(exchange: Exchange) -> RawHeaders:
    """What the gateway says about an answer; names as in ``gateway/README.md``."""
    elapsed_ms = round((exchange.marks[-1][1] - exchange.started) * 1e3) if exchange.marks else 0
    headers: RawHeaders = [
        (b"x-request-id", exchange.request_id.encode()),
        (b"openai-processing-ms", b"%d" % elapsed_ms),
        (b"x-tollhouse-policy", exchange.policy.version.encode()),
        (b"x-tollhouse-cache", exchange.cache_status.encode()),
        (b"server-timing", _server_timing(exchange)),
    ]
    if hasattr(exchange, "route"):
        headers.append((b"x-tollhouse-route", exchange.route.name.encode()))
    served = _served(exchange)
    if served is not None:
        headers.append((b"x-tollhouse-model", served.encode()))
    if exchange.cache_id is not None:
        headers.append((b"x-tollhouse-cache-id", exchange.cache_id.encode()))
    if exchange.hit is not None:
        age = (exchange.started_us - exchange.hit.stored_us) // 1_000_000
        headers.append((b"age", b"%d" % max(0, age)))
    if exchange.decision is not None:
        headers.append((b"x-tollhouse-difficulty", b"%.3f" % exchange.decision.difficulty))
    if exchange.cost_pico is not None:
        headers.append((b"x-tollhouse-cost-usd", format_usd(exchange.cost_pico).encode()))
    if exchange.rate is not None:
        _rate_headers(exchange, headers)
    return headers


def _served(exchange: Exchange) -> str | None:
    if exchange.hit is not None:
        return exchange.hit.served_model
    return exchange.attempts[-1].target.name if exchange.attempts else None


def _server_timing(exchange: Exchange) -> bytes:
    """Milliseconds per stage (W3C Server Timing)."""
    previous = exchange.started
    parts: list[str] = []
    for name, at in exchange.marks:
        parts.append(f"{name};dur={(at - previous) * 1e3:.2f}")
        previous = at
    return ", ".join(parts).encode()


def _rate_headers(exchange: Exchange, headers: RawHeaders) -> None:
    assert exchange.rate is not None, "only an admitted request has an allowance"
    left = exchange.rate.allowance
    for name, limit, remaining, reset in (
        (b"requests", left.requests_limit, left.requests_remaining, left.requests_reset_seconds),
        (b"tokens", left.tokens_limit, left.tokens_remaining, left.tokens_reset_seconds),
    ):
        if limit is not None:
            headers.append((b"x-ratelimit-limit-" + name, b"%d" % limit))
            headers.append((b"x-ratelimit-remaining-" + name, b"%d" % remaining))
            headers.append((b"x-ratelimit-reset-" + name, format_reset(reset)))


def format_reset(seconds: float) -> bytes:
    """A duration as OpenAI writes it: ``20ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1e3)
    whole = round(seconds)
    return b"%dm%ds" % divmod(whole, 60) if whole >= 60 else b"%ds" % whole
