"""The simulated provider's socket: requests in, scripts out, and an exact count of both.

Knows HTTP/1.1 and time. What is said is ``documents``' matter, how it goes wrong ``faults``'.
"""

import asyncio
import random
import re
import socket
import struct
import time
from collections import deque
from typing import Any, cast

import httptools
import msgspec
import orjson

from gateway.simulator.dialects import messages_reply, responses_reply
from gateway.simulator.documents import Dialect, Kind, Reply, UsageHonesty, read_question, reply_to
from gateway.simulator.faults import (
    SETTLE_SECONDS,
    Caller,
    Fault,
    Script,
    answer,
    error_body,
    fault_of,
    read_fault,
    script,
)

REQUESTS_KEPT = 100_000
BODY_BYTES_MAX = 64 << 20
_PIPELINE_MAX = 16
_KINDS: dict[str, Kind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_MESSAGES = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_PATHS = frozenset({*_KINDS, *_MESSAGES, "/v1/responses"})
_AZURE = re.compile(r"/openai(?:/deployments/[^/]+(?=/)|/v1(?=/)|(?=/responses))")
_KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key")
_MODELS = orjson.dumps(
    {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "tollhouse"}
            for name in ("simulated-large", "simulated-small", "simulated-embedding")
        ],
    }
)


class Served(msgspec.Struct):
    """One request as the provider saw it."""

    id: str  # the caller's x-request-id
    path: str
    body: dict[str, Any]
    received: float  # monotonic seconds
    prompt_tokens: int = 0
    completion_tokens: int = 0  # written so far
    finished: bool = False  # answered to the end, be it an error
    status: int = 0
    fault: str | None = None
    closed_after_seconds: float | None = None  # when the caller hung up before the end
    url: str = ""  # as it was asked for: Azure's paths are served like the others
    headers: dict[bytes, bytes] = {}  # names in lower case


class Simulator:
    """The provider. ``start`` it in a running loop; ``base_url`` tells where it is."""

    def __init__(
        self, *, seed: int = 0, latency_seconds: float = 0.0, tokens_per_second: float = 0.0
    ) -> None:
        """latency_seconds: before the first byte; tokens_per_second: 0 is as fast as it goes."""
        self.seed = seed
        self.latency_seconds = latency_seconds
        self.seconds_per_token = 1 / tokens_per_second if tokens_per_second else 0.0
        self.fault: Fault | None = None  # given to a share of all requests
        self.fault_rate = 0.0
        self.requests: list[Served] = []
        self.base_url = ""
        self._random = random.Random(seed)  # noqa: S311 - deterministic on purpose
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. Raises OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/v1"

    async def stop(self) -> None:
        """Stop listening and close every connection."""
        assert self._server is not None, "stop comes after start"
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def remember(self, served: Served) -> None:
        """Keep a record, and forget the oldest over the maximum."""
        self.requests.append(served)
        if len(self.requests) > REQUESTS_KEPT:
            del self.requests[: REQUESTS_KEPT // 10]

    def draw_fault(self) -> Fault | None:
        """The fault of the share that ``/control/faults`` has set, if this request is of it."""
        if self.fault is not None and self._random.random() < self.fault_rate:
            return self.fault
        return None

    def control(self, path: str, raw: bytes) -> tuple[int, bytes]:
        """(status, document). ``faults`` sets the share of faulty answers, ``requests`` lists."""
        if path == "/control/requests":
            return 200, orjson.dumps([_record(served) for served in self.requests])
        if path != "/control/faults":
            return 404, error_body("There are /control/faults and /control/requests.")
        try:
            given = orjson.loads(raw) if raw else {}
            name = given.get("fault")
            self.fault = read_fault(name) if name is not None else None
            self.fault_rate = min(1.0, max(0.0, float(given.get("rate", 1.0))))
        except (ValueError, TypeError, AttributeError) as error:
            usage = 'Send {"fault": name or null, "rate": 0 to 1}'
            return 400, error_body(f"{usage}: {error}.", "invalid_request_error")
        fault = str(self.fault) if self.fault is not None else None
        return 200, orjson.dumps({"fault": fault, "rate": self.fault_rate})


class _Connection(asyncio.Protocol):
    """One client connection: requests are answered one after the other."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._keep_alive = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiting: deque[tuple[Script, Served]] = deque()
        self._serving: Served | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._simulator._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._simulator._connections.discard(self)
        served = self._serving
        if served is not None and not served.finished:
            served.closed_after_seconds = time.monotonic() - served.received
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.close()

    def abort(self) -> None:
        """Close without ceremony."""
        self._transport.abort()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._body_bytes = b"", {}, [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            self._transport.abort()

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        path = self._url.decode("latin-1").partition("?")[0]
        path = _AZURE.sub("/v1", path, count=1)
        raw = b"".join(self._body)
        if path == "/v1/models":
            self._reply(200, _MODELS)
        elif path.startswith("/control/"):
            self._reply(*self._simulator.control(path, raw))
        elif path in _PATHS:
            self._ask(path, raw)
        else:
            self._reply(404, error_body(f"There is nothing at {path}.", "invalid_request_error"))

    def _reply(self, status: int, document: bytes) -> None:
        self._transport.write(answer(status, document, Caller(b"control")))
        if not self._keep_alive:
            self._transport.close()

    def _ask(self, path: str, raw: bytes) -> None:
        """Decide what will be written for a request, and begin where nothing is in its way."""
        simulator = self._simulator
        try:
            body = orjson.loads(raw)
            fault = fault_of(raw, str(body["model"])) or simulator.draw_fault()
            usage = fault.usage if fault is not None else "true"
            reply = _reply_to(path, raw, body, simulator.seed, usage, long=fault is not None)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            dialect: Dialect = "messages" if path in _MESSAGES else "chat"
            self._reply(400, error_body(f"{error}.", "invalid_request_error", None, dialect))
            return
        served = Served(
            id=self._headers.get(b"x-request-id", b"").decode("latin-1"),
            path=path,
            body=body,
            received=time.monotonic(),
            prompt_tokens=reply.prompt_tokens,
            fault=str(fault) if fault is not None else None,
            url=self._url.decode("latin-1"),
            headers=self._headers,
        )
        simulator.remember(served)
        keys = [self._headers[name] for name in _KEY_HEADERS if name in self._headers]
        caller = Caller(b"sim-%d" % len(simulator.requests), b"".join(keys[:1]))
        self._waiting.append((script(reply, fault, caller), served))
        if self._task is None:
            self._next()
        elif len(self._waiting) > _PIPELINE_MAX:
            self._transport.abort()

    def _next(self) -> None:
        """Begin the next answer: at once where nothing has to be waited for, else in a task."""
        simulator = self._simulator
        while self._waiting:
            plan, served = self._waiting.popleft()
            self._serving = served
            paced = simulator.latency_seconds or simulator.seconds_per_token
            if paced or plan.end != "done" or len(plan.steps) > 1:
                self._task = asyncio.get_running_loop().create_task(self._perform(plan, served))
                return
            for step in plan.steps:
                self._write(step.data, step.tokens, plan, served)
            self._finish(plan, served)

    async def _perform(self, plan: Script, served: Served) -> None:
        """Write a script, after the latency and at the token rate, and end as it says."""
        simulator = self._simulator
        if simulator.latency_seconds:
            await asyncio.sleep(simulator.latency_seconds)
        due = time.monotonic()
        for step in plan.steps:
            if step.tokens and simulator.seconds_per_token:
                due += step.tokens * simulator.seconds_per_token
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            if step.pause_seconds:
                await asyncio.sleep(step.pause_seconds)
            self._write(step.data, step.tokens, plan, served)
            if not self._writable.is_set():
                await self._writable.wait()
        if plan.end == "hang":
            await asyncio.Event().wait()  # until the caller hangs up
        if plan.end == "reset":
            await asyncio.sleep(SETTLE_SECONDS)
        self._task = None
        self._finish(plan, served)
        self._next()

    def _write(self, data: bytes, tokens: int, plan: Script, served: Served) -> None:
        served.status = plan.status
        served.completion_tokens += tokens
        self._transport.write(data)

    def _finish(self, plan: Script, served: Served) -> None:
        served.finished = plan.end == "done"
        self._serving = None
        if plan.end == "reset":
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        elif plan.end == "close" or not (self._keep_alive or self._waiting):
            self._transport.close()


def _reply_to(
    path: str, raw: bytes, body: dict[str, Any], seed: int, usage: UsageHonesty, *, long: bool
) -> Reply:
    """An honest reply, in the dialect of the path. Raises ValueError and the like."""
    if path in _MESSAGES:
        count_only = path.endswith("count_tokens")
        return messages_reply(body, seed=seed, usage=usage, long=long, count_only=count_only)
    if path == "/v1/responses":
        return responses_reply(body, seed=seed, usage=usage, long=long)
    kind = _KINDS[path]
    return reply_to(kind, read_question(kind, raw), seed=seed, usage=usage, long=long)


def _record(served: Served) -> dict[str, Any]:
    """What ``/control/requests`` tells of a request: all but its body."""
    return {
        "id": served.id,
        "path": served.path,
        "status": served.status,
        "fault": served.fault,
        "prompt_tokens": served.prompt_tokens,
        "completion_tokens": served.completion_tokens,
        "finished": served.finished,
        "closed_after_seconds": served.closed_after_seconds,
    }
