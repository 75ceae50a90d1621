"""``tollhouse demo``: the whole job, on real models, watched from outside.

Starts a gateway as anyone would, talks to it through the unmodified ``openai`` client, and reads
what happened from the answers' headers and the ledger. Uses no door that users do not have.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

from gateway.cli.demo_report import print_report
from gateway.cli.demo_workload import TENANTS, run_workload
from gateway.cli.models import fetch_models
from gateway.config import PREFIX, RESERVED, Local
from gateway.private_files import leave_scratch, make_scratch
from gateway.stores.keys import KeyStore, load_pepper
from gateway.supervisor import StartError, bind
from local_models.catalogue import default_models_dir
from local_models.sources import Sources

_READY_SECONDS = 90.0
_STOP_SECONDS = 20.0
# Where models come from is the machine's business, not the demo's.
_MODEL_SETTINGS = frozenset({"TOLLHOUSE_MODELS_MIRROR", "TOLLHOUSE_MODELS_SOURCES"})
_POLICIES = Path(__file__).resolve().parents[2] / "policies" / "demo"


@click.command()
@click.option("--exit", "exit_after", is_flag=True, help="End when the workload has.")
@click.option("--port", default=8080, show_default=True, help="Of /v1.")
@click.option("--admin-port", default=8081, show_default=True, help="Of pages and metrics.")
def demo(exit_after: bool, port: int, admin_port: int) -> None:
    """Show the whole job: three tenants, two models, two caches, every cent."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        import openai  # noqa: F401 - only to say early that it is missing
    except ModuleNotFoundError:
        raise click.ClickException(
            "The demo needs the openai client: pip install 'tollhouse[demo]', or make demo."
        ) from None
    if not _POLICIES.is_dir():
        raise click.ClickException(
            "The demo's policies are in the repository: run it from a clone."
        )
    fetch_models(
        (Local().generation, Local().embedding), default_models_dir(), Sources.from_environment()
    )
    with contextlib.ExitStack() as stack:
        try:
            _check_ports(port, admin_port)
            state_dir, scratch = make_scratch("th-demo-")
            stack.callback(leave_scratch, state_dir, scratch)
            environment, large = stack.enter_context(_large_model(console))
            admin_key = _first_admin_key(state_dir)
            config = _write_config(state_dir, port, admin_port, large)
            stack.enter_context(_gateway(console, config, environment))
        except StartError as error:
            raise click.ClickException(str(error)) from None
        base_url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
        _wait_until_ready(console, admin_url)
        admin = httpx.Client(
            base_url=admin_url, headers={"authorization": f"Bearer {admin_key}"}, trust_env=False
        )
        keys = {tenant: _key_of(admin, tenant) for tenant in TENANTS}
        console.print("Sending the workload through the [bold]openai[/] client ...")
        began = time.monotonic()
        steps = run_workload(base_url + "/v1", keys, console)
        console.print(f"{len(steps)} requests in {time.monotonic() - began:.1f} s\n")
        print_report(console, steps, admin, state_dir, simulated=large == "simulated")
        link = admin.post("/admin/login-links").json()["url"]
        console.print(f"\nThe cost pages, signed in once by this link: [bold]{link}[/]")
        if exit_after:
            return
        console.print(f"The gateway stays up at {base_url}/v1 until Ctrl-C. Try:\n")
        console.print(
            f"  curl {base_url}/v1/chat/completions -H 'authorization: Bearer {keys['acme']}' \\\n"
            "    -H 'content-type: application/json' -d '"
            '{"model":"auto","messages":[{"role":"user","content":"What is the capital of Peru?"}]}'
            "'\n",
            highlight=False,
            soft_wrap=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment less what overrides the demo's own settings, such as its state folder."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX) or name in RESERVED or name in _MODEL_SETTINGS
    }


def _check_ports(*ports: int) -> None:
    for port in ports:
        bind("127.0.0.1", port).close()


@contextlib.contextmanager
def _large_model(console: Console) -> Iterator[tuple[dict[str, str], str]]:
    """Environment of the gateway and the name of the models file: OpenAI's, or simulated."""
    environment = without_settings(os.environ)
    if environment.get("OPENAI_API_KEY"):
        console.print("The large model is OpenAI's: this costs a few cents of your account.")
        yield environment, "openai"
        return
    with bind("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    console.print(
        "No OPENAI_API_KEY: the large model is a [bold]simulated[/] provider on this machine."
    )
    command = [sys.executable, "-m", "gateway", "simulate", "--port", str(port)]
    command += ["--latency-ms", "120", "--tokens-per-second", "150"]
    environment["TOLLHOUSE_DEMO_BASE_URL"] = f"http://127.0.0.1:{port}/v1"
    with _process(command, environment):
        _wait_for(f"http://127.0.0.1:{port}/v1/models", 20.0, "the simulated provider")
        yield environment, "simulated"


@contextlib.contextmanager
def _gateway(console: Console, config: Path, environment: dict[str, str]) -> Iterator[None]:
    console.print("Starting [bold]tollhouse serve[/] ...")
    log = config.with_name("gateway.log")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    with log.open("wb") as sink, _process(command, environment, sink) as process:
        try:
            yield
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


def _first_admin_key(state_dir: Path) -> str:
    keys = KeyStore(state_dir / "keys.sqlite", load_pepper(state_dir / "pepper"))
    _, token = keys.create_admin("admin", None, "demo", now_us=time.time_ns() // 1000)
    keys.close()
    return token


def _write_config(state_dir: Path, port: int, admin_port: int, large: str) -> Path:
    config = state_dir / "tollhouse.yaml"
    files = [f"models-{large}.yaml", "routing.yaml", "tenants.yaml"]
    lines = [
        f"listen: {{host: 127.0.0.1, port: {port}}}",
        f"admin: {{host: 127.0.0.1, port: {admin_port}}}",
        f"state_dir: {state_dir}",
        "policies:",
        *(f"  - {_POLICIES / name}" for name in files),
    ]
    config.write_text("\n".join(lines) + "\n")
    return config


def _wait_until_ready(console: Console, admin_url: str) -> None:
    with console.status("Waiting for the gateway and its local models ..."):
        began = time.monotonic()
        _wait_for(admin_url + "/readyz", _READY_SECONDS, "the gateway")
        ready = time.monotonic() - began
        _wait_for(admin_url + "/startupz", _READY_SECONDS, "the local models")
    console.print(f"Ready in {ready:.1f} s, local models after {time.monotonic() - began:.1f} s.")


def _wait_for(url: str, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2.0, trust_env=False).is_success:
                return
        time.sleep(0.05)
    raise click.ClickException(f"{what} did not become ready within {seconds:.0f} s.")


def _key_of(admin: httpx.Client, tenant: str) -> str:
    made = admin.post("/admin/keys", json={"kind": "api", "tenant": tenant, "name": "demo"})
    made.raise_for_status()
    token: str = made.json()["token"]
    return token
