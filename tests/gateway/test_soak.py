"""A long day in short: every kind of caller at once, and afterwards nothing is left behind.

Memory is read at rest, after a warm-up that fills whatever may fill (the exact cache is small
here). Tasks and file descriptors must be back where they were.
"""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.process_tree import open_files, resident_bytes
from tests.gateway.running import RunningGateway, mock_provider, running_gateway, wait_for

CALLERS = 32
# Of twenty requests; each kind has its own promise about the answer.
MIX = (
    "miss", "hit", "miss", "stream", "miss", "hit", "leaver", "miss", "invalid", "stream",
    "miss", "hit", "miss", "failing", "miss", "stream", "miss", "impatient", "hit", "garbage",
)  # fmt: skip
UNBOOKED = {"invalid", "garbage"}  # refused before there is anything to book
LIMITS = {"TOLLHOUSE_LIMITS_EXACT_CACHE_BYTES": str(1 << 20)}


@pytest.fixture
def mock() -> Iterator[str]:
    """The base URL of a provider that answers at once, in a process of its own."""
    with mock_provider() as base_url:
        yield base_url


class Callers:
    """Clients of all kinds. ``sent`` counts the requests of each kind that got what they should."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.sent: Counter[str] = Counter()
        self._port = gateway.port
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {gateway.key('globex')}\r\n"
        ).encode()
        self._number = 0

    async def send(self, requests: int) -> None:
        """So many requests, of all kinds at once."""
        last = self._number + requests

        async def caller() -> None:
            connection: Connection | None = None
            while self._number < last:
                number, self._number = self._number, self._number + 1
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                kind = MIX[number % len(MIX)]
                async with asyncio.timeout(30):
                    if not await self._one(kind, number, connection):
                        connection[1].transport.abort()
                        connection = None
                self.sent[kind] += 1
            if connection is not None:
                connection[1].close()

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def _one(self, kind: str, number: int, connection: "Connection") -> bool:
        """One request. Whether its connection can be used again."""
        reader, writer = connection
        if kind == "garbage":
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
            assert (await self._answer(reader))[0] == 400
            return False
        writer.write(self._request(kind, number))
        if kind == "impatient":  # leaves before the provider has answered
            writer.write_eof()  # the gateway hears of it after the request, never before
            assert await reader.read() == b""
            return False
        if kind == "leaver":
            await reader.readuntil(b"\n\n")
            return False
        status, body = await self._answer(reader)
        assert status == {"invalid": 400, "failing": 500}.get(kind, 200), body
        if kind == "stream":
            assert body.endswith(b"data: [DONE]\n\n"), body[-100:]
        else:
            assert ("choices" if status == 200 else "error") in json.loads(body)
        return True

    def _request(self, kind: str, number: int) -> bytes:
        text = {
            "hit": "Always the same.", "impatient": f"made-to-wait {number}",
            "failing": f"made-to-fail {number}",
        }.get(kind, f"Question {number}")  # fmt: skip
        message = {"role": "user", "content": text}
        body: dict[str, Any] = {"model": "large", "messages": [message], "max_tokens": 5}
        if kind in ("stream", "leaver"):
            body |= {"stream": True, "max_tokens": 5 if kind == "stream" else 1000}
        raw = json.dumps(body).encode()
        if kind == "invalid":
            raw = raw[:-1]
        return b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(raw), raw)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length:
            return status, await reader.readexactly(int(length))
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, body


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Rest:
    """A gateway's worker with nothing to do."""

    def __init__(self, gateway: RunningGateway) -> None:
        """Waits until all is answered and booked."""
        wait_for(lambda: self._figure(gateway, "in_flight") == 0, 20)
        wait_for(lambda: self._figure(gateway, "metering_lag_seconds") == 0, 120)
        self._worker = gateway.child("worker")
        self.tasks = int(self._figure(gateway, "event_loop_tasks"))
        self.files = open_files(self._worker)
        self.resident_mb = resident_bytes([self._worker]) / 1e6

    @staticmethod
    def _figure(gateway: RunningGateway, name: str) -> float:
        with gateway.admin() as admin:
            text = admin.get("/metrics").text
        line = next(line for line in text.splitlines() if line.startswith(f"tollhouse_{name} "))
        return float(line.split()[1])


def booked(gateway: RunningGateway) -> int:
    """How many requests are in the ledger."""
    with sqlite3.connect(gateway.state_dir / "ledger.sqlite") as ledger:
        (count,) = ledger.execute("SELECT COUNT(DISTINCT request_id) FROM usage_event").fetchone()
    ledger.close()
    return int(count)


async def soak(gateway: RunningGateway, warm_up: int, requests: int, growth: float) -> None:
    """Warm up, go on, and compare; ``growth`` of the memory is allowed."""
    callers = Callers(gateway)
    await callers.send(warm_up)
    before = await asyncio.to_thread(Rest, gateway)
    await callers.send(requests - warm_up)
    after = await asyncio.to_thread(Rest, gateway)
    print(
        f"{requests} requests: {before.resident_mb:.1f} MB to {after.resident_mb:.1f} MB, "
        f"{before.files} files to {after.files}, {before.tasks} tasks to {after.tasks}"
    )
    expected = sum(count for kind, count in callers.sent.items() if kind not in UNBOOKED)
    assert await asyncio.to_thread(booked, gateway) == expected
    assert after.tasks == before.tasks
    assert after.files <= before.files + CALLERS  # idle connections to the provider
    assert after.resident_mb <= before.resident_mb * (1 + growth)


async def test_five_thousand_requests_leave_nothing_behind(tmp_path: Path, mock: str) -> None:
    """Memory grows by a tenth at most, no task stays, and the books are complete."""
    with running_gateway(tmp_path, mock, environment=LIMITS) as gateway:
        await soak(gateway, 2_500, 5_000, growth=0.10)


@pytest.mark.long
async def test_two_hundred_thousand_requests_leave_nothing_behind(
    tmp_path: Path, mock: str
) -> None:
    """Over a long day memory grows by a twentieth at most, and the books are complete."""
    with running_gateway(tmp_path, mock, environment=LIMITS) as gateway:
        await soak(gateway, 40_000, 200_000, growth=0.05)
