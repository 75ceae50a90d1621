"""``tollhouse demo``: the whole job, on real models, watched from outside.

Starts a gateway as anyone would and talks to it through the unmodified ``openai`` client. The first
requests are answered while the models load. What is asked and shown is ``demo_show``'s.
"""

import contextlib
import os
import signal
import sys
import time

import click
from rich.console import Console

from gateway.cli.demo_choice import NONE, SHORT, Choice, choose
from gateway.cli.demo_processes import (
    POLICIES,
    Admin,
    gateway,
    simulated_provider,
    without_settings,
    write_config,
)
from gateway.private_files import leave_scratch, make_scratch
from gateway.supervisor import StartError, bind
from local_models.fit import is_here
from local_models.messages import DEFAULT

_WIDTH = 200
"""Where there is no terminal."""


@click.command()
@click.option("--exit", "exit_after", is_flag=True, help="End when the workload has.")
@click.option(
    "--model",
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    help=f"The small model: {', '.join(SHORT)}, a name of the catalogue, or {NONE}.",
)
@click.option(
    "--pair",
    type=click.Choice(["local"]),
    help="A real pair on this machine, without any key: 0.5b small, 1.5b large.",
)
@click.option("--port", default=8080, show_default=True, help="Of /v1.")
@click.option("--admin-port", default=8081, show_default=True, help="Of pages and metrics.")
def demo(exit_after: bool, model: str, pair: str | None, port: int, admin_port: int) -> None:
    """Show the whole job: three tenants, two models, two caches, every cent."""
    began = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    try:
        import openai  # noqa: F401 - only to say early that it is missing
    except ModuleNotFoundError:
        raise click.ClickException(
            "The demo needs the openai client: pip install 'tollhouse[demo]', or make demo."
        ) from None
    if not POLICIES.is_dir():
        raise click.ClickException(
            "The demo's policies are in the repository: run it from a clone."
        )
    choice = choose(model, pair is not None, os.environ)
    for number in (signal.SIGTERM, signal.SIGHUP):  # else its processes would stay
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with contextlib.ExitStack() as stack:
        try:
            for wanted in (port, admin_port):
                bind("127.0.0.1", wanted).close()
            state_dir, scratch = make_scratch("th-demo-")
            stack.callback(leave_scratch, state_dir, scratch)
            environment = without_settings(os.environ)
            if choice.large == "simulated":
                base_url = stack.enter_context(simulated_provider())
                environment["TOLLHOUSE_DEMO_BASE_URL"] = base_url
            admin = Admin(f"http://127.0.0.1:{admin_port}", state_dir)
            config = write_config(state_dir, port, admin_port, choice.large, choice.small)
            _introduce(console, choice)
            process = stack.enter_context(gateway(console, config, environment))
            admin.wait_until_ready(process)
        except StartError as error:
            raise click.ClickException(str(error)) from None
        base_url = f"http://127.0.0.1:{port}/v1"
        stays = "" if exit_after else "; it stays up until Ctrl-C"
        console.print(f"Gateway: {base_url}, ready after {time.monotonic() - began:.1f} s{stays}.")
        # Here, for the openai client takes a second to import: the models have begun to load.
        from gateway.cli.demo_show import Show

        show = Show(console, choice, admin, base_url, state_dir, process.pid, began)
        show.run()
        show.farewell()
        if not exit_after:
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def _introduce(console: Console, choice: Choice) -> None:
    """Say what will answer, and what that takes."""
    match choice.large:
        case "simulated":
            said = "a [bold]simulated[/] provider (no OPENAI_API_KEY); its answers mean nothing"
        case "openai":
            said = "OpenAI's: this costs a few cents of your account"
        case "pair":
            said = "a model on this machine, too"
    console.print(f"Large model: {said}.")
    if not choice.small:
        console.print("Small model: none, as you wish; the gateway works without one.")
        return
    skip = "Enter skips it, " if console.is_terminal else ""
    if choice.lack:
        console.print(f"Not the better small model: {choice.lack}.")
    for entry in choice.likely:
        here = is_here(entry)
        size = "here already" if here else f"{entry.size_bytes / 1e6:,.0f} MB to fetch"
        console.print(
            f"{entry.name} ({entry.license}): {size}, {entry.memory_bytes / 2**30:.2f} GiB of"
            " memory; loads beside what follows"
            + ("." if here else f" ({skip}--model 135m or {NONE} fetches less).")
        )
