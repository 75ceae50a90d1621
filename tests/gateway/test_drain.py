"""SIGTERM: told at once, noticed in peace, and nothing that has begun is lost."""

import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.running import ProviderThread, running_gateway, wait_for

QUESTION: Any = [{"role": "user", "content": "Tell me something long."}]


@pytest.mark.slow
def test_after_sigterm_it_is_not_ready_at_once_and_still_serves_until_that_is_noticed(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """/readyz says 503 within 100 ms; for ``unready_seconds`` new requests are answered; then it
    ends, long before the drain deadline.
    """
    with running_gateway(tmp_path, provider.base_url, unready_seconds=1.0) as gateway:
        key = gateway.key("acme")
        client = openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0)
        with client, httpx.Client(base_url=gateway.admin_url, trust_env=False) as probe:
            assert probe.get("/readyz").status_code == 200
            assert gateway.process is not None
            gateway.process.terminate()
            told = time.monotonic()
            wait_for(lambda: probe.get("/readyz").status_code == 503, 5.0)
            assert time.monotonic() - told < 0.1
            answered = 0
            while time.monotonic() - told < 0.7:
                client.chat.completions.create(model="uncached", messages=QUESTION)
                answered += 1
            assert answered > 0
            assert probe.get("/livez").status_code == 200, "unready, not dead"
        assert gateway.process.wait(8) == 0
        assert 0.9 < time.monotonic() - told < 5.0


@pytest.mark.slow
def test_being_told_twice_ends_the_delay(tmp_path: Path, provider: ProviderThread) -> None:
    """A second SIGTERM ends a delay of 60 seconds within 8, and the exit is still clean."""
    with running_gateway(tmp_path, provider.base_url, unready_seconds=60.0) as gateway:
        assert gateway.process is not None
        gateway.process.terminate()
        wait_for(
            lambda: httpx.get(gateway.admin_url + "/readyz", trust_env=False).status_code == 503,
            5.0,
        )
        assert gateway.process.poll() is None
        gateway.process.terminate()
        assert gateway.process.wait(8) == 0
