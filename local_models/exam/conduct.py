"""Holding an exam: ask an engine every task in every form, judge, and keep what was done.

Each verdict is appended to a progress file, so an exam may be interrupted at any time and goes on
where it was. Asks number by number through all kinds: an unfinished exam has about as many tasks
of each kind. Knows the engine's queue. Does not know the catalogue or what counts prove.
"""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import msgspec

from local_models.exam.forms import bare, engine_constraint
from local_models.exam.generate import tasks
from local_models.exam.task import FORMS, GENERATOR_VERSION, Form, Task
from local_models.messages import (
    Delta,
    Finished,
    GenerationRequest,
    LocalModelError,
    SamplingParams,
)

_log = logging.getLogger(__name__)

PROGRESS_BYTES_MAX = 64 << 20
"""A progress file over this is not one of ours: 27 kinds in both forms have 10 MB at most."""


FIELD_TOKENS = 8
"""More than a task's own limit, for the name and the brackets of a JSON field."""


class Answers(Protocol):
    """What an exam needs of an engine."""

    def submit(
        self, request: GenerationRequest, deliver: Callable[[str, Delta | Finished], None]
    ) -> None:
        """Ask; deliver is called with deltas, and last with a Finished."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's verdict, as the progress file has it. tokens: of the answer."""

    kind: str
    form: Form
    number: int
    wording: int
    lenient: bool
    strict: bool
    tokens: int
    answer: str = ""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks an exam asks."""

    kinds: tuple[str, ...]
    forms: tuple[Form, ...] = FORMS
    count: int
    seed: int


class Interrupted(LocalModelError):
    """The exam was told to pause; what was judged is kept."""


def progress_path(folder: Path, sha256: str, seed: int) -> Path:
    """Where an exam of this file, seed and generator keeps what was done."""
    return folder / f"exam-{sha256[:12]}-v{GENERATOR_VERSION}-s{seed}.jsonl"


def read_progress(path: Path) -> list[Judged]:
    """What was judged before; a line that was cut by an interruption is left out."""
    if not path.exists() or path.stat().st_size > PROGRESS_BYTES_MAX:
        return []
    judged: list[Judged] = []
    for line in path.read_bytes().splitlines():
        try:
            judged.append(msgspec.json.decode(line, type=Judged))
        except msgspec.DecodeError:
            _log.warning("%s: a line is damaged and left out", path)
    return judged


def conduct(
    engine: Answers,
    course: Course,
    progress: Path,
    *,
    in_flight: int,
    keep_answers: bool = False,
    paused: Callable[[], bool] = lambda: False,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Judged]:
    """Ask what the progress file lacks, and return every verdict of the course.

    in_flight: tasks asked at once; a slot and one that waits each keep an engine busy. paused is
    asked after every answer: True ends the exam as soon as those in flight are judged. Raises
    Interrupted then, and what the engine raises.
    """
    wanted = set(_numbers(course))
    judged = {
        (entry.kind, entry.form, entry.number): entry for entry in read_progress(progress)
    }  # fmt: skip
    todo = iter([place for place in _numbers(course) if place not in judged])
    done, stop = len(wanted & judged.keys()), False
    made = {kind: tasks(kind, course.count, course.seed) for kind in course.kinds}
    asked: dict[str, tuple[Task, Form, int, list[str]]] = {}
    delivered: SimpleQueue[tuple[str, Delta | Finished]] = SimpleQueue()
    progress.parent.mkdir(parents=True, exist_ok=True)
    with progress.open("ab") as out:
        while True:
            for kind, form, number in islice(todo, 0 if stop else in_flight - len(asked)):
                if number >= len(made[kind]):
                    continue  # the kind has no more to ask
                task = made[kind][number]
                request_id = f"{kind}/{form}/{number}"
                asked[request_id] = (task, form, number, [])
                engine.submit(_request(request_id, task, form), _into(delivered))
            if not asked:
                break
            request_id, message = delivered.get()
            task, form, number, texts = asked[request_id]
            if isinstance(message, Delta):
                texts.append(message.text)
                continue
            del asked[request_id]
            if message.reason in ("error", "cancelled"):
                raise LocalModelError(f"{request_id} failed: {message.message or message.reason}")
            answer = "".join(texts)
            if form == "constrained":
                answer = bare(task.constraint, answer)
            verdict = task.judge(answer)
            entry = Judged(
                kind=task.kind,
                form=form,
                number=number,
                wording=task.wording,
                lenient=verdict.lenient,
                strict=verdict.strict,
                tokens=message.completion_tokens,
                answer=answer if keep_answers else "",
            )
            judged[task.kind, form, number] = entry
            out.write(msgspec.json.encode(entry) + b"\n")
            out.flush()
            done += 1
            report(done, len(wanted))
            stop = stop or paused()
    if stop:
        raise Interrupted(f"paused after {done} of {len(wanted)} answers; the same command goes on")
    return [judged[place] for place in _numbers(course) if place in judged]


def _numbers(course: Course) -> Iterator[tuple[str, Form, int]]:
    for number in range(course.count):
        for kind in course.kinds:
            for form in course.forms:
                yield kind, form, number


def _request(request_id: str, task: Task, form: Form) -> GenerationRequest:
    constrained = form == "constrained"
    prompt = (task.constraint.prompt if constrained else "") or task.prompt
    return GenerationRequest(
        request_id=request_id,
        messages=({"role": "user", "content": prompt},),
        tools=(task.constraint.tools if constrained else ()) or None,
        params=SamplingParams(max_tokens=task.max_tokens + FIELD_TOKENS, temperature=0.0),
        scope="exam",
        constraint=engine_constraint(task.constraint) if constrained else None,
    )


def _into(
    delivered: "SimpleQueue[tuple[str, Delta | Finished]]",
) -> Callable[[str, Delta | Finished], None]:
    return lambda request_id, message: delivered.put((request_id, message))
