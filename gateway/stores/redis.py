"""Redis for the path of a request: one connection, no retries, and never longer than 50 ms.

Commands of one turn of the event loop travel together. A Redis that is down, slow, loading, full or
a replica is a ``RedisUnavailable`` for whoever asked, at once where it is already known. Giving up
means closing the connection; a task in the background opens the next one, and no request is ever
the one that finds out. Knows no key and no value.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import ReplyError

from gateway.stores.redis_connection import (
    Argument,
    Connection,
    RedisRefused,
    RedisUnavailable,
    Reply,
    dial,
    greeting,
)
from gateway.wire.redis_url import parse_redis_url

__all__ = ["Redis", "RedisRefused", "RedisUnavailable", "Script"]

_CONNECT_SECONDS = 1.0
_PAUSE_SECONDS_MIN = 0.05  # between attempts to connect; doubles up to the maximum
_PAUSE_SECONDS_MAX = 1.0
_STABLE_SECONDS = 1.0  # a connection that lasted so long is replaced without a longer pause
_CHECK_SECONDS = 1.0  # how often an idle connection is asked whether it still lives
# Redis serves nobody, or nobody who writes, just now. Other errors concern one command.
_STATES = frozenset(
    ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOREPLICAS", "OOM",
     "READONLY", "UNKILLABLE")
)  # fmt: skip

_log = logging.getLogger("tollhouse.redis")


class Script:
    """Lua source, sent once and called by its digest from then on."""

    __slots__ = ("sha1", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        # Redis names scripts so; nothing is protected by it.
        self.sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """One process's connection. Belongs to one event loop; use it in no other."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.05,
        failures_max: int = 5,
        open_seconds: float = 1.0,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connects on ``connect`` or on the first call. Raises ValueError for a wrong URL.

        timeout_seconds: for each reply. After failures_max failures in a row there is no
        connection for open_seconds; then one more failure is enough. count: told of each
        ``failed`` call, each ``lost`` post and each ``damaged`` value.
        """
        self._address = parse_redis_url(url)
        self._timeout_seconds = timeout_seconds
        self._failures_max = failures_max
        self._open_seconds = open_seconds
        self._count = count
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()  # the first attempt to connect is over
        self._failures = 0  # in a row
        self._told: str | None = None  # what the log was last told; None: that all is well

    @property
    def healthy(self) -> bool:
        """There is a connection, and Redis has answered on it."""
        return self._connection is not None

    async def connect(self) -> bool:
        """Start connecting; whether the first attempt succeeded. Never raises.

        Later attempts go on in the background for ever.
        """
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        await self._tried.wait()
        return self.healthy

    async def call(self, *args: Argument) -> Any:
        """Send one command and return its reply: bytes, int, None or a list of those.

        Raises RedisUnavailable where there is no usable reply, whatever the reason.
        """
        answer = await self._ask(args)
        if type(answer) is ReplyError:
            raise self._refusal(answer)
        self._failures = 0
        return answer

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes | int]) -> Any:
        """Run a script, atomically, and return what it returns. Raises RedisUnavailable."""
        answer = await self._ask(("EVALSHA", script.sha1, len(keys), *keys, *args))
        if type(answer) is ReplyError:
            if _code(answer) != "NOSCRIPT":
                raise self._refusal(answer)
            return await self.call("EVAL", script.source, len(keys), *keys, *args)
        self._failures = 0
        return answer

    def post(self, *args: Argument) -> None:
        """Send one command and do not wait. Never raises: what cannot be sent now is lost."""
        connection = self._connection
        if connection is None or connection.full:
            self._count("lost")
        else:
            connection.send(args, None)

    def dropped(self, what: str, values: int = 1) -> None:
        """Count and log values that could not be read and were dropped."""
        for _ in range(values):
            self._count("damaged")
        _log.warning("Redis: dropped what cannot be read: %s", what)

    async def close(self) -> None:
        """Let what is on its way arrive, within the time of one call; then close for good."""
        if self._keeper is None:
            return
        connection = self._connection
        if connection is not None and not connection.idle:
            with contextlib.suppress(RedisUnavailable):
                await self._ask(("PING",))
        self._keeper.cancel()
        self._tried.set()
        await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.end("closed")

    async def _ask(self, args: tuple[Argument, ...]) -> Any:
        """The reply, or an error of Redis as a value. Raises RedisUnavailable."""
        if not self._tried.is_set():
            await self.connect()
        connection = self._connection
        if connection is None or connection.full:
            self._count("failed")
            raise RedisUnavailable("Redis is away" if connection is None else "Redis falls behind")
        reply: Reply = connection.loop.create_future()
        connection.send(args, reply)
        try:
            return await reply
        except RedisUnavailable:
            self._count("failed")
            raise

    def _refusal(self, answer: ReplyError) -> RedisUnavailable:
        """An error of Redis as ours. One that concerns all commands counts as a failure."""
        self._count("failed")
        code = _code(answer)
        if code in _STATES:
            self._failures += 1
            if self._failures >= self._failures_max and self._connection is not None:
                # A new connection may lead to a new primary, where a name or a proxy stands for it.
                self._connection.end(f"Redis answered {code}")
            return RedisUnavailable(f"Redis answered {code}")
        return RedisRefused(f"Redis answered {code}")

    def _lost(self, connection: Connection, calls: int, posts: int) -> None:
        """A connection has ended with so many commands on it."""
        for _ in range(posts):
            self._count("lost")
        if connection is self._connection:
            self._connection = None
            self._failures += calls

    async def _keep(self) -> None:
        """Connect, again and again, for ever."""
        pause = _PAUSE_SECONDS_MIN
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._connection = await self._open(loop)
                self._tell(None)
                self._tried.set()
                reason = await self._watch(self._connection)
            except (OSError, ValueError, RedisUnavailable) as error:  # ValueError: no host name
                reason = str(error) or f"no connection within {_CONNECT_SECONDS:.0f} s"
            self._tell(reason)
            self._tried.set()
            if loop.time() - began >= _STABLE_SECONDS:
                pause = _PAUSE_SECONDS_MIN
            if self._failures >= self._failures_max:
                self._failures = self._failures_max - 1
                pause = max(pause, self._open_seconds)
            await asyncio.sleep(pause * random.uniform(1.0, 1.25))  # noqa: S311 - no secret
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Connection:
        """A connection on which Redis has answered. Raises OSError or RedisUnavailable."""

        def make() -> Connection:
            return Connection(loop, self._timeout_seconds, self._lost, lambda _: count("lost"))

        count = self._count
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await dial(self._address, make)
        replies = [loop.create_future() for _ in greeting(self._address)]
        for command, reply in zip(greeting(self._address), replies, strict=True):
            connection.send(command, reply)
        try:
            for answer in await asyncio.gather(*replies):
                if type(answer) is ReplyError:
                    raise RedisUnavailable(f"Redis answered {_code(answer)}")
        except BaseException:
            connection.end("no greeting")
            raise
        if answer != b"PONG":
            connection.end("what answers there is no Redis")
        if connection.lost.done():  # it may also have ended right behind its greeting
            raise RedisUnavailable(connection.lost.result())
        return connection

    async def _watch(self, connection: Connection) -> str:
        """Wait for the end of a connection; why it came. An idle one is asked once a second."""
        while True:
            await asyncio.wait((connection.lost,), timeout=_CHECK_SECONDS)
            if connection.lost.done():
                return connection.lost.result()
            if connection.idle:
                connection.send(("PING",), None)

    def _tell(self, reason: str | None) -> None:
        """Log a change of state, once."""
        if (reason is None) == (self._told is None):
            return
        self._told = reason
        if reason is None:
            _log.info("Redis at %s is back", self._address.name)
        else:
            _log.warning("Redis at %s is away: %s", self._address.name, reason)


def _code(answer: ReplyError) -> str:
    """The first word of an error, such as ``LOADING``: all of it that may enter a log."""
    return str(answer).partition(" ")[0][:32]
