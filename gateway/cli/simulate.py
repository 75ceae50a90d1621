"""``tollhouse simulate``: the simulated provider as a server of its own."""

import asyncio
import signal
import sys

import click
import uvloop

from gateway.simulator import FAULTS, Simulator


@click.command(epilog=f"Faults, as [[fault:NAME]] in a prompt: {', '.join(FAULTS)}.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=9001, show_default=True)
@click.option("--latency-ms", default=0.0, show_default=True, help="Before the first byte.")
@click.option("--tokens-per-second", default=0.0, show_default=True, help="0: at once.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other answers.")
def simulate(host: str, port: int, latency_ms: float, tokens_per_second: float, seed: int) -> None:
    """Run a simulated OpenAI-compatible provider until Ctrl-C."""
    simulator = Simulator(
        seed=seed, latency_seconds=latency_ms / 1e3, tokens_per_second=tokens_per_second
    )
    try:
        uvloop.run(_serve(simulator, host, port))
    except OSError as error:
        click.echo(f"Cannot listen on {host}:{port}: {error.strerror or error}.", err=True)
        sys.exit(1)


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    await simulator.start(host, port)
    click.echo(f"simulated provider: {simulator.base_url}")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await simulator.stop()
