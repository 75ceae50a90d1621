"""CPU per request of the upstream client alone, against the simulated provider.

    python tests/bench/bench_http1.py [--seconds 2] [--connections 32]

The provider runs in a process of its own; the figures are CPU of this process (time.process_time),
which a busy machine disturbs little. The baseline is the least a client could do: the same bytes
over a bare asyncio protocol that counts the bytes of an answer and parses nothing. Two rows have
no socket: what the client itself costs, for an answer of 3 headers and of 20, as is common.
"""

import argparse
import asyncio
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gateway.simulator import Simulator
from gateway.upstreams.base import UpstreamRequest
from gateway.upstreams.connect import Connector, P
from gateway.upstreams.egress import Egress
from gateway.upstreams.http1 import Http1Pool
from gateway.upstreams.openai import OpenAIUpstream
from gateway.wire.relay import StreamRelay

ROUNDS = 3
MESSAGES = [{"role": "user", "content": "How long is a piece of string? " * 8}]
WHOLE = orjson.dumps({"model": "simulated-large", "messages": MESSAGES, "max_tokens": 40})
STREAM = orjson.dumps(
    {"model": "simulated-large", "messages": MESSAGES, "max_tokens": 40, "stream": True,
     "stream_options": {"include_usage": True}}
)  # fmt: skip


def provide(ready: Connection) -> None:
    """Run the provider until the process is ended."""

    async def run() -> None:
        simulator = Simulator()
        await simulator.start()
        ready.send(simulator.base_url)
        await asyncio.Event().wait()

    uvloop.run(run())


class Bare(asyncio.Protocol):
    """Writes the request again whenever as many bytes have come as an answer has."""

    def __init__(self, request: bytes, answer_bytes: int) -> None:
        self.request, self.answer_bytes = request, answer_bytes
        self.count = self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast(asyncio.WriteTransport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        while self.received >= self.answer_bytes:
            self.received -= self.answer_bytes
            self.count += 1
            self.transport.write(self.request)


async def bare(base_url: str, seconds: float, connections: int) -> tuple[int, int]:
    """(requests, bytes of the last answer) of the baseline."""
    port = int(base_url.rpartition(":")[2].partition("/")[0])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    request = head % len(WHOLE) + WHOLE
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    first = await reader.readuntil(b"\r\n\r\n")
    length = int(first.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    writer.close()
    loop = asyncio.get_running_loop()
    protocols = [
        (
            await loop.create_connection(
                lambda: Bare(request, len(first) + length), "127.0.0.1", port
            )
        )
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in protocols:
        transport.abort()
    return sum(protocol.count for _, protocol in protocols), length


async def ask(upstream: OpenAIUpstream, body: bytes) -> int:
    """One whole answer; its bytes."""
    now = time.monotonic()
    response = await upstream.send(
        UpstreamRequest(
            request_id="x", path="/chat/completions", body=body,
            first_byte_deadline=now + 30, idle_seconds=30, deadline=now + 60,
        )
    )  # fmt: skip
    size = 0
    while data := await response.receive():
        size += len(data)
    return size


async def relay(upstream: OpenAIUpstream) -> int:
    """One streamed answer through the relay; its bytes."""
    now = time.monotonic()
    response = await upstream.send(
        UpstreamRequest(
            request_id="x", path="/chat/completions", body=STREAM, stream=True,
            first_byte_deadline=now + 30, idle_seconds=30, deadline=now + 60,
        )
    )  # fmt: skip
    stream = StreamRelay(endpoint="chat", include_usage=False, keep=False)
    size = 0
    while data := await response.receive():
        size += len(stream.feed(data))
    return size + len(stream.end())


async def drive(
    base_url: str,
    seconds: float,
    connections: int,
    call: Callable[[OpenAIUpstream], Awaitable[int]],
) -> tuple[int, int]:
    """(requests, bytes of the last answer) of closed-loop load."""
    upstream = OpenAIUpstream(
        name="sim", base_url=base_url, authorization="Bearer sk-simulated", connect_seconds=2,
        concurrent_max=connections, window_seconds=30, min_requests=20, error_rate=0.5,
        eject_seconds=30, answer_bytes_max=64 << 20,
    )  # fmt: skip
    deadline = time.monotonic() + seconds
    count = size = 0

    async def one() -> None:
        nonlocal count, size
        while time.monotonic() < deadline:
            size = await call(upstream)
            count += 1

    await asyncio.gather(*(one() for _ in range(connections)))
    await upstream.close()
    return count, size


class Instant:
    """A transport whose every write is answered in the loop's next turn; in place of a socket."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.protocol: asyncio.BufferedProtocol

    def write(self, _: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        size = len(self.answer)
        cast(memoryview, self.protocol.get_buffer(-1))[:size] = self.answer
        self.protocol.buffer_updated(size)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


class Nowhere(Connector):
    """Connects to an ``Instant``."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(Egress("127.0.0.1", 9), tls=None, connect_seconds=1.0)
        self.answer = answer

    async def open(self, make: Callable[[], P], deadline: float) -> P:
        transport, protocol = Instant(self.answer), make()
        transport.protocol = cast(asyncio.BufferedProtocol, protocol)
        protocol.connection_made(cast(asyncio.BaseTransport, transport))
        return protocol


async def no_socket(seconds: float, headers: int) -> tuple[int, int]:
    """(requests, bytes of an answer) one after the other, without a socket."""
    body = b'{"choices":[]}' * 30
    lines = b"".join(b"X-Header-%d: some value\r\n" % number for number in range(headers - 1))
    head = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (lines, len(body))
    pool = Http1Pool(Nowhere(head + body), connections_max=1, answer_bytes_max=1 << 20)
    count, began = 0, time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        for _ in range(100):
            response = await pool.send(
                b"POST /v1/x HTTP/1.1\r\n\r\n", WHOLE, first_byte_deadline=now + 30,
                idle_seconds=30, deadline=now + 60,
            )  # fmt: skip
            while await response.receive():
                count += 1
    await pool.close()
    return count, len(body)


def cpu_seconds(pid: int | None) -> float:
    """CPU that the kernel has charged the first thread of a process."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    """Measure and print one line per case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    provider = multiprocessing.get_context("spawn").Process(
        target=provide, args=(there,), daemon=True
    )
    provider.start()
    base_url = here.recv()
    print(f"Python {platform.python_version()}, uvloop {version('uvloop')}, {platform.machine()}")
    cases: dict[str, Callable[[], Coroutine[Any, Any, tuple[int, int]]]] = {
        "client, no socket, 3 headers": lambda: no_socket(options.seconds, 3),
        "client, no socket, 20 headers": lambda: no_socket(options.seconds, 20),
        "bare protocol, no parsing": lambda: bare(base_url, options.seconds, options.connections),
        "client, whole answer": lambda: drive(
            base_url, options.seconds, options.connections, lambda upstream: ask(upstream, WHOLE)
        ),
        "client, stream unparsed": lambda: drive(
            base_url, options.seconds, options.connections, lambda upstream: ask(upstream, STREAM)
        ),
        "client + relay, stream": lambda: drive(
            base_url, options.seconds, options.connections, relay
        ),
    }
    for name, case in cases.items():
        figures: list[float] = []
        theirs: list[float] = []
        count = size = 0
        for _ in range(ROUNDS):
            began, provider_began = time.process_time(), cpu_seconds(provider.pid)
            count, size = uvloop.run(case())
            figures.append((time.process_time() - began) * 1e6 / count)
            theirs.append((cpu_seconds(provider.pid) - provider_began) * 1e6 / count)
        spread = max(figures) - min(figures)
        print(
            f"{name:30} {statistics.median(figures):7.1f} µs CPU (spread {spread:.1f}),"
            f" provider {statistics.median(theirs):.0f} µs, {size} bytes,"
            f" {count / options.seconds:,.0f} requests/s"
        )
    provider.terminate()
    provider.join()


if __name__ == "__main__":
    main()
