"""Through a whole gateway: the provider reads what the client wrote, and the reverse.

``wire/test_fidelity.py`` states the same of the functions, with many more documents.
"""

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import httpx

from tests.fakes import Peer, RawUpstream
from tests.gateway.running import gateway_from_a_loop

ROUNDS = 60
TEXTS = [
    "",
    "a",
    "ö",
    "\u2028",
    "日本",
    "🙂",
    '"usage":',
    "\\u0041",
    "\x00",
    "data: [DONE]",
    "\r\n\n",
]
NUMBERS = [0, -1, 2**53 + 1, -(2**63), 2**64 - 1, 1.0, -0.0, 1e-7, 0.1 + 0.2, 1e22, 5e-324]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    match rng.randrange(6 if depth < 3 else 4):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.choice(NUMBERS)
        case 4:
            return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 5:
            return {text(rng): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
        case _:
            return text(rng)


def text(rng: random.Random) -> str:
    return "".join(rng.choices(TEXTS, k=rng.randrange(4)))


def unknown(rng: random.Random) -> dict[str, Any]:
    """Fields that nobody knows."""
    return {f"x-{number}": anything(rng) for number in range(rng.randrange(4))}


def choice(rng: random.Random, index: int, part: str) -> dict[str, Any]:
    """One choice of an answer, with everything that is passed through."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": text(rng)}}
    said: dict[str, Any] = rng.choice(
        [
            {"content": text(rng)},
            {"refusal": text(rng)},
            {"reasoning_content": text(rng), "content": text(rng)},
            {"audio": {"id": "a", "data": "AAAA", "transcript": text(rng)}},
            {"tool_calls": [call, call]},
        ]
    )
    return {"index": index, part: {**said, **unknown(rng)}, "logprobs": anything(rng)}


def answer(rng: random.Random, stream: bool, asked: bool) -> tuple[bytes, bytes]:
    """(what the provider writes as its body, what the client must get)."""
    writing: Any = rng.choice([{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    if not stream:
        choices = [{**choice(rng, n, "message"), "finish_reason": "stop"} for n in range(2)]
        body = json.dumps({**unknown(rng), "choices": choices, "usage": usage}, **writing).encode()
        return body, body
    end = rng.choice(["\n", "\r\n"])

    def event(document: Any) -> bytes:
        return f"data: {json.dumps(document, **writing)}{end}{end}".encode()

    events = [
        event({**unknown(rng), "choices": [{**choice(rng, n % 2, "delta"), "finish_reason": None}]})
        for n in range(2, 2 + rng.randint(2, 6))
    ]
    events.insert(rng.randrange(1, 3), f": ping{end}{end}".encode())
    events.append(
        event({"choices": [{"index": n, "delta": {}, "finish_reason": "stop"} for n in (0, 1)]})
    )
    alone = event({"choices": [], "usage": usage})
    done = b"data: [DONE]\n\n"
    expected = b"".join(events) + (alone if asked else b"") + done
    return b"".join(events) + alone + done, expected


async def test_bodies_and_answers_pass_a_gateway_as_they_are(tmp_path: Path) -> None:
    """Chunks of every size, single bytes too; usage hidden from who did not ask for it."""
    rng = random.Random(20_261_121)
    answers: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            body = answers.pop()
            kind = b"text/event-stream" if body.startswith((b"data", b":")) else b"application/json"
            await peer.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
            )
            longest = rng.choice([1, 7, 10_000])
            while body:
                size = rng.randint(1, longest)
                await peer.send(b"%x\r\n%b\r\n" % (len(body[:size]), body[:size]))
                body = body[size:]
                if longest > 1 or not len(body) % 50:
                    await asyncio.sleep(0)
            await peer.send(b"0\r\n\r\n")

    async with (
        RawUpstream(script) as upstream,
        gateway_from_a_loop(tmp_path, f"http://127.0.0.1:{upstream.port}") as gateway,
        httpx.AsyncClient(base_url=gateway.base_url, trust_env=False) as client,
    ):
        key = await asyncio.to_thread(gateway.key, "globex")
        for _ in range(ROUNDS):
            stream, asked = rng.random() < 0.6, rng.random() < 0.5
            body = {
                **unknown(rng),
                "model": "uncached",
                "messages": [{"role": "user", "content": text(rng), **unknown(rng)}],
                "tools": [unknown(rng)],
                "n": 2,
                "stream": stream,
                "stream_options": {"include_usage": asked, **unknown(rng)},
            }
            written, expected = answer(rng, stream, asked)
            answers.append(written)
            got = await client.post(
                "/chat/completions",
                content=json.dumps(body),
                headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
            )
            assert got.status_code == 200, got.text
            assert re.sub(rb'"charge_usd":"[0-9.]+",', b"", got.content) == expected
            assert (b'"charge_usd"' in got.content) is (stream and asked)
            sent = json.loads(upstream.peers[-1].requests[-1].partition(b"\r\n\r\n")[2])
            changed: dict[str, Any] = {"model": "simulated-large"}
            if stream:
                changed["stream_options"] = {**body["stream_options"], "include_usage": True}
            assert json.dumps(sent) == json.dumps({**body, **changed})
