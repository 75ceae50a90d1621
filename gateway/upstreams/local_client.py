"""The gateway's end of the connection to the node's model process.

One connection, many requests at once. Knows the protocol and reconnecting. Does not know OpenAI,
tenants or policies. Whatever happens to the process, every pending call ends: with its answer,
with a timeout, or at once with UpstreamUnavailable.
"""

import asyncio
import contextlib
import importlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from gateway.errors import (
    GatewayError,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from local_models import protocol
from local_models.messages import DEFAULT, Delta, Finished, GenerationRequest
from local_models.protocol import ClientFrame, FrameError, ServerFrame

if TYPE_CHECKING:
    from gateway.upstreams.local_vectors import Vectors

PENDING_MAX = 256
"""Calls of this worker that may run or wait at once; the next one is refused."""

WRITE_BUFFER_BYTES_MAX = 32 << 20
"""Unsent bytes towards a process that does not read; beyond, calls are refused."""

RECONNECT_SECONDS = 0.1
STREAM_CREDITS = 32
"""Deltas of one generation that may wait in this process for a slow client."""

EMBED_TIMEOUT_SECONDS = 5.0
EMBED_MAX_TOKENS = 128

T = TypeVar("T")
E = TypeVar("E", bound=UpstreamError)


class GenerationStream:
    """One running generation. Read ``receive`` until it gives a Finished, or ``close`` early."""

    def __init__(self, connection: "_Connection", id: int) -> None:
        self._connection = connection
        self._id = id
        self._messages: deque[Delta | Finished] = deque()
        self._error: GatewayError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unreturned_credits = 0
        self.on_arrival: Callable[[], None] | None = None
        """Called with each message and with the end, besides waking ``receive``."""

    @property
    def arrived(self) -> bool:
        """``receive`` would not wait."""
        return bool(self._messages) or self._error is not None

    async def receive(self, deadline: float) -> Delta | Finished:
        """The next message, or UpstreamTimeout at ``deadline`` (seconds of the monotonic clock).

        Raises the error that ended the generation once everything before it has been read.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await before(deadline, self._waiter)
        message = self._messages.popleft()
        if isinstance(message, Delta):
            self._return_credit()
        return message

    def close(self) -> None:
        """Cancel what still runs. Idempotent."""
        if self._connection.forget(self._id):
            self._connection.send(protocol.Cancel(self._id))

    def push(self, message: Delta | Finished) -> None:
        """The connection delivers."""
        self._messages.append(message)
        self._wake()

    def fail(self, error: GatewayError) -> None:
        """The connection has no more to deliver."""
        self._error = error
        self._wake()

    def _return_credit(self) -> None:
        # In halves: one small frame for sixteen deltas, and the process never runs dry.
        self._unreturned_credits += 1
        if self._unreturned_credits >= STREAM_CREDITS // 2:
            self._connection.send(protocol.Credit(self._id, self._unreturned_credits))
            self._unreturned_credits = 0

    def _wake(self) -> None:
        if self.on_arrival is not None:
            self.on_arrival()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Answer = protocol.Vectors | protocol.Counted | protocol.Stats
_Pending = GenerationStream | asyncio.Future[Answer]


class _Connection(asyncio.Protocol):
    """One connection's life: from its socket to the error that ends it."""

    def __init__(self, path: Path, worker_name: str) -> None:
        self._path = path
        self._worker_name = worker_name
        self._splitter = protocol.FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self.pending: dict[int, _Pending] = {}
        self.ready: protocol.Ready | None = None
        self.closed = asyncio.Event()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not an assertion: uvloop's transports share the interface, not the base class.
        self._transport = cast(asyncio.Transport, transport)
        self.send(protocol.Hello(protocol.PROTOCOL_VERSION, self._worker_name))

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._splitter.feed(data):
                self._receive(protocol.decode_server_frame(payload))
        except FrameError:
            self.close()

    def _receive(self, frame: ServerFrame) -> None:
        if isinstance(frame, protocol.Ready):
            if frame.version != protocol.PROTOCOL_VERSION:
                raise FrameError(f"the model process speaks version {frame.version}.")
            self.ready = frame
            self.changed.set()
            return
        # A frame without a pending call answers one that was given up: it is dropped.
        pending = self.pending.get(frame.id)
        match pending, frame:
            case GenerationStream(), protocol.DeltaFrame():
                pending.push(frame.delta)
            case GenerationStream(), protocol.FinishedFrame():
                del self.pending[frame.id]
                pending.push(frame.finished)
            case _, protocol.Failed() if pending is not None:
                del self.pending[frame.id]
                _fail(pending, _error(frame))
            case asyncio.Future(), protocol.Vectors() | protocol.Counted() | protocol.Stats():
                del self.pending[frame.id]
                if not pending.done():
                    pending.set_result(frame)
            case _:
                pass

    def send(self, frame: ClientFrame) -> None:
        """Queue a frame; nothing happens on a closed connection."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(protocol.encode_frame(frame))

    @property
    def congested(self) -> bool:
        """The process does not read what it was sent."""
        transport = self._transport
        return transport is None or transport.get_write_buffer_size() > WRITE_BUFFER_BYTES_MAX

    def forget(self, id: int) -> bool:
        """Drop a pending call; whether there was one."""
        return self.pending.pop(id, None) is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ready = None
        self.closed.set()
        self.changed.set()
        pending, self.pending = self.pending, {}
        for call in pending.values():
            _fail(call, UpstreamUnavailable(f"the model process at {self._path.name} went away."))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class ModelProcessClient:
    """The model process as this worker sees it. Belongs to one event loop."""

    def __init__(
        self, socket_path: Path | str, worker_name: str, *, pending_max: int = PENDING_MAX
    ) -> None:
        self._path = Path(socket_path)
        self._worker_name = worker_name
        self._pending_max = pending_max
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._retired = False

    def start(self) -> None:
        """Connect in the background, now and whenever the connection is lost."""
        self._retired = False
        # Now, because NumPy comes with it: later its 0.1 s would hold up every request.
        importlib.import_module("gateway.upstreams.local_vectors")
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep_connected())

    def retire(self) -> None:
        """Connect no more once the connection ends, until ``start``: calls under way go on."""
        self._retired = True

    async def close(self) -> None:
        """End the connection; pending calls fail."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    @property
    def state(self) -> protocol.Ready | None:
        """What the process last said of its models; None while there is no connection."""
        return self._connection.ready if self._connection is not None else None

    @property
    def ready(self) -> bool:
        """Connected to a process that answers, whatever it has loaded."""
        return self.state is not None

    def condition(self, kind: Literal["embedding", "generation"]) -> str:
        """``ok`` once a model serves, else what it is doing or why it does not.

        ``ok: NAME`` of a model that was asked for by another name, as ``default`` is.
        """
        state = self.state
        if state is None:
            return "starting"
        word, message = getattr(state, f"{kind}_state"), getattr(state, f"{kind}_message")
        if word == "ready":
            word = "ok"
            info = state.generation if kind == "generation" else None
            if info is not None and info.name == DEFAULT:
                message = info.serves
        return f"{word}: {message}" if message else str(word)

    @property
    def generation_ready(self) -> bool:
        """The generation model serves."""
        state = self.state
        return state is not None and state.generation_state == "ready"

    @property
    def embedding_ready(self) -> bool:
        """The embedding model serves."""
        state = self.state
        return state is not None and state.embedding_state == "ready"

    async def until_ready(
        self, kind: Literal["embedding", "generation"], *, timeout_seconds: float
    ) -> None:
        """Wait for a model. Raises UpstreamUnavailable where it failed to load, UpstreamTimeout."""
        deadline = time.monotonic() + timeout_seconds
        while not (self.embedding_ready if kind == "embedding" else self.generation_ready):
            state = self.state
            if state is not None and getattr(state, f"{kind}_state") == "failed":
                raise UpstreamUnavailable(getattr(state, f"{kind}_message"))
            if self._connection is None:
                if time.monotonic() > deadline:
                    raise UpstreamTimeout(f"no model process at {self._path.name}.")
                await asyncio.sleep(RECONNECT_SECONDS / 4)
            else:
                self._connection.changed.clear()
                await before(deadline, asyncio.ensure_future(self._connection.changed.wait()))

    async def embed(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = EMBED_MAX_TOKENS,
        timeout_seconds: float = EMBED_TIMEOUT_SECONDS,
    ) -> "tuple[Vectors, list[int], int]":
        """Unit vectors, float32 [texts, dimensions]; tokens of each text that were read; and the
        processor time in microseconds that it took.

        A longer text keeps its first three quarters of ``max_tokens`` and its last quarter.
        """
        from gateway.upstreams.local_vectors import vectors_of

        deadline = time.monotonic() + timeout_seconds
        answer = await self.vectors(texts, max_tokens=max_tokens, deadline=deadline)
        return vectors_of(answer), list(answer.tokens), answer.compute_us

    async def vectors(
        self, texts: Sequence[str], *, max_tokens: int, deadline: float
    ) -> protocol.Vectors:
        """``embed`` with everything the process says: truncation, processor time."""
        id = next(self._numbers)
        frame = protocol.Embed(id, tuple(texts), max_tokens)
        return await self._ask(frame, protocol.Vectors, deadline)

    async def count_tokens(
        self,
        messages_or_prompt: tuple[dict[str, str], ...] | str,
        *,
        timeout_seconds: float = EMBED_TIMEOUT_SECONDS,
    ) -> int:
        """Prompt tokens for the generation model, its chat template included."""
        text = messages_or_prompt
        messages, prompt = (None, text) if isinstance(text, str) else (text, None)
        frame = protocol.CountTokens(next(self._numbers), messages, prompt)
        deadline = time.monotonic() + timeout_seconds
        return (await self._ask(frame, protocol.Counted, deadline)).tokens

    async def stats(self, *, timeout_seconds: float = EMBED_TIMEOUT_SECONDS) -> protocol.Stats:
        """What runs there, and what it costs in memory and processor time."""
        deadline = time.monotonic() + timeout_seconds
        frame = protocol.AskStats(next(self._numbers))
        return await self._ask(frame, protocol.Stats, deadline)

    def generate(self, request: GenerationRequest) -> GenerationStream:
        """Start a generation; its refusal, too, comes out of the stream's ``receive``."""
        id = next(self._numbers)
        connection = self._admit()
        self._send(connection, protocol.Generate(id, request, STREAM_CREDITS))
        stream = GenerationStream(connection, id)
        connection.pending[id] = stream
        return stream

    async def _ask(
        self,
        frame: protocol.Embed | protocol.CountTokens | protocol.AskStats,
        answer_type: type[T],
        deadline: float,
    ) -> T:
        connection = self._admit()
        self._send(connection, frame)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        connection.pending[frame.id] = future
        try:
            answer = await before(deadline, future)
        finally:
            if connection.forget(frame.id):
                connection.send(protocol.Cancel(frame.id))
        assert isinstance(answer, answer_type), "the process answers each question in kind"
        return answer

    def _admit(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.ready is None:
            raise not_sent(UpstreamUnavailable(f"there is no model process at {self._path.name}."))
        if len(connection.pending) >= self._pending_max or connection.congested:
            raise not_sent(
                UpstreamOverloaded(f"{len(connection.pending)} local calls are pending already.")
            )
        return connection

    def _send(self, connection: _Connection, frame: ClientFrame) -> None:
        try:
            connection.send(frame)
        except FrameError as error:
            message = f"The request is too large for the local model: {error}"
            raise not_sent(refusal(message, "request_too_large")) from error

    async def _keep_connected(self) -> None:
        while not self._retired:
            # Refused or no such file: it is not there yet, or being restarted.
            with contextlib.suppress(OSError):
                await self._stay_connected()
            await asyncio.sleep(RECONNECT_SECONDS)
        self._keeper = None

    async def _stay_connected(self) -> None:
        connection = _Connection(self._path, self._worker_name)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: connection, str(self._path))
            self._connection = connection
            await connection.closed.wait()
        finally:
            self._connection = None
            connection.close()


async def before(deadline: float, awaitable: asyncio.Future[T]) -> T:
    """Wait until ``deadline``, seconds of the monotonic clock. Raises UpstreamTimeout."""
    try:
        async with asyncio.timeout_at(_loop_time(deadline)):
            return await awaitable
    except TimeoutError as error:
        raise UpstreamTimeout("the model process did not answer in time.") from error


def _loop_time(deadline: float) -> float:
    """A deadline of time.monotonic on the loop's clock, which need not be the same."""
    return asyncio.get_running_loop().time() + deadline - time.monotonic()


def _fail(pending: _Pending, error: GatewayError) -> None:
    if isinstance(pending, GenerationStream):
        pending.fail(error)
    elif not pending.done():
        pending.set_exception(error)


def not_sent(error: E) -> E:
    """Mark an error of a call that cost no computation."""
    error.unsent = True
    return error


def _error(frame: protocol.Failed) -> GatewayError:
    match frame.code:
        case "busy":
            return not_sent(UpstreamOverloaded(frame.message, retry_after_seconds=1.0))
        case "too_long":
            return not_sent(refusal(frame.message, "context_length_exceeded"))
        case "invalid":
            return not_sent(refusal(frame.message, "invalid_value"))
        case _:
            return UpstreamUnavailable(frame.message)


def refusal(message: str, code: str) -> UpstreamStatus:
    """The 400 for a request that the local model refuses; it has computed nothing for it."""
    error = UpstreamStatus(message, status=400, type="invalid_request_error", code=code)
    error.unsent = True
    return error
