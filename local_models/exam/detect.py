"""Which kind of the exam a request is, or none: from the text alone, by rules, in some 50 µs.

A request is taken for a kind only where every word of its instruction is expected there and its
material is of the form that the exam asked about; one foreign word ("the capital *gains tax*")
makes it none. Missing a kind costs a saving, mistaking one costs an answer: what is not plain is
none. Kinds that have no narrow form (stories, code, summaries, facts by yes or no, tool calls in
prose, JSON by example) are never detected. Knows no model and no result.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from local_models.exam.rules import ANYWHERE, RULES, WORD, Rule

CHARACTERS_MAX = 800
"""Of a request that may be of a kind: twice the longest prompt of the exam's detectable kinds."""

_MATERIAL_CHARACTERS_MAX = 500
_INSTRUCTION_CHARACTERS_MAX = 200
_QUOTED = re.compile(r"[\"“]([^\"”]{1,500})[\"”]|'([^'\n]{1,500})'(?!\w)")

DETECTABLE = frozenset(rule.kind for rule in RULES)


def detect(messages: Iterable[Mapping[str, Any]]) -> str | None:
    """The kind that a conversation's only message, a user's, is of; None is the usual answer.

    A system message makes it none: the exam had none, and instructions there may say anything.
    Pure; at most 1 ms for the longest text that is looked at.
    """
    conversation = list(messages)
    if len(conversation) != 1 or conversation[0].get("role") != "user":
        return None
    text = conversation[0].get("content")
    return detect_text(text) if isinstance(text, str) else None


def detect_text(text: str) -> str | None:
    """The kind of one user's text that stands alone."""
    if len(text) > CHARACTERS_MAX:
        return None
    text = text.strip()
    folded = text.casefold()
    rules = [rule for rule in RULES if rule.anywhere.search(folded) is not None]
    if not rules:
        return None
    splits = list(_splits(text))
    found = {
        rule.kind
        for rule in rules
        if any(_fits(rule, instruction, material) for instruction, material in splits)
    }
    return found.pop() if len(found) == 1 else None  # two kinds at once are none


def _fits(rule: Rule, instruction: str, material: str) -> bool:
    if len(instruction) > _INSTRUCTION_CHARACTERS_MAX or len(material) > _MATERIAL_CHARACTERS_MAX:
        return False
    if rule.trigger.search(instruction.casefold()) is None:
        return False
    words = (word.casefold().rstrip(".,") for word in WORD.findall(instruction))
    rest = tuple(word for word in words if word not in ANYWHERE and word not in rule.words)
    return rule.check(instruction, rest, material)


def _splits(text: str) -> Iterator[tuple[str, str]]:
    """Ways to part a text into what is asked and what it is asked about."""
    yield text, ""
    quoted = [match for match in _QUOTED.finditer(text) if len(match.group()) > 10]
    if len(quoted) == 1:
        match = quoted[0]
        yield f"{text[: match.start()]} {text[match.end() :]}", match.group(1) or match.group(2)
    blocks = [block.strip() for block in re.split(r"\n\s*\n|\n-{3,}\n", text) if block.strip()]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    for parts in (blocks, lines):
        if len(parts) > 1:
            yield parts[0], "\n".join(parts[1:])
            yield parts[-1], "\n".join(parts[:-1])
            if len(parts) > 2:
                yield f"{parts[0]} {parts[-1]}", "\n".join(parts[1:-1])
    for part in dict.fromkeys((text, lines[0] if len(lines) > 1 else text)):
        head, colon, tail = part.partition(":")
        if colon and tail.strip() and part is text:
            yield head, tail.strip()
    # "Text: ...\nLabel:", where the label is the instruction
    if len(lines) == 2:
        label, colon, tail = lines[0].partition(":")
        if colon and tail:
            yield f"{label} {lines[1]}", tail.strip()
    if len(lines) > 1:
        label, colon, tail = lines[-1].partition(":")
        if colon and tail.strip():
            yield " ".join((*lines[:-1], label)), tail.strip()
