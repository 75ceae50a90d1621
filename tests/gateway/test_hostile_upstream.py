"""Whatever a provider does, its client gets an answer, an error or an error event, and in time."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.simulator.faults import FAULTS
from tests.fakes import Peer, RawUpstream
from tests.gateway.running import POLICY, RunningGateway, gateway_from_a_loop, wait_for

# Of the policy these tests run under: 2 s to the first byte, 1 s between chunks.
DEADLINE_SECONDS = 2.0
LATER_SECONDS = 1.0
# After a wait, twice at most.
RETRIED = ("status-429", "status-500", "status-502", "status-503", "status-529", "status-599")
MIB = 1 << 20
NUMBERS = {
    "status-N": (400, 401, 403, 404, 408, 418, 429, 500, 502, 503, 504, 529, 599),
    "reset-after-N": (0, 1, 200),
    "cut-after-N": (0, 1, 40),
    "end-after-N": (0, 5),
    "stall-after-N": (0, 20),
    "malformed-event-after-N": (0, 10),
    "error-event-after-N": (0, 10),
}
EVERY_FAULT = [
    name.replace("-N", f"-{number}") if name.endswith("-N") else name
    for name in FAULTS
    for number in NUMBERS.get(name, (0,))
]
# The provider's oddities under which a good answer still is one, with a stream and without.
HARMLESS = {"early-hints", "close-delimited", "no-usage", "lying-usage", "pings", "crlf", "no-done"}


def ask(
    gateway: RunningGateway, key: str, fault: str, stream: bool
) -> tuple[httpx.Response, float]:
    """The answer and the seconds it took."""
    began = time.monotonic()
    answer = httpx.post(
        gateway.base_url + "/chat/completions",
        json={
            "model": "uncached", "stream": stream, "max_tokens": 60,
            "messages": [{"role": "user", "content": f"Break. [[fault:{fault}]]"}],
        },
        headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=30,
    )  # fmt: skip
    return answer, time.monotonic() - began


def check_error(document: Any) -> None:
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"]


def is_sound(answer: httpx.Response, stream: bool) -> bool:
    """Whether a good answer came; what is not one must be an error in its proper form."""
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 600
        check_error(answer.json())
        return False
    if not stream:
        assert answer.json()["choices"][0]["message"]
        return True
    events = [part for part in re.split(r"\r?\n\r?\n", answer.text) if part]
    if events[-1] == "data: [DONE]":
        return True
    assert "[DONE]" not in answer.text
    check_error(json.loads(events[-1].removeprefix("data: ")))
    return False


def resident_bytes(gateway: RunningGateway) -> int:
    status = Path(f"/proc/{gateway.child('worker')}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
def test_every_fault_becomes_an_answer_an_error_or_an_error_event_in_time(
    plain: RunningGateway,
) -> None:
    """All at once, with a stream and without: none leaks our key, none makes another late."""
    key = plain.key("globex")
    ask(plain, key, "no-usage", stream=False)  # loads the tokenizer, which is no leak
    before = resident_bytes(plain)
    cases = [(fault, stream) for fault in EVERY_FAULT for stream in (False, True)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda case: ask(plain, key, *case), cases))
    for (fault, stream), (answer, seconds) in zip(cases, answers, strict=True):
        case = f"{fault}, {stream=}, {seconds:.1f} s: {answer.status_code} {answer.text[:200]}"
        waits = 3.0 if fault in RETRIED else 0.0
        assert seconds < DEADLINE_SECONDS + LATER_SECONDS + waits, case
        assert is_sound(answer, stream) or fault not in HARMLESS, case
        assert "sk-provider" not in answer.text, case
        assert "sk-provider" not in str(answer.headers), case
        assert "location" not in answer.headers, case
    assert resident_bytes(plain) - before < 48 * MIB


# A provider that never ends

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "a head": (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65_536),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100),
    "a chunk's extension": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;",
        b"x" * 65_536,
    ),
    "a document": (b"HTTP/1.1 200 OK\r\n\r\n{", b" " * 65_536),
    "a line of a stream": (STREAM + b"data: ", b"x" * 65_536),
    "an event of short lines": (STREAM, b"data: x\n" * 8192),
    "an error's text": (b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 65_536),
}


def endless(beginning: bytes, piece: bytes, written: list[int]) -> Callable[[Peer], Any]:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(beginning)
        while True:
            await peer.send(piece)
            written.append(len(piece))
            await asyncio.sleep(0)

    return script


@pytest.mark.slow
async def test_a_provider_that_never_ends_is_cut_off_at_a_limit(tmp_path: Path) -> None:
    """In its head, an event or a body: an error soon, and no more memory than the limits allow."""
    written: list[int] = []
    scripts = iter(ENDLESS.values())

    async def next_script(peer: Peer) -> None:
        await endless(*next(scripts), written)(peer)

    limits = {"TOLLHOUSE_LIMITS_ANSWER_BYTES_MAX": str(4 * MIB)}
    async with (
        RawUpstream(next_script) as upstream,
        gateway_from_a_loop(
            tmp_path, f"http://127.0.0.1:{upstream.port}", environment=limits
        ) as gateway,
    ):
        key = await asyncio.to_thread(gateway.key, "globex")
        before = resident_bytes(gateway)
        for number, name in enumerate(ENDLESS):
            written.clear()
            stream = b"event-stream" in ENDLESS[name][0]
            answer, seconds = await asyncio.to_thread(ask, gateway, key, "none", stream)
            assert not is_sound(answer, stream), name
            assert seconds < DEADLINE_SECONDS + LATER_SECONDS, name
            assert sum(written) < 32 * MIB, name
            await upstream.finished(number)  # its connection is closed
        assert resident_bytes(gateway) - before < 24 * MIB


# A provider whose answer is odd

DEEP = (
    b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"},'
    b' "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}, "deep": '
    + b"[" * 300 + b"]" * 300 + b"}"
)  # fmt: skip
OVERLOADED = (
    b"event: error\n"
    b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
)


async def odd(peer: Peer) -> None:
    while True:
        request = await peer.request()
        body, kind = (
            (OVERLOADED, b"text/event-stream") if b"/messages" in request else (DEEP, b"a/b")
        )
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
        await peer.send(head % (kind, len(body)) + body)


@pytest.mark.slow
async def test_an_odd_answer_is_neither_altered_by_the_cache_nor_billed_as_a_good_one(
    tmp_path: Path,
) -> None:
    """A document of 300 levels comes back whole as a hit; a refusal in a stream costs nothing."""
    policy = POLICY.replace("    simulated: true\n", "    dialects: [chat, messages]\n", 1)
    async with (
        RawUpstream(odd) as upstream,
        gateway_from_a_loop(
            tmp_path, f"http://127.0.0.1:{upstream.port}", policy=policy
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=10) as client,
    ):
        client.headers["authorization"] = f"Bearer {await asyncio.to_thread(gateway.key, 'globex')}"
        body = {"model": "large", "messages": [{"role": "user", "content": "Hello."}]}
        for status in ("miss", "hit-exact"):
            answer = await client.post("/chat/completions", json=body)
            assert answer.status_code == 200
            assert answer.headers["x-tollhouse-cache"] == status
            assert answer.json()["choices"] == json.loads(DEEP)["choices"]
            assert answer.json()["deep"] == json.loads(DEEP)["deep"]
        answer = await client.post("/messages", json={**body, "max_tokens": 5, "stream": True})
        assert answer.status_code == 529
        request_id = answer.headers["request-id"]
        attempts = len(upstream.peers[0].requests) - 1
        events = await asyncio.to_thread(gateway.events, request_id, attempts)
        assert [event.cost_pico for event in events] == [0] * attempts


async def mute(peer: Peer) -> None:
    await peer.gone()


@pytest.mark.slow
async def test_who_leaves_before_the_provider_is_reached_pays_nothing(tmp_path: Path) -> None:
    """The provider accepts, and never says a word of TLS: it cannot have seen the request."""
    async with RawUpstream(mute) as upstream:
        policy = POLICY.replace("http://127.0.0.1:9/v1", f"https://127.0.0.1:{upstream.port}/v1", 1)
        async with (
            gateway_from_a_loop(tmp_path, "http://127.0.0.1:9/v1", policy=policy) as gateway,
            httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=10) as client,
        ):
            key = await asyncio.to_thread(gateway.key, "globex")
            body = {"model": "other", "messages": [{"role": "user", "content": "Hello. " * 99}]}
            asking = asyncio.create_task(
                client.post(
                    "/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
                )
            )
            await upstream.until(lambda: len(upstream.peers) > 0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await upstream.finished()
            pattern = re.compile(r'tokens_total\{[^}]*"input"[^}]*"other"[^}]*\} (\d+)')

            def counted() -> list[str]:
                url = gateway.admin_url + "/metrics"
                return pattern.findall(httpx.get(url, trust_env=False).text)

            await asyncio.to_thread(wait_for, lambda: bool(counted()), 5.0)
            assert await asyncio.to_thread(counted) == ["0"]


FIRST = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}\n\n'
TOKEN = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'


async def modest(peer: Peer) -> None:
    await peer.request()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    await peer.send(head + FIRST + TOKEN * 50)  # and the end of the connection


@pytest.mark.slow
async def test_usage_told_before_a_cut_stream_does_not_hide_what_came_after_it(
    tmp_path: Path,
) -> None:
    """A provider that tells its usage early is booked with all 50 tokens that it wrote."""
    async with (
        RawUpstream(modest) as upstream,
        gateway_from_a_loop(tmp_path, f"http://127.0.0.1:{upstream.port}") as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False, timeout=10) as client,
    ):
        client.headers["authorization"] = f"Bearer {await asyncio.to_thread(gateway.key, 'globex')}"
        body = {"model": "large", "messages": [{"role": "user", "content": "Hello."}]}
        answer = await client.post("/chat/completions", json={**body, "stream": True})
        assert "[DONE]" not in answer.text
        request_id = answer.headers["x-request-id"]
        (event,) = await asyncio.to_thread(gateway.events, request_id, 1)
        assert event.prompt_tokens == 3
        assert event.completion_tokens == 50
        assert event.state == "estimated"
