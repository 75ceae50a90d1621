"""``tollhouse simulate``: the simulated provider as a server of its own."""

import asyncio
import signal
import sys

import click
import uvloop

from gateway.simulator import FAULTS, Simulator

_FAULTS = "\n".join(f"  {name:24}{effect}" for name, effect in FAULTS.items())


@click.command(
    epilog="\b\nFaults, as [[fault:NAME]] in a prompt, as the model fault-NAME, or for a share of\n"
    'all requests by POST /control/faults {"fault": NAME, "rate": 0.3}:\n'
    f"{_FAULTS}\n\n\bWhat was written for each request: GET /control/requests."
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=9001, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--latency-ms", default=0.0, show_default=True, type=click.FloatRange(0),
    help="Before the first byte.",
)  # fmt: skip
@click.option(
    "--tokens-per-second", default=0.0, show_default=True, type=click.FloatRange(0),
    help="0: as fast as it goes.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Another seed, other answers.")
def simulate(host: str, port: int, latency_ms: float, tokens_per_second: float, seed: int) -> None:
    """Run a simulated OpenAI-compatible provider until Ctrl-C."""
    simulator = Simulator(
        seed=seed, latency_seconds=latency_ms / 1e3, tokens_per_second=tokens_per_second
    )
    sys.exit(uvloop.run(_serve(simulator, host, port)))


async def _serve(simulator: Simulator, host: str, port: int) -> int:
    try:
        await simulator.start(host, port)
    except OSError as error:
        reason = (error.strerror or str(error)).rpartition(": ")[2]
        click.echo(f"Cannot listen on {host}:{port}: {reason}.", err=True)
        return 1
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    click.echo(f"simulated provider: {simulator.base_url}")
    await stop.wait()
    await simulator.stop()
    return 0
