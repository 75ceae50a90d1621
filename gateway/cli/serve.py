"""``tollhouse serve``: the gateway; and the worker process it is made of."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.errors import PolicyError
from local_models.log_lines import configure

if TYPE_CHECKING:
    from gateway.config import Settings

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="tollhouse.yaml; default: $TOLLHOUSE_CONFIG, ./tollhouse.yaml, built-in defaults.",
)


_PATH = click.Path(path_type=Path)


@click.command()
@_CONFIG
def serve(config_path: Path | None) -> None:
    """Run the gateway until it is told to stop (SIGTERM drains, SIGHUP reloads the policy)."""
    from gateway.config import load_settings
    from gateway.supervisor import StartError, supervise

    log_format = "text"
    try:
        settings = load_settings(config_path)
        log_format = settings.log.format
        configure("supervisor", log_format, settings.log.level)
        _check_first_policy(settings)
        supervise(settings, config_path)
    except (PolicyError, StartError) as error:
        if log_format == "json":
            logging.getLogger("tollhouse.supervisor").error("cannot start: %s", error)
        else:
            click.echo(str(error), err=True)
        sys.exit(1)


def _check_first_policy(settings: "Settings") -> None:
    """Read the policy files of a first start before anything is begun. Raises PolicyError.

    Later the last good version is at hand, and a file that cannot be read stops nothing.
    """
    from gateway.policy.load import read_files

    if not (settings.state_dir / "policies").exists():
        read_files(settings.policies, settings.limits.policy_file_bytes_max)


@click.command(hidden=True)
@_CONFIG
@click.option("--public-fd", type=int, required=True)
@click.option("--admin-fd", type=int, help="The only worker serves the admin port itself.")
@click.option("--run-dir", type=_PATH, required=True, help="Sockets of this gateway's processes.")
@click.option("--node-socket", type=_PATH, help="Others answer the admin process here.")
@click.option("--lock-fd", type=int, help="The state folder's, for whoever keeps it.")
@click.option("--number", type=int)
def worker(
    config_path: Path | None, public_fd: int, admin_fd: int | None, run_dir: Path,
    node_socket: Path | None, lock_fd: int | None, number: int | None,
) -> None:  # fmt: skip
    """One gateway process; started by ``serve``."""

    def run(settings: "Settings") -> int:
        if node_socket is not None:
            from gateway.worker import run_shared_worker

            return run_shared_worker(settings, number or 0, public_fd, run_dir, node_socket)
        from gateway.app import run_worker

        assert admin_fd is not None, "serve gives one or the other"
        return run_worker(settings, public_fd, admin_fd, run_dir, lock_fd)

    name = "worker" if number is None else f"worker {number}"
    _run(config_path, name, run, run_dir)


@click.command("admin-process", hidden=True)
@_CONFIG
@click.option("--admin-fd", type=int, required=True)
@click.option("--node-socket", type=_PATH, required=True)
@click.option("--lock-fd", type=int, required=True)
def admin_process(config_path: Path | None, admin_fd: int, node_socket: Path, lock_fd: int) -> None:
    """The admin process of several workers; started by ``serve``."""
    from gateway.admin_process import run_admin

    _run(
        config_path,
        "admin",
        lambda settings: run_admin(settings, admin_fd, node_socket, lock_fd),
        node_socket.parent,
    )


def _run(
    config_path: Path | None, process: str, run: "Callable[[Settings], int]", run_dir: Path
) -> None:
    """Run a child of ``serve`` with its settings, to its end. run_dir: where its sockets are."""
    from gateway.config import load_settings
    from gateway.private_files import UMASK, leave_scratch, use_scratch

    configure(process, "text", "info")
    os.umask(UMASK)
    parent, scratch = os.getppid(), use_scratch(run_dir)
    try:
        settings = load_settings(config_path)
        configure(process, settings.log.format, settings.log.level)
        status = run(settings)
    except PolicyError as error:
        logging.getLogger("tollhouse").error("cannot start: %s", error)
        status = os.EX_CONFIG  # tells the supervisor that trying again is in vain
    if os.getppid() != parent:
        leave_scratch(run_dir, scratch)  # the supervisor, which would remove it, was killed
    sys.exit(status)
