"""The HTTP client against real sockets: good answers, hostile ones, and clients that leave."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.upstreams.connect import Connector
from gateway.upstreams.egress import Egress
from gateway.upstreams.http1 import BUFFER_BYTES_MAX, Http1Pool, Http1Response
from tests.fakes import Peer, RawUpstream, Script

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = b'{"model":"m"}'


@contextlib.asynccontextmanager
async def client_of(port: int, **options: Any) -> AsyncIterator[Http1Pool]:
    settings = {"connections_max": 4, "answer_bytes_max": 64 << 20}
    seconds = options.pop("connect_seconds", 1.0)
    connector = Connector(Egress("127.0.0.1", port), tls=None, connect_seconds=seconds)
    pool = Http1Pool(connector, **{**settings, **options})
    try:
        yield pool
    finally:
        await pool.close()


async def ask(
    pool: Http1Pool, *, first_byte: float = 2.0, idle: float = 2.0, total: float = 5.0,
    body: bytes = BODY, fresh: bool = False,
) -> Http1Response:  # fmt: skip
    now = time.monotonic()
    head = b"POST /v1/x HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body)
    return await pool.send(
        head, body, first_byte_deadline=now + first_byte, idle_seconds=idle, deadline=now + total,
        fresh=fresh,
    )  # fmt: skip


async def read(response: Http1Response) -> bytes:
    parts = []
    while data := await response.receive():
        parts.append(data)
    return b"".join(parts)


def answering(*pieces: bytes, then: str = "close") -> Script:
    """Read a request, send the pieces apart, then close, reset or wait for the client to go."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.apart(*pieces)
        if then == "close":
            peer.close()
        elif then == "reset":
            peer.reset()
        else:
            await peer.gone()

    return script


async def hello_for_ever(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(HELLO)


async def test_a_connection_is_kept_and_used_again() -> None:
    """Five requests cost one connection, and none of them keeps its slot afterwards."""
    async with RawUpstream(hello_for_ever) as upstream, client_of(upstream.port) as pool:
        for _ in range(5):
            assert await read(await ask(pool)) == b"hello"
        assert len(upstream.peers) == 1
        assert upstream.peers[0].requests[4].endswith(BODY)
        assert pool.in_use == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HELLO, b"hello"),
        (CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"5;name=value\r\nhello\r\n0\r\nx-trailer: yes\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + HELLO, b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: IDENTITY\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    ],
)
async def test_every_legal_framing_is_read(answer: bytes, expected: bytes) -> None:
    """Lengths, chunks, trailers, hints and an end by closing all give the same body."""
    async with (
        RawUpstream(answering(answer)) as upstream,
        client_of(upstream.port) as pool,
    ):
        assert await read(await ask(pool)) == expected
        assert pool.in_use == 0


async def test_an_answer_cut_at_any_offset_reads_the_same() -> None:
    """One connection; each answer comes in two pieces, cut one byte later each time."""
    answer = CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: y\r\n\r\n"

    async def script(peer: Peer) -> None:
        for offset in range(1, len(answer)):
            await peer.request()
            await peer.send(answer[:offset])
            await asyncio.sleep(0)
            await peer.send(answer[offset:])

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        for _ in range(1, len(answer)):
            response = await ask(pool)
            assert (response.status, await read(response)) == (200, b"hello")
        assert len(upstream.peers) == 1


async def test_status_and_headers_come_lower_case_without_hop_by_hop() -> None:
    """Headers of the connection itself must not reach the client beside those of the answer."""
    answer = (
        b"HTTP/1.1 429 Slow Down\r\nRetry-After: 3\r\nConnection: keep-alive\r\n"
        b"Keep-Alive: 5\r\nX-Request-Id: abc\r\nContent-Length: 0\r\n\r\n"
    )
    async with RawUpstream(answering(answer)) as upstream, client_of(upstream.port) as pool:
        response = await ask(pool)
        assert response.status == 429
        assert response.headers == ((b"retry-after", b"3"), (b"x-request-id", b"abc"))


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    """A provider must not send our key and the prompt to an address of its choice."""
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
    async with RawUpstream(answering(answer)) as upstream, client_of(upstream.port) as pool:
        assert (await ask(pool)).status == 302
        assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (answering(b"220 mail.example ESMTP\r\n\r\n"), UpstreamProtocolError),
        (answering(b"HTTP/1.1 999999 X\r\n\r\n"), UpstreamProtocolError),
        (answering(b"HTTP/1.1 200 OK\r\nx: " + b"x" * (128 << 10)), UpstreamProtocolError),
        (answering(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000), UpstreamProtocolError),
        (
            answering(
                b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\n12345"
            ),
            UpstreamProtocolError,
        ),
        (
            answering(
                b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
            ),
            UpstreamProtocolError,
        ),
        (
            answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
            UpstreamProtocolError,
        ),
        (answering(CHUNKED + b"1\r\nx\r\n0\r\nx: " + b"x" * (512 << 10)), UpstreamProtocolError),
        (answering(CHUNKED + b"1;" + b"x" * (512 << 10)), UpstreamProtocolError),
        (answering(CHUNKED + b"zz\r\nhello\r\n"), UpstreamProtocolError),
        (answering(CHUNKED + b"3\r\nhello\r\n"), UpstreamProtocolError),
        (answering(CHUNKED + b"f" * 17 + b"\r\n"), UpstreamProtocolError),
        (
            answering(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nzz"),
            UpstreamProtocolError,
        ),
        (answering(), UpstreamUnavailable),
        (answering(then="reset"), UpstreamUnavailable),
        (answering(b"HTTP/1.1 200"), UpstreamUnavailable),
        (answering(b"HTTP/1.1 200 OK\r\nx: y\r\n", then="reset"), UpstreamUnavailable),
        (answering(HELLO[:-1]), UpstreamUnavailable),
        (answering(HELLO[:-1], then="reset"), UpstreamUnavailable),
        (answering(CHUNKED + b"5\r\nhello\r\n"), UpstreamUnavailable),
        (answering(CHUNKED + b"5\r\nhel"), UpstreamUnavailable),
        (answering(b"HTTP/1.1 200 OK\r\n\r\nhello", then="reset"), UpstreamUnavailable),
    ],
)
async def test_a_broken_answer_is_the_right_error_at_once(
    script: Script, error: type[UpstreamError]
) -> None:
    """22 kinds of nonsense and cuts fail within a second, count as sent, and lose no slot."""
    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        began = time.monotonic()
        with pytest.raises(error) as caught:
            await read(await ask(pool))
        assert type(caught.value) is error
        assert not caught.value.unsent
        assert time.monotonic() - began < 1.0, "no deadline had to be waited for"
        assert pool.in_use == 0


@pytest.mark.parametrize(
    ("pieces", "options", "least"),
    [
        ((), {"first_byte": 0.1}, 0.1),
        ((b"HTTP/1.1 200 OK\r\n",), {"first_byte": 0.1}, 0.1),
        ((HELLO[:-1],), {"idle": 0.1}, 0.1),
        ((CHUNKED,), {"idle": 0.1, "first_byte": 30.0}, 0.1),
        ((CHUNKED + b"1\r\nx\r\n",), {"total": 0.1}, 0.1),
        ((), {"total": 0.1}, 0.1),
    ],
)
async def test_a_silent_upstream_is_given_up_at_its_deadline(
    pieces: tuple[bytes, ...], options: Any, least: float
) -> None:
    """First byte, idle and total time each end the wait in time, and the provider sees us go."""
    async with (
        RawUpstream(answering(*pieces, then="wait")) as upstream,
        client_of(upstream.port) as pool,
    ):
        began = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await read(await ask(pool, **options))
        assert least - 0.01 <= time.monotonic() - began < least + 0.3
        await upstream.finished()  # it has seen us close


async def test_a_trickle_keeps_an_answer_alive_but_not_past_the_total_deadline() -> None:
    """One byte every 20 ms outlives the idle limit of 80 ms and ends with the total of 300."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.02)

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        began = time.monotonic()
        response = await ask(pool, first_byte=0.08, idle=0.08, total=0.3)
        with pytest.raises(UpstreamTimeout):
            await read(response)
        assert 0.29 <= time.monotonic() - began < 0.6


async def test_a_kept_connection_that_died_says_so_and_sends_nothing_again() -> None:
    """It is closed in the very moment of writing. Every call is the caller's to book: that of the
    next request, which asks for a new connection, too.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(HELLO)
            await peer.request()
        peer.reset()

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        assert await read(await ask(pool)) == b"hello"
        with pytest.raises(UpstreamUnavailable) as caught:
            await ask(pool)
        assert (caught.value.stale, caught.value.unsent) == (True, False)
        assert sum(len(peer.requests) for peer in upstream.peers) == 2
        with pytest.raises(UpstreamUnavailable) as caught:
            await ask(pool, fresh=True)
        assert (caught.value.stale, caught.value.unsent) == (False, False)
        assert len(upstream.peers) == 2


async def test_a_fresh_request_leaves_kept_connections_alone() -> None:
    """A retry goes over a new socket, because the kept one may be the reason for the failure."""
    async with RawUpstream(hello_for_ever) as upstream, client_of(upstream.port) as pool:
        for _ in range(2):
            assert await read(await ask(pool)) == b"hello"
        assert await read(await ask(pool, fresh=True)) == b"hello"
        assert [len(peer.requests) for peer in upstream.peers] == [2, 1]


async def test_a_connection_closed_while_idle_is_not_tried() -> None:
    """The next request opens a new connection and does not fail on the dead one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        if peer.number == 0:
            peer.close()
        else:
            await peer.gone()

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        assert await read(await ask(pool)) == b"hello"
        await upstream.finished(0)
        await asyncio.sleep(0.01)
        assert await read(await ask(pool)) == b"hello"
        assert [len(peer.requests) for peer in upstream.peers] == [1, 1]


@pytest.mark.parametrize("surplus", [HELLO, HELLO[:20], b"\r\nxx", b"x"])
async def test_an_answer_to_no_question_never_becomes_the_next_answer(surplus: bytes) -> None:
    """A surplus answer on a kept connection could show one tenant another tenant's text."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.send(HELLO.replace(b"hello", b"first") + surplus)
        else:
            await peer.send(HELLO)
        await peer.gone()

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        assert await read(await ask(pool)) == b"first"
        assert await read(await ask(pool)) == b"hello"
        assert len(upstream.peers) == 2


async def test_what_arrives_on_an_idle_connection_closes_it() -> None:
    """An unasked answer that comes later must not wait there for the next tenant's request."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        if peer.number == 0:
            await asyncio.sleep(0.02)
            await peer.send(HELLO.replace(b"hello", b"wrong"))
            await peer.gone()

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        assert await read(await ask(pool)) == b"hello"
        await upstream.finished(0)
        assert upstream.peers[0].closed_at is not None
        assert await read(await ask(pool)) == b"hello"


@pytest.mark.parametrize("pieces", [(), (CHUNKED + b"1\r\nx\r\n",)])
async def test_cancelling_closes_the_socket_within_a_tenth_of_a_second(
    pieces: tuple[bytes, ...],
) -> None:
    """Before the head the request does it itself; in mid-answer the pool that owns it does."""
    async with (
        RawUpstream(answering(*pieces, then="wait")) as upstream,
        client_of(upstream.port) as pool,
    ):

        async def request() -> None:
            await read(await ask(pool))

        task = asyncio.create_task(request())
        await upstream.until(lambda: any(peer.requests for peer in upstream.peers))
        await asyncio.sleep(0.02)
        left = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if pieces:
            # Cancelled while reading: whoever owns the answer closes it.
            await pool.close()
        await upstream.finished()
        closed = upstream.peers[0].closed_at
        assert closed is not None
        assert closed - left < 0.1
        assert pool.in_use == 0


async def test_closing_an_unfinished_answer_closes_its_socket_and_twice_does_no_harm() -> None:
    """The provider learns within a tenth of a second that its answer is not wanted."""
    async with (
        RawUpstream(answering(CHUNKED, then="wait")) as upstream,
        client_of(upstream.port) as pool,
    ):
        response = await ask(pool)
        left = time.monotonic()
        response.close()
        response.close()
        await upstream.finished()
        closed = upstream.peers[0].closed_at
        assert closed is not None
        assert closed - left < 0.1


async def test_closing_the_pool_tells_who_is_waiting() -> None:
    """A reader in mid-answer gets an error at once and does not hang for its deadline."""
    async with (
        RawUpstream(answering(CHUNKED, then="wait")) as upstream,
        client_of(upstream.port) as pool,
    ):
        response = await ask(pool)
        task = asyncio.create_task(response.receive())
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(UpstreamUnavailable):
            await asyncio.wait_for(task, 1)


async def test_an_answer_that_is_not_read_stops_the_upstream() -> None:
    """64 MiB are offered; unread, no more is taken in than the buffer and the sockets hold."""
    block = b"x" * (256 << 10)
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (256 * len(block)))
        for _ in range(256):
            await peer.send(block)
            sent += len(block)

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        response = await ask(pool)
        stalled_at = -1
        while sent != stalled_at:
            stalled_at = sent
            await asyncio.sleep(0.05)
        assert sent < 32 << 20
        assert response._buffered <= BUFFER_BYTES_MAX + (512 << 10)
        assert len(await read(response)) == 256 * len(block)
        assert pool.in_use == 0


async def test_a_slow_reader_is_no_stalled_upstream() -> None:
    """The idle limit of 50 ms does not run while a client takes 200 ms to read 4 MiB."""
    block = b"x" * (4 << 20)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(block) + block
    async with (
        RawUpstream(answering(answer, then="wait")) as upstream,
        client_of(upstream.port) as pool,
    ):
        response = await ask(pool, idle=0.05, first_byte=0.05)
        await asyncio.sleep(0.2)
        assert len(await read(response)) == len(block)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"x" * 2000,
        CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
    ],
)
async def test_an_answer_over_the_limit_is_refused(answer: bytes) -> None:
    """By length, chunk or close, no answer fills more memory than answer_bytes_max."""
    async with (
        RawUpstream(answering(answer, then="wait")) as upstream,
        client_of(upstream.port, answer_bytes_max=1500) as pool,
    ):
        with pytest.raises(UpstreamProtocolError, match="1500 bytes"):
            await read(await ask(pool))
        assert pool.in_use == 0


async def test_a_full_pool_refuses_and_says_that_nothing_was_sent() -> None:
    """The third of two may be tried elsewhere for free; a closed answer makes room again."""
    async with (
        RawUpstream(answering(CHUNKED, then="wait")) as upstream,
        client_of(upstream.port, connections_max=2) as pool,
    ):
        first, second = await ask(pool), await ask(pool)
        with pytest.raises(UpstreamOverloaded) as caught:
            await ask(pool)
        assert caught.value.unsent
        first.close()
        third = await ask(pool)
        assert third.status == second.status == 200


async def test_nobody_listening_is_unavailable_and_nothing_was_sent() -> None:
    """A refused connection costs nothing and holds no slot, so another target may be asked."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with client_of(port) as pool:
        with pytest.raises(UpstreamUnavailable) as caught:
            await ask(pool)
        assert caught.value.unsent
        assert pool.in_use == 0


async def test_a_connection_that_never_opens_is_given_up_at_its_deadline() -> None:
    """A listener whose queue is full lets further connections wait."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        async with client_of(listener.getsockname()[1], connect_seconds=0.1) as pool:
            began = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                await ask(pool)
            assert caught.value.unsent
            assert time.monotonic() - began < 0.5
            assert pool.in_use == 0


async def test_an_answer_before_the_body_was_read_is_heard_and_its_connection_given_up() -> None:
    """What is unsent would stand between the next question and its answer."""

    async def script(peer: Peer) -> None:
        if peer.number == 0:
            await peer.read()
            await peer.send(HELLO.replace(b"200 OK", b"413 Too Large"))
            await peer.gone()
        await hello_for_ever(peer)

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        response = await ask(pool, body=b"x" * (32 << 20))
        assert (response.status, await read(response)) == (413, b"hello")
        assert await read(await ask(pool)) == b"hello"
        assert len(upstream.peers) == 2


async def test_headers_are_found_by_name_however_they_are_written() -> None:
    """Mixed and lower case are found alike, and an absent header is None."""
    answer = b"HTTP/1.1 200 OK\r\nX-Request-Id: a\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
    async with RawUpstream(answering(answer)) as upstream, client_of(upstream.port) as pool:
        response = await ask(pool)
        found = [response.header(name) for name in (b"x-request-id", b"retry-after", b"x")]
        assert found == [b"a", b"1", None]


async def test_what_one_answer_says_is_not_said_by_the_next() -> None:
    """On one connection, retry-after and early hints belong to their own answer alone."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO.replace(b"OK\r\n", b"OK\r\nretry-after: 1\r\n"))
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Hint\r\nlink: x\r\n\r\n" + HELLO)

    async with RawUpstream(script) as upstream, client_of(upstream.port) as pool:
        first = await ask(pool)
        assert await read(first) == b"hello"
        second = await ask(pool)
        assert await read(second) == b"hello"
        assert first.headers == ((b"retry-after", b"1"),)
        assert second.headers == ()
        assert len(upstream.peers) == 1


async def test_a_large_body_arrives_whole() -> None:
    """Five megabytes of every byte value reach the provider unchanged."""
    body = bytes(range(256)) * 20_000
    async with RawUpstream(hello_for_ever) as upstream, client_of(upstream.port) as pool:
        assert await read(await ask(pool, body=body)) == b"hello"
        assert upstream.peers[0].requests[0].endswith(body)
