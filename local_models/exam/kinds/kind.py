"""A kind of task: its wordings, and what fills them."""

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from local_models.exam.task import Constraint, Truth


class Filling(msgspec.Struct, frozen=True, kw_only=True):
    """What one task puts into a wording of its family, and the truth about it."""

    slots: dict[str, Any]
    truth: Truth
    constraint: Constraint
    family: str = ""
    copied: Truth | None = None  # in place of ``truth`` where a wording asks for the text as it is


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """wordings: templates per family; every family has the same number of them.

    verbatim: numbers of the wordings that ask for a text as it is written.
    chance: share of right answers that guessing among the offered answers gives; 0 where there is
    nothing to guess from.
    """

    name: str
    title: str
    max_tokens: int
    fill: Callable[[Random], Filling]
    wordings: dict[str, tuple[str, ...]]
    verbatim: tuple[int, ...] = ()
    chance: float = 0.0


def one_of(*choices: str, name: str) -> Constraint:
    """The output is a JSON object whose field ``name`` is one of these."""
    return Constraint(type="choice", choices=choices, name=name)


def matching(regex: str, name: str = "") -> Constraint:
    """The output matches, as the field ``name`` of a JSON object where it has a name."""
    return Constraint(type="regex", regex=regex, name=name)
