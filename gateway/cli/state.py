"""What the commands share that work on a state folder without a gateway."""

import os
from pathlib import Path

import click

from gateway.config import load_settings
from gateway.errors import PolicyError

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The gateway's state folder; by default the one in tollhouse.yaml.",
)
config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The settings file; by default tollhouse.yaml where it is found.",
)


def state_folder(state_dir: Path | None, config: Path | None) -> Path:
    """The folder that was named, else that of the settings."""
    if state_dir is not None:
        return state_dir
    try:
        return load_settings(config).state_dir
    except PolicyError as error:
        raise click.ClickException(str(error)) from None


def as_its_owner(state_dir: Path) -> None:
    """Refuse to write as another user than the folder's: the gateway could not read the files."""
    if state_dir.exists() and state_dir.stat().st_uid != os.geteuid():
        owner = state_dir.stat().st_uid
        raise click.ClickException(
            f"{state_dir} belongs to user id {owner}: run this as that user (sudo -u '#{owner}')"
        )
