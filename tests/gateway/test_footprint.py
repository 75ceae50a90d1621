"""What a gateway without local models does not carry: the libraries of those who have vectors."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import ProviderThread, RunningGateway, running_gateway

# Their compiled parts, as the kernel lists them.
VECTORS = re.compile(r"/(?:numpy|onnxruntime|onnx|tokenizers|faiss)/")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    provider = ProviderThread()
    folder = tmp_path_factory.mktemp("footprint")
    with running_gateway(folder, provider.base_url) as running:
        yield running
    provider.stop()


def libraries(pid: int) -> set[str]:
    """The shared libraries that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".so" in line}


@pytest.mark.slow
def test_a_gateway_without_local_models_loads_nothing_for_vectors(gateway: RunningGateway) -> None:
    """Routed, cached, deeply nested: whatever is asked of it, and with its pages."""
    headers = {"authorization": f"Bearer {gateway.key('acme')}"}
    parts = [{"type": "text", "text": f"part [{number}]: {{"} for number in range(100)]
    for content in ("What is the capital of Italy?", parts):
        body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
        for _ in range(2):
            answer = httpx.post(
                f"{gateway.base_url}/chat/completions", json=body, headers=headers, trust_env=False
            )
            assert answer.is_success, answer.text
    with gateway.admin() as admin:
        assert admin.get("/costs", follow_redirects=True).is_success
    assert gateway.process is not None
    for pid in (gateway.process.pid, gateway.child("worker")):
        found = libraries(pid)
        assert any("python3" in library for library in found), "else nothing was looked at"
        assert not [library for library in found if VECTORS.search(library)]


@pytest.mark.slow
def test_the_supervisor_carries_nothing_but_the_standard_library(gateway: RunningGateway) -> None:
    """The parent process lives beside all others, so each library in it is memory wasted."""
    assert gateway.process is not None
    found = libraries(gateway.process.pid)
    assert any("python3" in library for library in found), "else nothing was looked at"
    assert not [library for library in found if "site-packages" in library]


def test_who_talks_to_the_model_process_has_numpy_before_the_first_request() -> None:
    """Its import takes 0.1 s, in which a gateway would answer nobody."""
    script = """
import asyncio, sys
from pathlib import Path
from gateway.upstreams.local import ModelProcessClient

async def main():
    assert "numpy" not in sys.modules
    client = ModelProcessClient(Path("/nowhere"), "test")
    client.start()
    assert "numpy" in sys.modules
    await client.close()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
