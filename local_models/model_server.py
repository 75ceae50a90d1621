"""The models, the clients' connections, and what runs for whom.

Knows the protocol and which model is ready. Does not know tenants, HTTP or how it was started. A
client is trusted (the socket's mode is 0600) but may be slow, broken or gone: each costs it its
own connection or its own requests, never the others'.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from local_models import protocol
from local_models.catalogue import ensure
from local_models.fit import available_bytes
from local_models.memory import PROCESS_BYTES, DoesNotFit, MemoryBound, Need
from local_models.messages import (
    Device,
    EngineBusy,
    InvalidPrompt,
    LocalModelError,
    ModelUnavailable,
    PromptTooLong,
)
from local_models.progress_lines import ProgressLines
from local_models.protocol import ClientFrame, FailureCode, FrameError, ServerFrame
from local_models.references import Resolved, parse, resolve
from local_models.relay import MAX_CREDITS, Generation, Messages, Outbox

if TYPE_CHECKING:
    from local_models.embedding_queue import EmbeddingJob, EmbeddingQueue
    from local_models.engine import Engine

MAX_CONNECTIONS = 64
MAX_REQUESTS_PER_CONNECTION = 1024
WRITE_BUFFER_HIGH_BYTES = 1 << 20
"""Above this the connection gets no deltas and its requests are not read."""

DRAIN_POLL_SECONDS = 0.02
MEMORY_POLL_SECONDS = 1.0
"""Between two looks whether a model that did not fit fits now."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Models(msgspec.Struct, frozen=True, kw_only=True):
    """Which models, and how to run them. Empty: do not serve that kind.

    generation: as ``references.parse`` takes it; embedding: a name of the catalogue.
    """

    generation: str
    sha256: str
    embedding: str
    threads: int
    slots: int
    context_tokens: int
    models_dir: Path | None
    device: Device = "auto"


class ModelServer:
    """The models, the connections and what runs for whom. All methods belong to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, memory: MemoryBound) -> None:
        self._memory = memory
        self.ready = protocol.Ready(protocol.PROTOCOL_VERSION, "absent", "absent")
        self.connections: set[Connection] = set()
        self._generations: dict[str, tuple[Connection, Generation]] = {}
        self._numbers = itertools.count(1)
        self._loop = loop
        self._outbox = Outbox(loop, self._drain)
        self._engine: Engine | None = None
        self._embeddings: EmbeddingQueue | None = None

    async def load(self, models: Models) -> None:
        """Load the embedder, then the engine, telling every client after each."""
        self._tell(
            embedding_state="loading" if models.embedding else "absent",
            generation_state="loading" if models.generation else "absent",
        )
        if models.embedding:
            try:
                await self._load_embedder(models)
            except LocalModelError as error:
                _log.error("embedding model %s: %s", models.embedding, error)
                self._tell(embedding_state="failed", embedding_message=str(error))
        if models.generation:
            try:
                await self._load_engine_once_it_fits(models)
            except LocalModelError as error:
                _log.error("generation model %s: %s", models.generation, error)
                self._tell(generation_state="failed", generation_message=str(error))

    async def _load_engine_once_it_fits(self, models: Models) -> None:
        while True:
            try:
                return await self._load_engine(models)
            except DoesNotFit as error:
                _log.error("generation model %s: %s", models.generation, error)
                self._tell(generation_state="failed", generation_message=str(error))
                while self._memory.left_bytes(error.model) < error.need_bytes:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(MEMORY_POLL_SECONDS)
                self._tell(generation_state="loading", generation_message="")

    async def _load_embedder(self, models: Models) -> None:
        def load() -> "EmbeddingQueue":
            from local_models.embedder import Embedder
            from local_models.embedding_queue import EmbeddingQueue

            folder = ensure(
                models.embedding,
                models_dir=models.models_dir,
                progress=self._progress("embedding_message"),
            )
            size_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            self._memory.claim(models.embedding, Need(PROCESS_BYTES + size_bytes, 0))
            return EmbeddingQueue(Embedder.load(folder))

        self._embeddings = await _in_daemon_thread(load)
        embedder = self._embeddings.embedder
        self._tell(
            embedding_state="ready",
            embedding_message="",
            embedding=protocol.EmbeddingInfo(
                name=models.embedding,
                dimensions=embedder.dimensions,
                max_tokens=embedder.max_tokens,
                precision=embedder.precision,
            ),
        )

    async def _load_engine(self, models: Models) -> None:
        def load() -> "tuple[Engine, Resolved]":
            from local_models.engine import Engine

            resolved = resolve(
                parse(models.generation, models.sha256),
                models_dir=models.models_dir,
                progress=self._progress("generation_message"),
                memory_bytes=self._free_bytes(),
            )
            if resolved.missed:
                _log.warning("%s answers: %s", resolved.name, resolved.missed)
            engine = Engine.load(
                resolved.folder,
                threads=models.threads,
                slots=models.slots,
                context_tokens=models.context_tokens,
                device=models.device,
                admit=lambda need: self._memory.claim(resolved.name, need),
            )
            return engine, resolved

        engine, resolved = await _in_daemon_thread(load)
        self._engine = engine
        # Under the name by which it was asked for: that is how a gateway knows it.
        info = msgspec.structs.replace(
            engine.info,
            name=models.generation,
            serves=resolved.name,
            sha256=resolved.sha256,
        )
        where = f"{info.device}: {info.device_reason}" if info.device_reason else info.device
        _log.info("%s: %s runs on %s", info.name, info.serves, where)
        self._tell(generation_state="ready", generation=info, generation_message="")

    def _free_bytes(self) -> int:
        """What another model may take: of the machine, and of the bound of all models."""
        left = self._memory.left_bytes("")
        free = available_bytes()
        return left if free is None else min(left, free)

    def _progress(self, message: str) -> ProgressLines:
        """Tells clients and the log how far a download is. Called by the thread that loads."""

        def told(line: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: we are exiting
                self._loop.call_soon_threadsafe(lambda: self._tell(**{message: f"fetching {line}"}))

        return ProgressLines(told)

    def _tell(self, **changes: object) -> None:
        self.ready = msgspec.structs.replace(self.ready, **changes)
        ready = self.ready
        _log.info(
            "embedding %s, generation %s %s%s",
            ready.embedding_state, ready.generation_state,
            ready.embedding_message, ready.generation_message,
        )  # fmt: skip
        for connection in self.connections:
            if connection.greeted:
                connection.send(self.ready)

    def handle(self, connection: "Connection", frame: ClientFrame) -> None:
        """Act on one frame of a connection that has said hello."""
        match frame:
            case protocol.Credit():
                self._credit(connection, frame)
            case protocol.Cancel():
                self._cancel(connection, frame.id)
            case protocol.AskStats():
                connection.send(self._stats(frame.id))
            case protocol.Hello():
                raise FrameError("a second hello.")
            case _ if frame.id in connection.requests:
                raise FrameError(f"request {frame.id} is running already.")
            case _ if len(connection.requests) >= MAX_REQUESTS_PER_CONNECTION:
                message = f"{MAX_REQUESTS_PER_CONNECTION} requests of this connection are running."
                connection.send(protocol.Failed(frame.id, "busy", message))
            case _:
                try:
                    self._start(connection, frame)
                except LocalModelError as error:
                    connection.send(protocol.Failed(frame.id, _failure_code(error), str(error)))

    def _start(
        self,
        connection: "Connection",
        frame: protocol.Generate | protocol.Embed | protocol.CountTokens,
    ) -> None:
        match frame:
            case protocol.Generate():
                self._generate(connection, frame)
            case protocol.Embed():
                self._embed(connection, frame)
            case protocol.CountTokens():
                connection.send(protocol.Counted(frame.id, self._count(frame)))

    def _generate(self, connection: "Connection", frame: protocol.Generate) -> None:
        engine = self._need_engine()
        key = f"{next(self._numbers)}:{frame.request.request_id}"
        request = msgspec.structs.replace(frame.request, request_id=key)
        generation = Generation(frame.id, max(0, min(frame.credits, MAX_CREDITS)))
        self._generations[key] = connection, generation
        try:
            engine.submit(request, self._outbox.deliver)
        except LocalModelError:
            del self._generations[key]
            raise
        connection.requests[frame.id] = key

    def _need_engine(self) -> "Engine":
        state = self.ready.generation_state
        if self._engine is None or state != "ready":
            raise ModelUnavailable(f"no generation model is ready ({state}).")
        return self._engine

    def _count(self, frame: protocol.CountTokens) -> int:
        engine = self._need_engine()
        text = frame.messages if frame.prompt is None else frame.prompt
        if text is None:
            raise InvalidPrompt("neither messages nor a prompt to count.")
        return engine.count_tokens(text, frame.tools)

    def _embed(self, connection: "Connection", frame: protocol.Embed) -> None:
        if self._embeddings is None:
            raise ModelUnavailable(f"no embedding model is ready ({self.ready.embedding_state}).")
        job = self._embeddings.submit(frame.texts, frame.max_tokens)
        connection.requests[frame.id] = job
        connection.requests[frame.id] = job
        job.done.add_done_callback(lambda _: connection.embedded(frame.id, job))

    def _credit(self, connection: "Connection", frame: protocol.Credit) -> None:
        key = connection.requests.get(frame.id)
        if isinstance(key, str):
            _, generation = self._generations[key]
            generation.credits = max(0, min(generation.credits + frame.count, MAX_CREDITS))
            self._flush(key)

    def _cancel(self, connection: "Connection", id: int) -> None:
        running = connection.requests.get(id)
        if isinstance(running, str):
            _, generation = self._generations[running]
            generation.cancel()
            if generation.finished is not None:
                self._flush(running)
            elif self._engine is not None:
                self._engine.cancel(running)
        elif running is not None:
            running.done.cancel()

    def _drain(self, messages: Messages) -> None:
        touched: set[str] = set()
        while messages:
            key, message = messages.popleft()
            if key in self._generations:
                self._generations[key][1].take(message)
                touched.add(key)
        for key in touched:
            self._flush(key)

    def _flush(self, key: str) -> None:
        connection, generation = self._generations[key]
        if not (connection.writable or connection.closed):
            return
        for frame in generation.frames():
            connection.send(frame)
        if generation.ended:
            del self._generations[key]
            connection.requests.pop(generation.id, None)

    def resume(self, connection: "Connection") -> None:
        """The connection takes bytes again."""
        for running in list(connection.requests.values()):
            if isinstance(running, str):
                self._flush(running)

    def leave(self, connection: "Connection") -> None:
        """The client is gone: stop everything that runs for it."""
        self.connections.discard(connection)
        for id in list(connection.requests):
            self._cancel(connection, id)

    def _stats(self, id: int) -> protocol.Stats:
        with open("/proc/self/statm", "rb") as statm:
            resident_pages = int(statm.read().split()[1])
        return protocol.Stats(
            id,
            connections=len(self.connections),
            generations=len(self._generations),
            embeddings=self._embeddings.waiting_texts if self._embeddings else 0,
            held_tokens=sum(held.held_tokens for _, held in self._generations.values()),
            resident_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
            cpu_seconds=time.process_time(),
        )

    async def drain(self, seconds: float) -> None:
        """Take nothing new; wait until what runs has ended, ``seconds`` at most."""
        if self._engine is not None:
            self._tell(generation_state="failed", generation_message="it is being stopped")
        ended = time.monotonic() + seconds
        while any(connection.requests for connection in self.connections):
            if time.monotonic() >= ended:
                return
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def close(self) -> None:
        """Drop every client, then the models."""
        for connection in list(self.connections):
            connection.close()
        if self._embeddings is not None:
            self._embeddings.close()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)


def _failure_code(error: LocalModelError) -> FailureCode:
    match error:
        case EngineBusy():
            return "busy"
        case PromptTooLong():
            return "too_long"
        case InvalidPrompt():
            return "invalid"
        case ModelUnavailable():
            return "unavailable"
        case _:
            return "internal"


class Connection(asyncio.Protocol):
    """One gateway. requests: its id → the engine's key of a generation, or an embedding job."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._splitter = protocol.FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self.requests: dict[int, str | EmbeddingJob] = {}
        self.greeted = False
        self.writable = True
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, unless there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH_BYTES)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            _log.warning("refused a connection: %d are open", MAX_CONNECTIONS)
            self.close()
            return
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Act on every completed frame; a bad one ends this connection."""
        try:
            for payload in self._splitter.feed(data):
                if self.closed:
                    return
                self._receive(protocol.decode_client_frame(payload))
        except FrameError as error:
            _log.warning("closed a connection: %s", error)
            self.close()

    def _receive(self, frame: ClientFrame) -> None:
        if self.greeted:
            self._server.handle(self, frame)
        elif isinstance(frame, protocol.Hello) and frame.version == protocol.PROTOCOL_VERSION:
            self.greeted = True
            self.send(self._server.ready)
        else:
            raise FrameError(
                f"it did not begin with a hello of version {protocol.PROTOCOL_VERSION}."
            )

    def send(self, frame: ServerFrame) -> None:
        """Queue a frame; nothing happens on a closed connection."""
        if not self.closed and self._transport is not None:
            self._transport.write(protocol.encode_frame(frame))

    def embedded(self, id: int, job: "EmbeddingJob") -> None:
        """An embedding job has ended, with vectors, an error or by being cancelled."""
        self.requests.pop(id, None)
        if job.done.cancelled():
            self.send(protocol.Failed(id, "unavailable", "the request was cancelled."))
        elif error := job.done.exception():
            _log.error("embedding failed", exc_info=error)
            self.send(protocol.Failed(id, "internal", "the embedder failed on this request."))
        else:
            self.send(
                protocol.Vectors(
                    id,
                    job.vectors.shape[1],
                    job.vectors.astype("<f4", copy=False).tobytes(),
                    tuple(job.tokens),
                    tuple(job.truncated),
                    round(job.compute_us),
                )
            )

    def pause_writing(self) -> None:
        """Too much is unsent: take no more requests until the client has read."""
        self.writable = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.writable = True
        if self._transport is not None and not self.closed:
            self._transport.resume_reading()
        self._server.resume(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we closed the connection."""
        self.closed = True
        self._server.leave(self)

    def close(self) -> None:
        """Close at once, without sending what is queued."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Unlike an executor's thread, one that is still downloading does not hold up the exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # None only where T allows it

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are exiting
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await result
