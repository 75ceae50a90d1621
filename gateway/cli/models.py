"""``tollhouse models``: list, fetch and verify the models of the catalogue.

Knows the terminal and the catalogue's three verbs. Does not know where models come from.
"""

from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from local_models.catalogue import default_models_dir, ensure, load_catalogue, verify
from local_models.messages import ModelUnavailable

_folder = click.option(
    "--models-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that holds the models. [default: $TOLLHOUSE_MODELS or the XDG cache]",
)
_names = click.argument("names", nargs=-1, metavar="[NAME]...")


@click.group()
def models() -> None:
    """List, fetch and verify local models."""


@models.command("list")
@_folder
def list_models(models_dir: Path | None) -> None:
    """Show the catalogue, and which models are on this machine."""
    table = Table("model", "kind", "license", "context", "size", "state")
    folder = models_dir or default_models_dir()
    for name, entry in load_catalogue().items():
        table.add_row(
            name,
            entry.kind,
            entry.license,
            f"{entry.context_tokens:,}",
            f"{entry.size_bytes / 1e6:.0f} MB",
            _state(name, folder),
        )
    console = Console()
    console.print(table)
    console.print(f"models folder: {folder}", highlight=False, soft_wrap=True)


@models.command()
@_names
@_folder
def pull(names: tuple[str, ...], models_dir: Path | None) -> None:
    """Fetch models, all of the catalogue by default. Goes on with what was interrupted."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        for name in names or tuple(load_catalogue()):
            task = progress.add_task(name, total=None)
            bar = _Bar(progress, task)
            try:
                folder = ensure(name, progress=bar.advance, models_dir=models_dir)
            except ModelUnavailable as error:
                raise click.ClickException(str(error)) from error
            progress.update(task, total=1, completed=1, visible=False)
            progress.console.print(f"{name}: complete in {folder}", soft_wrap=True)


@models.command("verify")
@_names
@_folder
def verify_models(names: tuple[str, ...], models_dir: Path | None) -> None:
    """Compare the files on this machine with the pinned sha256. Exit status 1 when one differs."""
    folder = models_dir or default_models_dir()
    sound = True
    for name in names or tuple(load_catalogue()):
        try:
            wrong = verify(name, models_dir=folder)
        except ModelUnavailable as error:
            raise click.ClickException(str(error)) from error
        sound = sound and not wrong
        click.echo(f"{name}: {'missing or damaged: ' + ', '.join(wrong) if wrong else 'sound'}")
    if not sound:
        raise SystemExit(1)


class _Bar:
    """Feeds one progress bar from a download's reports."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, name: str, received_bytes: int, total_bytes: int) -> None:
        self._progress.update(
            self._task, description=name, completed=received_bytes, total=total_bytes
        )


def _state(name: str, folder: Path) -> str:
    wrong = verify(name, models_dir=folder)
    if not wrong:
        return "complete"
    return "damaged" if (folder / name).is_dir() else "absent"
