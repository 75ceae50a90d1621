"""One exam from a model's folder to its table: what ``tollhouse models exam`` does.

Knows the engine and the results. Does not know a terminal.
"""

import hashlib
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from local_models.engine import Engine
from local_models.exam.conduct import Course, conduct, progress_path
from local_models.exam.results import Result, alpha_each, blind, count
from local_models.exam.task import FORMS, GENERATOR_VERSION, Form
from local_models.native import instruction_set

SLOTS = 16
"""Rows that decode together."""

NICENESS = 15
"""On idle time: others on the machine come first."""


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def examine(
    model_dir: Path,
    course: Course,
    *,
    threads: int,
    idle: bool = True,
    paused: Callable[[], bool] = lambda: False,
    report: Callable[[int, int], None] = lambda done, of: None,
    keep_answers: bool = False,
) -> Result:
    """Hold the exam, or what is left of it, and count. Raises Interrupted and LocalModelError.

    Progress lies beside the model's file. idle: lower the priority of this process, for good.
    """
    if idle:
        os.nice(max(0, NICENESS - os.nice(0)))
    sha256 = sha256_of(model_dir / "model.gguf")
    engine = Engine.load(model_dir, threads=threads, slots=SLOTS, context_tokens=1024)
    with closing(engine):
        judged = conduct(
            engine,
            course,
            progress_path(model_dir, sha256, course.seed),
            in_flight=2 * SLOTS,
            keep_answers=keep_answers,
            paused=paused,
            report=report,
        )
        graph = "fused operators" if engine.info.fused else "ONNX Runtime's operators"
    return Result(
        model=model_dir.name,
        sha256=sha256,
        generator=GENERATOR_VERSION,
        seed=course.seed,
        day=datetime.now(UTC).date().isoformat(),
        engine=f"{graph}, {instruction_set()}, {platform.machine()}",
        kinds=count(judged),
    )


def table(result: Result) -> Iterable[tuple[str, ...]]:
    """Rows for a reader: kind, and per form tasks, lenient, strict, bound; then the blind share."""
    alpha = alpha_each()
    for name, forms in result.kinds.items():
        cells = [name]
        for form in FORMS:
            counted = forms.get(form)
            if counted is None:
                cells += ["", "", "", ""]
            else:
                cells += [
                    str(counted.tasks),
                    f"{counted.lenient / counted.tasks:.3f}",
                    f"{counted.strict / counted.tasks:.3f}",
                    f"{counted.bound(alpha):.3f}",
                ]
        yield (*cells, f"{blind(name, 100):.2f}")


def mean(result: Result, form: Form) -> float | None:
    """Mean over kinds of the share that is leniently right; None where the form was not asked."""
    shares = [forms[form].share for forms in result.kinds.values() if form in forms]
    return sum(shares) / len(shares) if shares else None
