"""A TCP proxy before a Redis, in a thread of its own: faithful, late, or a liar."""

import asyncio
import contextlib
import random
import socket
import threading
from pathlib import Path
from typing import Literal

Mode = Literal["faithful", "slow", "far", "garbage", "loading"]

SLOW_SECONDS = 0.5


class RedisProxy:
    """Listens on a free port and passes on to a Unix socket, as ``mode`` says at the moment."""

    def __init__(self, target: Path) -> None:
        self.mode: Mode = "faithful"
        self._target = target
        self._rng = random.Random(11)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", self.port), self._loop
        ).result(5)

    @property
    def url(self) -> str:
        """What the gateway is told."""
        return f"redis://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End every connection and the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.transport.abort()
            return
        for source, sink, replies in ((reader, back[1], False), (back[0], writer, True)):
            pump = self._loop.create_task(self._pump(source, sink, replies))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, replies: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                while data := await source.read(65_536):
                    if not replies and self.mode == "far":
                        await asyncio.sleep(SLOW_SECONDS)
                    sink.write(await self._altered(data) if replies else data)
            finally:
                sink.transport.abort()

    async def _altered(self, data: bytes) -> bytes:
        if self.mode == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        elif self.mode == "garbage":
            return self._rng.randbytes(len(data) + 8)
        elif self.mode == "loading":
            return b"-LOADING Redis is loading the dataset in memory\r\n"
        return data
