"""Connections are fitted to the files that a process may open; nobody's port is taken down."""

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accepting import fitted
from gateway.config import Limits
from tests.gateway.running import ProviderThread, RunningGateway, wait_for
from tests.gateway.scripted_provider import scripted_provider

FILES = 256
IDLE = 600


@given(files=st.integers(256, 1 << 20), wanted=st.integers(1, 1 << 20))
def test_clients_their_providers_and_the_admin_port_fit_into_the_files(
    files: int, wanted: int
) -> None:
    """And some are left for the books; what is wanted is kept to where there is room for it."""
    limits = Limits(connections_max=wanted)
    public, admin = fitted(limits, files)
    assert 2 * public + admin + 96 <= files
    assert public <= wanted
    assert admin >= 8
    assert (public == wanted) or public >= (files - 96 - 64 - 32) // 2 - 1


@pytest.fixture(scope="module")
def small(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """A gateway that may open 256 files."""
    gateway = RunningGateway(tmp_path_factory.mktemp("small"), provider.base_url)
    gateway.prefix = ("/bin/sh", "-c", f'ulimit -n {FILES}; exec "$@"', "sh")
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


def room_for_ours() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4 * IDLE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4 * IDLE, hard), hard))


async def crowd(port: int) -> list[bytes | None]:
    """What many connections that ask nothing hear; None: nothing, they may stay."""
    pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE)))
    heard: list[bytes | None] = []
    for reader, _ in pairs:
        try:
            heard.append(await asyncio.wait_for(reader.read(4096), 0.01 if None in heard else 3.0))
        except TimeoutError:
            heard.append(None)
        except ConnectionError:
            heard.append(b"reset")
    for _, writer in pairs:
        writer.close()
    return heard


def test_a_crowd_is_told_so_and_shuts_nobody_out_of_the_admin_port(small: RunningGateway) -> None:
    """256 files, 600 idle connections: 503 instead of resets, and books, policy and
    admin port go on.
    """
    room_for_ours()
    key = small.key("globex")

    heard = asyncio.run(crowd(small.port))
    assert heard.count(b"reset") == 0
    refused = [text for text in heard if text]
    assert all(text.startswith(b"HTTP/1.1 503 ") for text in refused)
    assert len(refused) >= IDLE - FILES
    with small.admin() as admin:
        assert admin.get("/livez").status_code == 200
        assert admin.post("/admin/policy/reload").json()["successful"]

    def answered() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(
                f"{small.base_url}/chat/completions", trust_env=False, timeout=5.0,
                headers={"authorization": f"Bearer {key}"},
                json={"model": "large", "messages": [{"role": "user", "content": "hi"}]},
            )  # fmt: skip
            return answer.status_code == 200
        return False

    wait_for(answered, 10.0, small.describe)
    log = small.log.read_text()
    assert f"may open {FILES} files" in log
    assert "not acceptable" not in log
    assert "cannot accept" not in log


def test_the_admin_port_answers_while_the_public_one_is_full(small: RunningGateway) -> None:
    """A crowd of client connections, as many as files are allowed, keeps no readiness probe out."""

    async def held() -> int:
        pairs = [await asyncio.open_connection("127.0.0.1", small.port) for _ in range(FILES)]
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
            answer = await client.get(f"{small.admin_url}/readyz")
        for _, writer in pairs:
            writer.close()
        return answer.status_code

    assert asyncio.run(held()) == 200


def test_a_soft_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    """A shell's 1,024 is no decision of anybody."""
    with scripted_provider() as provider:
        gateway = RunningGateway(tmp_path, provider.base_url)
        gateway.prefix = ("/bin/sh", "-c", 'ulimit -S -n 200; exec "$@"', "sh")
        try:
            gateway.start()
            worker = gateway.child("worker")
            limits = Path(f"/proc/{worker}/limits").read_text()
            (line,) = [text for text in limits.splitlines() if text.startswith("Max open files")]
            soft, hard = line.split()[3:5]
            assert soft == hard != "200"
        finally:
            gateway.stop()
