"""What the demo runs: a simulated provider where one is wanted, and ``tollhouse serve``.

Knows child processes, a scratch state folder and the admin port. Uses no door that users lack.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import click
import httpx
from rich.console import Console

from gateway.config import PREFIX, RESERVED
from gateway.stores.keys import KeyStore, load_pepper
from gateway.supervisor import bind

Large = Literal["simulated", "openai", "pair"]
_SMALL: dict[Large, str] = {
    "simulated": "default",
    "openai": "default",
    "pair": "qwen2.5-coder-0.5b-instruct",
}
"""The small model that ``policies/demo/models-*.yaml`` names."""

READY_SECONDS = 60.0
_STOP_SECONDS = 20.0
POLICIES = Path(__file__).resolve().parents[2] / "policies" / "demo"
# Where models come from is the machine's business, not the demo's.
_MODEL_SETTINGS = frozenset({"TOLLHOUSE_MODELS_MIRROR", "TOLLHOUSE_MODELS_SOURCES"})


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less what overrides the demo's own settings, such as its state folder."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX) or name in RESERVED or name in _MODEL_SETTINGS
    }


@contextlib.contextmanager
def simulated_provider() -> Iterator[str]:
    """Run ``tollhouse simulate`` and give its base URL."""
    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "simulate", "--port", str(port)]
    command += ["--latency-ms", "120", "--tokens-per-second", "150"]
    with _process(command, without_settings(os.environ)) as process:
        what = "the simulated provider"
        wait_for(f"http://127.0.0.1:{port}/v1/models", READY_SECONDS, what, process)
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def gateway(
    console: Console, config: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``tollhouse serve``; show its log where it ends early."""
    log = config.with_name("gateway.log")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    with log.open("wb") as sink, _process(command, environment, sink) as process:
        try:
            yield process
        except BaseException:
            if process.poll() is not None:
                console.print(log.read_text(errors="replace")[-2000:], style="red")
            raise


@contextlib.contextmanager
def _process(
    command: list[str], environment: dict[str, str], output: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is ended when the block is left."""
    process = subprocess.Popen(  # noqa: S603 - our own module
        command, env=environment, stdout=output, stderr=output
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # nobody need notice first
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_config(state_dir: Path, port: int, admin_port: int, large: Large, small: str) -> Path:
    """Write tollhouse.yaml and the models' policy into the state folder.

    small: takes the place of the small model that the policy names; empty: no local models.
    """
    config, models = state_dir / "tollhouse.yaml", state_dir / "models.yaml"
    text = (POLICIES / f"models-{large}.yaml").read_text()
    models.write_text(text.replace(f"model: {_SMALL[large]}", f"model: {small or _SMALL[large]}"))
    files = [models, POLICIES / "routing.yaml", POLICIES / "tenants.yaml"]
    lines = [
        f"listen: {{host: 127.0.0.1, port: {port}}}",
        f"admin: {{host: 127.0.0.1, port: {admin_port}}}",
        f"state_dir: {state_dir}",
        f"local: {{enabled: {'auto' if small else 'off'}}}",
        "policies:",
        *(f"  - {file}" for file in files),
    ]
    config.write_text("\n".join(lines) + "\n")
    return config


class Admin:
    """The gateway's admin port, as an admin's key opens it."""

    def __init__(self, url: str, state_dir: Path) -> None:
        keys = KeyStore(state_dir / "keys.sqlite", load_pepper(state_dir / "pepper"))
        _, token = keys.create_admin("admin", None, "demo", now_us=time.time_ns() // 1000)
        keys.close()
        headers = {"authorization": f"Bearer {token}"}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=10.0)

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until requests are answered; models may load still."""
        wait_for(f"{self._url}/readyz", READY_SECONDS, "the gateway", process)

    def key_of(self, tenant: str) -> str:
        """Create a key of a tenant's."""
        made = self._http.post(
            "/admin/keys", json={"kind": "api", "tenant": tenant, "name": "demo"}
        )
        made.raise_for_status()
        token: str = made.json()["token"]
        return token

    def login_link(self) -> str:
        """An address that signs in to the cost pages, once."""
        link: str = self._http.post("/admin/login-links").json()["url"]
        return link

    def models(self) -> dict[str, str]:
        """What /startupz says of each local model; empty while it cannot be asked."""
        with contextlib.suppress(httpx.TransportError):
            checks: dict[str, str] = self._http.get("/startupz").json()["checks"]
            return checks
        return {}


def wait_for(url: str, seconds: float, what: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until an address of a process answers well. Raises ClickException."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2.0, trust_env=False).is_success:
                return
        time.sleep(0.05)
    raise click.ClickException(f"{what} did not become ready within {seconds:.0f} s.")


def memory_bytes(root: int) -> int:
    """Memory of a process and its descendants; pages that several share count once."""
    pids = [root]
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.partition("\nPss:")[2].split()[0]) << 10
    return total
