"""Python frames and C calls that one request costs the gateway, by kind of request and by file.

    python -m tests.bench.bench_frames [--functions 20] [--requests 20]

A real worker and a provider that answers at once share one event loop with the profile hook of the
interpreter. Counts do not depend on the machine's speed: they say where time goes and whether a
change took work away, not how long anything takes. A coroutine's resumption counts as a frame.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import uvloop

from gateway.app import Gateway
from gateway.config import load_settings
from gateway.server import Server
from tests.bench.http_mock import Provider

GATEWAY = str(Path(__file__).parents[2] / "gateway") + os.sep
POLICY = Path(__file__).with_name("gateway_policy.yaml")
SETTINGS = 'policies: [policy.yaml]\nstate_dir: state\nlocal: {enabled: "off"}\n'
WARM_UP = 20
# What OpenAI's Python client sends: twelve header lines.
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    "content-type: application/json\r\naccept: application/json\r\nuser-agent: OpenAI/Python 2\r\n"
    "accept-encoding: gzip, deflate\r\nconnection: keep-alive\r\nx-stainless-lang: python\r\n"
    "x-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\n"
    "content-length: {length}\r\n\r\n"
)
BODY = (
    '{{"model":"{model}","messages":[{{"role":"system","content":"You are helpful."}},'
    '{{"role":"user","content":"What is gravity {number}?"}}],"temperature":0.5,"max_tokens":32'
    "{more}}}"
)


class Kind(NamedTuple):
    """One kind of request."""

    name: str
    model: str
    repeats: bool = False  # the same request again: the exact cache answers
    stream: bool = False


KINDS = (
    Kind("pinned miss", "large"),
    Kind("exact hit", "large", repeats=True),
    Kind("auto by text", "auto"),
    Kind("pinned stream", "large", stream=True),
)


class Counts:
    """Frames of the gateway's own code, and calls from there into C, while it is switched on."""

    def __init__(self) -> None:
        self.frames: Counter[tuple[str, str]] = Counter()
        self.c_calls: Counter[str] = Counter()

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        """Count one event of ``sys.setprofile``."""
        file = frame.f_code.co_filename
        if not file.startswith(GATEWAY):
            return
        if event == "call":
            self.frames[file.removeprefix(GATEWAY), frame.f_code.co_qualname] += 1
        elif event == "c_call":
            self.c_calls[file.removeprefix(GATEWAY)] += 1


async def count(ask: Callable[[int], Awaitable[None]], requests: int) -> Counts:
    """Ask ``requests`` times, after some that fill what is filled on first use."""
    for number in range(WARM_UP):
        await ask(number)
    counts = Counts()
    sys.setprofile(counts.see)
    try:
        for number in range(requests):
            await ask(WARM_UP + number)
    finally:
        sys.setprofile(None)
    return counts


def show(kind: Kind, counts: Counts, requests: int, functions: int) -> None:
    """Print one kind: its sum, then files, then the functions that are entered most."""
    frames, c_calls = counts.frames.total() / requests, counts.c_calls.total() / requests
    print(f"{kind.name:14} {frames:6.1f} frames {c_calls:6.1f} C calls")
    by_file: Counter[str] = Counter()
    for (file, _), number in counts.frames.items():
        by_file[file] += number
    for file, number in by_file.most_common():
        if functions and number >= requests:
            calls = counts.c_calls[file] / requests
            print(f"    {number / requests:6.1f} {file} ({calls:.0f} C calls)")
    for (file, name), number in counts.frames.most_common(functions):
        print(f"        {number / requests:6.1f} {file}:{name}")


async def run(requests: int, functions: int) -> None:
    """Count every kind on one gateway and one connection."""
    loop = asyncio.get_running_loop()
    provider = await loop.create_server(Provider, "127.0.0.1", 0)
    port = provider.sockets[0].getsockname()[1]
    folder = Path(tempfile.mkdtemp())
    (folder / "policy.yaml").write_text(
        POLICY.read_text().replace("${env:UPSTREAM_BASE_URL}", f"http://127.0.0.1:{port}/v1")
    )
    (folder / "tollhouse.yaml").write_text(SETTINGS)
    gateway = Gateway(load_settings(folder / "tollhouse.yaml", environ={}), None)
    await gateway.open()
    now_us = gateway.services.now_us()
    _, key = gateway.keys.create_api("bench", "default", "bench", now_us=now_us)
    server = Server(gateway.v1, gateway.services.settings.limits)
    public = await loop.create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*public.sockets[0].getsockname()[:2])

    async def ask(kind: Kind, first: int, number: int) -> None:
        body = BODY.format(
            model=kind.model,
            number=0 if kind.repeats else first + number,
            more=',"stream":true' if kind.stream else "",
        )
        writer.write((HEAD.format(key=key, length=len(body)) + body).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        _, length, rest = head.lower().partition(b"content-length: ")
        if length:
            await reader.readexactly(int(rest.partition(b"\r\n")[0]))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")

    for offset, kind in enumerate(KINDS):
        first = offset * 100_000  # no kind asks what another has asked
        counts = await count(partial(ask, kind, first), requests)
        show(kind, counts, requests, functions)
    writer.close()
    public.close()
    provider.close()
    await gateway.close()


def main() -> None:
    """Read the arguments and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20, help="of each kind")
    parser.add_argument("--functions", type=int, default=0, help="that are entered most; 0: none")
    given = parser.parse_args()
    uvloop.run(run(given.requests, given.functions))


if __name__ == "__main__":
    main()
