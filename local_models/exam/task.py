"""What an exam is made of: a task, how its output may be constrained, and the verdict on an answer.

Knows no kind, no model and no engine.
"""

from abc import abstractmethod
from typing import Any, Literal

import msgspec

Form = Literal["free", "constrained"]
FORMS: tuple[Form, ...] = ("free", "constrained")

ANSWER_CHARACTERS_MAX = 4_000
"""A longer answer is wrong: no task wants a tenth of it."""

GENERATOR_VERSION = 2
"""Raised whenever a change to wordings, tables or verdicts makes old counts incomparable."""


class Verdict(msgspec.Struct, frozen=True):
    """Lenient: a patient reader would accept it. Strict: the answer alone, as asked.

    A strict answer is always a lenient one.
    """

    lenient: bool
    strict: bool


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine may be told about the form of the output, without being told the answer.

    choice: one of ``choices``. regex: the whole output matches ``regex`` (no anchors, no look
    around, no back references). Of both, with a ``name``, the output is a JSON object whose one
    field is so: a model that is held to a bare form begins a sentence all the same. json_schema:
    the output is a JSON document of ``schema``. tool: the output is a call of one of ``tools``,
    each as OpenAI's ``{"type": "function", ...}``; they are told beside ``prompt``, which takes
    the place of the task's.
    """

    type: Literal["choice", "regex", "json_schema", "tool"]
    choices: tuple[str, ...] = ()
    regex: str = ""
    name: str = ""
    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str = ""


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What a right answer is. Each class of ``verdicts`` knows one form of answers."""

    @abstractmethod
    def lenient(self, answer: str) -> bool:
        """Whether a patient reader would accept the answer."""

    @abstractmethod
    def strict(self, answer: str) -> bool:
        """Whether the answer is alone there, as asked."""

    @abstractmethod
    def ideal(self) -> str:
        """An answer that is right by both verdicts."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One question with one checkable answer. wording: which of its kind's templates was taken."""

    kind: str
    wording: int
    prompt: str
    truth: Truth
    constraint: Constraint
    max_tokens: int

    def judge(self, answer: str) -> Verdict:
        """Judge an answer as the engine gave it, white space at its ends aside."""
        answer = answer.strip()
        if not answer or len(answer) > ANSWER_CHARACTERS_MAX:
            return Verdict(False, False)
        strict = self.truth.strict(answer)
        return Verdict(strict or self.truth.lenient(answer), strict)
