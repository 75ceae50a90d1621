"""HTTP/1.1 client for the hot path: asyncio protocols, httptools, one keep-alive pool per origin.

Kept small: POST with a body, an answer read in chunks with back-pressure, deadlines, limits, and
closing at once. Follows no redirect, decodes no content, trusts no provider. A request costs 20 µs
of CPU, of which 12 are the same bytes over a bare protocol (tests/bench/bench_http1.py).
"""

import asyncio
import time
from typing import cast

import httptools

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.upstreams.base import UNSENT, Headers
from gateway.upstreams.connect import Connector

HEAD_BYTES_MAX = 64 * 1024
BUFFER_BYTES_MAX = 16 * 1024  # of an answer, unread by us, before we stop reading the socket
# Of one read. uvloop's own are 250 KB, and a stream that nobody reads keeps several of them.
_READ_BYTES_MAX = 32 * 1024
IDLE_SECONDS_MAX = 60.0  # an idle connection older than this is not used again
# A reused connection that dies later than this may have read the request: a round trip across an
# ocean. Whoever asks a provider twice may pay twice.
_STALE_SECONDS_MAX = 0.2
_JOINED_BYTES_MAX = 64 * 1024  # larger bodies are not copied behind their head
_TIMER_SECONDS = 0.002  # timers may fire so much early: uvloop counts in milliseconds
_HOP_BY_HOP = frozenset(
    (
        b"connection", b"content-length", b"keep-alive", b"proxy-authenticate", b"trailer",
        b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
_UNCODED = (b"identity", b"")
_TELLING_LENGTHS = frozenset(
    map(len, (b"content-length", b"content-encoding", b"transfer-encoding"))
)


class Http1Pool:
    """Connections to one origin."""

    def __init__(
        self,
        connector: Connector,
        *,
        connections_max: int,
        answer_bytes_max: int,
    ) -> None:
        self.answer_bytes_max = answer_bytes_max
        self._connector = connector
        self._connections_max = connections_max
        self._idle: list[_Connection] = []  # the most recently used last
        self._busy: set[_Connection] = set()
        self._connecting = 0

    @property
    def in_use(self) -> int:
        """Requests being answered or connected for."""
        return len(self._busy) + self._connecting

    async def send(
        self, head: bytes, body: bytes, *, first_byte_deadline: float, idle_seconds: float,
        deadline: float, fresh: bool = False,
    ) -> "Http1Response":  # fmt: skip
        """Send one request; returns when the answer's head is there. Deadlines are monotonic.

        fresh: on a new connection. Raises UpstreamOverloaded, UpstreamUnavailable, UpstreamTimeout
        or UpstreamProtocolError. ``error.unsent`` tells that the provider surely has not seen the
        request; ``error.stale`` that it may not have, because a kept connection ended under it.
        """
        due = min(first_byte_deadline, deadline)
        connection = None if fresh else self._take_idle()
        kept = connection is not None
        if connection is None:
            connection = await self._connect(due)
        response = Http1Response(self, connection, idle_seconds, deadline)
        try:
            await connection.ask(response, head, body, due)
        except BaseException:
            response.close()
            raise
        if response.status:
            return response
        error = response.error
        assert error is not None, "woken with neither a head nor an error"
        if error is not _STALE:
            raise error
        ended = UpstreamUnavailable("The provider closed the connection without an answer.")
        ended.stale = kept
        raise ended

    def _take_idle(self) -> "_Connection | None":
        oldest = time.monotonic() - IDLE_SECONDS_MAX
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                self._busy.add(connection)
                return connection
            connection.abort()
        return None

    async def _connect(self, deadline: float) -> "_Connection":
        if self.in_use >= self._connections_max:
            refused = UpstreamOverloaded(
                f"{self._connections_max} requests to '{self._connector.host}' are in progress.",
                retry_after_seconds=1.0,
            )
            refused.unsent = True
            raise refused
        self._connecting += 1
        try:
            connection = await self._connector.open(lambda: _Connection(self), deadline)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(UNSENT) from None
        finally:
            self._connecting -= 1
        self._busy.add(connection)
        return connection

    def give_back(self, connection: "_Connection", *, reusable: bool) -> None:
        """A connection's answer has ended, or it is gone."""
        self._busy.discard(connection)
        if reusable and connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            # After a burst fewer are needed: those at the other end are never used again.
            while self._idle[0].idle_since < connection.idle_since - IDLE_SECONDS_MAX:
                self._idle.pop(0).abort()
        else:
            connection.abort()

    def forget(self, connection: "_Connection") -> None:
        """The connection was lost."""
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Close every connection, in use or not."""
        for connection in (*self._idle, *self._busy):
            connection.fail(UpstreamUnavailable("The connection to the provider was closed."))
            connection.abort()


class Http1Response:
    """One answer. Implements ``base.UpstreamResponse``."""

    __slots__ = (
        "_buffered", "_chunks", "_connection", "_ended", "_headers", "_limit_bytes", "_loop",
        "_pool", "_waiter", "deadline", "error", "idle_seconds", "received_bytes", "status",
    )  # fmt: skip

    def __init__(
        self, pool: Http1Pool, connection: "_Connection", idle_seconds: float, deadline: float
    ) -> None:
        self.status = 0
        self.idle_seconds = idle_seconds
        self.deadline = deadline
        self.received_bytes = 0
        self.error: BaseException | None = None  # why the answer will never be complete
        self._pool = pool
        self._loop = connection.loop
        self._limit_bytes = pool.answer_bytes_max
        self._connection: _Connection | None = connection
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> Headers:
        """Names in lower case; hop-by-hop headers removed. Of one given twice, the last."""
        lower = ((name.lower(), value) for name, value in self._headers.items())
        return tuple(header for header in lower if header[0] not in _HOP_BY_HOP)

    def header(self, name: bytes) -> bytes | None:
        """One header, by its name in lower case."""
        found = self._headers.get(name)
        if found is None:
            for key, value in self._headers.items():
                if len(key) == len(name) and key.lower() == name:
                    return value
        return found

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at a clean end."""
        chunks = self._chunks
        while not chunks:
            if self.error is not None:
                raise self.error
            if self._ended:
                return b""
            await self.wait()
        data = b"".join(chunks) if len(chunks) > 1 else chunks[0]
        chunks.clear()
        if self._buffered > BUFFER_BYTES_MAX and self._connection is not None:
            self._connection.resume()
        self._buffered = 0
        return data

    def wait(self) -> "asyncio.Future[None]":
        """Wait for data, the end or an error."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def close(self) -> None:
        """Stop at once. A complete answer has given its connection back already."""
        connection, self._connection = self._connection, None
        self._ended = True
        if connection is not None:
            self._pool.give_back(connection, reusable=False)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # From the connection

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers are complete. headers: ours to keep, names as they came."""
        self._headers = headers
        self.status = status
        self._wake()

    def on_data(self, data: bytes) -> bool:
        """A part of the body; False when there is more than is wanted now."""
        self.received_bytes += len(data)
        if self.received_bytes > self._limit_bytes:
            self.on_failure(
                UpstreamProtocolError(f"The provider's answer exceeds {self._limit_bytes} bytes.")
            )
            return True
        self._chunks.append(data)
        self._buffered += len(data)
        if self._waiter is not None:
            self._wake()
        return self._buffered <= BUFFER_BYTES_MAX

    def on_end(self) -> None:
        """The body is complete and the connection is no longer ours."""
        self._ended = True
        self._connection = None
        if self._waiter is not None:
            self._wake()

    def on_failure(self, error: BaseException) -> None:
        """The answer will never be complete."""
        if self.error is None and not self._ended:
            self.error = error
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(connection, reusable=False)
        self._wake()


# One for all connections: what is in it has been parsed before another one reads.
_read_buffer = memoryview(bytearray(_READ_BYTES_MAX))


class _Connection(asyncio.BufferedProtocol):
    """One TCP connection and the parser of what comes over it."""

    def __init__(self, pool: Http1Pool) -> None:
        self.idle_since = 0.0
        self._pool = pool
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._headers: dict[bytes, bytes] = {}  # of the present message, trailers included
        # What the parser calls for each header: a method of C, for a provider sends twenty.
        self.on_header = self._headers.__setitem__
        self._parser = httptools.HttpResponseParser(self)
        self._response: Http1Response | None = None
        self._bytes_without_body = 0  # since the last of a body: head, chunk lines, trailers
        self._began = 0.0
        self._heard = False  # any byte of the present answer
        self._lost = False
        self._paused = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._interim = False  # the message being parsed is a 1xx
        self._bounded = False  # its length is known from its head or its chunks
        self._complete = False
        self._keep_alive = False
        self._large = False  # the request's body, so that some of it may still be unsent

    @property
    def usable(self) -> bool:
        """Open, and not in the middle of anything."""
        return not self._lost and not self._transport.is_closing() and self._response is None

    def ask(
        self, response: Http1Response, head: bytes, body: bytes, due: float
    ) -> "asyncio.Future[None]":
        """Write a request and wait for its answer until ``due`` (monotonic seconds)."""
        self._response = response
        self._heard = self._complete = False
        self._bytes_without_body = 0
        self._began = time.monotonic()
        if self._timer is None or due < self._timer_due:
            self._wait_until(due)
        else:
            self._due = due
        self._large = len(body) >= _JOINED_BYTES_MAX
        if not self._large:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return response.wait()

    def resume(self) -> None:
        """The reader has caught up."""
        if self._paused and not self._lost:
            self._paused = False
            self._transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        """Tell who waits for an answer that it will not come."""
        if self._response is not None:
            self._response.on_failure(error)

    def abort(self) -> None:
        """Close without ceremony: whatever is unsent or unread is dropped."""
        self._response = None
        self._disarm()
        if not self._lost:
            self._transport.abort()

    # Deadlines. A timer is not moved when its deadline moves away, but looks again when it fires,
    # and it outlives its request: hardly any request sets or cancels one.

    def _wait_until(self, due: float) -> None:
        self._due = due
        if self._timer is None or due < self._timer_due:
            self._disarm()
            self._timer_due = due
            self._timer = self.loop.call_later(max(0.0, due - time.monotonic()), self._check)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        response = self._response
        if response is None:
            return
        now = time.monotonic()
        if self._paused:  # it is the client who is slow, not the provider
            self._due = min(response.deadline, now + response.idle_seconds)
        if now < self._due - _TIMER_SECONDS:
            self._wait_until(self._due)
        elif not response.status:
            response.on_failure(UpstreamTimeout("The provider did not begin to answer in time."))
        else:
            response.on_failure(UpstreamTimeout("The provider's answer stalled."))

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        response = self._response
        if response is None:
            self.abort()  # nobody asked
            return
        self._heard = True
        received_bytes = response.received_bytes
        self._bytes_without_body += nbytes
        error: UpstreamError | None = None
        try:
            self._parser.feed_data(_read_buffer[:nbytes])
            # The parser keeps what it has of an unfinished header, chunk line or trailer.
            if response.received_bytes > received_bytes:
                self._bytes_without_body = 0
            elif self._bytes_without_body > HEAD_BYTES_MAX and not self._complete:
                error = _too_much_head()
        except httptools.HttpParserUpgrade:
            error = UpstreamProtocolError("The provider switched protocols.")
        except httptools.HttpParserError as failure:
            cause = failure.__context__
            if isinstance(cause, UpstreamError):
                error = cause
            else:
                error = UpstreamProtocolError("The provider's answer is not valid HTTP/1.1.")
        if self._complete:
            # More than was asked for spoils the connection, not the answer.
            self._end(response, reusable=self._keep_alive and error is None)
        elif error is not None:
            response.on_failure(error)
        elif response.status and self._response is response:
            self._wait_until(min(response.deadline, time.monotonic() + response.idle_seconds))

    def _end(self, response: Http1Response, *, reusable: bool) -> None:
        self._response = None
        if self._paused:
            self.resume()
        if self._large and self._transport.get_write_buffer_size():
            reusable = False  # answered before it was asked to the end: what follows would wait
        response.on_end()
        self._pool.give_back(self, reusable=reusable)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._disarm()
        self._pool.forget(self)
        response, self._response = self._response, None
        if response is None:
            return
        if not self._heard and time.monotonic() - self._began < _STALE_SECONDS_MAX:
            response.on_failure(_STALE)
        elif response.status and not self._bounded and exc is None:
            response.on_end()  # neither length nor chunks: the end of the connection is the end
        else:
            response.on_failure(
                UpstreamUnavailable(
                    "The provider closed the connection in mid-answer."
                    if self._heard
                    else "The provider closed the connection without an answer."
                )
            )

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamProtocolError("The provider answered more than it was asked.")
        self._headers.clear()
        self._interim = self._bounded = False

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            return
        response = self._response
        if response is None or response.status:
            return  # trailers
        headers = self._headers.copy()
        self._judge(headers)
        if status in (204, 304):
            self._bounded = True
        response.on_head(status, headers)

    def _judge(self, headers: dict[bytes, bytes]) -> None:
        """Note whether the body's end is told; refuse a head too large or a coded body."""
        if self._bytes_without_body > HEAD_BYTES_MAX:
            size = sum(len(name) + len(value) for name, value in headers.items())
            if size > HEAD_BYTES_MAX:
                raise _too_much_head()
        for name in headers:
            if len(name) in _TELLING_LENGTHS:
                lower = name.lower()
                if lower == b"content-length" or lower == b"transfer-encoding":
                    self._bounded = True
                elif lower == b"content-encoding" and headers[name].lower() not in _UNCODED:
                    raise UpstreamProtocolError(
                        "The provider compressed its answer; we asked not to."
                    )

    def on_body(self, data: bytes) -> None:
        response = self._response
        if response is not None and not response.on_data(data) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()


class _Stale(Exception):
    """The connection was closed before a byte of the answer."""


_STALE = _Stale()  # never raised


def _too_much_head() -> UpstreamProtocolError:
    return UpstreamProtocolError(f"The provider's headers exceed {HEAD_BYTES_MAX} bytes.")
