"""Texts that a schema's patterns and formats are content with: how an open text can be ended.

A text that must match ``[0-9]{3}-[0-9]{4}$`` somewhere may go on for ever before it does. Knows
regular expressions; does not know grammars.
"""

import importlib
import json
from collections.abc import Iterator
from typing import Any

ENDINGS_MAX = 16
_LENGTH_MAX = 64
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@b.co",
    "hostname": "a.b.co",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "time": "00:00:00Z",
    "uri": "a://b.co/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def endings(schema: Any) -> tuple[str, ...]:
    """Short matches of the patterns and formats in a schema, as JSON spells them in a text."""
    found: dict[str, None] = {}
    for text in _texts(schema):
        if text and len(text) <= _LENGTH_MAX:
            found[json.dumps(text, ensure_ascii=False)[1:-1]] = None
        if len(found) == ENDINGS_MAX:
            break
    return tuple(found)


def _texts(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _texts(part)
    elif isinstance(schema, dict):
        for keyword, value in schema.items():
            if keyword == "pattern" and isinstance(value, str):
                yield short_match(value)
            elif keyword == "patternProperties" and isinstance(value, dict):
                yield from map(short_match, value)
            elif keyword == "format" and isinstance(value, str):
                yield _FORMATS.get(value, "")
            if keyword not in ("enum", "const"):
                yield from _texts(value)


def short_match(pattern: str) -> str:
    """A short text that the pattern matches; empty where none is found."""
    # The standard library's own parser: the module ``sre_parse`` before Python 3.11.
    parser = importlib.import_module("re._parser")
    try:
        return _match(parser.parse(pattern))
    except (parser.error, RecursionError, OverflowError, MemoryError):
        return ""


def _match(parsed: Any) -> str:
    text = ""
    for kind, value in parsed:
        text += _piece(str(kind), value)
        if len(text) > _LENGTH_MAX:
            break
    return text


def _piece(kind: str, value: Any) -> str:
    match kind:
        case "LITERAL":
            return chr(value)
        case "NOT_LITERAL":
            return "a" if value != ord("a") else "b"
        case "ANY":
            return "a"
        case "IN":
            return _of_set(value)
        case "BRANCH":
            branches: list[str] = [_match(branch) for branch in value[1]]
            return min(branches, key=len)
        case "SUBPATTERN":
            return _match(value[-1])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, _, repeated = value
            return _match(repeated) * min(int(least), _LENGTH_MAX + 1)
        case _:
            return ""


def _of_set(members: Any) -> str:
    """One character of a set; of one that says what it does not hold, the first that fits."""
    first = [(str(kind), value) for kind, value in members]
    if first[0][0] == "NEGATE":
        return next((c for c in "a0A -_~" if not any(_holds(m, c) for m in first[1:])), "")
    kind, value = first[0]
    if kind == "LITERAL":
        return chr(value)
    if kind == "RANGE":
        return chr(value[0])
    return {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}.get(str(value), "-")


def _holds(member: tuple[str, Any], character: str) -> bool:
    kind, value = member
    if kind == "LITERAL":
        return ord(character) == int(value)
    if kind == "RANGE":
        return int(value[0]) <= ord(character) <= int(value[1])
    kinds = {
        "CATEGORY_DIGIT": character.isdigit(),
        "CATEGORY_WORD": character.isalnum() or character == "_",
        "CATEGORY_SPACE": character.isspace(),
    }
    return kinds.get(str(value), not kinds.get(str(value).replace("NOT_", ""), False))
