"""One connection to Redis: commands out in turns, replies back in order.

All commands of one turn of the event loop leave in one write. A reply belongs to the oldest command
without one, so whatever may have shifted that order (a reply too late, one too many, bytes that are
no reply) ends the connection; nothing is ever matched again by guessing. Knows the protocol (RESP2)
and time. Does not know what the commands mean, nor when to connect again.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from gateway.wire.redis_url import RedisAddress

COMMANDS_MAX = 8_192  # sent or about to be, without a reply
UNSENT_BYTES_MAX = 4 << 20  # beyond it Redis reads slower than we write: nothing more is taken
REPLY_BYTES_MAX = 16 << 20  # of one unfinished reply
_POLL_SECONDS = 0.001
_MORE = object()  # hiredis: the reply is not whole yet

Argument = bytes | str | int
Reply = asyncio.Future[Any]
# Its stub knows tuples of one element only.
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)


class RedisUnavailable(Exception):
    """Redis cannot be used just now; who asked falls back. Never shown to a client."""


class RedisRefused(RedisUnavailable):
    """Redis serves others and refuses this command: most likely its key holds something else."""


class Connection(asyncio.Protocol):
    """Commands in flight on one socket. ``lost`` is done, with the reason, when it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout_seconds: float,
        on_lost: "Callable[[Connection, int, int], None]",
        on_refused: Callable[[hiredis.ReplyError], None],
    ) -> None:
        """on_lost: called once, with the numbers of calls and of posts that ended with it.

        on_refused: called with the error that answered a posted command.
        """
        self.lost: asyncio.Future[str] = loop.create_future()
        self.loop = loop
        self._timeout_seconds = timeout_seconds
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._transport: asyncio.WriteTransport
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._unfinished_bytes = 0
        self._waiting: deque[tuple[Reply | None, float]] = deque()  # reply, when it is overdue
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._choked = False
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False

    @property
    def full(self) -> bool:
        """No further command is taken: Redis or the network does not keep up."""
        return (
            self._choked
            or self._unsent_bytes > UNSENT_BYTES_MAX
            or len(self._waiting) >= COMMANDS_MAX
        )

    @property
    def idle(self) -> bool:
        """Every command has its reply."""
        return not self._waiting

    def send(self, args: tuple[Argument, ...], reply: Reply | None) -> None:
        """Send one command at the end of this turn; ``reply`` None: nobody waits for it.

        The reply becomes its result, an error of Redis as a ``hiredis.ReplyError`` value. It raises
        RedisUnavailable where the connection ends first or the time is up.
        """
        command = _pack(args)
        due = self.loop.time() + self._timeout_seconds
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(command)
        self._unsent_bytes += len(command)
        self._waiting.append((reply, due))
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._look)

    def end(self, reason: str) -> None:
        """Close at once; every command in flight fails. Only the first call counts."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        self._unsent = []
        calls = [reply for reply, _ in self._waiting if reply is not None]
        self._on_lost(self, len(calls), len(self._waiting) - len(calls))
        self._waiting.clear()
        for reply in calls:
            if not reply.done():  # else its caller has been cancelled
                reply.set_exception(RedisUnavailable(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.end("Redis closed the connection" if exc is None else f"lost: {exc}")

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._choked = True

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._choked = False

    def data_received(self, data: bytes) -> None:
        """Called by the event loop. Hand each whole reply to the oldest command without one."""
        reader, waiting = self._reader, self._waiting
        finished = False
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                finished = True
                reply, _ = waiting.popleft()
                if reply is None:
                    if type(answer) is hiredis.ReplyError:
                        self._on_refused(answer)
                elif not reply.done():  # else its caller has been cancelled
                    reply.set_result(answer)
        except IndexError:
            self.end("Redis sent a reply to nothing")
            return
        except (hiredis.HiredisError, MemoryError, UnicodeDecodeError):
            self.end("Redis sent what is no reply")
            return
        self._unfinished_bytes = 0 if finished else self._unfinished_bytes + len(data)
        if self._unfinished_bytes > REPLY_BYTES_MAX:
            self.end(f"Redis sent a reply above {REPLY_BYTES_MAX} bytes")

    def _flush(self) -> None:
        if self._unsent:  # else the connection has ended
            self._transport.write(b"".join(self._unsent))
            self._unsent = []
            self._unsent_bytes = 0

    def _look(self) -> None:
        """Is the oldest command overdue? One timer serves all of them."""
        self._timer = None
        if not self._waiting:
            return
        due = self._waiting[0][1]
        if self.loop.time() < due:
            self._overdue = False
            self._timer = self.loop.call_at(due, self._look)
        elif not self._overdue:
            # If we were the ones who were busy, the reply lies unread in the socket: poll once.
            self._overdue = True
            self._timer = self.loop.call_later(_POLL_SECONDS, self._look)
        else:
            self.end(f"no answer within {self._timeout_seconds * 1e3:.0f} ms")


async def dial(address: RedisAddress, make: Callable[[], Connection]) -> Connection:
    """Open the socket. Raises OSError (ssl.SSLError among them)."""
    loop = asyncio.get_running_loop()
    if address.path:
        return (await loop.create_unix_connection(make, address.path))[1]
    tls = ssl.create_default_context() if address.tls else None
    return (await loop.create_connection(make, address.host, address.port, ssl=tls))[1]


def greeting(address: RedisAddress) -> list[tuple[Argument, ...]]:
    """What is said first. Its last command is answered ``PONG`` by a Redis that is ready."""
    commands: list[tuple[Argument, ...]] = []
    if address.password:
        login = (address.user, address.password) if address.user else (address.password,)
        commands.append(("AUTH", *login))
    if address.database:
        commands.append(("SELECT", address.database))
    return [*commands, ("PING",)]
