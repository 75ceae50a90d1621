"""The admin process's end: every worker of the node, what it has and what it says.

Four times a second each worker is told what it should have and says how it stands; news are told
at once. So nothing can get lost: a worker that was restarted is simply one that has nothing yet.
Knows no policy, no key and no HTTP.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from gateway.node import messages
from gateway.node.messages import Adopt, Answer, Hello, Question, Standing, Wanted

BEAT_SECONDS = 0.25
ANSWER_SECONDS_MAX = 10.0  # a large policy takes a worker a second; a dead one must not hold us
NEWS_SECONDS_MAX = 1.0  # whoever changes something waits so long for all workers to have it
_log = logging.getLogger("tollhouse.node")


class Peer:
    """One worker. Questions to it are asked one after the other."""

    def __init__(
        self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number, self.process = hello.number, hello.process
        self.standing = Standing()
        self.snapshot = b""  # the metrics it last reported
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def ask(self, question: Question) -> Answer:
        """Its answer. Raises OSError where it has none in time; then it is cut off."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX), self._turn:
                if self._writer.is_closing():
                    raise ConnectionResetError("it has ended")
                await messages.send(self._writer, question)
                return await messages.read_answer(self._reader)
        except (OSError, EOFError, asyncio.CancelledError) as error:
            self._writer.close()  # the next reply could be that to this question
            if isinstance(error, EOFError):
                raise ConnectionResetError("it has ended") from None
            raise


class Hub:
    """All workers of a node."""

    def __init__(
        self,
        workers: int,
        *,
        wanted: Callable[[], Wanted],
        policy: Callable[[], Adopt],
        came: Callable[[Peer], None],
        left: Callable[[Peer], None],
    ) -> None:
        """workers: how many there should be; came, left: told of each that is there, and gone."""
        self._workers = workers
        self._wanted = wanted
        self._policy = policy
        self._came, self._left = came, left
        self._peers: dict[int, Peer] = {}
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop

    async def open(self, path: Path) -> None:
        """Wait for workers on this socket."""
        self._loop = asyncio.get_running_loop()
        path.unlink(missing_ok=True)  # of an admin process that was killed
        self._server = await asyncio.start_unix_server(self._serve, path)

    @property
    def peers(self) -> list[Peer]:
        """The workers that are connected."""
        return list(self._peers.values())

    @property
    def ready(self) -> bool:
        """Every worker serves the policy now in force."""
        policy = self._wanted().policy
        standings = [peer.standing for peer in self._peers.values()]
        return len(standings) == self._workers and all(
            standing.healthy and not standing.draining and standing.policy == policy
            for standing in standings
        )

    def publish(self) -> None:
        """Tell every worker what has changed; back when they have it, or after a second.

        For any thread but the event loop's.
        """
        telling = asyncio.run_coroutine_threadsafe(self._tell_all(), self._loop)
        with contextlib.suppress(TimeoutError):
            telling.result(NEWS_SECONDS_MAX)

    async def ask_all(self, question: Question) -> list[tuple[Peer, Answer | None]]:
        """Every connected worker's answer; None of one that has none."""

        async def ask(peer: Peer) -> tuple[Peer, Answer | None]:
            """One worker's answer, with it."""
            try:
                return peer, await peer.ask(question)
            except OSError:
                return peer, None

        return await asyncio.gather(*(ask(peer) for peer in self.peers))

    async def close(self) -> None:
        """Let go of every worker."""
        if self._server is not None:
            self._server.close()

    async def _tell_all(self) -> None:
        await asyncio.gather(*(self._tell(peer) for peer in self.peers), return_exceptions=True)

    async def _tell(self, peer: Peer) -> None:
        """What it should have; how it stands. Raises OSError."""
        wanted = self._wanted()
        answer = await peer.ask(wanted)
        if isinstance(answer, Standing) and answer.policy != wanted.policy:
            answer = await peer.ask(self._policy())
        if isinstance(answer, Standing):
            if answer.problem and answer.problem != peer.standing.problem:
                _log.error("worker %d: %s", peer.number, answer.problem)
            peer.standing = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One worker, as long as it is there."""
        try:
            hello = await messages.read_hello(reader)
        except (OSError, EOFError):
            writer.close()
            return
        before = self._peers.get(hello.number)
        peer = self._peers[hello.number] = Peer(hello, reader, writer)
        if before is not None and before.process == peer.process:  # its end is noticed later
            peer.snapshot, before.snapshot = before.snapshot, b""
        self._came(peer)
        try:
            while True:
                await self._tell(peer)
                await asyncio.sleep(BEAT_SECONDS)
        except OSError:
            pass
        finally:
            writer.close()
            if self._peers.get(peer.number) is peer:
                del self._peers[peer.number]
            self._left(peer)
