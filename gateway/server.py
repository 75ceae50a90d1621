"""The protocol guard: uvicorn's httptools protocol with deadlines, limits and strict framing.

uvicorn alone never closes a connection whose headers come slowly, and accepts a request with no
Host or with two; both are refused here. Every error has OpenAI's shape. Deadlines are one number
per connection, looked at once a second by ``sweep``, so that a request pays for no timer.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.config import Limits
from gateway.errors import GatewayError, InvalidRequest, RequestTimeout

SWEEP_SECONDS = 1.0
_PIPELINE_MAX = 8
_LINGER_SECONDS = 2.0
_log = logging.getLogger("tollhouse.server")


class HeadersTooLarge(GatewayError):
    """The request's headers are too many or too long."""

    status, type, code, fault = 431, "invalid_request_error", "headers_too_large", "client"


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. ``limits`` is set on a subclass made by ``guarded``."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_lost: Callable[[], None] | None = None
        self._deadline = 0.0  # loop time by which the client must have done its part; 0.0: none
        self._deadline_reason = ""
        self._header_bytes = 0
        self._hosts = 0
        self._lengths = 0
        self._chunked = False
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the wait for the first request, or refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            transport.abort()
            return
        self._expect("headers", self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering that the client has left."""
        self._deadline = 0.0
        left, self.on_lost = self.on_lost, None
        super().connection_lost(exc)
        if left is not None:
            left()

    def eof_received(self) -> None:
        """A client that will send no more has left: no HTTP client half-closes."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection is already refused."""
        if self._refused:
            return
        if self._deadline == 0.0 and (self.cycle is None or self.cycle.response_complete):
            self._expect("headers", self.limits.header_seconds)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Start counting a new request."""
        self._header_bytes = self._hosts = self._lengths = 0
        self._chunked = False
        super().on_message_begin()
        self.scope["extensions"] = {"tollhouse": self}  # type: ignore[dict-item] # ours

    def on_url(self, url: bytes) -> None:
        """Count the URL towards the header limit."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header, and look at those that frame the message."""
        self._count(len(name) + len(value))
        super().on_header(name, value)
        lowered = self.headers[-1][0]
        if lowered == b"host":
            self._hosts += 1
        elif lowered == b"content-length":
            self._lengths += 1
        elif lowered == b"transfer-encoding":
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Refuse a request whose framing or Host is not exactly one; else start answering it."""
        if self._refused:
            return
        error = self._framing_error()
        if error is not None:
            self._refuse(error)
            return
        self._expect("body", self.limits.body_seconds)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The client has done its part."""
        self._deadline = 0.0
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.on_lost = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read: give it ``write_stall_seconds``."""
        super().pause_writing()
        self._expect("reading", self.limits.write_stall_seconds)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._deadline = 0.0
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(InvalidRequest("The request is not valid HTTP/1.1."))

    def check_deadline(self, now: float) -> None:
        """Close the connection of a client that is too slow. now: loop time in seconds."""
        if not 0.0 < self._deadline <= now or self.transport.is_closing():
            return
        self._deadline = 0.0
        reason = self._deadline_reason
        if reason == "reading":
            self.transport.abort()
        elif self.cycle is not None and self.cycle.response_started:
            self.transport.close()
        elif reason == "headers" and not self._header_bytes:
            self.transport.close()  # nothing was asked, nothing is answered
        else:
            self._refuse(RequestTimeout(f"The request's {reason} did not arrive in time."))

    def _expect(self, what: str, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        self._deadline_reason = what

    def _count(self, size: int) -> None:
        self._header_bytes += size
        limits = self.limits
        if self._header_bytes > limits.header_bytes_max:
            self._refuse(
                HeadersTooLarge(f"The headers exceed {limits.header_bytes_max} bytes in all.")
            )
        elif len(self.headers) >= limits.header_count_max:
            self._refuse(HeadersTooLarge(f"More than {limits.header_count_max} headers."))

    def _framing_error(self) -> GatewayError | None:
        if self._hosts != 1 and self.parser.get_http_version() != "1.0":
            return InvalidRequest("Exactly one Host header is required.")
        if self._hosts > 1:
            return InvalidRequest("Exactly one Host header is required.")
        if self._lengths and self._chunked or self._lengths > 1:
            return InvalidRequest("The body's length is given twice.")
        if len(self.pipeline) >= _PIPELINE_MAX:
            return InvalidRequest(f"More than {_PIPELINE_MAX} requests in the pipeline.")
        if self.url[:1] not in (b"/", b"*"):
            return InvalidRequest("The request target must be a path.")
        return None

    def _refuse(self, error: GatewayError) -> None:
        """Answer with ``error`` and close. What else arrives is not read."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error.body()
            head = [
                STATUS_LINE.get(error.status, STATUS_LINE[400]),
                b"content-type: application/json\r\n",
                b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
            ]
            self.transport.write(b"".join(head) + body)
        if self.transport.can_write_eof():
            # Closing with bytes unread would reset the connection before the answer is seen.
            self.transport.write_eof()
            self._expect("reading", _LINGER_SECONDS)
        else:
            self.transport.close()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol class for one server, with its limits."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


async def sweep(connections: Iterable[Any]) -> None:
    """Look at every connection's deadline once a second, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        now = loop.time()
        for connection in list(connections):
            connection.check_deadline(now)
