"""A whole gateway in processes of its own, as an operator would run it; for end-to-end tests."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from gateway.simulator import Simulator
from gateway.stores.keys import KeyStore, load_pepper

READY_SECONDS = 60.0

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: test}
providers:
  - name: provider
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    auth: {bearer: "${env:TOLLHOUSE_TEST_SECRET}"}
    simulated: true
    timeouts: {connect: 2s, first_byte: 2s, idle: 1s, total: 20s}
    health: {min_requests: 100000} # many tests break it on purpose; none may eject it for others
  - name: dead
    api: openai
    base_url: http://127.0.0.1:9/v1
  - {name: onbox, api: local}
  - name: onbox-embeddings
    api: local
    runtime: {model: all-minilm-l6-v2}
models:
  - name: large
    provider: provider
    upstream_model: simulated-large
    price: {source: contract, contract_id: TEST, per_mtok: {input: "2.50", output: "15.00"}}
    capabilities: [chat, tools, vision, json_schema]
  - name: other
    provider: dead
    upstream_model: simulated-large
    price: {source: contract, contract_id: TEST, per_mtok: {input: "2.50", output: "15.00"}}
  - name: unpriced
    provider: provider
    upstream_model: simulated-unpriced
    price: {source: unpriced}
  - name: small
    provider: onbox
    upstream_model: smollm2-135m-instruct
    price: {source: internal, amortised: {machine_hour: "0.08"}}
    capabilities: [chat, completions]
    context: 2048
    max_output: 256
  - name: embedder
    provider: onbox-embeddings
    upstream_model: all-minilm-l6-v2
    price: {source: internal, amortised: {machine_hour: "0.08"}}
    capabilities: [embeddings]
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: test}
defaults: {baseline: large}
routes:
  - name: falls-back
    match: {model: with-fallback}
    to: other
    fallback: [{to: large}]
    cache: {exact: {ttl: 1h}}
  - name: uncached
    match: {model: uncached}
    to: large
  - name: routed
    match: {model: auto}
    small: small
    large: large
    target: {quality: 95%, until_then: prior}
    cache: {exact: {ttl: 1h}, semantic: {ttl: 1h}}
  - name: rest
    match: {}
    to: large
    cache: {exact: {ttl: 1h}}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: test}
tenants:
  - {id: acme, budgets: [{name: monthly, amount: "1000.00"}]}
  - {id: globex}
  - {id: limited, limits: {rpm: 3}}
  - {id: poor, budgets: [{name: daily, amount: "0.004", period: day}]}
  - {id: tagged, required_tags: [feature], tags: {env: prod}}
  - id: charged
    charging: {cache_hits: {charge: 100%}}
    budgets: [{name: daily, amount: "0.004", period: day}]
"""


class ProviderThread:
    """The simulated provider, in a thread with an event loop of its own."""

    def __init__(self, **options: Any) -> None:
        self.simulator = Simulator(**options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.simulator.start(), self._loop).result(5)

    @property
    def base_url(self) -> str:
        return self.simulator.base_url

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.simulator.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class RunningGateway:
    """``tollhouse serve`` with a policy of ours; everything over sockets."""

    def __init__(
        self, folder: Path, provider_url: str, *, local: bool = False, policy: str = POLICY,
        settings: str = "", environment: dict[str, str] | None = None,
        unready_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.state_dir = folder / "state"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.policy_file = folder / "policy.yaml"
        self.policy_file.write_text(policy)
        self.port, self.admin_port = free_port(), free_port()
        self.config = folder / "tollhouse.yaml"
        self.config.write_text(
            f"listen: {{port: {self.port}}}\nadmin: {{port: {self.admin_port}}}\n"
            f"state_dir: {self.state_dir}\npolicies: [policy.yaml]\n"
            f"drain_seconds: 10.0\nunready_seconds: {unready_seconds}\n"
            f"local: {{enabled: {'on' if local else 'off'}}}\n{settings}"
        )
        self._local = local
        self.environment = {
            **os.environ,
            "TOLLHOUSE_TEST_PROVIDER": provider_url,
            "TOLLHOUSE_TEST_SECRET": "sk-provider-secret-1234567890",
            **(environment or {}),
        }
        self.log = folder / "gateway.log"
        self.prefix: tuple[str, ...] = ()  # of its command line
        self.admin_key = self._make_admin_key()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "gateway", "serve", "--config",
                 str(self.config)],
                env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_ready()

    def wait_ready(self) -> None:
        wait_for(lambda: self._answers("/readyz"), READY_SECONDS, self.describe)
        if self._local:
            wait_for(lambda: self._answers("/startupz"), READY_SECONDS, self.describe)

    def describe(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def child(self, name: str) -> int:
        """The process id of a running child of the supervisor, by a word of its command line."""
        return self.children(name)[0]

    def children(self, name: str) -> list[int]:
        """The process ids of all such children."""
        assert self.process is not None
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes()
                if int(fields[1]) == self.process.pid and name.encode() in command:
                    found.append(int(entry.name))
        if not found:
            raise LookupError(name)
        return found

    def kill_worker(self) -> None:
        os.kill(self.child("worker"), signal.SIGKILL)

    def admin(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.admin_url,
            headers={"authorization": f"Bearer {self.admin_key}"},
            trust_env=False,
            timeout=10.0,
        )

    def key(self, tenant: str) -> str:
        with self.admin() as admin:
            made = admin.post("/admin/keys", json={"kind": "api", "tenant": tenant, "name": "test"})
        made.raise_for_status()
        token: str = made.json()["token"]
        return token

    def events(self, request_id: str, count: int = 1) -> list[reports.EventRow]:
        """The booked attempts of a request, once there are ``count`` of them."""
        store = LedgerStore(self.state_dir / "ledger.sqlite")
        try:
            wait_for(lambda: len(reports.request(store, request_id)) >= count, 10.0, self.describe)
            return reports.request(store, request_id)
        finally:
            store.close()

    def _answers(self, path: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.describe()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.admin_url + path, timeout=2.0, trust_env=False).is_success
        return False

    def _make_admin_key(self) -> str:
        keys = KeyStore(self.state_dir / "keys.sqlite", load_pepper(self.state_dir / "pepper"))
        _, token = keys.create_admin("admin", None, "test", now_us=time.time_ns() // 1000)
        keys.close()
        return token


@contextlib.contextmanager
def running_gateway(folder: Path, provider_url: str, **options: Any) -> Iterator[RunningGateway]:
    gateway = RunningGateway(folder, provider_url, **options)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


@contextlib.asynccontextmanager
async def gateway_from_a_loop(
    folder: Path, provider_url: str, **options: Any
) -> AsyncIterator[RunningGateway]:
    """As ``running_gateway``, where the provider lives in the running loop and must be served."""
    running = running_gateway(folder, provider_url, **options)
    gateway = await asyncio.to_thread(running.__enter__)
    try:
        yield gateway
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)


@contextlib.contextmanager
def mock_provider() -> Iterator[str]:
    """The provider of the benchmarks, faster than the simulated one; its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.http_mock", "--port", str(port)]
    process = subprocess.Popen([*command, "--pace-ms", "1"])
    try:
        wait_for(lambda: answers_tcp(port), 20)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """Below those that the kernel gives to clients: none of them takes it before it is used."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def answers_tcp(port: int) -> bool:
    """Whether something listens on 127.0.0.1:``port``."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_for(
    condition: Callable[[], bool], seconds: float, describe: Callable[[], str] = str
) -> None:
    """Poll until ``condition`` holds; fail with what ``describe`` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s\n{describe()}")
        time.sleep(0.02)
