"""What an exam counted: per kind and form, in a small file named by the model file's digest.

Knows counts and files. Does not know how a task is asked.
"""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import msgspec

from local_models.exam.conduct import Judged
from local_models.exam.generate import SEED, tasks
from local_models.exam.kinds import KINDS
from local_models.exam.statistics import CONFIDENCE, corrected, lower_bound
from local_models.exam.task import GENERATOR_VERSION, Form
from local_models.messages import LocalModelError

RESULT_BYTES_MAX = 1 << 20


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Right answers among ``tasks``. wordings: [tasks, lenient] of each template of the kind."""

    tasks: int
    lenient: int
    strict: int
    wordings: tuple[tuple[int, int], ...]

    @property
    def share(self) -> float:
        """Of leniently right answers."""
        return self.lenient / self.tasks

    def bound(self, alpha: float) -> float:
        """Exact one-sided lower bound of the share of leniently right answers."""
        return lower_bound(self.lenient, self.tasks, alpha)


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exam of one file. engine: what answered, with its instruction set; day: ISO."""

    model: str
    sha256: str
    generator: int
    seed: int
    day: str
    engine: str
    kinds: dict[str, dict[Form, Count]]


class BadResult(LocalModelError):
    """A result file cannot be read, or belongs to another generator."""


def count(judged: Iterable[Judged]) -> dict[str, dict[Form, Count]]:
    """Counts per kind and form, in the order of the kinds."""
    found: dict[str, dict[Form, list[Judged]]] = {}
    for entry in judged:
        found.setdefault(entry.kind, {}).setdefault(entry.form, []).append(entry)
    return {
        name: {form: _count(name, entries) for form, entries in found[name].items()}
        for name in KINDS
        if name in found
    }


def _count(name: str, entries: list[Judged]) -> Count:
    wordings = len(next(iter(KINDS[name].wordings.values())))
    per = [[entry for entry in entries if entry.wording == index] for index in range(wordings)]
    return Count(
        tasks=len(entries),
        lenient=sum(entry.lenient for entry in entries),
        strict=sum(entry.strict for entry in entries),
        wordings=tuple((len(part), sum(entry.lenient for entry in part)) for part in per),
    )


def alpha_each(confidence: float = CONFIDENCE) -> float:
    """Bonferroni: what each kind's bound may fail with, so that all of a form hold together."""
    return corrected(1.0 - confidence, len(KINDS))


def blind(name: str, number: int = 200, seed: int = SEED) -> float:
    """Share that the best constant answer gets right: a model that reads nothing.

    Candidates are the right answers themselves, the twenty commonest.
    """
    made = tasks(name, number, seed)
    ideals = [task.truth.ideal() for task in made]
    common = sorted(set(ideals), key=lambda text: (-ideals.count(text), text))[:20]
    if name == "write_code":
        return max(ideals.count(text) for text in common) / len(made)  # as text: nothing is run
    return max(sum(task.judge(text).lenient for task in made) for text in common) / len(made)


def file_name(sha256: str) -> str:
    """Of the result for a model file."""
    return f"{sha256[:16]}.json"


def write(result: Result, folder: Path) -> Path:
    """Write a result; returns its path. Kinds and forms that it lacks are kept from an earlier
    one of the same file, seed, generator and engine.
    """
    path = folder / file_name(result.sha256)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        result = _merged(decode(path.read_bytes(), result.sha256), result)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return path


def _merged(earlier: Result, later: Result) -> Result:
    if (earlier.seed, earlier.engine) != (later.seed, later.engine):
        return later
    kinds = {
        name: {**earlier.kinds.get(name, {}), **later.kinds.get(name, {})}
        for name in KINDS
        if name in earlier.kinds or name in later.kinds
    }
    return msgspec.structs.replace(later, kinds=kinds)


def shipped(sha256: str) -> Result | None:
    """The result that came with this package for a model file; None where there is none.

    Raises BadResult.
    """
    entry = resources.files("local_models.exam").joinpath("results", file_name(sha256))
    if not entry.is_file():
        return None
    return decode(entry.read_bytes(), sha256)


def decode(document: bytes, sha256: str) -> Result:
    """A result for this very file and this generator. Raises BadResult."""
    if len(document) > RESULT_BYTES_MAX:
        raise BadResult(f"an exam's result is over {RESULT_BYTES_MAX} bytes")
    try:
        result = msgspec.json.decode(document, type=Result)
    except msgspec.DecodeError as error:
        raise BadResult(f"an exam's result is damaged: {error}") from error
    if result.sha256 != sha256:
        raise BadResult(f"the exam's result is for {result.sha256[:16]}, not for {sha256[:16]}")
    if result.generator != GENERATOR_VERSION:
        raise BadResult(f"the result is of exam {result.generator}; this is {GENERATOR_VERSION}")
    return result
