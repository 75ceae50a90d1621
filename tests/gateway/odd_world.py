"""A gateway before a provider that answers byte for byte as a test says, however odd."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson

from gateway.ledger import reports
from tests.fakes import Peer, RawUpstream
from tests.gateway.running import RunningGateway, running_gateway

WORLDS_MAX = 128
"""Each test has providers of its own, because fallbacks use up a provider's retry budget."""

_PROVIDER = """
  - {name: up-N, api: openai, base_url: "http://127.0.0.1:PORT/v1", dialects: [chat, responses],
     auth: {bearer: "${env:TOLLHOUSE_TEST_SECRET}"}}
  - {name: anthropic-N, api: anthropic, base_url: "http://127.0.0.1:PORT/v1",
     auth: {key: "${env:TOLLHOUSE_TEST_SECRET}"}}"""
_MODEL = """
  - {name: bad-N, provider: up-N, upstream_model: bad, price: PRICE, capabilities: CAPABLE}
  - {name: good-N, provider: up-N, upstream_model: good, price: PRICE, capabilities: CAPABLE}
  - {name: claude-N, provider: anthropic-N, upstream_model: bad, price: PRICE}
  - {name: claude-good-N, provider: anthropic-N, upstream_model: good, price: PRICE}"""
_ROUTE = """
  - name: route-N
    match: {model: any-N}
    to: bad-N
    fallback: [{on: [timeout, 429, 5xx, overloaded, 404], to: [good-N]}]
  - name: claude-route-N
    match: {model: any-claude-N}
    to: claude-N
    fallback: [{to: [claude-good-N]}]
  - {name: strict-N, match: {model: strict-N}, to: bad-N, fallback: [{to: [good-N]}]}"""
_POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: odd}
providers:PROVIDERS
models:MODELS
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: odd}
routes:ROUTES
  - {name: rest, match: {}, to: good-0, cache: {exact: {ttl: 1h}}}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: odd}
tenants: [{id: acme}]
"""


@contextlib.contextmanager
def odd_gateway(folder: Path, port: int) -> Iterator[RunningGateway]:
    """Its provider is whatever listens on ``port``."""

    def each(text: str) -> str:
        return "".join(text.replace("-N", f"-{number}") for number in range(WORLDS_MAX))

    policy = (
        _POLICY.replace("PROVIDERS", each(_PROVIDER))
        .replace("MODELS", each(_MODEL))
        .replace("ROUTES", each(_ROUTE))
        .replace("CAPABLE", "[chat, tools, vision, json_schema, completions]")
        .replace(
            "PRICE",
            '{source: contract, contract_id: T, per_mtok: {input: "1", cached_input: "0.1",'
            ' output: "10"}}',
        )
        .replace("PORT", str(port))
    )
    with running_gateway(folder, "http://127.0.0.1:9/v1", policy=policy) as gateway:
        yield gateway


def sse(*events: Any) -> bytes:
    """An event of each document; bytes as they are."""
    return b"".join(
        event if isinstance(event, bytes) else b"data: " + orjson.dumps(event) + b"\n\n"
        for event in events
    )


def answer(body: bytes, kind: str = "application/json", status: int = 200) -> bytes:
    """A provider's whole answer."""
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def stream(*events: Any, kind: str = "text/event-stream") -> bytes:
    """A provider's answer of these events."""
    return answer(sse(*events), kind)


def chunk(content: str | None = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """An event of a chat's stream."""
    if content is not None:
        delta["content"] = content
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }  # fmt: skip


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
DONE = b"data: [DONE]\n\n"
GOOD = stream(chunk("from good"), chunk(reason="stop"), {"choices": [], "usage": USAGE}, DONE)
WHOLE = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "from good"},
         "finish_reason": "stop"}
    ],
    "usage": USAGE,
}  # fmt: skip


class Odd:
    """One test's view: what the provider says, and what its client gets of it."""

    def __init__(self, gateway: RunningGateway, key: str, port: int, number: int) -> None:
        self.gateway = gateway
        self.asked: list[dict[str, Any]] = []  # bodies that the provider got
        self._key = key
        self._port = port
        self._number = number

    async def ask(
        self, answers: list[bytes] | bytes, body: dict[str, Any] | None = None,
        path: str = "/chat/completions", times: int = 1,
    ) -> httpx.Response:  # fmt: skip
        """The last of so many answers. answers: what the model ``bad`` says, in turn.

        A model named in ``body`` gets the test's own number; ``good`` always answers well.
        """
        replies = iter([answers] if isinstance(answers, bytes) else answers)

        async def script(peer: Peer) -> None:
            while True:
                sent = orjson.loads((await peer.request()).partition(b"\r\n\r\n")[2])
                self.asked.append(sent)
                good = GOOD if sent.get("stream") else answer(orjson.dumps(WHOLE))
                await peer.send(next(replies) if sent["model"] == "bad" else good)

        sent = {"model": "any", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        sent |= body or {}
        sent["model"] = f"{sent['model']}-{self._number}"
        async with (
            RawUpstream(script, port=self._port),
            httpx.AsyncClient(trust_env=False, timeout=10) as client,
        ):
            for _ in range(times):
                found = await client.post(
                    self.gateway.base_url + path, json=sent,
                    headers={"authorization": f"Bearer {self._key}"},
                )  # fmt: skip
        return found

    def booked(self, answered: httpx.Response, count: int = 1) -> list[reports.EventRow]:
        """The attempts of a request, in their order."""
        return self.gateway.events(answered.headers["x-request-id"], count)


def text_of(answered: httpx.Response) -> str:
    """All content of a chat's stream."""
    found = ""
    for event in answered.text.split("\n\n"):
        if event.startswith("data: {"):
            for choice in orjson.loads(event[6:]).get("choices") or ():
                found += choice["delta"].get("content") or ""
    return found


def error_of(answered: httpx.Response) -> dict[str, Any]:
    """The error, as a document or as the last event."""
    if answered.status_code != 200:
        document = answered.json()
    else:
        assert "[DONE]" not in answered.text
        document = orjson.loads(answered.text.strip().split("data: ")[-1])
    error: dict[str, Any] = document["error"]
    return error
