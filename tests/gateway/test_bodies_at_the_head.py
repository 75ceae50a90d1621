"""What is asked before a body is read, and that all of it comes back, whatever ends the request."""

import contextlib
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway, wait_for

MIB = 1 << 20
SETTINGS = {
    "TOLLHOUSE_LIMITS_BODY_BYTES_MAX": str(2 * MIB),
    "TOLLHOUSE_LIMITS_TENANT_BODY_BYTES_MAX": str(3 * MIB),
    "TOLLHOUSE_LIMITS_WORKER_BODY_BYTES_MAX": str(5 * MIB),
    "TOLLHOUSE_LIMITS_BODY_SECONDS": "2.0",
}
TENANTS = """
  - {id: narrow, limits: {concurrent: 2}}
  - {id: rare, limits: {rpm: 2}}
  - {id: one}
  - {id: two}
  - {id: three}
"""
QUESTION = b'{"model":"large","max_tokens":4,"messages":[{"role":"user","content":"Hi"}]}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    provider = ProviderThread(seed=3)
    folder: Path = tmp_path_factory.mktemp("heads")
    options = {"policy": POLICY.rstrip() + TENANTS, "environment": SETTINGS}
    try:
        with running_gateway(folder, provider.base_url, **options) as running:
            yield running
    finally:
        provider.stop()


class Sender:
    """One connection that sends a request in parts."""

    def __init__(self, gateway: RunningGateway, key: str, framing: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        self.socket.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            f"{framing}\r\n\r\n".encode()
        )

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self) -> bytes:
        """The head of the answer and what came with it."""
        heard = b""
        while b"\r\n\r\n" not in heard:
            data = self.socket.recv(65_536)
            if not data:
                break
            heard += data
        return heard

    def close(self) -> None:
        self.socket.close()


def ask(gateway: RunningGateway, key: str, body: bytes = QUESTION) -> httpx.Response:
    return httpx.post(
        gateway.base_url + "/chat/completions",
        content=body,
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        trust_env=False,
        timeout=30,
    )


def test_one_tenants_bodies_have_their_room_and_no_more(gateway: RunningGateway) -> None:
    """Refused before a byte of the body is sent; another tenant has its own room."""
    key = gateway.key("one")
    first = Sender(gateway, key, f"content-length: {2 * MIB}")
    second = Sender(gateway, key, f"content-length: {2 * MIB}")
    heard = second.answer()
    assert heard.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1\r\n" in heard
    assert b"limits.tenant_body_bytes_max" in heard
    assert ask(gateway, gateway.key("two")).status_code == 200
    first.close()
    wait_for(lambda: _fits(gateway, key, 2 * MIB), 5)
    second.close()


def test_all_bodies_of_a_worker_have_their_room_and_no_more(gateway: RunningGateway) -> None:
    """A third tenant gets a 503 that names the limit and asks for a retry after one second."""
    senders = [
        Sender(gateway, gateway.key(tenant), f"content-length: {2 * MIB}")
        for tenant in ("one", "two")
    ]
    third = Sender(gateway, gateway.key("three"), f"content-length: {2 * MIB}")
    heard = third.answer()
    assert heard.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in heard
    assert b"limits.worker_body_bytes_max" in heard
    for sender in (*senders, third):
        sender.close()


def test_a_body_without_a_length_takes_room_as_it_comes(gateway: RunningGateway) -> None:
    """Chunks cannot get round a tenant's room; once refused, they give all of it back."""
    key = gateway.key("three")
    first = Sender(gateway, key, f"content-length: {2 * MIB - 1}")
    chunked = Sender(gateway, key, "transfer-encoding: chunked")
    for _ in range(20):
        chunked.chunk(b"a" * (64 << 10))
    heard = chunked.answer()
    assert heard.startswith(b"HTTP/1.1 429 ")
    assert b"tenant_body_bytes_max" in heard
    first.close()
    chunked.close()
    wait_for(lambda: _fits(gateway, key, 2 * MIB), 5)


def test_concurrency_is_taken_before_the_body_is_read(gateway: RunningGateway) -> None:
    """Two bodies on their way fill both slots, so a third head is refused at once."""
    key = gateway.key("narrow")
    senders = [Sender(gateway, key, "content-length: 100") for _ in range(2)]
    wait_for(lambda: ask(gateway, key).status_code == 429, 5)
    third = Sender(gateway, key, "content-length: 100")
    assert third.answer().startswith(b"HTTP/1.1 429 ")
    for sender in (*senders, third):
        sender.close()
    wait_for(lambda: ask(gateway, key).status_code == 200, 5)


def test_requests_per_minute_are_taken_before_the_body_is_read(gateway: RunningGateway) -> None:
    """Bad bodies count, and a refusal does not."""
    key = gateway.key("rare")
    assert ask(gateway, key, b"{").status_code == 400
    assert ask(gateway, key).status_code == 200
    for _ in range(3):
        refused = Sender(gateway, key, "content-length: 100")
        heard = refused.answer()
        assert heard.startswith(b"HTTP/1.1 429 ")
        assert b"2 requests per minute" in heard
        refused.close()


ENDINGS = (
    "answered", "leaves before its body", "leaves in its body", "leaves while it is answered",
    "bad body", "too long", "too long in chunks", "no such model", "chunked", "two in one read",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_slots_and_room_come_back_however_a_request_ends(
    gateway: RunningGateway, seed: int
) -> None:
    """Forty requests of one tenant end in every way; then all of its slots and room are there."""
    key, rng = gateway.key("narrow"), random.Random(seed)
    endings = [rng.choice(ENDINGS) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ending: _end(gateway, key, ending), endings))
    wait_for(lambda: ask(gateway, key).status_code == 200, 5)
    slow = [Sender(gateway, key, "content-length: 100") for _ in range(2)]
    wait_for(lambda: ask(gateway, key).status_code == 429, 5)
    for sender in slow:
        sender.close()
    wait_for(lambda: _fits(gateway, key, 2 * MIB), 5)
    wait_for(lambda: _fits(gateway, key, 2 * MIB), 5)


def test_a_body_that_does_not_come_in_time_gives_everything_back(gateway: RunningGateway) -> None:
    """After a 408 its slots are free again while the late connections are still open."""
    key = gateway.key("narrow")
    late = [Sender(gateway, key, f"content-length: {MIB}") for _ in range(2)]
    assert all(sender.answer().startswith(b"HTTP/1.1 408 ") for sender in late)
    wait_for(lambda: ask(gateway, key).status_code == 200, 5)
    for sender in late:
        sender.close()


def _end(gateway: RunningGateway, key: str, ending: str) -> None:
    length = f"content-length: {len(QUESTION)}"
    match ending:
        case "answered":
            sender = Sender(gateway, key, length)
            sender.send(QUESTION)
            sender.answer()
        case "leaves before its body":
            sender = Sender(gateway, key, length)
        case "leaves in its body":
            sender = Sender(gateway, key, f"content-length: {MIB}")
            sender.send(b"{" * 1000)
        case "leaves while it is answered":
            sender = Sender(gateway, key, length)
            sender.send(QUESTION)
        case "bad body":
            sender = Sender(gateway, key, "content-length: 1")
            sender.send(b"{")
            sender.answer()
        case "too long":
            sender = Sender(gateway, key, f"content-length: {2 * MIB + 1}")
            sender.answer()
        case "too long in chunks":
            sender = Sender(gateway, key, "transfer-encoding: chunked")
            for _ in range(3):
                sender.chunk(b"a" * MIB)
            sender.answer()
        case "no such model":
            body = QUESTION.replace(b"large", b"nobody")
            sender = Sender(gateway, key, f"content-length: {len(body)}")
            sender.send(body)
            sender.answer()
        case "chunked":
            sender = Sender(gateway, key, "transfer-encoding: chunked")
            sender.chunk(QUESTION)
            sender.send(b"0\r\n\r\n")
            sender.answer()
        case _:
            sender = Sender(gateway, key, f"{length}\r\nx: y")
            sender.send(QUESTION + b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            sender.answer()
    sender.close()


def _fits(gateway: RunningGateway, key: str, size: int) -> bool:
    body = QUESTION.removesuffix(b"}") + b',"unknown":"'
    body += b"A" * (size - len(body) - 2) + b'"}'
    return ask(gateway, key, body).status_code == 200


@pytest.mark.long
def test_four_hundred_large_bodies_of_one_key_leave_a_worker_small(tmp_path: Path) -> None:
    """400 connections, 10 MiB each less one byte: the worker stays below 300 MB."""
    size = 10 * MIB
    provider = ProviderThread(seed=3)
    policy = POLICY.rstrip() + TENANTS
    with running_gateway(tmp_path, provider.base_url, policy=policy) as gateway:
        keys = [gateway.key(tenant) for tenant in ("one", "two", "three")]
        pid = gateway.child("worker")
        peak, senders = 0, []
        for number in range(400):
            sender = Sender(gateway, keys[number % 3], f"content-length: {size}")
            senders.append(sender)
            sender.socket.settimeout(0.5)
            for _ in range(160):
                sender.send(b"a" * (64 << 10) if _ < 159 else b"a" * ((64 << 10) - 1))
            peak = max(peak, _resident_bytes(pid))
        assert ask(gateway, gateway.key("acme")).status_code in (200, 503)
        for sender in senders:
            sender.close()
        body = QUESTION.removesuffix(b"}") + b',"unknown":"'
        body += b"A" * (size - len(body) - 2) + b'"}'
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(ask, gateway, key, body) for key in keys * 20]
            while not all(answer.done() for answer in answers):
                peak = max(peak, _resident_bytes(pid))
        assert {answer.result().status_code for answer in answers} <= {200, 429, 503, 504}
    provider.stop()
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < 300_000_000


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
