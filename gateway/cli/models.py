"""``tollhouse models``: list, fetch and verify the models of the catalogue.

Knows the terminal, the settings and the catalogue's verbs. Does not know how files are fetched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from gateway.cli.exam import exam
from gateway.cli.state import config_option
from gateway.config import Settings, load_settings
from gateway.errors import PolicyError
from local_models import download
from local_models.catalogue import (
    ModelEntry,
    default_models_dir,
    ensure,
    load_catalogue,
    verify,
)
from local_models.messages import DEFAULT, ModelUnavailable
from local_models.origins import read_origin
from local_models.progress_lines import ProgressLines
from local_models.references import default_candidate
from local_models.sources import Sources, kind_of

ALL = "all"
"""Stands for every model of the catalogue."""

_REVISION_DIGITS_SHOWN = 12

_folder = click.option(
    "--models-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that holds the models. [default: models_dir of the settings, else"
    " $TOLLHOUSE_MODELS, else the XDG cache]",
)
_names = click.argument("names", nargs=-1, metavar="[NAME|all]...")


@click.group()
def models() -> None:
    """List, fetch and verify local models."""


models.add_command(exam)


@models.command("list")
@_folder
@config_option
def list_models(models_dir: Path | None, config: Path | None) -> None:
    """Show the catalogue: which models are here, whose they are and where they came from."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "state", "size"):  # to be typed and read at a glance: in one piece
        table.add_column(column, no_wrap=True)
    for column in ("license", "publisher", "revision", "source"):
        table.add_column(column, overflow="fold")
    folder = _models_dir(models_dir, _settings(config))
    for name, entry in load_catalogue().items():
        state = _state(name, folder)
        table.add_row(
            name,
            state,
            f"{entry.size_bytes / 1e6:,.0f} MB",
            entry.license,
            entry.publisher,
            entry.revision[:_REVISION_DIGITS_SHOWN],
            _source(entry, folder) if state == "complete" else f"({_offered(entry)})",
        )
    console = Console()
    console.print(table)
    console.print(f"models folder: {folder}", highlight=False, soft_wrap=True)
    console.print(
        "In brackets: where it can be had. All of it stands in origin.yaml beside a file."
    )


@models.command()
@_names
@_folder
@config_option
@click.option("--mirror", help="Folder or address asked first. [default: models.mirror]")
@click.option(
    "--sources", help="Of mirror,hub,parts those that may be asked. [default: models.sources]"
)
def pull(
    names: tuple[str, ...],
    models_dir: Path | None,
    config: Path | None,
    mirror: str | None,
    sources: str | None,
) -> None:
    """Fetch models, by default those that the settings use. Goes on with what was interrupted.

    `default` is the one that the default policy answers with on this machine.
    """
    settings = _settings(config)
    known = Sources(mirror=settings.models.mirror, allowed=tuple(settings.models.sources))
    try:
        allowed = Sources.parse(mirror or known.mirror, sources or "")
    except ModelUnavailable as error:
        raise click.ClickException(str(error)) from error
    if sources is None:
        allowed = msgspec.structs.replace(allowed, allowed=known.allowed)
    if not names:
        names = tuple(
            name for name in (settings.local.generation, settings.local.embedding) if name
        )
    folder = _models_dir(models_dir, settings)
    names = tuple(default_candidate(folder)[0] if name == DEFAULT else name for name in names)
    fetch_models(_every(names), folder, allowed)


def fetch_models(names: tuple[str, ...], models_dir: Path, sources: Sources) -> None:
    """Fetch what is missing, and show how far it is. Raises ClickException."""
    console = Console()
    with _shown(console) as progress:
        for name in names:
            try:
                folder = ensure(name, progress=progress, models_dir=models_dir, sources=sources)
            except ModelUnavailable as error:
                raise click.ClickException(str(error)) from error
            console.print(f"{name}: complete in {folder}", soft_wrap=True, highlight=False)


@models.command("verify")
@_names
@_folder
@config_option
def verify_models(names: tuple[str, ...], models_dir: Path | None, config: Path | None) -> None:
    """Compare the files on this machine with the pinned sha256. Exit status 1 when one differs."""
    folder = _models_dir(models_dir, _settings(config))
    sound = True
    for name in _every(names or (ALL,)):
        try:
            wrong = verify(name, models_dir=folder)
        except ModelUnavailable as error:
            raise click.ClickException(str(error)) from error
        sound = sound and not wrong
        click.echo(f"{name}: {'missing or damaged: ' + ', '.join(wrong) if wrong else 'sound'}")
    if not sound:
        raise SystemExit(1)


def _settings(config: Path | None) -> Settings:
    try:
        return load_settings(config)
    except PolicyError as error:
        raise click.ClickException(str(error)) from None


def _models_dir(chosen: Path | None, settings: Settings) -> Path:
    return chosen or settings.models_dir or default_models_dir()


def _every(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(load_catalogue()) if ALL in names else names


@contextmanager
def _shown(console: Console) -> Iterator[download.Progress]:
    """A bar on a terminal, a line every few seconds elsewhere."""
    if not console.is_terminal:
        yield ProgressLines(click.echo)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("looking for models", total=None)

        def advance(received: download.Received) -> None:
            description = f"{received.name} from {received.source}"
            if bars.tasks[0].description != description:
                bars.reset(task, description=description)
            bars.update(task, completed=received.received_bytes, total=received.total_bytes)

        yield advance


def _state(name: str, folder: Path) -> str:
    wrong = verify(name, models_dir=folder)
    if not wrong:
        return "complete"
    return "damaged" if (folder / name / wrong[0]).exists() else "absent"


def _source(entry: ModelEntry, folder: Path) -> str:
    origin = read_origin(folder / entry.name)
    return origin.source if origin is not None else "this machine"


def _offered(entry: ModelEntry) -> str:
    return ", ".join(dict.fromkeys(kind_of(source) for source in entry.sources))
