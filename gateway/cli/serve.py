"""``tollhouse serve``: the gateway; and the worker process it is made of."""

import logging
import os
import sys
from pathlib import Path

import click

from gateway.errors import PolicyError
from gateway.supervisor import LOG_FORMAT

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="tollhouse.yaml; default: $TOLLHOUSE_CONFIG, ./tollhouse.yaml, built-in defaults.",
)


@click.command()
@_CONFIG
def serve(config_path: Path | None) -> None:
    """Run the gateway until it is told to stop (SIGTERM drains, SIGHUP reloads the policy)."""
    from gateway.config import load_settings
    from gateway.supervisor import StartError, supervise

    configure_logging()
    try:
        supervise(load_settings(config_path), config_path)
    except (PolicyError, StartError) as error:
        click.echo(str(error), err=True)
        sys.exit(1)


@click.command(hidden=True)
@_CONFIG
@click.option("--public-fd", type=int, required=True)
@click.option("--admin-fd", type=int, required=True)
@click.option("--model-socket", type=click.Path(path_type=Path), required=True)
def worker(config_path: Path | None, public_fd: int, admin_fd: int, model_socket: Path) -> None:
    """One gateway process; started by ``serve``."""
    from gateway.app import run_worker
    from gateway.config import load_settings

    configure_logging()
    try:
        settings = load_settings(config_path)
        status = run_worker(settings, public_fd, admin_fd, model_socket)
    except PolicyError as error:
        click.echo(str(error), err=True)
        status = os.EX_CONFIG  # tells the supervisor that trying again is in vain
    sys.exit(status)


def configure_logging() -> None:
    """One line per record on standard error."""
    logging.basicConfig(
        level=logging.INFO,
        format=LOG_FORMAT,
        stream=sys.stderr,
    )
    # httpx logs every request at INFO, which is our business only when something is wrong.
    logging.getLogger("httpx").setLevel(logging.WARNING)
