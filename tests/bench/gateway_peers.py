"""Other gateways in front of the same provider: installed on demand, measured the same way.

Each lives in a folder of its own under the cache directory; nothing is installed into our
environment. They are started as their documentation says, with what costs nothing extra and needs
no server of its own: no database, no Redis. So they book nothing, and their rows say so.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench import gateway_prompts as prompts
from tests.bench.gateway_rows import GATEWAY_CORE, Row, Target, streamed
from tests.bench.process_tree import end, on_core
from tests.gateway.running import answers_tcp, free_port, wait_for

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tollhouse" / "bench"
INSTALL_SECONDS = 900
START_SECONDS = 120
PACKAGES = {
    "litellm": "litellm[proxy]", "portkey": "@portkey-ai/gateway", "tensorzero": "tensorzero",
}  # fmt: skip
_PORTKEY = Path("node_modules/@portkey-ai/gateway")

_TENSORZERO_MODEL = "tensorzero::model_name::large"
_TENSORZERO_PATH = "/openai/v1/chat/completions"
ROWS = {
    "litellm": Row(
        name="litellm",
        title="LiteLLM",
        switched_on="master key, router with one deployment, token counting and cost; no database:"
        " no limits, no budgets, nothing booked",
        target="litellm",
        make=lambda headers: prompts.short(headers, "large"),
        stream=streamed("large"),
    ),
    "portkey": Row(
        name="portkey",
        title="Portkey",
        switched_on="the open gateway: relays to a host named by headers; no key, no limits,"
        " nothing booked; 1.15.2 on Node 20 answers every stream with a 500",
        target="portkey",
        make=lambda headers: prompts.short(headers, "large"),
    ),
    "tensorzero": Row(
        name="tensorzero",
        title="TensorZero, from its wheel",
        switched_on="its HTTP gateway inside a Python process, one model; no key, no limits,"
        " observability off: nothing booked",
        target="tensorzero",
        make=lambda headers: prompts.short(headers, _TENSORZERO_MODEL, _TENSORZERO_PATH),
        stream=streamed(_TENSORZERO_MODEL, _TENSORZERO_PATH),
    ),
}  # fmt: skip


def installed(name: str) -> Path:
    """The folder of a peer, which is installed if it is not there. Raises CalledProcessError."""
    folder = CACHE / name
    done = folder / ".installed"
    if not done.exists():
        print(f"installing {PACKAGES[name]} into {folder} ...", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        if name == "portkey":
            _run("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent",
                 PACKAGES[name])  # fmt: skip
        else:
            _run(sys.executable, "-m", "venv", str(folder))
            _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet",
                 "--disable-pip-version-check", PACKAGES[name])  # fmt: skip
        done.touch()
    return folder


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_SECONDS)


def versions(rows: list[Row]) -> dict[str, str]:
    """The version of each peer among these rows."""
    found: dict[str, str] = {}
    for name in (row.name for row in rows if row.name in PACKAGES):
        folder = installed(name)
        if name == "portkey":
            found[name] = json.loads((folder / _PORTKEY / "package.json").read_text())["version"]
        else:
            ask = f"from importlib.metadata import version; print(version({name!r}))"
            command = [str(folder / "bin" / "python"), "-c", ask]
            found[name] = subprocess.check_output(command, text=True).strip()
    return found


@contextlib.contextmanager
def litellm(upstream: Target) -> Iterator[Target]:
    """LiteLLM's proxy with one worker."""
    model = {
        "model_name": "large",
        "litellm_params": {
            "model": "openai/mock",
            "api_base": f"http://127.0.0.1:{upstream.port}/v1",
            "api_key": "none",
        },
    }
    config = {"model_list": [model], "general_settings": {"master_key": "sk-bench"}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        python = installed("litellm") / "bin" / "litellm"
        command = [str(python), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
        with _started(
            command, port, LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR"
        ) as pid:
            yield Target(port, pid, {"authorization": "Bearer sk-bench"})


@contextlib.contextmanager
def portkey(upstream: Target) -> Iterator[Target]:
    """Portkey's open gateway on Node."""
    port = free_port()
    script = installed("portkey") / _PORTKEY / "build" / "start-server.js"
    command = ["node", str(script), f"--port={port}", "--headless"]
    with _started(command, port, NODE_ENV="production") as pid:
        host = f"http://127.0.0.1:{upstream.port}/v1"
        yield Target(port, pid, {
            "authorization": "Bearer none", "x-portkey-provider": "openai",
            "x-portkey-custom-host": host,
        })  # fmt: skip


_TENSORZERO = """
import signal, sys
from pathlib import Path
from tensorzero.tensorzero import _start_http_gateway
gateway = _start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None,
    async_setup=False,
)
Path(sys.argv[2]).write_text(gateway.base_url)
signal.pause()
"""
_TENSORZERO_CONFIG = """
[gateway]
observability.enabled = false
[models.large]
routing = ["mock"]
[models.large.providers.mock]
type = "openai"
model_name = "mock"
api_base = "http://127.0.0.1:{port}/v1"
api_key_location = "none"
"""


@contextlib.contextmanager
def tensorzero(upstream: Target) -> Iterator[Target]:
    """TensorZero's gateway as its Python wheel starts it for OpenAI's client."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, address = folder / "tensorzero.toml", folder / "address"
        config.write_text(_TENSORZERO_CONFIG.format(port=upstream.port))
        python = installed("tensorzero") / "bin" / "python"
        command = [str(python), "-c", _TENSORZERO, str(config), str(address)]
        with on_core(GATEWAY_CORE):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for(address.exists, START_SECONDS)
            port = int(address.read_text().rpartition(":")[2].partition("/")[0])
            yield Target(port, process.pid, {"authorization": "Bearer none"})
        finally:
            end(process)


@contextlib.contextmanager
def _started(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """A server on the gateway's core; its process id."""
    with on_core(GATEWAY_CORE):
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        wait_for(lambda: answers_tcp(port), START_SECONDS)
        yield process.pid
    finally:
        end(process)


TARGETS: dict[str, Callable[[Target], AbstractContextManager[Target]]] = {
    "litellm": litellm, "portkey": portkey, "tensorzero": tensorzero,
}  # fmt: skip
