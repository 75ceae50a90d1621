"""HTTP/1.1 for our own ports: asyncio and httptools, with deadlines, limits and strict framing.

Sees bytes and heads, and hands each request to a ``Handler`` in its turn. What two programs could
read in two ways is refused, in OpenAI's shape. Deadlines are two numbers per connection, looked at
once a second by ``sweep``, so that a request pays for no timer. Knows no path and no JSON.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal, Protocol, cast

import httptools

from gateway.config import Limits
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
)

SWEEP_SECONDS = 1.0
PIPELINE_MAX = 8
_LINGER_SECONDS = 2.0
_UNREAD_BYTES_MAX = 16 * 1024  # of an answer, in our memory, before its writer has to wait
_PROGRESS_BYTES = 16 * 1024  # read by then, and a slow client is no stalled one
_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]*")
_SINGLE = frozenset((b"host", b"content-length", b"transfer-encoding"))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("tollhouse.server")

Owed = Literal["request", "headers", "body", "nothing", "end"]


class Handler(Protocol):
    """Answers requests. Its methods return soon and never raise."""

    def head(self, call: "Call") -> bool:
        """A request's head has come. Whether its body is wanted; if not, it is answered already."""

    def body(self, call: "Call") -> None:
        """The wanted body is complete: answer, now or later."""

    def refuse(self, call: "Call", error: GatewayError) -> None:
        """The wanted body will not be taken: answer with ``error`` now."""


class Call:
    """One request, and the way to answer it: ``answer``, or ``start``, ``write`` and ``end``.

    What is sent to a client that has left is dropped.
    """

    __slots__ = (
        "_chunked", "_protocol", "_stage", "body", "context", "gone", "grow", "headers",
        "keep_alive", "method", "on_lost", "received", "target", "wanted",
    )  # fmt: skip

    def __init__(
        self, protocol: "GuardedProtocol", method: bytes, target: bytes,
        headers: dict[bytes, bytes], keep_alive: bool, chunked: bool,
    ) -> None:  # fmt: skip
        self.method = method
        self.target = target  # path and query, as they came
        self.headers = headers  # names in lower case; a repeated one's values as a list
        self.body: bytes | bytearray = b""
        self.grow: Callable[[int], None] | None = None  # told of each part of the body; may refuse
        self.context: object = None  # the handler's own, from head to body
        self.keep_alive = keep_alive
        self.gone = False  # the client has left, or its request was refused half-way
        self.on_lost: Callable[[], None] | None = None  # called once, should it leave
        self.wanted = False  # the handler waits for the body
        self.received = False  # the body is complete
        self._protocol = protocol
        self._chunked = chunked  # else the connection's end is the answer's
        self._stage = 0  # 1: the head is sent; 2: all is

    @property
    def started(self) -> bool:
        """Something of the answer is on its way."""
        return self._stage > 0

    @property
    def answered(self) -> bool:
        """The whole answer is on its way."""
        return self._stage == 2

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer. lines: header lines, each with its CRLF, without the length."""
        if self.gone:
            return
        protocol = self._protocol
        self._stage = 2
        protocol.send(
            b"%b%b%b%b\r\n%b"
            % (
                protocol.server.opening(status),
                lines,
                b"" if self.keep_alive else b"connection: close\r\n",
                # RFC 9110 §8.6: none beside a status that has no body.
                b"content-length: %d\r\n" % len(body) if status != 204 else b"",
                body if self.method != b"HEAD" else b"",
            )
        )
        protocol.answered(self)

    def start(self, status: int, lines: bytes) -> None:
        """Send the head of an answer whose length is not known yet."""
        if self.gone:
            return
        self._stage = 1
        framing = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            framing = b"connection: close\r\n" + (framing if self._chunked else b"")
        opening = self._protocol.server.opening(status)
        self._protocol.send(b"%b%b%b\r\n" % (opening, lines, framing))

    def write(self, data: bytes) -> "asyncio.Future[None] | None":
        """Send a part of the body. A future: the client does not read, wait for it to go on."""
        if self.gone or self.method == b"HEAD":
            return None
        self._protocol.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return self._protocol.drained

    def end(self, data: bytes = b"") -> None:
        """Send the body's last part."""
        if self.gone:
            return
        if self.method == b"HEAD":
            pass  # its body is the one thing that is left out
        elif self._chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            self._protocol.send(last)
        elif data:
            self._protocol.send(data)
        self._stage = 2
        self._protocol.answered(self)

    def abort(self) -> None:
        """Give up in mid-answer: the connection breaks, so that nobody takes it for whole."""
        self._protocol.transport.abort()

    @property
    def peer(self) -> tuple[str, int] | None:
        """The client's address and port, where it has one."""
        return self._address("peername")

    @property
    def own(self) -> tuple[str, int] | None:
        """The address and port that the client has reached."""
        return self._address("sockname")

    def _address(self, which: str) -> tuple[str, int] | None:
        found = self._protocol.transport.get_extra_info(which)
        return found[:2] if isinstance(found, tuple) else None

    def lost(self) -> None:
        """Nobody waits for this answer any more."""
        self.gone = True
        told, self.on_lost = self.on_lost, None
        self.context = self.grow = None
        self.body = b""
        if told is not None:
            told()


class Server:
    """What the connections of one port share."""

    def __init__(
        self, handler: Handler, limits: Limits, sweep_seconds: float = SWEEP_SECONDS
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.connections: set[GuardedProtocol] = set()
        self.draining = False
        # Loop time of the next sweep, from which deadlines count: late by an interval, never early.
        self.soon = sweep_seconds
        self.sweep_seconds = sweep_seconds
        self._openings: dict[int, bytes] = {}

    def __call__(self) -> "GuardedProtocol":
        """A protocol for one more connection, as ``loop.create_server`` wants it."""
        return GuardedProtocol(self)

    def opening(self, status: int) -> bytes:
        """Status line and date (RFC 9110 §6.6.1), made once a second."""
        found = self._openings.get(status)
        if found is None:
            try:
                phrase = HTTPStatus(status).phrase
            except ValueError:
                phrase = ""
            date = formatdate(usegmt=True)
            found = f"HTTP/1.1 {status} {phrase}\r\ndate: {date}\r\n".encode("latin-1")
            self._openings[status] = found
        return found

    async def sweep(self) -> None:
        """Look at every connection's deadlines once per interval, for ever."""
        loop = asyncio.get_running_loop()
        self.soon = loop.time() + self.sweep_seconds
        while True:
            await asyncio.sleep(self.sweep_seconds)
            self._openings.clear()
            now = loop.time()
            self.soon = now + self.sweep_seconds
            for connection in tuple(self.connections):
                try:
                    connection.check_deadlines(now)
                except Exception:  # one connection's trouble must not end the watch over all
                    _log.exception("a connection's deadline could not be kept")
                    connection.transport.abort()

    async def drain(self, seconds: float) -> bool:
        """Answer what is being asked and close every connection; False: time has run out."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.finish()
        try:
            async with asyncio.timeout(seconds):
                while self.connections:  # noqa: ASYNC110 - one waiter, once in a lifetime
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    def abort(self) -> None:
        """Close every connection at once."""
        for connection in tuple(self.connections):
            connection.transport.abort()


class GuardedProtocol(asyncio.Protocol):
    """One client connection.

    It is in one of five states, named by what we wait for: a request, its headers, its body,
    nothing (while we answer) or, once it was refused, its end. A parser callback refuses by
    raising an error, which stops the parser at once.
    """

    __slots__ = (
        "_body_bytes", "_calls", "_discarding", "_head_bytes", "_headers", "_headers_count",
        "_last", "_limits", "_owed", "_parser", "_patience_seconds", "_read_deadline",
        "_read_paused", "_refusal", "_served", "_silent_bytes", "_target", "_unread_bytes",
        "_upgrade_body_left", "_write_deadline", "drained", "server", "transport",
    )  # fmt: skip

    def __init__(self, server: Server) -> None:
        self.server = server
        self.drained: asyncio.Future[None] | None = None  # while the client does not read
        self.transport: asyncio.Transport
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._calls: deque[Call] = deque()  # those not answered to the end; the first has its turn
        self._last: Call | None = None  # whose body arrives
        self._owed: Owed = "request"
        self._patience_seconds = 0.0
        self._read_deadline = 0.0  # loop time by which the client pays what it owes; 0.0: none
        self._write_deadline = 0.0  # loop time by which it reads what we wrote; 0.0: none
        self._unread_bytes = 0  # of what we wrote, when that deadline was set
        self._read_paused = False
        self._head_bytes = self._body_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._headers_count = 0
        self._target = b""
        self._silent_bytes = 0  # swallowed by the parser since it last told us something
        self._served = False  # a request of the present read has been handed on
        self._upgrade_body_left = 0  # bytes to come of a body that the parser does not read
        self._discarding = False  # what still comes is thrown away
        self._refusal: GatewayError | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the wait for the first request, or refuse one connection too many."""
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)
        self.transport.set_write_buffer_limits(high=_UNREAD_BYTES_MAX)
        if len(self.server.connections) > self._limits.connections_max:
            self._refuse(
                Overloaded("There are too many connections; try again.", retry_after_seconds=1.0)
            )
            self.transport.close()
            return
        self._owe("request", self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever is answering that the client has left."""
        self.server.connections.discard(self)
        self._release_writers()
        calls, self._calls = self._calls, deque()
        self._last = None
        for call in calls:
            call.lost()

    def eof_received(self) -> None:
        """A client that will send no more has left: no HTTP client half-closes."""
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection is already refused."""
        if self._discarding:
            return
        if self._upgrade_body_left:
            self._read_upgrade_body(data)
            return
        self._served = False
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Not taken up, and the answer closes. But the parser stops at the head, while an HTTP/2
            # client that asks in passing (RFC 7540 §3.2) sends its HTTP/1.1 body all the same.
            self._read_upgrade_body(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                cause
                if isinstance(cause, GatewayError)
                else InvalidRequest("The request is not valid HTTP/1.1.")
            )
            return
        if self._silent_bytes > self._limits.header_bytes_max:
            self._refuse(self._too_large())

    def pause_writing(self) -> None:
        """The client does not read: give it ``write_stall_seconds``, and hear it no further."""
        if self.drained is None:
            self.drained = asyncio.get_running_loop().create_future()
        self._write_deadline = self.server.soon + self._limits.write_stall_seconds
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._write_deadline = 0.0
        self._release_writers()
        self._resume_reading()

    def _release_writers(self) -> None:
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # httptools' callbacks

    def on_message_begin(self) -> None:
        """Start counting a new request."""
        patience = self._patience_seconds = self._limits.header_seconds
        self._owed, self._read_deadline = "headers", self.server.soon + patience  # as _owe does
        self._head_bytes = self._body_bytes = self._headers_count = self._silent_bytes = 0
        self._headers = {}
        self._target = b""

    def on_url(self, url: bytes) -> None:
        """Keep the target and count it towards the header limit."""
        self._silent_bytes = 0
        self._head_bytes += len(url)
        if self._head_bytes > self._limits.header_bytes_max:
            raise self._too_large()
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header and keep it, unless it is a trailer."""
        # A client sends a dozen: whatever is called here, it is called a dozen times.
        limits = self._limits
        self._silent_bytes = 0
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > limits.header_bytes_max:
            raise self._too_large()
        if self._owed != "headers":
            return
        self._headers_count += 1
        if self._headers_count > limits.header_count_max:
            raise HeadersTooLarge(f"More than {limits.header_count_max} headers.")
        name, headers = name.lower(), self._headers
        if name in headers:
            if name in _SINGLE:
                raise InvalidRequest(f"The header {name.decode()} is given twice.")
            value = b"%b, %b" % (headers[name], value)  # RFC 9110 §5.3
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Refuse a request whose framing or Host is not exactly one; else let it be answered."""
        parser, headers = self._parser, self._headers
        modern = self._check_framing()
        keeps = modern and parser.should_keep_alive() and not parser.should_upgrade()
        if parser.should_upgrade():
            self._upgrade_body_left = int(headers.get(b"content-length", b"0"))
            if b"transfer-encoding" in headers:
                raise InvalidRequest("A request with 'upgrade' must state its content-length.")
        call = self._last = Call(self, parser.get_method(), self._target, headers, keeps, modern)
        self._calls.append(call)
        patience = self._patience_seconds = self._limits.body_seconds
        self._owed, self._read_deadline = "body", self.server.soon + patience  # as _owe does
        if len(self._calls) == 1 and not self._served:
            self._served = True
            self._ask(call)
        else:
            self._pause_reading()
            if len(self._calls) == 1:  # after others of the same read, each in its own turn
                asyncio.get_running_loop().call_soon(self._next, call)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body that is wanted."""
        self._silent_bytes = 0
        call = self._last
        if call is None or call.started or call.gone:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes_max:
            self._give_up(call, self._too_long())
            return
        if call.grow is not None:
            try:
                call.grow(len(body))
            except GatewayError as error:
                self._give_up(call, error)
                return
        if not call.body:
            call.body = body
        else:
            if not isinstance(call.body, bytearray):
                call.body = bytearray(call.body)
            call.body += body

    def on_message_complete(self) -> None:
        """Hand on a request that has arrived completely."""
        if self._upgrade_body_left:
            return  # says the parser, which does not see the body
        self._silent_bytes = 0
        call, self._last = self._last, None
        self._owed, self._patience_seconds, self._read_deadline = "nothing", 0.0, 0.0
        if call is None:
            return
        call.received = True
        if call.wanted:
            self.server.handler.body(call)
        elif call.answered:  # the answer came before the body's end
            if call.keep_alive and not self.server.draining:
                self._owe("request", self._limits.keep_alive_seconds)
            else:
                self.transport.close()

    def _read_upgrade_body(self, data: bytes) -> None:
        """A part of the body of a request that asked for an upgrade; what follows is not read."""
        part = data[: self._upgrade_body_left]
        complete = not self._upgrade_body_left
        self._upgrade_body_left -= len(part)
        self._discarding = not self._upgrade_body_left
        if complete:
            return
        try:
            self.on_body(part)
        except GatewayError as error:
            self._refuse(error)
            return
        if not self._upgrade_body_left:
            self.on_message_complete()

    # Turns

    def _ask(self, call: Call) -> None:
        """It is this call's turn: show its head to the handler."""
        if call.gone or call.answered or self.transport.is_closing():
            return
        keeps = call.keep_alive
        if not call.received and b"expect" in call.headers:
            # A client we refuse may never send its body: where the next head begins is unknown.
            call.keep_alive = False
        wanted = self.server.handler.head(call)
        if not wanted or call.answered:
            return
        call.wanted, call.keep_alive = True, keeps
        if not call.received and call.headers.get(b"expect", b"").lower() == b"100-continue":
            self.send(_CONTINUE)

    def _next(self, call: Call) -> None:
        """A call that had to wait for those before it."""
        if not self._calls or self._calls[0] is not call:
            return
        self._resume_reading()
        self._ask(call)
        if call.wanted and call.received:
            self.server.handler.body(call)

    def answered(self, call: Call) -> None:
        """The answer is sent: close, wait for the next request, or turn to the one that waits."""
        call.on_lost = call.context = call.grow = (
            None  # no cycle: what made the answer is freed with it
        )
        calls = self._calls
        if calls and calls[0] is call:
            calls.popleft()
        if not call.keep_alive or self.server.draining:
            call.keep_alive = False
            if call.received:
                self.transport.close()
            return  # closing with a body unread would reset the connection: its end closes
        if calls:
            asyncio.get_running_loop().call_soon(self._next, calls[0])
            return
        self._resume_reading()
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._owed == "nothing":  # else a body, or the next head, is arriving
            self._owe("request", self._limits.keep_alive_seconds)

    def send(self, data: bytes) -> None:
        """Pass bytes to the transport, unless the client has left."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def finish(self) -> None:
        """Take no further request; close as soon as what is asked is answered."""
        for call in self._calls:
            call.keep_alive = False
        if self._owed == "request":
            self.transport.close()

    # Deadlines

    def check_deadlines(self, now: float) -> None:
        """Part with a client that is too slow. now: loop time in seconds."""
        if self.transport.is_closing() and not self._write_deadline:
            self._write_deadline = now + self._limits.write_stall_seconds
            self._unread_bytes = self.transport.get_write_buffer_size()
        if 0.0 < self._write_deadline <= now:
            self._stalled(now)
        elif self._read_deadline and self._read_paused:
            # It is we who do not read: the client cannot be late.
            self._read_deadline = now + self._patience_seconds
        elif 0.0 < self._read_deadline <= now:
            if self._owed in ("request", "end"):
                self.transport.close()  # nothing was asked, nothing is answered
            else:
                self._refuse(RequestTimeout(f"The request's {self._owed} did not arrive in time."))

    def _stalled(self, now: float) -> None:
        """Part with a client that reads nothing; one that reads slowly gets the same time again."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes > self._unread_bytes - _PROGRESS_BYTES:
            self.transport.abort()
        else:
            self._unread_bytes = unread_bytes
            self._write_deadline = now + self._limits.write_stall_seconds

    def _owe(self, what: Owed, seconds: float) -> None:
        self._owed, self._patience_seconds = what, seconds
        self._read_deadline = self.server.soon + seconds if what != "nothing" else 0.0

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._read_paused and self.drained is None and len(self._calls) < 2:
            self._read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # Refusals

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The headers exceed {self._limits.header_bytes_max} bytes in all.")

    def _check_framing(self) -> bool:
        """Whether it is HTTP/1.1. Raises InvalidRequest for what can be read in two ways."""
        version, headers = self._parser.get_http_version(), self._headers
        if version != "1.1" and version != "1.0":
            raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        host = headers.get(b"host")
        if host is None:
            if version == "1.1":
                raise InvalidRequest("Exactly one Host header is required.")
        elif not _HOST.fullmatch(host):
            raise InvalidRequest("The Host header is not a host and port.")
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if b"content-length" in headers:
                raise InvalidRequest("The body's length is given twice.")
            if coding.lower() != b"chunked" or version == "1.0":
                raise InvalidRequest("Only 'transfer-encoding: chunked' of HTTP/1.1 is understood.")
        if len(self._calls) > PIPELINE_MAX:
            raise InvalidRequest(f"More than {PIPELINE_MAX} requests in the pipeline.")
        if self._target[:1] not in (b"/", b"*"):
            raise InvalidRequest("The request target must be a path.")
        return version == "1.1"

    def _too_long(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than the limit of {self._limits.body_bytes_max} bytes."
        )

    def _give_up(self, call: Call, error: GatewayError) -> None:
        """Answer at once; the rest of the body is read and thrown away."""
        call.body = b""
        call.grow = None
        if self._calls and self._calls[0] is call:
            told, call.on_lost = call.on_lost, None
            if told is not None:
                told()
            call.wanted = False
            self.server.handler.refuse(call, error)
        else:
            raise error  # its turn has not come: this ends the connection

    def _refuse(self, error: GatewayError) -> None:
        """Answer with ``error`` once all before it is answered, then close. Reads no more."""
        if self.transport.is_closing():
            return
        self._refusal, self._discarding = error, True
        call, self._last = self._last, None
        if call is not None:
            if call.started:
                self.transport.close()  # its answer is on the way: nothing can be added
                return
            if call in self._calls:
                self._calls.remove(call)
            call.lost()
        self._owe("nothing", 0.0)
        if not self._calls:
            self._send_refusal(error)

    def _send_refusal(self, error: GatewayError) -> None:
        if self.transport.is_closing():
            return
        body = error.body()
        self.transport.write(
            b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (self.server.opening(error.status), error_lines(error), len(body), body)
        )
        # What still comes is read and thrown away; unread, it would reset the connection.
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        self.transport.write_eof()
        self._owe("end", _LINGER_SECONDS)


def error_lines(error: GatewayError) -> bytes:
    """The header lines that every error has."""
    lines = b"".join(b"%b: %b\r\n" % header for header in error.headers())
    return b"content-type: application/json\r\n" + lines
