"""``tollhouse models exam``: measure how often a local model is right, on idle time.

Knows the terminal. What is asked and how it is judged is ``local_models.exam``'s.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import click
from rich.progress import Progress

from local_models.catalogue import default_models_dir, ensure, load_catalogue
from local_models.exam import results
from local_models.exam.conduct import Course, Interrupted
from local_models.exam.generate import SEED, TASKS, TASKS_MAX
from local_models.exam.kinds import KINDS
from local_models.exam.task import FORMS, Form
from local_models.messages import LocalModelError

_COLUMNS = ("tasks", "lenient", "strict", "bound")


@click.command()
@click.argument("name")
@click.option(
    "--tasks", "count", type=click.IntRange(1, TASKS_MAX), default=TASKS, show_default=True
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the generator.")
@click.option("--kinds", default=",".join(KINDS), help="Comma-separated. [default: all]")
@click.option("--form", type=click.Choice((*FORMS, "both")), default="both", show_default=True)
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True)
@click.option("--minutes", type=float, help="Pause after so long; the same command goes on.")
@click.option("--shipped", is_flag=True, help="Show the result that came along; ask nothing.")
@click.option("--at-once", is_flag=True, help="At normal priority, not on idle time.")
@click.option("--keep-answers", is_flag=True, help="Keep the answers in the progress file, too.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the result file."
)
@click.option(
    "--models-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that holds the models. [default: $TOLLHOUSE_MODELS or the XDG cache]",
)
def exam(
    name: str,
    count: int,
    seed: int,
    kinds: str,
    form: str,
    threads: int,
    minutes: float | None,
    shipped: bool,
    at_once: bool,
    keep_answers: bool,
    out: Path | None,
    models_dir: Path | None,
) -> None:
    """Ask a model the exam's tasks and show how many answers are right.

    Runs at the lowest priority; interrupt it at any time, and the same command goes on.
    """
    # Here, for it brings ONNX Runtime along, which no other command of this file wants.
    from local_models.exam import command

    if shipped:
        _show_shipped(name)
        return
    chosen = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown:
        known = ", ".join(KINDS)
        raise click.ClickException(f"there is no kind {unknown[0]!r}; known are {known}")
    forms: tuple[Form, ...] = FORMS if form == "both" else tuple(f for f in FORMS if f == form)
    course = Course(kinds=chosen, forms=forms, count=count, seed=seed)
    ends_seconds = None if minutes is None else time.monotonic() + 60 * minutes

    def paused() -> bool:
        return ends_seconds is not None and time.monotonic() >= ends_seconds

    try:
        folder = ensure(name, models_dir=models_dir or default_models_dir())
        with Progress() as progress:
            bar = progress.add_task(name, total=None)
            result = command.examine(
                folder,
                course,
                threads=threads,
                idle=not at_once,
                paused=paused,
                keep_answers=keep_answers,
                report=lambda done, of: progress.update(bar, completed=done, total=of),
            )
    except Interrupted as pause:
        click.echo(f"{name}: {pause}")
        return
    except LocalModelError as error:
        raise click.ClickException(str(error)) from error
    _show(result, command.table(result))
    for each in forms:
        click.echo(f"{each}, lenient, mean over kinds: {command.mean(result, each) or 0.0:.3f}")
    if out is not None:
        click.echo(f"written to {results.write(result, out)}")


def _show_shipped(name: str) -> None:
    from local_models.exam import command

    known = {each: entry for each, entry in load_catalogue().items() if "model.gguf" in entry.files}
    entry = known.get(name)
    if entry is None:
        raise click.ClickException(
            f"there is no model {name!r} that answers; known are {', '.join(known)}"
        )
    try:
        result = results.shipped(entry.files["model.gguf"].sha256)
    except LocalModelError as error:
        raise click.ClickException(str(error)) from error
    if result is None:
        raise click.ClickException(f"no exam of {name} came along; measure it without --shipped")
    _show(result, command.table(result))


def _show(result: results.Result, rows: Iterable[tuple[str, ...]]) -> None:
    click.echo(f"{result.model}, {result.sha256[:16]}, {result.engine}, {result.day}")
    heads = "".join(f"| {form:^31}" for form in FORMS)
    columns = "".join(f"{name:>8}" for name in _COLUMNS)
    click.echo(f"{'':16}{heads}|")
    click.echo(f"{'kind':16}" + f"|{columns}" * len(FORMS) + f"|{'blind':>6}")
    per = len(_COLUMNS)
    for kind, *cells in rows:
        parts = [cells[at : at + per] for at in range(0, per * len(FORMS), per)]
        shown = "".join("|" + "".join(f"{cell:>8}" for cell in part) for part in parts)
        click.echo(f"{kind:16}{shown}|{cells[-1]:>6}")
    click.echo(
        "bound: exact one-sided lower bound of the lenient share, which holds for all"
        f" {len(KINDS)} kinds of a form at once with 95 % confidence (Clopper-Pearson, Bonferroni)"
    )
    click.echo("blind: share that the best constant answer gets right")
