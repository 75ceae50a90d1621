"""``tollhouse backup`` and ``tollhouse restore``: a state folder as one file, and back."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.backup import BackupError, Contents, back_up
from gateway.backup import restore as restore_state
from gateway.cli.state import as_its_owner, config_option, state_dir_option, state_folder

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("archive", type=_FILE)
@state_dir_option
@config_option
def backup(archive: Path, state_dir: Path | None, config: Path | None) -> None:
    """Write ledger, log, keys, pepper, switches and policy history into ARCHIVE (.tar.gz).

    Also while the gateway runs. The archive is read again and verified. It holds all that is
    needed to use the keys' digests: keep it as secret as the state folder.
    """
    folder = state_folder(state_dir, config)
    try:
        found = back_up(folder, archive)
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or archive}: {error.strerror}") from None
    _tell(f"{archive} is written and verified", found)


@click.command()
@click.argument("archive", type=_FILE)
@state_dir_option
@config_option
def restore(archive: Path, state_dir: Path | None, config: Path | None) -> None:
    """Fill an empty state folder from ARCHIVE. The gateway must be stopped."""
    folder = state_folder(state_dir, config)
    as_its_owner(folder)
    try:
        found = restore_state(archive, folder)
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder}: {error.strerror}") from None
    _tell(f"{folder} is restored", found)


def _tell(what: str, found: Contents) -> None:
    made = datetime.fromtimestamp(found.made_us / 1e6, UTC)
    click.echo(
        f"{what}: {found.events} events, {found.keys} keys, {found.policy_versions} policy"
        f" versions, as of {made:%Y-%m-%d %H:%M:%S} UTC."
    )
    for problem in found.problems:
        click.echo(f"The books contradict themselves: {problem}", err=True)
    if found.problems:
        sys.exit(1)
