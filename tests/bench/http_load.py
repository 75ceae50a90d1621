"""Closed-loop load over raw connections: each asks again as soon as it has its answer.

Costs about as much CPU per request as the mock provider, and knows nothing of who answers. Every
answer must be a complete 200; the first that is not ends the run with an error.
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import cast

import uvloop
from msgspec import Struct

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_FINISH_SECONDS = 60.0


class Sample(Struct):
    """What one run of load saw."""

    requests: int  # all that were answered, warm-up included
    events: int  # of streams, all
    requests_per_second: float  # after warm-up, as what follows
    latencies: list[float]  # ascending, seconds from the write to the last byte
    first_bytes: list[float]  # the same to the first byte of the body


class Load:
    """One run. Latencies count between warm-up and deadline only."""

    def __init__(self, make: Callable[[], bytes], mark: bytes) -> None:
        self.make = make
        self.mark = mark  # what each head contains after warm-up, in lower case
        self.counting = self.ending = False
        self.requests = self.events = self.connected = 0
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []
        loop = asyncio.get_running_loop()
        self.failure: asyncio.Future[None] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()

    def fail(self, why: str) -> None:
        """End the run with an error."""
        if not self.failure.done():
            self.failure.set_exception(RuntimeError(why))

    def leave(self) -> None:
        """A connection has nothing more to do."""
        self.connected -= 1
        if not self.connected and not self.finished.done():
            self.finished.set_result(None)


class Asker(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._asking = self._in_body = False
        self._head = self._tail = b""
        self._missing = -1  # bytes of the body yet to come; -1: chunked
        self._began = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._load.connected += 1
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if self._asking:
            self._load.fail("a connection was closed before its answer was complete")

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self._head[end + 4 :]
            if not self._read_head(self._head[: end + 2]):
                return
        if not data:
            return
        if not self._tail:
            self._first = time.perf_counter()
        if self._missing >= 0:
            self._missing -= len(data)
            self._tail = b"."
            if self._missing <= 0:
                self._complete()
            return
        self._load.events += data.count(b"data: {")
        self._tail = (self._tail + data)[-32:]
        if self._tail.endswith(b"\r\n0\r\n\r\n"):
            if b"[DONE]" not in self._tail:
                self._load.fail(f"a stream ended with {self._tail!r}")
            self._complete()

    def _ask(self) -> None:
        self._asking = not self._load.ending
        if not self._asking:
            self._transport.abort()
            self._load.leave()
            return
        self._head = self._tail = b""
        self._missing = -1
        self._in_body = False
        self._began = time.perf_counter()
        self._transport.write(self._load.make())

    def _read_head(self, head: bytes) -> bool:
        load = self._load
        expected = not load.counting or load.mark in head.lower()
        if not (head.startswith(b"HTTP/1.1 200") and expected):
            load.fail(f"not the answer that was expected: {self._head[:2000]!r}")
            return False
        self._in_body = True
        length = _LENGTH.search(head)
        if length is not None:
            self._missing = int(length[1])
        return True

    def _complete(self) -> None:
        load = self._load
        load.requests += 1
        if load.counting:
            load.latencies.append(time.perf_counter() - self._began)
            load.first_bytes.append(self._first - self._began)
        self._ask()


def drive(
    port: int, make: Callable[[], bytes], *, connections: int, seconds: float,
    warm_seconds: float = 0.2, mark: bytes = b"",
) -> Sample:  # fmt: skip
    """Load 127.0.0.1:``port``, and let every request end. Raises RuntimeError at a wrong answer."""

    async def run() -> Sample:
        load = Load(make, mark)
        loop = asyncio.get_running_loop()
        transports: list[asyncio.BaseTransport] = []
        try:
            for _ in range(connections):
                opened = await loop.create_connection(lambda: Asker(load), "127.0.0.1", port)
                transports.append(opened[0])
            await _until(load, load.finished, warm_seconds)
            began, load.counting = time.perf_counter(), True
            await _until(load, load.finished, seconds)
            took, load.counting = time.perf_counter() - began, False
            load.ending = True
            await _until(load, load.finished, _FINISH_SECONDS)
        finally:
            for transport in transports:
                transport.close()
        return Sample(
            requests=load.requests, events=load.events,
            requests_per_second=len(load.latencies) / took,
            latencies=sorted(load.latencies), first_bytes=sorted(load.first_bytes),
        )  # fmt: skip

    return uvloop.run(run())


async def _until(load: Load, future: "asyncio.Future[None]", seconds: float) -> None:
    """Wait for ``future`` for so long at most. Raises what went wrong meanwhile."""
    await asyncio.wait({load.failure, future}, timeout=seconds, return_when="FIRST_COMPLETED")
    if load.failure.done():
        load.failure.result()


def percentile(ascending: list[float], share: float) -> float:
    """The value below which ``share`` of them lie; 0 of none."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else 0.0
