"""The rows of the gateway benchmark: what is asked of whom, and what was switched on meanwhile.

A row says how a request is made and which target answers it; a target is started once and serves
all rows that name it. How load is made and counted is not known here.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from gateway.config import Settings
from tests.bench import gateway_prompts as prompts
from tests.bench.process_tree import end, on_core
from tests.gateway.running import RunningGateway, answers_tcp, free_port, wait_for

GATEWAY_CORE, LOAD_CORE = 0, 1
POLICY = Path(__file__).with_name("gateway_policy.yaml")

EVERYTHING = "key, rates, concurrency, budget, exact look-up, write-ahead metering, metrics"


class Target(Struct):
    """Something that answers on 127.0.0.1."""

    port: int
    pid: int | None  # the root of its processes; None: not counted
    headers: dict[str, str]


class Row(Struct, frozen=True):
    """One line of the table."""

    name: str  # as in --rows and the kept file
    title: str
    switched_on: str
    target: str
    make: Callable[[dict[str, str]], prompts.Make] | None  # whole answers
    stream: Callable[[dict[str, str], int], prompts.Make] | None = None  # with so many tokens
    mark: bytes = b""  # what every answer's head must contain
    goals: dict[str, float] = {}


def streamed(model: str, path: str = prompts.PATH) -> Callable[[dict[str, str], int], prompts.Make]:
    """Requests for streams of so many tokens."""
    return lambda headers, tokens: prompts.short(
        headers, model, path, stream=True, max_tokens=tokens
    )


def available(row: Row) -> bool:
    """Whether what the row measures can run on this machine."""
    if row.target == "nginx":
        return shutil.which("nginx") is not None
    if row.target == "tollhouse-redis":
        return "redis" in Settings.model_fields and shutil.which("redis-server") is not None
    return True


_MISS = b"x-tollhouse-cache: miss"

ROWS = (
    Row(
        name="direct",
        title="direct to the provider",
        switched_on="nothing: the floor of the load generator and the mock provider",
        target="provider",
        make=lambda headers: prompts.short(headers, "mock"),
        stream=streamed("mock"),
        goals={"requests_per_second": 30_000},
    ),
    Row(
        name="nginx",
        title="nginx, bare proxy",
        switched_on="keep-alive on both sides; one worker; no log, no key, no metering",
        target="nginx",
        make=lambda headers: prompts.short(headers, "mock"),
        stream=streamed("mock"),
    ),
    Row(
        name="pinned",
        title="Tollhouse, pinned model, miss",
        switched_on=EVERYTHING,
        target="tollhouse",
        make=lambda headers: prompts.short(headers, "large"),
        mark=_MISS,
        goals={
            "requests_per_second": 15_000,
            "cpu_us_per_request": 60,
            "added_p50_us": 220,
            "added_p99_us": 320,
            "memory_mb": 90,
        },
    ),
    Row(
        name="hit",
        title="Tollhouse, exact hit",
        switched_on=EVERYTHING + "; no provider is called",
        target="tollhouse",
        make=lambda headers: prompts.repeated(headers, "large"),
        mark=b"x-tollhouse-cache: hit-exact",
        goals={"cpu_us_per_request": 35},
    ),
    Row(
        name="stream",
        title="Tollhouse, streamed",
        switched_on=EVERYTHING + "; every event looked at for usage and end",
        target="tollhouse",
        make=None,
        stream=streamed("large"),
        mark=_MISS,
        goals={"cpu_us_per_chunk": 25, "added_first_byte_us": 280},
    ),
    Row(
        name="auto",
        title="Tollhouse, auto by features",
        switched_on=EVERYTHING + ", routing by text features; prompts of 500 characters",
        target="tollhouse",
        make=lambda headers: prompts.long(headers, "auto"),
        mark=b"x-tollhouse-difficulty: ",
        goals={"cpu_us_per_request": 160},
    ),
    Row(
        name="embed",
        title="Tollhouse, auto with embedding",
        switched_on=EVERYTHING + ", routing, embedding and semantic look-up (a miss each time);"
        " prompts of 28 tokens; the model process shares the core and is counted",
        target="tollhouse-local",
        make=lambda headers: prompts.worded(headers, "auto-semantic"),
        mark=_MISS,
        goals={"cpu_us_per_request": 3_500},
    ),
    Row(
        name="redis",
        title="Tollhouse with Redis",
        switched_on=EVERYTHING + "; limits and exact cache in Redis, which is not counted",
        target="tollhouse-redis",
        make=lambda headers: prompts.short(headers, "large"),
        mark=_MISS,
        goals={"cpu_us_per_request": 80},
    ),
)


@contextlib.contextmanager
def provider() -> Iterator[Target]:
    """The mock provider, on the load's core."""
    port = free_port()
    with on_core(LOAD_CORE):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.http_mock", "--port", str(port)]
        )
    try:
        wait_for(lambda: answers_tcp(port), 20)
        yield Target(port, None, {"authorization": "Bearer none"})
    finally:
        end(process)


_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  upstream provider {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(upstream: Target) -> Iterator[Target]:
    """nginx with one worker on the gateway's core."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = _NGINX.format(folder=folder, upstream=upstream.port, port=port)
        (folder / "nginx.conf").write_text(text)
        command = ["nginx", "-e", f"{folder}/error.log", "-p", name, "-c", f"{folder}/nginx.conf"]
        with on_core(GATEWAY_CORE):
            process = subprocess.Popen(command)
        try:
            wait_for(lambda: answers_tcp(port), 20)
            yield Target(port, process.pid, upstream.headers)
        finally:
            end(process)


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis on the load's core, as on a machine of its own; its URL."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with on_core(LOAD_CORE):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers_tcp(port), 20)
        yield f"redis://127.0.0.1:{port}"
    finally:
        end(process)


@contextlib.contextmanager
def with_redis(upstream: Target) -> Iterator[Target]:
    """The gateway with limits and exact cache in Redis."""
    with redis() as url, tollhouse(upstream, TOLLHOUSE_REDIS_URL=url) as target:
        yield target


@contextlib.contextmanager
def tollhouse(upstream: Target, *, local: bool = False, **environment: str) -> Iterator[Target]:
    """The whole gateway on one core, the model process too where there is one."""
    environment["UPSTREAM_BASE_URL"] = f"http://127.0.0.1:{upstream.port}/v1"
    with tempfile.TemporaryDirectory() as folder:
        gateway = RunningGateway(
            Path(folder), "", local=local, policy=POLICY.read_text(),
            environment=environment,
        )  # fmt: skip
        try:
            with on_core(GATEWAY_CORE):
                gateway.start()
            assert gateway.process is not None
            bearer = {"authorization": f"Bearer {gateway.key('bench')}"}
            yield Target(gateway.port, gateway.process.pid, bearer)
        finally:
            gateway.stop()


TARGETS: dict[str, Callable[[Target], AbstractContextManager[Target]]] = {
    "nginx": nginx,
    "tollhouse": tollhouse,
    "tollhouse-redis": with_redis,
    "tollhouse-local": lambda upstream: tollhouse(upstream, local=True),
}
