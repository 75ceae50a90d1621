"""Patterns of a JSON Schema, in the one meaning that its validators and the grammar share.

A validator reads a pattern as Python or ECMAScript does, the grammar as Rust does. Where the three
differ, a pattern is refused, or narrowed to what all of them match. Knows regular expressions;
does not know schemas or grammars.
"""

import importlib
import re
from collections.abc import Iterator

from local_models.messages import InvalidPrompt

# The grammar's \w and \d are ASCII, so their complements hold letters and digits of other scripts,
# which Python's do not. Python's \s holds the separators U+001C to U+001F, the grammar's does not.
_MORE = {"w": r"\p{L}\p{N}", "d": r"\p{Nd}", "s": r"\x{1c}-\x{1f}"}
_SET_OPERATORS = ("&&", "--", "~~", "||")


def refuse_unsure(pattern: str, place: str) -> None:
    """Raise InvalidPrompt, with the place, for a pattern that is not read alike everywhere."""
    last = ""
    for piece, in_set, _ in _pieces(pattern):
        if in_set and (piece == "[" or last + piece in _SET_OPERATORS):
            raise InvalidPrompt(f"{place}: a set within a set is not supported; write \\[")
        if not in_set and piece == "+" and last in ("*", "+", "?", "}"):
            raise InvalidPrompt(f"{place}: a possessive repetition is not supported")
        last = piece
    # The standard library's own parser, which compiles nothing.
    parser = importlib.import_module("re._parser")
    try:
        parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidPrompt(f"{place} is no regular expression: {str(error)[:100]}") from error


def names_characters(pattern: str, *, complements: bool = False) -> bool:
    r"""Whether it has \w, \d or \s; complements: only where characters outside them match."""
    for piece, in_set, negated in _pieces(pattern):
        kind = piece[1:]
        if piece[0] != "\\" or kind.lower() not in _MORE:
            continue
        if not complements or kind.isupper() or (in_set and negated):
            return True
    return False


def narrowed(pattern: str) -> str:
    """The pattern for the grammar: what it matches, Python and ECMAScript match, too."""
    found = []
    for piece, in_set, negated in _pieces(pattern):
        kind = piece[1:]
        if piece[0] == "\\" and kind.lower() in _MORE:
            if kind.isupper() and not (in_set and negated):
                piece = f"[^\\{kind.lower()}{_MORE[kind.lower()]}]"
            elif kind.islower() and in_set and negated:
                piece += _MORE[kind]
        found.append(piece)
    return "".join(found)


def _pieces(pattern: str) -> Iterator[tuple[str, bool, bool]]:
    """Characters and escapes of two, each with: is it within [...], and is that a [^...].

    The brackets themselves count as outside.
    """
    at, in_set, negated = 0, False, False
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        begin = at
        at += len(piece)
        if not in_set and piece == "[":
            negated = pattern.startswith("^", at)
            at += negated
            # A bracket that comes first is one of the set.
            at += pattern.startswith("]", at)
            yield pattern[begin:at], False, negated
            in_set = True
            continue
        if in_set and piece == "]":
            in_set = False
        yield piece, in_set, negated
