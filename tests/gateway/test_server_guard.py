"""The protocol guard against raw sockets: what it refuses, how, and how soon.

A real server on uvloop, as in production; short deadlines; answers are read by the
standard library's own HTTP parser.
"""

import asyncio
import contextlib
import http.client
import inspect
import io
import json
import random
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from gateway.config import Limits
from gateway.errors import BodyTooLarge, GatewayError
from gateway.server import PIPELINE_MAX, Call, Server, error_lines

LIMITS = Limits(
    body_bytes_max=1 << 20,
    header_bytes_max=16 << 10,
    header_count_max=100,
    header_seconds=0.3,
    body_seconds=0.3,
    keep_alive_seconds=0.2,
    write_stall_seconds=0.3,
    connections_max=40,
)
GRACE_SECONDS = 1.0  # nothing below may take longer
BIG = b"x" * (4 << 20)


class Application:
    """Answers by path; remembers what it was asked and how it ended."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[bytes, bytes], int]] = []
        self.left = 0
        self.go_on = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    def head(self, call: Call) -> bool:
        call.on_lost = self._leave
        if call.target == b"/early":
            error = BodyTooLarge("too large")
            call.answer(error.status, error_lines(error), error.body())
            return False
        return True

    def refuse(self, call: Call, error: GatewayError) -> None:
        call.answer(error.status, error_lines(error), error.body())

    def body(self, call: Call) -> None:
        path = call.target.decode("latin-1")
        self.asked.append((path, call.headers, len(call.body)))
        if path in ("/slow", "/stream"):
            task = asyncio.create_task(self._slow(call) if path == "/slow" else self._stream(call))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self._echo(call, path)

    def _leave(self) -> None:
        self.left += 1

    def _echo(self, call: Call, path: str) -> None:
        text = json.dumps({"path": path, "size": len(call.body)}).encode()
        call.answer(200, b"", BIG if path == "/big" else text)

    async def _slow(self, call: Call) -> None:
        await self.go_on.wait()
        self._echo(call, "/slow")

    async def _stream(self, call: Call) -> None:
        call.start(200, b"")
        while not call.gone:
            waiting = call.write(b"y" * 65_536)
            if waiting is not None:
                await waiting
            await asyncio.sleep(0)


class Guarded:
    """A running server and the ways to talk to it."""

    def __init__(self, application: Application, server: Server, port: int) -> None:
        self.application = application
        self.server = server
        self.port = port

    @property
    def connections(self) -> int:
        return len(self.server.connections)

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def talk(self, *parts: bytes) -> tuple[bytes, bool]:
        """(what came back, whether the server closed) within the grace time."""
        reader, writer = await self.connect()
        received = b""
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            deadline = time.monotonic() + GRACE_SECONDS
            while True:
                left = max(0.0, deadline - time.monotonic())
                data = await asyncio.wait_for(reader.read(1 << 20), left)
                if not data:
                    return received, True
                received += data
        except TimeoutError:
            return received, False
        except ConnectionError:
            return received, True
        finally:
            writer.close()

    async def answers(self, *parts: bytes) -> list[tuple[int, dict[str, str], bytes]]:
        received, _ = await self.talk(*parts)
        return parse(received)

    async def refusal(self, *parts: bytes) -> tuple[int, str]:
        """(status, message) of the one answer, which must be an error in OpenAI's shape."""
        received, closed = await self.talk(*parts)
        assert closed, f"the connection stays open after {received!r}"
        (answer,) = parse(received)
        return answer[0], check_error(answer)


class _Bytes:
    def __init__(self, text: bytes) -> None:
        self.file = io.BytesIO(text)

    def makefile(self, *_: Any) -> io.BytesIO:
        return self.file


def parse(text: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every answer in ``text``, by the standard library."""
    found = []
    source = _Bytes(text)
    while source.file.tell() < len(text):
        position = source.file.tell()
        source.file = io.BytesIO(text[position:])
        text = text[position:]
        file = source.file
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type] # a socket's makefile
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        length = response.length
        start = file.tell()
        body = text[start : start + length] if length is not None else response.read()
        found.append((response.status, headers, body))
        response.close()
        source.file = io.BytesIO(text)
        source.file.seek(start + length if length is not None else len(text))
    return found


def check_error(answer: tuple[int, dict[str, str], bytes]) -> str:
    status, headers, body = answer
    assert 400 <= status < 500 or status == 503, answer
    assert headers["content-type"] == "application/json"
    document = json.loads(body)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    message: str = document["error"]["message"]
    assert message
    return message


@contextlib.asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[Guarded]:
    application = Application()
    server = Server(application, limits, sweep_seconds=0.02)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    watching = asyncio.create_task(server.sweep())
    try:
        yield Guarded(application, server, listening.sockets[0].getsockname()[1])
    finally:
        application.go_on.set()
        listening.close()
        watching.cancel()
        server.abort()
        await asyncio.gather(watching, *application.tasks, return_exceptions=True)
        await listening.wait_closed()


async def until(condition: Callable[[], bool], seconds: float = GRACE_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing here tells us
            await asyncio.sleep(0.005)


def guarded_server(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on uvloop, as production does, with a server of its own as ``guard``."""

    async def run_async(**arguments: Any) -> None:
        async with serving() as guard:
            await test(guard, **arguments)

    def run(**arguments: Any) -> None:
        uvloop.run(run_async(**arguments))

    signature = inspect.signature(test)
    without_guard = [p for p in signature.parameters.values() if p.annotation is not Guarded]
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = signature.replace(parameters=without_guard)  # type: ignore[attr-defined]
    return run


def request(head: str = "", body: bytes = b"", line: str = "POST /echo HTTP/1.1") -> bytes:
    """A request with one Host and the given further header lines."""
    return f"{line}\r\nHost: a\r\n{head}\r\n".encode("latin-1") + body


GET = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"

MALFORMED = {
    "content-length and transfer-encoding": request(
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"
    ),
    "transfer-encoding and content-length": request(
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"0\r\n\r\n"
    ),
    "two content-lengths that agree": request("Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"),
    "two content-lengths that differ": request(
        "Content-Length: 3\r\nContent-Length: 4\r\n", b"abcd"
    ),
    "a list of content-lengths": request("Content-Length: 3, 3\r\n", b"abc"),
    "content-length +4": request("Content-Length: +4\r\n", b"abcd"),
    "content-length -1": request("Content-Length: -1\r\n"),
    "content-length 0x4": request("Content-Length: 0x4\r\n", b"abcd"),
    "content-length beyond 64 bits": request("Content-Length: 99999999999999999999999\r\n"),
    "a blank before the colon": request("Content-Length : 3\r\n", b"abc"),
    "obs-fold": request("X-A: b\r\n c\r\n"),
    "obs-fold of transfer-encoding": request("Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "transfer-encoding xchunked": request("Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "transfer-encoding identity": request("Transfer-Encoding: identity\r\n"),
    "transfer-encoding gzip, chunked": request(
        "Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"
    ),
    "chunked twice": request(
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"
    ),
    "chunked in HTTP/1.0": request(
        "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", "POST /echo HTTP/1.0"
    ),
    "bare LF after the request line": b"GET /echo HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a header": b"GET /echo HTTP/1.1\r\nHost: a\n\r\n",
    "bare LF throughout": b"GET /echo HTTP/1.1\nHost: a\n\n",
    "NUL in a header": request("X-A: b\0c\r\n"),
    "NUL in a name": request("X\0A: b\r\n"),
    "NUL in the path": b"GET /ec\0ho HTTP/1.1\r\nHost: a\r\n\r\n",
    "bare CR in a header": request("X-A: b\rc\r\n"),
    "no Host": b"GET /echo HTTP/1.1\r\nX-A: b\r\n\r\n",
    "two Hosts": request("Host: b\r\n"),
    "two Hosts that agree": request("Host: a\r\n"),
    "two Hosts in HTTP/1.0": request("Host: b\r\n", line="GET /echo HTTP/1.0"),
    "a Host that is none": b"GET /echo HTTP/1.1\r\nHost: a/../b\r\n\r\n",
    "a Host with user information": b"GET /echo HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "chunk size that is no number": request("Transfer-Encoding: chunked\r\n", b"xyz\r\nabc\r\n"),
    "chunk size with a sign": request("Transfer-Encoding: chunked\r\n", b"-1\r\nabc\r\n"),
    "chunk size beyond 64 bits": request(
        "Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"
    ),
    "chunk longer than its size": request(
        "Transfer-Encoding: chunked\r\n", b"2\r\nabcdef\r\n0\r\n\r\n"
    ),
    "bare LF after a chunk size": request("Transfer-Encoding: chunked\r\n", b"3\nabc\r\n0\r\n\r\n"),
    "absolute URI": request(line="GET http://169.254.169.254/latest HTTP/1.1"),
    "CONNECT": request(line="CONNECT a:443 HTTP/1.1"),
    "no version": b"GET /echo\r\nHost: a\r\n\r\n",
    "HTTP/0.9": request(line="GET /echo HTTP/0.9"),
    "HTTP/2.0 in text": request(line="GET /echo HTTP/2.0"),
    "HTTP/3.1 in text": request(line="GET /echo HTTP/3.1"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS on a plain port": bytes.fromhex("16030100a5010000a10303") + b"\0" * 64,
    "an unknown method": request(line="FROB /echo HTTP/1.1"),
    "a path beyond ASCII": "GET /\xe9cho HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1"),
    "a line that is no header": request("this is no header\r\n"),
    "a header without a name": request(": b\r\n"),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
@guarded_server
async def test_what_could_be_read_in_two_ways_is_refused_and_never_reaches_the_application(
    guard: Guarded, raw: bytes
) -> None:
    """A proxy that reads it differently could smuggle one tenant's request into another's."""
    status, _ = await guard.refusal(raw)
    assert status == 400
    assert guard.application.asked == []


@guarded_server
async def test_malformed_requests_are_refused_alike_when_they_come_byte_by_byte(
    guard: Guarded,
) -> None:
    """An attacker must not get past the guard by cutting the bytes at a lucky place."""

    async def one_by_one(raw: bytes) -> None:
        reader, writer = await guard.connect()
        with contextlib.suppress(ConnectionError):
            for offset in range(len(raw)):
                writer.write(raw[offset : offset + 1])
                await asyncio.sleep(0)
            (answer,) = parse(await asyncio.wait_for(reader.read(), GRACE_SECONDS))
            assert answer[0] == 400
            check_error(answer)
        writer.close()

    cases = list(MALFORMED.values())
    for start in range(0, len(cases), 16):
        await asyncio.gather(*(one_by_one(raw) for raw in cases[start : start + 16]))
    assert guard.application.asked == []


@guarded_server
async def test_a_valid_request_is_answered_and_its_connection_kept(guard: Guarded) -> None:
    """Bodies of 0, 1 and 100,000 bytes go over one connection, each counted right."""
    reader, writer = await guard.connect()
    for size in (0, 1, 100_000):
        writer.write(request(f"Content-Length: {size}\r\n", b"a" * size))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), GRACE_SECONDS)
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["size"] == size
    writer.close()


@guarded_server
async def test_chunks_arrive_as_one_body_and_trailers_never_pass_for_headers(
    guard: Guarded,
) -> None:
    """A trailer could otherwise bring a key or a host after the head was checked."""
    body = b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nAuthorization: Bearer x\r\nHost: b\r\n\r\n"
    (answer,) = await guard.answers(request("Transfer-Encoding: chunked\r\n", body))
    assert answer[0] == 200
    ((_, headers, size),) = guard.application.asked
    assert size == 5
    assert b"authorization" not in headers
    assert headers[b"host"] == b"a"


@guarded_server
async def test_a_header_given_twice_is_one_list_and_neither_value_is_lost(guard: Guarded) -> None:
    """Two cache directives both count, though their names differ in case."""
    await guard.answers(request("Cache-Control: no-store\r\ncache-control: max-age=5\r\n"))
    assert guard.application.asked[0][1][b"cache-control"] == b"no-store, max-age=5"


@guarded_server
async def test_http_1_0_is_answered_and_closed_with_or_without_a_host(guard: Guarded) -> None:
    """Old health checks send no host, and wait for the end of the connection."""
    for raw in (b"GET /echo HTTP/1.0\r\n\r\n", b"GET /echo HTTP/1.0\r\nHost: a\r\n\r\n"):
        received, closed = await guard.talk(raw)
        assert parse(received)[0][0] == 200
        assert closed


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.2"])
@guarded_server
async def test_an_upgrade_is_not_taken_up_and_what_follows_is_not_read(
    guard: Guarded, protocol: str
) -> None:
    """The one answer says close, so nothing behind it can slip in as another protocol."""
    head = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMA\r\n"
    for raw in (request(head, line="GET /echo HTTP/1.1"), request(head + "Content-Length: 0\r\n")):
        received, closed = await guard.talk(raw + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + GET)
        (answer,) = parse(received)
        assert answer[0] == 200
        assert answer[1]["connection"] == "close"
        assert closed


@guarded_server
async def test_the_body_of_a_request_that_asks_for_an_upgrade_is_read(guard: Guarded) -> None:
    """As Java's client sends it by default."""
    head = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    for parts in (1, 3, 1000):
        raw = request(f"{head}Content-Length: 5000\r\n", b"a" * 5000) + GET
        step = len(raw) // parts
        received, closed = await guard.talk(
            *(raw[start : start + step] for start in range(0, len(raw), step))
        )
        (answer,) = parse(received)
        assert (answer[0], json.loads(answer[2])["size"]) == (200, 5000)
        assert answer[1]["connection"] == "close"
        assert closed
    status, _ = await guard.refusal(
        request(head + "Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n\r\n")
    )
    assert status == 400


@pytest.mark.parametrize(
    "raw",
    [
        request(f"X-A: {'b' * 70_000}\r\n"),
        request("".join(f"X-{n}: {'b' * 200}\r\n" for n in range(90))),
        request("".join(f"X-{n}: b\r\n" for n in range(1000))),
        request("X: b\r\n" * 100),
        request(line=f"GET /{'a' * 70_000} HTTP/1.1"),
        request("Transfer-Encoding: chunked\r\n", b"1;" + b"e" * 1_000_000 + b"\r\na\r\n0\r\n\r\n"),
        request("Transfer-Encoding: chunked\r\n", b"0\r\nX: " + b"e" * 70_000 + b"\r\n\r\n"),
    ],
    ids=["64 KiB header", "90 headers", "1000 headers", "101 headers", "URL", "chunk", "trailer"],
)
@guarded_server
async def test_headers_too_long_or_too_many_are_refused(guard: Guarded, raw: bytes) -> None:
    """URL, chunk extension and trailer count as well, and the message states the limit."""
    pieces = [raw[start : start + 4096] for start in range(0, len(raw), 4096)]
    status, message = await guard.refusal(*pieces)
    assert status == 431
    assert "exceed 16384 bytes" in message or "More than 100 headers" in message
    assert guard.application.asked == []


@guarded_server
async def test_as_many_headers_as_are_allowed_are_answered(guard: Guarded) -> None:
    """The limit is exact: a request with a hundred headers still gets its 200."""
    (answer,) = await guard.answers(request("X: b\r\n" * 99))
    assert answer[0] == 200


@guarded_server
async def test_a_header_without_end_is_not_kept_in_memory(guard: Guarded) -> None:
    """The parser itself holds a header's value until its line ends."""
    tracemalloc.start()
    try:
        reader, writer = await guard.connect()
        writer.write(b"GET /echo HTTP/1.1\r\nHost: a\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"b" * (1 << 18))
                await asyncio.wait_for(writer.drain(), GRACE_SECONDS)
            await asyncio.wait_for(reader.read(), GRACE_SECONDS)
        writer.close()
        await until(lambda: guard.connections == 0, 4.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, "16 MiB were sent"


@guarded_server
async def test_slow_headers_are_closed_by_their_deadline(guard: Guarded) -> None:
    """A header every 50 ms for ever cannot hold a connection; it ends with a 408 to retry."""
    reader, writer = await guard.connect()
    began = time.monotonic()
    writer.write(b"GET /echo HTTP/1.1\r\n")
    received = b""
    while True:  # a header each 50 ms, for ever
        with contextlib.suppress(TimeoutError):
            data = await asyncio.wait_for(reader.read(4096), 0.05)
            if not data:
                break
            received += data
        with contextlib.suppress(ConnectionError):
            writer.write(b"X-A: b\r\n")
        assert time.monotonic() - began < GRACE_SECONDS
    (answer,) = parse(received)
    assert answer[0] == 408
    check_error(answer)
    assert answer[1]["x-should-retry"] == "true"
    assert LIMITS.header_seconds <= time.monotonic() - began
    writer.close()


@guarded_server
async def test_a_slow_body_is_answered_408_and_its_application_hears_that_the_client_left(
    guard: Guarded,
) -> None:
    """A request whose body stalls gives its slot back and is never handled."""
    began = time.monotonic()
    status, message = await guard.refusal(request("Content-Length: 100\r\n"), b"a")
    assert status == 408
    assert "body" in message
    assert LIMITS.body_seconds <= time.monotonic() - began < GRACE_SECONDS
    await until(lambda: guard.application.left == 1)
    assert guard.application.asked == []


@guarded_server
async def test_connections_that_ask_nothing_are_closed_without_an_answer(guard: Guarded) -> None:
    """A silent, blank or idle connection must not use up the room of others."""
    for first in (b"", b"\r\n\r\n", GET):
        received, closed = await guard.talk(first)
        assert closed, first
        assert len(parse(received)) == (first == GET)
    assert guard.connections == 0


@guarded_server
async def test_a_client_that_never_reads_a_stream_is_cut(guard: Guarded) -> None:
    """Otherwise its buffers would be held for ever at no cost to it."""
    reader, writer = await guard.connect(limit=1)
    writer.write(request(line="GET /stream HTTP/1.1"))
    await until(lambda: guard.application.left == 1, 4.0)
    assert guard.connections == 0
    writer.close()
    del reader


@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
@guarded_server
async def test_a_client_that_never_reads_a_whole_answer_is_cut(guard: Guarded, head: str) -> None:
    """Also where the server has closed already and only waits for its buffer to empty."""
    _, writer = await guard.connect(limit=1)
    writer.write(request(head, line="GET /big HTTP/1.1"))
    await until(lambda: len(guard.application.asked) == 1)
    await until(lambda: guard.connections == 0, 4.0)
    writer.close()


@guarded_server
async def test_a_client_that_reads_a_whole_answer_slowly_gets_all_of_it(guard: Guarded) -> None:
    """Longer than a stalled one is given."""
    reader, writer = await guard.connect(limit=1)
    writer.write(request(line="GET /big HTTP/1.1"))
    began, received = time.monotonic(), 0
    while received < len(BIG):
        received += len(await asyncio.wait_for(reader.read(1 << 18), GRACE_SECONDS))
        await asyncio.sleep(0.04)
    assert time.monotonic() - began > LIMITS.write_stall_seconds
    writer.close()


@guarded_server
async def test_a_client_that_never_reads_and_asks_for_more_is_cut(guard: Guarded) -> None:
    """Three large answers in one pipeline do not keep the connection beyond its deadline."""
    _, writer = await guard.connect(limit=1)
    writer.write(request(line="GET /big HTTP/1.1") * 3)
    await until(lambda: guard.connections == 0, 4.0)
    writer.close()


@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@guarded_server
async def test_413_is_seen_by_a_client_that_sends_everything_first(
    guard: Guarded, head: str, version: str
) -> None:
    """A reset after 11 MiB would send the user after a fault of the network."""
    size = 11 << 20
    line = f"POST /early {version}"
    received, _ = await guard.talk(
        request(head + f"Content-Length: {size}\r\n", line=line), *[b"a" * (1 << 20)] * 11
    )
    (answer,) = parse(received)
    assert answer[0] == 413
    check_error(answer)


@guarded_server
async def test_a_connection_goes_on_after_an_early_answer_and_its_unread_body(
    guard: Guarded,
) -> None:
    """The 300,000 bytes that were not wanted are skipped, not read as the next request."""
    early = request("Content-Length: 300000\r\n", b"a" * 300_000, "POST /early HTTP/1.1")
    first, second = await guard.answers(early, GET)
    assert (first[0], second[0]) == (413, 200)


@guarded_server
async def test_a_body_that_never_ends_after_an_early_answer_is_closed(guard: Guarded) -> None:
    """After its 413 a client cannot hold the connection by withholding the rest."""
    for head in ("", "Connection: close\r\n"):
        raw = request(head + "Content-Length: 300000\r\n", b"a", "POST /early HTTP/1.1")
        received, closed = await guard.talk(raw)
        (answer,) = parse(received)
        assert answer[0] == 413
        assert closed


@guarded_server
async def test_pipelined_requests_are_answered_in_order(guard: Guarded) -> None:
    """A full pipeline keeps its order, for a swapped answer would go to another request."""
    answers = await guard.answers(
        b"".join(request(line=f"GET /{n} HTTP/1.1") for n in range(PIPELINE_MAX))
    )
    assert [json.loads(body)["path"] for _, _, body in answers] == [
        f"/{n}" for n in range(PIPELINE_MAX)
    ]


@guarded_server
async def test_too_deep_a_pipeline_is_refused_once_what_came_before_is_answered(
    guard: Guarded,
) -> None:
    """Fifty requests in one write get their answers up to the limit, then one clear 400."""
    reader, writer = await guard.connect()
    writer.write(request(line="GET /slow HTTP/1.1") + GET * 50)
    await until(lambda: len(guard.application.asked) == 1)
    guard.application.go_on.set()
    answers = parse(await asyncio.wait_for(reader.read(), GRACE_SECONDS))
    assert [answer[0] for answer in answers] == [200] * (PIPELINE_MAX + 1) + [400]
    assert "pipeline" in check_error(answers[-1])
    writer.close()


@guarded_server
async def test_an_answer_between_two_parts_of_the_next_head_takes_no_header_from_it(
    guard: Guarded,
) -> None:
    """A head that is cut by the earlier answer keeps the headers of both halves."""
    reader, writer = await guard.connect()
    writer.write(request(line="GET /slow HTTP/1.1"))
    await until(lambda: len(guard.application.asked) == 1)
    (connection,) = guard.server.connections
    writer.write(b"GET /echo HTTP/1.1\r\nHost: a\r\nX-First: 1\r\n")
    await until(lambda: connection._owed == "headers")
    guard.application.go_on.set()
    await asyncio.wait_for(reader.readuntil(b"}"), GRACE_SECONDS)
    writer.write(b"X-Second: 2\r\n\r\n")
    await until(lambda: len(guard.application.asked) == 2)
    headers = guard.application.asked[1][1]
    assert (headers[b"x-first"], headers.get(b"x-second")) == (b"1", b"2")
    writer.close()


@pytest.mark.parametrize(
    "second",
    [b"\0\0garbage\r\n\r\n", request("Transfer-Encoding: chunked\r\n", b"zz\r\n"), b"GET /x HTT"],
    ids=["garbage", "bad chunk", "slow headers"],
)
@guarded_server
async def test_a_refusal_never_lands_in_the_middle_of_another_answer(
    guard: Guarded, second: bytes
) -> None:
    """The first client must read a whole 200 before the second request's error."""
    reader, writer = await guard.connect()
    writer.write(request(line="GET /slow HTTP/1.1") + second)
    await until(lambda: len(guard.application.asked) == 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), LIMITS.header_seconds + 0.1)
    guard.application.go_on.set()
    first, refused = parse(await asyncio.wait_for(reader.read(), GRACE_SECONDS))
    assert first[0] == 200
    assert refused[0] in (400, 408)
    check_error(refused)
    writer.close()


@guarded_server
async def test_a_client_that_leaves_is_noticed_while_it_is_answered(guard: Guarded) -> None:
    """Within 100 ms the application hears of it and can stop the provider."""
    reader, writer = await guard.connect()
    writer.write(request(line="GET /stream HTTP/1.1"))
    await asyncio.wait_for(reader.readexactly(1000), GRACE_SECONDS)
    began = time.monotonic()
    writer.close()
    await until(lambda: guard.application.left == 1)
    assert time.monotonic() - began < 0.1


@guarded_server
async def test_one_connection_too_many_is_told_so_and_closed(guard: Guarded) -> None:
    """It gets a 503, and the connections at the limit are still answered."""
    held = [await guard.connect() for _ in range(LIMITS.connections_max)]
    await until(lambda: guard.connections == LIMITS.connections_max)
    status, _ = await guard.refusal()
    assert status == 503
    for reader, writer in held:
        writer.write(GET)
        assert (await asyncio.wait_for(reader.read(12), GRACE_SECONDS)) == b"HTTP/1.1 200"
        writer.close()


@pytest.mark.slow
@guarded_server
async def test_refused_connections_are_let_go_though_the_client_holds_on(guard: Guarded) -> None:
    """The answer lingers so that it is seen, but not for ever."""
    held = [await guard.connect() for _ in range(8)]
    for _, writer in held:
        writer.write(b"GET /echo HTTP/1.1\r\n\r\n")
    await until(lambda: guard.connections == 8)
    await until(lambda: guard.connections == 0, 4.0)
    for _, writer in held:
        writer.close()


SEEDS = [
    GET,
    request("Content-Length: 11\r\nContent-Type: application/json\r\n", b'{"a": [1]}\n'),
    request(
        "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nT: x\r\n\r\n"
    ),
    request("Authorization: Bearer th_x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n", b"{}"),
    request("Connection: upgrade\r\nUpgrade: h2c\r\n"),
    GET + request("Content-Length: 2\r\n", b"ab") + GET,
    b"GET /echo HTTP/1.0\r\n\r\n",
]
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b":", b" ", b"\t", b"HTTP/1.1", b"Host: b\r\n", b"\xff\xfe",
    b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"0\r\n\r\n", b"-1", b"ffffffff",
    b"http://x/", b"%00", b"%", b";", b",", b"Upgrade: h2c\r\n", b"Connection: close\r\n",
    b"a" * 300,
]  # fmt: skip


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """Valid requests, damaged in one to four places."""
    rng = random.Random(seed)
    for _ in range(count):
        raw = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(raw) + 1)
            match rng.randrange(5):
                case 0:
                    raw[at:at] = rng.choice(TOKENS)
                case 1:
                    raw[at : at + rng.randint(1, 12)] = b""
                case 2 if at < len(raw):
                    raw[at] = rng.randrange(256)
                case 3:
                    raw[at:at] = raw[max(0, at - rng.randint(1, 40)) : at]
                case _:
                    raw[at:] = rng.choice(SEEDS)[rng.randrange(20) :]
        yield bytes(raw)


async def attack(guard: Guarded, count: int) -> None:
    """Send so many damaged requests; each gets sound answers or none, and its connection ends."""
    gate = asyncio.Semaphore(24)
    worst_seconds = 0.0

    async def one(raw: bytes) -> None:
        nonlocal worst_seconds
        async with gate:
            began = time.monotonic()
            reader, writer = await guard.connect()
            received = b""
            with contextlib.suppress(ConnectionError):
                writer.write(raw)
                writer.write_eof()
                received = await asyncio.wait_for(reader.read(), 5.0)
            writer.close()
            worst_seconds = max(worst_seconds, time.monotonic() - began)
        if b"\r\n\r\n" in received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"):
            for answer in parse(received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")):
                assert answer[0] < 500, (raw, answer)
                if answer[0] != 200:
                    check_error(answer)

    rng = mutations(20_261_121, count)
    while batch := [raw for raw, _ in zip(rng, range(500), strict=False)]:
        await asyncio.gather(*(one(raw) for raw in batch))
    await until(lambda: guard.connections == 0, 4.0)
    guard.application.asked.clear()
    assert worst_seconds < GRACE_SECONDS


@pytest.mark.slow
@guarded_server
async def test_damaged_requests_never_cause_a_5xx_a_hang_or_a_leak(guard: Guarded) -> None:
    """1,600 of them take less than 20 seconds and leave less than 512 KiB behind."""
    await attack(guard, 200)  # warm up what is allocated once
    tracemalloc.start()
    try:
        await attack(guard, 200)
        before, _ = tracemalloc.get_traced_memory()
        began = time.monotonic()
        await attack(guard, 1600)
        elapsed = time.monotonic() - began
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert elapsed < 20.0
    assert after - before < 512 << 10, "bytes that 1,600 requests left behind"


@pytest.mark.long
@guarded_server
async def test_a_hundred_thousand_damaged_requests_leave_nothing_behind(guard: Guarded) -> None:
    """A leak of six bytes per request would exceed the 512 KiB allowed."""
    await attack(guard, 1000)
    tracemalloc.start()
    try:
        await attack(guard, 1000)
        before, _ = tracemalloc.get_traced_memory()
        await attack(guard, 100_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 512 << 10


@guarded_server
async def test_draining_answers_what_is_asked_and_closes_the_rest(guard: Guarded) -> None:
    """In a deployment idle connections close at once, and a running request gets its answer."""
    idle_reader, idle_writer = await guard.connect()
    reader, writer = await guard.connect()
    writer.write(request(line="GET /slow HTTP/1.1"))
    await until(lambda: len(guard.application.asked) == 1)
    assert not await guard.server.drain(0.05), "one is still being answered"
    assert await asyncio.wait_for(idle_reader.read(), GRACE_SECONDS) == b""
    guard.application.go_on.set()
    assert await guard.server.drain(GRACE_SECONDS)
    (answer,) = parse(await asyncio.wait_for(reader.read(), GRACE_SECONDS))
    assert answer[0] == 200
    assert answer[1]["connection"] == "close"
    for open_writer in (writer, idle_writer):
        open_writer.close()


@guarded_server
async def test_draining_closes_a_connection_whose_answer_came_before_the_body(
    guard: Guarded,
) -> None:
    """Without this a restart would wait for a client that has already been answered."""
    reader, writer = await guard.connect()
    writer.write(request("Content-Length: 3\r\n", line="POST /early HTTP/1.1"))
    await asyncio.wait_for(reader.readuntil(b"}}"), GRACE_SECONDS)
    draining = asyncio.create_task(guard.server.drain(LIMITS.keep_alive_seconds / 2))
    await until(lambda: guard.server.draining)
    writer.write(b"abc")
    assert await draining
    writer.close()


@guarded_server
async def test_an_expected_100_continue_is_sent_only_where_the_body_is_wanted(
    guard: Guarded,
) -> None:
    """A client need not upload a body that is refused by its head."""
    head = "Expect: 100-continue\r\nContent-Length: 2\r\n"
    reader, writer = await guard.connect()
    writer.write(request(head))
    line = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), GRACE_SECONDS)
    assert line == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await asyncio.wait_for(reader.read(12), GRACE_SECONDS)) == b"HTTP/1.1 200"
    writer.close()
    reader, writer = await guard.connect()
    writer.write(request(head, line="POST /early HTTP/1.1"))
    assert (await asyncio.wait_for(reader.read(12), GRACE_SECONDS)) == b"HTTP/1.1 413"
    writer.close()


@guarded_server
async def test_a_body_held_back_for_100_continue_is_not_looked_for_in_the_next_request(
    guard: Guarded,
) -> None:
    """Who was refused need not send it: what follows may be a request, and may not pass for it."""
    head = f"Expect: 100-continue\r\nContent-Length: {len(GET)}\r\n"
    raw = request(head, line="POST /early HTTP/1.1")
    received, closed = await guard.talk(raw, GET + GET)
    (answer,) = parse(received)
    assert (answer[0], answer[1]["connection"]) == (413, "close")
    assert closed
    assert guard.application.asked == []


@guarded_server
async def test_a_body_beyond_its_limit_is_answered_and_its_connection_goes_on(
    guard: Guarded,
) -> None:
    """One byte too many in a chunk gives a 413, and the next request its answer."""
    size = LIMITS.body_bytes_max + 1
    chunked = b"%x\r\n" % size + b"a" * size + b"\r\n0\r\n\r\n"
    first, second = await guard.answers(request("Transfer-Encoding: chunked\r\n", chunked), GET)
    assert (first[0], second[0]) == (413, 200)
    check_error(first)
    assert guard.application.left == 1
