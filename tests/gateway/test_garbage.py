"""A request leaves no cycles: its memory is free when it is over, and the collector has no work."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.app import Gateway
from gateway.config import load_settings
from gateway.server import Server
from tests.gateway.running import POLICY, ProviderThread

REQUESTS = 40


@pytest.fixture
def provider_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderThread]:
    provider = ProviderThread()
    monkeypatch.setenv("TOLLHOUSE_TEST_PROVIDER", provider.base_url)
    monkeypatch.setenv("TOLLHOUSE_TEST_SECRET", "sk-simulated")
    yield provider
    provider.stop()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"content-length: " in head:
        length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")
    return head


def request(key: str, text: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    body = json.dumps({"model": "large", "messages": messages, **more}).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_answers_from_providers_and_caches_leave_nothing_to_collect(
    tmp_path: Path, provider_thread: ProviderThread
) -> None:
    """Forty requests of each kind would show even one cyclic object that each leaves behind."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "tollhouse.yaml").write_text(
        f"state_dir: {tmp_path / 'state'}\npolicies: [policy.yaml]\nlocal: {{enabled: 'off'}}\n"
    )
    gateway = Gateway(load_settings(tmp_path / "tollhouse.yaml"), None)
    await gateway.open()
    _, key = gateway.keys.create_api("acme", "default", "test", now_us=1)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        Server(gateway.v1, gateway.services.settings.limits), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2])
    found: dict[str, int] = {}
    kinds: dict[str, Callable[[int], bytes]] = {
        "miss": lambda number: request(key, f"Question {number}"),
        "hit": lambda number: request(key, "Question 1"),
        "stream": lambda number: request(key, f"Stream {number}", stream=True),
        "refused": lambda number: request(key, "Question", max_tokens=-1),
        "unknown": lambda number: request("th_nobody", "Question"),
    }
    for kind, make in kinds.items():
        for number in range(3):  # what is made once
            writer.write(make(number))
            await answer(reader)
        gc.collect()
        gc.disable()
        for number in range(REQUESTS):
            writer.write(make(10 + number))
            await answer(reader)
        found[kind] = gc.collect()
        gc.enable()
    writer.close()
    await writer.wait_closed()
    listening.close()
    await gateway.close()
    assert {kind: count for kind, count in found.items() if count >= REQUESTS} == {}
