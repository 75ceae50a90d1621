"""A simulated provider that speaks OpenAI's HTTP interface: for demos, load tests and our tests.

Deterministic: the same seed and request give the same answer. Faults can be asked for by name, per
request (``[[fault:NAME]]`` in the prompt, or the model ``fault-NAME``) or for a share of them.
Counts exactly what it has written per request, so that bookings can be reconciled with it.
Says in every answer that it is simulated. Knows no gateway.
"""

import asyncio
import hashlib
import random
import re
import time
from typing import Any, cast

import httptools
import msgspec
import orjson

REQUESTS_KEPT = 100_000
FAULTS = (
    "status-500", "status-503", "status-429", "hang", "garbage-head", "redirect", "gzip",
    "error-leaks-key", "reset-after-64", "cut-after-40", "stall-after-20",
    "malformed-event-after-10", "half-utf8", "huge-line", "lying-usage", "no-usage",
)  # fmt: skip
_FAULT = re.compile(r"\[\[fault:([a-z0-9-]+)\]\]")
_WORDS = tuple(
    word
    for line in (
        "the answer to this question depends on what is asked and how it is meant so a careful",
        "reader begins with the terms then checks each step against the evidence and only then",
        "concludes that the simplest explanation which fits all facts is usually the better one",
    )
    for word in line.split()
)


class Served(msgspec.Struct):
    """One request as the provider saw it."""

    id: str  # the caller's x-request-id
    path: str
    body: dict[str, Any]
    received: float  # monotonic seconds
    prompt_tokens: int = 0
    completion_tokens: int = 0  # written so far
    finished: bool = False
    status: int = 0
    fault: str | None = None
    closed_after_seconds: float | None = None  # when the caller hung up before the end


class Simulator:
    """The provider. ``start`` it in a running loop; ``base_url`` tells where it is."""

    def __init__(
        self, *, seed: int = 0, latency_seconds: float = 0.0, tokens_per_second: float = 0.0
    ) -> None:
        """latency_seconds: before the first byte; tokens_per_second: 0 is as fast as it goes."""
        self.seed = seed
        self.latency_seconds = latency_seconds
        self.seconds_per_token = 1 / tokens_per_second if tokens_per_second else 0.0
        self.fault: str | None = None  # given to a share of all requests
        self.fault_rate = 0.0
        self.requests: list[Served] = []
        self.base_url = ""
        self.random = random.Random(seed)  # noqa: S311 - deterministic on purpose
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen. Raises OSError where the port is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port)
        self.base_url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        """Close every connection."""
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

    def fault_of(self, body: dict[str, Any], prompt: str) -> str | None:
        """The fault this request is to meet."""
        model = body.get("model")
        if isinstance(model, str) and model.startswith("fault-"):
            return model.removeprefix("fault-")
        named = _FAULT.search(prompt)
        if named is not None:
            return named[1]
        if self.fault is not None and self.random.random() < self.fault_rate:
            return self.fault
        return None


class _Connection(asyncio.Protocol):
    """One client connection: requests one after the other, each answered by ``_Answer``."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self.writable.set()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._serving: tuple[Served, asyncio.Task[None]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.simulator._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.simulator._connections.discard(self)
        self.writable.set()
        if self._serving is not None:
            served, task = self._serving
            if not served.finished:
                served.closed_after_seconds = time.monotonic() - served.received
                task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.close()

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path = self._url.decode("latin-1")
        body = b"".join(self._body)
        if path.startswith("/control/"):
            self.reply(200, _control(self.simulator, path, body))
        elif path == "/v1/models":
            self.reply(200, _MODELS)
        else:
            self._serve(path, body)

    def _serve(self, path: str, raw: bytes) -> None:
        kind = _KINDS.get(path)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if kind is None or not isinstance(body, dict):
            self.reply(404 if kind is None else 400, _error("no such thing", "invalid_request"))
            return
        served = Served(
            id=self._headers.get(b"x-request-id", b"").decode("latin-1"),
            path=path,
            body=body,
            received=time.monotonic(),
        )
        self.simulator.remember(served)
        authorization = self._headers.get(b"authorization", b"").decode("latin-1")
        answer = _Answer(self, served, kind, authorization)
        if answer.immediate():
            return
        task = asyncio.get_running_loop().create_task(answer.run())
        self._serving = (served, task)

    def reply(self, status: int, document: bytes, extra: bytes = b"") -> None:
        """One whole JSON answer."""
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s"
            % (status, len(document), extra, document)
        )

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abort()


class _Answer:
    """One answer on its way out, with its fault if it has one."""

    def __init__(self, connection: _Connection, served: Served, kind: str, key: str) -> None:
        self._connection = connection
        self._simulator = connection.simulator
        self._served = served
        self._body = served.body
        self._kind = kind
        self._key = key
        self._prompt = _prompt(served.body)
        served.prompt_tokens = len(self._prompt.split()) + 4
        served.fault = self._simulator.fault_of(served.body, self._prompt)

    def immediate(self) -> bool:
        """Answer at once where nothing has to be waited for; whether that was so."""
        if self._served.fault or self._body.get("stream"):
            return False
        if self._simulator.latency_seconds or self._simulator.seconds_per_token:
            return False
        self._whole()
        return True

    async def run(self) -> None:
        """Answer, after the latency, at the token rate, and with the fault."""
        if self._simulator.latency_seconds:
            await asyncio.sleep(self._simulator.latency_seconds)
        fault = self._served.fault
        if fault is not None and await self._fails_whole(fault):
            return
        if self._body.get("stream") and self._kind != "embeddings":
            await self._stream(fault)
            return
        if self._simulator.seconds_per_token and self._kind != "embeddings":
            await asyncio.sleep(self._simulator.seconds_per_token * len(self._tokens()))
        self._whole(fault)

    async def _fails_whole(self, fault: str) -> bool:
        """Faults that leave no answer to speak of."""
        connection, served = self._connection, self._served
        if fault.startswith("status-"):
            served.status = int(fault.removeprefix("status-"))
            extra = b"retry-after: 1\r\n" if served.status == 429 else b""
            connection.reply(served.status, _error("simulated fault", "server_error"), extra)
        elif fault == "hang":
            await asyncio.Event().wait()
        elif fault == "garbage-head":
            connection.transport.write(b"NOT HTTP AT ALL\r\n\r\n")
            connection.transport.close()
        elif fault == "redirect":
            connection.reply(302, b"{}", b"location: http://169.254.169.254/\r\n")
        elif fault == "gzip":
            connection.reply(200, b"\x1f\x8b" + bytes(64), b"content-encoding: gzip\r\n")
        elif fault == "error-leaks-key":
            connection.reply(400, _error(f"Incorrect key {self._key} given", "invalid_request"))
        elif fault == "huge-line" and not self._body.get("stream"):
            connection.reply(200, b'{"x": "' + b"x" * (2 << 20) + b'"}')
        else:
            return False
        served.finished = True
        return True

    def _whole(self, fault: str | None = None) -> None:
        served = self._served
        document = _embeddings(self._body) if self._kind == "embeddings" else self._document(fault)
        raw = orjson.dumps(document)
        if fault is not None and fault.startswith("reset-after-"):
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(raw)
            self._connection.transport.write(head + raw[: int(fault.rpartition("-")[2])])
            self._connection.transport.close()
            return
        if fault in ("cut-after-40", "stall-after-20", "half-utf8", "malformed-event-after-10"):
            raw = raw[:-40]
            self._connection.reply(200, raw)
        else:
            self._connection.reply(200, raw)
        served.status, served.finished = 200, True

    def _document(self, fault: str | None) -> dict[str, Any]:
        choices = [self._choice(index) for index in range(self._body.get("n") or 1)]
        document: dict[str, Any] = {
            **self._common(),
            "object": "chat.completion" if self._kind == "chat" else "text_completion",
            "choices": choices,
        }
        self._served.completion_tokens = len(self._tokens()) * len(choices)
        if fault != "no-usage":
            document["usage"] = self._usage(fault)
        return document

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._tokens(index))
        reason = "length" if self._cut() else "stop"
        if self._kind == "completions":
            return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        call = self._tool_call()
        if call is not None:
            message |= {"content": None, "tool_calls": [call]}
            reason = "tool_calls"
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    async def _stream(self, fault: str | None) -> None:
        connection, served = self._connection, self._served
        connection.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for index in range(self._body.get("n") or 1):
            if self._kind == "chat":
                await self._event(index, {"role": "assistant", "content": ""}, None)
            for piece in self._pieces(index):
                if await self._breaks(fault, served.completion_tokens):
                    return
                if self._simulator.seconds_per_token:
                    await asyncio.sleep(self._simulator.seconds_per_token)
                served.completion_tokens += 1
                await self._event(index, piece, None)
            reason = "tool_calls" if self._tool_call() else "length" if self._cut() else "stop"
            await self._event(index, {}, reason)
        options = self._body.get("stream_options") or {}
        if options.get("include_usage") and fault != "no-usage":
            usage = {**self._common(), "choices": [], "usage": self._usage(fault)}
            await self._write(b"data: " + orjson.dumps(usage) + b"\n\n")
        served.status, served.finished = 200, True
        await self._write(b"data: [DONE]\n\n")
        connection.transport.write(b"0\r\n\r\n")

    async def _breaks(self, fault: str | None, written: int) -> bool:
        """Faults in the middle of a stream; whether it is over."""
        if fault is None:
            return False
        name, _, count = fault.partition("-after-")
        transport = self._connection.transport
        if fault == "half-utf8" and written == 3:
            await self._write(b'data: {"choices":[{"index":0,"delta":{"content":"\xe4\xb8')
            transport.close()
            return True
        if fault == "huge-line" and written == 3:
            await self._write(b"data: " + b"x" * (2 << 20))
            return False
        if not count or written != int(count):
            return False
        if name == "reset":
            transport.abort()
        elif name == "cut":
            transport.close()
        elif name == "stall":
            await asyncio.Event().wait()
        elif name == "malformed-event":
            await self._write(b"data: {not json}\n\n")
            return False
        return True

    def _pieces(self, index: int) -> list[dict[str, Any]]:
        call = self._tool_call()
        if call is None:
            return [{"content": token} for token in self._tokens(index)]
        function = call["function"]
        arguments = function["arguments"]
        first = {"index": 0, **call, "function": {**function, "arguments": ""}}
        parts = [arguments[i : i + 8] for i in range(0, len(arguments), 8)]
        rest = [{"index": 0, "function": {"arguments": part}} for part in parts]
        return [{"tool_calls": [part]} for part in (first, *rest)]

    async def _event(self, index: int, delta: dict[str, Any], reason: str | None) -> None:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if self._kind == "chat":
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        kind = "chat.completion.chunk" if self._kind == "chat" else "text_completion"
        event = {**self._common(), "object": kind, "choices": [choice]}
        await self._write(b"data: " + orjson.dumps(event) + b"\n\n")

    async def _write(self, data: bytes) -> None:
        self._connection.transport.write(b"%x\r\n%s\r\n" % (len(data), data))
        if not self._connection.writable.is_set():
            await self._connection.writable.wait()

    def _common(self) -> dict[str, Any]:
        return {
            "id": "sim-" + _digest(self._simulator.seed, self._prompt)[:24],
            "created": 1_700_000_000,
            "model": self._body.get("model"),
        }

    def _usage(self, fault: str | None) -> dict[str, Any]:
        completion = self._served.completion_tokens
        if fault == "lying-usage":
            return {"prompt_tokens": 1, "completion_tokens": completion, "total_tokens": 10**9,
                    "prompt_tokens_details": {"cached_tokens": 10**9}}  # fmt: skip
        prompt = self._served.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _cut(self) -> bool:
        limit = self._limit()
        return limit is not None and len(self._full_tokens(0)) > limit

    def _limit(self) -> int | None:
        limit = self._body.get("max_completion_tokens") or self._body.get("max_tokens")
        return limit if isinstance(limit, int) else None

    def _tokens(self, index: int = 0) -> list[str]:
        return self._full_tokens(index)[: self._limit()]

    def _full_tokens(self, index: int) -> list[str]:
        schema = self._schema()
        if schema is not None:
            text = orjson.dumps(_instance(schema)).decode()
            return [text[i : i + 4] for i in range(0, len(text), 4)]
        digest = _digest(self._simulator.seed, self._prompt, index)
        count = 60 if self._served.fault else 20 + int(digest[:8], 16) % 40
        start = int(digest[8:16], 16) % len(_WORDS)
        words = (_WORDS[(start + i * 7) % len(_WORDS)] for i in range(count - 1))
        return ["[simulated]", *(f" {word}" for word in words)]

    def _schema(self) -> dict[str, Any] | None:
        given = self._body.get("response_format")
        if not isinstance(given, dict) or given.get("type") == "text":
            return None
        schema = (given.get("json_schema") or {}).get("schema")
        return schema if isinstance(schema, dict) else {"type": "object"}

    def _tool_call(self) -> dict[str, Any] | None:
        tools = self._body.get("tools")
        if not tools or self._body.get("tool_choice") == "none" or self._kind != "chat":
            return None
        function = tools[0]["function"]
        arguments = _instance(function.get("parameters") or {"type": "object"})
        return {
            "id": "call_" + _digest(self._simulator.seed, self._prompt)[:12],
            "type": "function",
            "function": {
                "name": function["name"],
                "arguments": orjson.dumps(arguments).decode(),
            },
        }


_KINDS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_MODELS = orjson.dumps(
    {"object": "list", "data": [{"id": "simulated-large", "object": "model", "owned_by": "sim"}]}
)
_EMBEDDING_WIDTH = 64


def _control(simulator: Simulator, path: str, raw: bytes) -> bytes:
    """``/control/faults`` sets the share of faulty answers; ``/control/requests`` lists all."""
    if path.startswith("/control/faults"):
        try:
            given = orjson.loads(raw or b"{}")
            simulator.fault, simulator.fault_rate = given.get("fault"), float(given.get("rate", 1))
        except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
            return _error('send {"fault": name or null, "rate": 0..1}', "invalid_request")
        return orjson.dumps({"fault": simulator.fault, "rate": simulator.fault_rate})
    return orjson.dumps(
        [
            {
                "id": served.id,
                "prompt_tokens": served.prompt_tokens,
                "completion_tokens": served.completion_tokens,
                "finished": served.finished,
                "status": served.status,
                "closed_after_seconds": served.closed_after_seconds,
            }
            for served in simulator.requests
        ]
    )


def _prompt(body: dict[str, Any]) -> str:
    """All text of a request."""
    messages = body.get("messages")
    if isinstance(messages, list):
        contents = [m.get("content") for m in messages if isinstance(m, dict)]
        return "\n".join(c if isinstance(c, str) else orjson.dumps(c).decode() for c in contents)
    given = body.get("prompt") or body.get("input") or ""
    return given if isinstance(given, str) else orjson.dumps(given).decode()


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    texts = body.get("input")
    texts = texts if isinstance(texts, list) else [texts]
    data = []
    for index, text in enumerate(texts):
        noise = random.Random(_digest(0, str(text)))  # noqa: S311 - deterministic on purpose
        vector = [noise.gauss(0, 0.125) for _ in range(_EMBEDDING_WIDTH)]
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(str(text).split()) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}


def _instance(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON schema of the common kinds."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: _instance(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_instance(schema.get("items") or {"type": "string"})]
    return {"string": "simulated", "integer": 36, "number": 3.6, "boolean": True}.get(kind)


def _digest(seed: int, text: str, index: int = 0) -> str:
    return hashlib.sha256(f"{seed}\0{index}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _error(message: str, kind: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
