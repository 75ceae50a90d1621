"""A gateway between clients and providers that fail; and a client that costs next to nothing."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from tests.gateway.running import RunningGateway

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: faulty}
providers:
  - {name: healthy, api: openai, base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"}
  - name: wavering # fails now and then
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    health: {min_requests: 100000}
  - name: fragile # is ejected quickly
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    timeouts: {first_byte: 400ms, idle: 400ms}
    health: {min_requests: 6, error_rate: 50%, window: 60s, eject: 60s}
  - name: hung
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    timeouts: {first_byte: 20s}
    limits: {concurrent: 10, per_tenant: 80%}
    health: {min_requests: 100000}
models:
  - {name: healthy, provider: healthy, upstream_model: a, price: {source: unpriced}}
  - {name: wavering, provider: wavering, upstream_model: a, price: {source: unpriced}}
  - {name: fragile, provider: fragile, upstream_model: a, price: {source: unpriced}}
  - {name: hung, provider: hung, upstream_model: a, price: {source: unpriced}}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: faulty}
routes:
  - {name: backed, match: {model: backed}, to: fragile, fallback: [{to: healthy}]}
  - {name: rest, match: {}, to: healthy}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: faulty}
tenants: [{id: acme}, {id: globex}]
"""


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def request_bytes(key: str, body: dict[str, Any]) -> bytes:
    """A whole request to /v1/chat/completions."""
    raw = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (key.encode(), len(raw), raw)
    )


class Caller:
    """One keep-alive connection to a gateway."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, model: str, text: str) -> tuple[int, float]:
        """(status, seconds) of one answer that does not stream."""
        began = time.monotonic()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request_bytes(self._key, {"model": model, "messages": message(text)}))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
        await self._reader.readexactly(int(length))
        return int(head[9:12]), time.monotonic() - began

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


def open_files(gateway: RunningGateway) -> int:
    """File descriptors of the worker."""
    return len(os.listdir(Path("/proc") / str(gateway.child("worker")) / "fd"))
