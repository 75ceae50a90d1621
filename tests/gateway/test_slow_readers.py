"""Clients that hardly read: what they may cost the gateway, and the clients beside them.

Each reads one byte a second of a stream that the provider pours out as fast as it is taken.
"""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.http_load import percentile
from tests.bench.process_tree import open_files, resident_bytes
from tests.gateway.running import RunningGateway, mock_provider, running_gateway, wait_for

STREAM_BYTES_MAX = 256 << 10
HEAP_BYTES = 4 << 20  # by which the gateway's memory may move without any slow reader
BYSTANDERS = 4


@pytest.fixture
def mock() -> Iterator[str]:
    """The base URL of a provider in a process of its own."""
    with mock_provider() as base_url:
        yield base_url


def request(key: str, text: str, **more: object) -> bytes:
    message = {"role": "user", "content": text}
    raw = json.dumps({"model": "uncached", "messages": [message], "max_tokens": 5, **more}).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(raw)}\r\n\r\n"
    ).encode() + raw


class SlowReaders:
    """Streams whose clients read a byte a second until ``stop``."""

    def __init__(self, gateway: RunningGateway, key: str, count: int) -> None:
        self._sockets: list[socket.socket] = []
        for number in range(count):
            connection = socket.socket()
            # Small, so that what is not read waits in the gateway, not with the reader.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", gateway.port))
            connection.sendall(request(key, f"made-to-pour {number}", stream=True))
            self._sockets.append(connection)

    async def read(self) -> None:
        """Read a byte of each, once a second, for ever."""
        for connection in self._sockets:
            connection.setblocking(False)
        while True:
            for connection in self._sockets:
                with contextlib.suppress(OSError):  # nothing there yet, or parted with
                    connection.recv(1)
            await asyncio.sleep(1.0)

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()


async def bystanders(gateway: RunningGateway, key: str, seconds: float, share: float) -> float:
    """The latency in seconds that this share of ordinary clients' requests keeps to.

    Of three spells the best: what else the machine has to do is not what is asked here.
    """
    return min([percentile(await latencies(gateway, key, seconds), share) for _ in range(3)])


async def latencies(gateway: RunningGateway, key: str, seconds: float) -> list[float]:
    """Of ordinary clients' requests, in seconds, ascending."""
    deadline = time.monotonic() + seconds
    found: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        while time.monotonic() < deadline:
            began = time.perf_counter()
            writer.write(request(key, f"Hello {number}"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            found.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(BYSTANDERS)))
    return sorted(found)


def kernel_bytes(gateway_port: int, provider_port: int) -> int:
    """What the kernel holds for the gateway: for clients to take, and from providers to read."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, own, peer, _, queues, *_ = line.split()
        sent, received = (int(size, 16) for size in queues.split(":"))
        if int(own.partition(":")[2], 16) == gateway_port:
            total += sent
        elif int(peer.partition(":")[2], 16) == provider_port:
            total += received
    return total


async def burden(
    gateway: RunningGateway, mock: str, readers: int, seconds: float, share: float
) -> None:
    """Let them read slowly; check memory, others' latency, and that they are parted with.

    The others are measured once every buffer is full: until then the provider's flood is work like
    any other.
    """
    ports = gateway.port, int(mock.rpartition(":")[2].partition("/")[0])
    key = await asyncio.to_thread(gateway.key, "globex")
    worker = gateway.child("worker")
    alone = await bystanders(gateway, key, seconds, share)
    files, resident = open_files(worker), resident_bytes([worker])
    slow = SlowReaders(gateway, key, readers)
    reading = asyncio.create_task(slow.read())
    try:
        took = await filled(lambda: kernel_bytes(*ports))
        beside = await bystanders(gateway, key, seconds, share)
        grown = max(0, resident_bytes([worker]) - resident - HEAP_BYTES) / readers
        kernel = kernel_bytes(*ports) / readers
        print(
            f"{readers} readers, full in {took:.1f} s: {grown / 1024:.0f} KiB each and "
            f"{kernel / 1024:.0f} in the kernel; {share:.0%} of the others within "
            f"{alone * 1e3:.1f} ms alone, {beside * 1e3:.1f} ms beside them"
        )
        assert open_files(worker) > files, "they were parted with before anything was measured"
        assert grown <= STREAM_BYTES_MAX
        assert kernel <= STREAM_BYTES_MAX
        assert beside <= max(alone * 1.1, alone + 0.005)
        await asyncio.to_thread(wait_for, lambda: open_files(worker) <= files, 30)
    finally:
        reading.cancel()
        slow.close()


async def filled(size: Callable[[], int]) -> float:
    """Wait until no buffer grows any more; how many seconds that took."""
    began = time.monotonic()
    before, now = -1, size()
    while not before == now > 0:
        assert time.monotonic() < began + 60, "the buffers grow for ever"
        await asyncio.sleep(0.25)
        before, now = now, size()
    return time.monotonic() - began


async def test_twenty_slow_readers_cost_little_and_are_parted_with(
    tmp_path: Path, mock: str
) -> None:
    """Memory for each is bounded, and clients beside them hardly notice."""
    stall = {"TOLLHOUSE_LIMITS_WRITE_STALL_SECONDS": "4"}
    with running_gateway(tmp_path, mock, environment=stall) as gateway:
        await burden(gateway, mock, 20, 0.4, share=0.5)


@pytest.mark.long
async def test_two_hundred_slow_readers_cost_little_and_are_parted_with(
    tmp_path: Path, mock: str
) -> None:
    """Ten times the crowd costs no more for each of them, and 99 % of other requests stay quick."""
    stall = {"TOLLHOUSE_LIMITS_WRITE_STALL_SECONDS": "30"}
    with running_gateway(tmp_path, mock, environment=stall) as gateway:
        await burden(gateway, mock, 200, 3.0, share=0.99)
