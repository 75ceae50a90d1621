"""A scripted upstream on a raw socket: answers byte for byte, however wrong."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Self

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection of the upstream, as its script sees it."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        notify: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.number = number  # 0 is the first connection
        self.requests: list[bytes] = []
        self.closed_at: float | None = None  # monotonic, when the client was seen to have gone
        self._reader = reader
        self._writer = writer
        self._notify = notify

    async def request(self) -> bytes:
        """Read one request with a content-length; head and body."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self._reader.readexactly(int(lines.get(b"content-length", b"0")))
        self.requests.append(head + body)
        await self._notify()
        return head + body

    async def read(self) -> bytes:
        """What comes next, whatever it is; ``b""`` at the end."""
        return await self._reader.read(65_536)

    async def send(self, data: bytes) -> None:
        """Write, and wait while the client does not read."""
        self._writer.write(data)
        await self._writer.drain()

    async def apart(self, *pieces: bytes) -> None:
        """Write the pieces so that they are unlikely to arrive together."""
        for piece in pieces:
            await self.send(piece)
            await asyncio.sleep(0.002)

    def close(self) -> None:
        """End the connection properly."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass
        self.closed_at = time.monotonic()


class RawUpstream:
    """Serves ``script`` to each connection, in the running loop, on 127.0.0.1."""

    def __init__(self, script: Script, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.peers: list[Peer] = []
        self.port = port  # 0: any
        self._script = script
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            peer._writer.transport.abort()

    async def finished(self, number: int = 0) -> None:
        """Wait until the script of a connection has ended; raises what it raised."""
        async with asyncio.timeout(5):
            await self.until(lambda: len(self._tasks) > number)
            await self._tasks[number]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that changes as connections and requests come."""
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(self.peers), reader, writer, self._notify)
        self.peers.append(peer)
        self._tasks.append(asyncio.create_task(self._run(peer)))
        await self._notify()

    async def _run(self, peer: Peer) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._script(peer)
