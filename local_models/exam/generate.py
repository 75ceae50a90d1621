"""Tasks from a seed: the same version, kind, seed and number give the same tasks everywhere."""

from collections.abc import Iterator
from random import Random

from local_models.exam.kinds import KINDS, Kind
from local_models.exam.task import GENERATOR_VERSION, Task
from local_models.messages import LocalModelError

SEED = 2026
"""Of the exam whose results are shipped."""

TASKS = 200
"""Tasks of each kind, where nobody says otherwise."""

TASKS_MAX = 2_000
"""More distinct ones are not promised of any kind."""

_REPEATS_MAX = 200


class UnknownKind(LocalModelError):
    """There is no kind of this name."""


def tasks(name: str, count: int = TASKS, seed: int = SEED) -> list[Task]:
    """The first ``count`` tasks of a kind; no prompt comes twice. Raises UnknownKind.

    A longer list begins with the shorter one. Fewer come where a kind has no more to ask.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise UnknownKind(f"there is no kind {name!r}; known are {', '.join(KINDS)}")
    made: list[Task] = []
    for task in stream(kind, seed):
        if len(made) == min(count, TASKS_MAX):
            break
        made.append(task)
    return made


def stream(
    kind: Kind, seed: int, wordings: dict[str, tuple[str, ...]] | None = None
) -> Iterator[Task]:
    """Distinct tasks of a kind; ``wordings`` take the place of its own, for tests of others."""
    templates = kind.wordings if wordings is None else wordings
    rng = Random(f"{GENERATOR_VERSION}/{seed}/{kind.name}")  # noqa: S311 no secret
    seen: set[str] = set()
    repeats = 0
    while repeats < _REPEATS_MAX:
        filling = kind.fill(rng)
        family = templates[filling.family]
        wording = rng.randrange(len(family))
        prompt = family[wording].format_map(filling.slots)
        if prompt in seen:
            repeats += 1
            continue
        seen.add(prompt)
        repeats = 0
        copies = wordings is None and wording in kind.verbatim
        copied = filling.copied if copies else None
        yield Task(
            kind=kind.name,
            wording=wording,
            prompt=prompt,
            truth=copied or filling.truth,
            constraint=filling.constraint,
            max_tokens=kind.max_tokens,
        )
