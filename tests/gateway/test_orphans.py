"""The supervisor alone is killed: its children end soon, and one restart takes over."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from gateway.private_files import leave_scratch, make_scratch, use_scratch
from tests.gateway.running import ProviderThread, RunningGateway, wait_for
from tests.gateway.test_workers import query
from tests.redis_server import RedisServer

ORPHAN_SECONDS = 1.0
TAKEN_OVER_SECONDS = 12.0  # its drain, the end of the books, and the start of the next


@pytest.fixture
def slow_provider() -> Iterator[ProviderThread]:
    """Answers take a minute."""
    thread = ProviderThread(seed=3, tokens_per_second=2.0)
    yield thread
    thread.stop()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A place for temporary folders, with a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_one_restart_takes_over_while_an_answer_was_under_way(
    tmp_path: Path, scratch: Path, slow_provider: ProviderThread, redis_server: RedisServer,
    workers: int,
) -> None:  # fmt: skip
    """The start finds ports and folder held by orphans, waits for their brief drain, and serves;
    the cut answer is booked once, and no temporary folder is left.
    """
    settings = f"orphan_drain_seconds: {ORPHAN_SECONDS}\n"
    if workers > 1:
        settings += f"workers: {workers}\nredis: {{url: '{redis_server.url}'}}\n"
    gateway = RunningGateway(
        tmp_path, slow_provider.base_url, settings=settings,
        environment={"TMPDIR": str(scratch)},
    )  # fmt: skip
    with ExitStack() as stack:
        gateway.start()
        key = gateway.key("acme")
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=60.0))
        answer = stack.enter_context(client.stream(
            "POST", gateway.base_url + "/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            json={"model": "uncached", "stream": True, "max_tokens": 200,
                  "messages": [{"role": "user", "content": "Tell me something long."}]},
        ))  # fmt: skip
        assert answer.status_code == 200
        next(answer.iter_bytes())
        assert gateway.process is not None
        gateway.process.kill()
        gateway.process.wait()
        killed = time.monotonic()
        gateway.start()  # fails where the first attempt does
        assert time.monotonic() - killed < TAKEN_OVER_SECONDS
        assert len(gateway.events(answer.headers["x-request-id"])) == 1
        assert query(gateway, "SELECT count(*) FROM open_intent") == [(0,)]
        assert len(list(scratch.glob("tollhouse-*"))) == 1, "that of the one that runs"
        assert gateway.stop() == 0
    assert list(scratch.glob("tollhouse-*")) == []


@pytest.mark.slow
def test_orphans_end_and_clean_up_though_nobody_starts_again(tmp_path: Path, scratch: Path) -> None:
    """They had nothing to answer, so they end at once."""
    gateway = RunningGateway(
        tmp_path, "http://127.0.0.1:9/v1", environment={"TMPDIR": str(scratch)}
    )
    gateway.start()
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGKILL)
    gateway.process.wait()
    wait_for(lambda: not list(scratch.glob("tollhouse-*")), 10.0, gateway.describe)


def test_a_temporary_folder_lives_as_long_as_its_last_user(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next to make one removes those of killed processes, and no other's."""
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (scratch / "tollhouse-strange").mkdir()
    first, lock = make_scratch("tollhouse-")
    user = use_scratch(first)
    os.close(lock)  # as the death of its maker would
    second, _ = make_scratch("tollhouse-")
    assert first.exists(), "its user lives"
    leave_scratch(first, user)
    assert not first.exists()
    _, lock = make_scratch("tollhouse-")
    os.close(lock)
    fourth, _ = make_scratch("tollhouse-")
    left = {second, fourth, scratch / "tollhouse-strange"}
    assert set(scratch.glob("tollhouse-*")) == left
