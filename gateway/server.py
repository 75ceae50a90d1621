"""The protocol guard: uvicorn's httptools protocol with deadlines, limits and strict framing.

uvicorn alone never closes a connection whose headers come slowly, accepts a request with no Host
or with two, lets trailers pass for headers, and holds a header without end in memory; all are
refused here. Every refusal has OpenAI's shape. Deadlines are two numbers per connection, looked
at once a second by ``sweep``, so that a request pays for no timer.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.config import Limits
from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
)

SWEEP_SECONDS = 1.0
PIPELINE_MAX = 8
_LINGER_SECONDS = 2.0
_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]*")
_log = logging.getLogger("tollhouse.server")

Owed = Literal["request", "headers", "body", "nothing", "end"]


class GuardedProtocol(HttpToolsProtocol):
    """One client connection. ``limits`` is set on a subclass made by ``guarded``.

    At any time the client owes us a request, its headers, its body, nothing (while we answer) or,
    once refused, its end. A parser callback refuses by raising; that stops the parser at once.
    """

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_lost: Callable[[], None] | None = None
        self._owed: Owed = "request"
        self._patience_seconds = 0.0
        self._read_deadline = 0.0  # loop time by which the client pays what it owes; 0.0: none
        self._write_deadline = 0.0  # loop time by which it reads what we wrote; 0.0: none
        self._head_bytes = 0
        self._silent_bytes = 0  # swallowed by the parser since it last told us something
        self._unanswered = 0  # requests begun and not answered to the end
        self._refusal: GatewayError | None = None
        self._answers: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the wait for the first request, or refuse one connection too many."""
        super().connection_made(transport)
        self._answers = _AnswerTransport(self)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(
                Overloaded("There are too many connections; try again.", retry_after_seconds=1.0)
            )
            transport.close()
            return
        self._owe("request", self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering that the client has left."""
        left, self.on_lost = self.on_lost, None
        super().connection_lost(exc)
        if left is not None:
            left()

    def eof_received(self) -> None:
        """A client that will send no more has left: no HTTP client half-closes."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection is already refused."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # the answer will close the connection
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, GatewayError)
                else InvalidRequest("The request is not valid HTTP/1.1.")
            )
            return
        if self._silent_bytes > self.limits.header_bytes_max:
            self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        """Start counting a new request."""
        self._owe("headers", self.limits.header_seconds)
        self._head_bytes = self._silent_bytes = 0
        super().on_message_begin()
        self.scope["extensions"] = {"tollhouse": self}  # type: ignore[dict-item] # ours

    def on_url(self, url: bytes) -> None:
        """Count the URL towards the header limit."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header and keep it, unless it is a trailer."""
        self._count(len(name) + len(value))
        if self._owed == "headers":
            super().on_header(name, value)
            if len(self.headers) > self.limits.header_count_max:
                raise HeadersTooLarge(f"More than {self.limits.header_count_max} headers.")

    def on_headers_complete(self) -> None:
        """Refuse a request whose framing or Host is not exactly one; else start answering it."""
        self._check_framing()
        super().on_headers_complete()
        self._unanswered += 1
        self._owe("body", self.limits.body_seconds)
        self.cycle.transport = self._answers
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # nothing that follows would be ours to read

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The client has done its part."""
        super().on_message_complete()
        self._silent_bytes = 0
        self._owe("nothing", 0.0)
        if not self._unanswered:  # the answer came before the body's end
            if self.cycle.keep_alive:
                self._owe("request", self.limits.keep_alive_seconds)
            else:
                self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the next request, or give the refusal that was waiting for its turn."""
        self.on_lost = None
        self._unanswered -= 1
        super().on_response_complete()
        if self._unanswered:
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._owed == "nothing":
            self._owe("request", self.limits.keep_alive_seconds)

    def pause_writing(self) -> None:
        """The client does not read: give it ``write_stall_seconds``."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + self.limits.write_stall_seconds

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_deadline = 0.0
        super().resume_writing()

    def close_after_answer(self) -> None:
        """Close, but only once the answered request's body has arrived.

        Closing with bytes unread would reset the connection before the answer is seen.
        """
        if not (self._owed == "body" and self.cycle.response_complete):
            self.transport.close()

    def check_deadlines(self, now: float) -> None:
        """Part with a client that is too slow. now: loop time in seconds."""
        if self.transport.is_closing() and not self._write_deadline:
            self._write_deadline = now + self.limits.write_stall_seconds
        if 0.0 < self._write_deadline <= now:
            self.transport.abort()
        elif self._read_deadline and self.flow.read_paused:
            # It is we who do not read: the client cannot be late.
            self._read_deadline = now + self._patience_seconds
        elif 0.0 < self._read_deadline <= now:
            self._overdue()

    def _overdue(self) -> None:
        if self._owed in ("request", "end"):
            self.transport.close()  # nothing was asked, nothing is answered
        else:
            self._refuse(RequestTimeout(f"The request's {self._owed} did not arrive in time."))

    def _owe(self, what: Owed, seconds: float) -> None:
        self._owed, self._patience_seconds = what, seconds
        self._read_deadline = self.loop.time() + seconds if what != "nothing" else 0.0

    def _count(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._head_bytes > self.limits.header_bytes_max:
            raise self._too_large()

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The headers exceed {self.limits.header_bytes_max} bytes in all.")

    def _check_framing(self) -> None:
        """Raises InvalidRequest for all that two programs could read in two ways."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        hosts: list[bytes] = []
        codings: list[bytes] = []
        lengths = 0
        for name, value in self.headers:
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"content-length":
                lengths += 1
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            raise InvalidRequest("Exactly one Host header is required.")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise InvalidRequest("The Host header is not a host and port.")
        if len(codings) + lengths > 1:
            raise InvalidRequest("The body's length is given twice.")
        if codings and (codings[0] != b"chunked" or version == "1.0"):
            raise InvalidRequest("Only 'transfer-encoding: chunked' of HTTP/1.1 is understood.")
        if len(self.pipeline) >= PIPELINE_MAX:
            raise InvalidRequest(f"More than {PIPELINE_MAX} requests in the pipeline.")
        if self.url[:1] not in (b"/", b"*"):
            raise InvalidRequest("The request target must be a path.")

    def _refuse(self, error: GatewayError) -> None:
        """Answer with ``error`` once all before it is answered, then close. Reads no more."""
        if self.transport.is_closing():
            return
        self._refusal = error
        if self._owed == "body":
            if self.cycle.response_started:
                self.transport.close()  # its answer is on the way: nothing can be added
                return
            self._withdraw()
        self._owe("nothing", 0.0)
        if not self._unanswered:
            self._send_refusal(error)

    def _withdraw(self) -> None:
        """Take the request whose body is at fault from whoever is to answer it."""
        cycle = self.cycle
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        self._unanswered -= 1

    def _send_refusal(self, error: GatewayError) -> None:
        if self.transport.is_closing():
            return
        body = error.body()
        head = [
            STATUS_LINE.get(error.status, STATUS_LINE[400]),
            b"content-type: application/json\r\n",
            *(b"%b: %b\r\n" % header for header in error.headers()),
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
        ]
        self.transport.write(b"".join(head) + body)
        # What still comes is read and thrown away; unread, it would reset the connection.
        self.flow.resume_reading()
        self.transport.write_eof()
        self._owe("end", _LINGER_SECONDS)


class _AnswerTransport(asyncio.Transport):
    """What uvicorn writes an answer to; leaves it to the guard when the connection closes."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        super().__init__()
        self.write = protocol.transport.write  # type: ignore[method-assign] # no call in between
        self.is_closing = protocol.transport.is_closing  # type: ignore[method-assign]
        self.close = protocol.close_after_answer  # type: ignore[method-assign]


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """The protocol class for one server, with its limits."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


async def sweep(connections: Iterable[Any], every_seconds: float = SWEEP_SECONDS) -> None:
    """Look at every connection's deadlines once a second, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_seconds)
        now = loop.time()
        for connection in list(connections):
            try:
                connection.check_deadlines(now)
            except Exception:  # one connection's trouble must not end the watch over all others
                _log.exception("a connection's deadline could not be kept")
                connection.transport.abort()
