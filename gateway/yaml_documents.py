"""YAML documents with positions: every value knows its file, line and column.

One loader for settings and policies. Scalars are those of YAML 1.2 (``no`` is a word, 12:30 is a
text); duplicate keys, anchors, aliases and tags are refused, so that what a person reads is what
the program sees. References ``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:/path}`` are
resolved here. Knows no schema of its own: a pydantic model is passed in.
"""

import codecs
import difflib
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from pydantic import BaseModel, ValidationError

from gateway.errors import PolicyError

FILE_BYTES_MAX = 1 << 20  # of tollhouse.yaml; policies have a setting
REFERENCED_BYTES_MAX = 64 << 10  # of a file named by ${file:...}
DEPTH_MAX = 32
DOCUMENTS_MAX = 200  # in one file
UNSHOWN = "unshown"  # pydantic error type: the message does not repeat the value
PROBLEMS_MAX = 100  # reported; more say no more
# What libyaml says, and what has mostly happened.
_IN_PLAIN_WORDS = {
    "expected '-' indicator": "is this line indented like the entry before it?",
    "expected key": "is this line indented like the keys before it?",
    "expected <block end>": "is this line indented like the ones before it?",
    "expected <document start>": "is this line indented like the ones before it?",
    "block sequence entries are not allowed": "a list begins on a line of its own, below its key",
    "mapping values are not allowed": "is a line before it not indented, or a text with ': ' not"
    " in quotes?",
    "tab character": "indent with spaces, not with tabs",
    "cannot start any token": "indent with spaces, and quote a text that begins with @, % or `",
    "expected ',' or": "a bracket or a comma is missing before this place",
    "unexpected end of stream": "a quotation mark is not closed",
    "unexpected document indicator": "a quotation mark is not closed",
    "expected ':'": "this line is no 'key: value', or a quotation mark is not closed before it",
    "unknown escape character": "in double quotes a backslash is written twice; single quotes take"
    " it as it is",
    "alphabetic or numeric character": "quote a text that begins with * or &",
    "expected node content": "a value is missing before this place",
    "control characters are not allowed": "a character here is no text; is the file a text file?",
}
_SLICE_MAX = 200  # entries of a list that are validated at once
_HIDDEN_LENGTH_MIN = 8  # of a value that no message shows; shorter ones are part of words
_QUOTED_LENGTH_MAX = 40  # of a text that a message quotes

Where = tuple[str | int, ...]
Marks = dict[Where, tuple[int, int]]
M = TypeVar("M", bound=BaseModel)

# YAML 1.2.2, section 10.3.2. Few digits: int() and float() of thousands are slow or infinite.
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")
_EXACT_BELOW = 2**53  # whole numbers that a float holds exactly
_CONSTANTS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_REFERENCE = re.compile(
    r"\$\{(?:env:(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^${}\x00-\x1f]*))?"
    r"|file:(?P<file>[^${}\x00-\x1f]+))\}",
    re.ASCII,
)
# What providers' keys and our own look like: caught even where a text is expected.
_INLINE_SECRET = re.compile(r"\b(sk-[\w-]{16,}|tha?_[\w-]{20,})")


class Referenced(str):
    """A text that came, in part at least, from the environment or a file: fit for a secret."""

    written: str  # with its references, as it stands in the file

    def __new__(cls, text: str, written: str = "") -> "Referenced":
        """Keep what was written beside what it stands for."""
        made = super().__new__(cls, text)
        made.written = written
        return made


class Problem(str):
    """``file:line:column: path: message``, with its parts for tools. No place: line is 0."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __new__(
        cls, message: str, *, file: str = "", line: int = 0, column: int = 0, path: str = ""
    ) -> "Problem":
        """Put the parts together into the text that people see."""
        place = f"{file}:{line}:{column}" if line else file
        problem = super().__new__(cls, ": ".join(filter(None, (place, path, message))))
        problem.file, problem.line, problem.column = file, line, column
        problem.path, problem.message = path, message
        return problem


class Document(msgspec.Struct, frozen=True):
    """One YAML document and where each of its values and keys stands."""

    path: Path
    value: Any
    marks: Marks
    keys: Marks = {}
    origins: Mapping[Where, str] = {}  # of values that came from elsewhere than the file
    references: Mapping[str, str] = {}  # what one stands for: the reference as it is written

    def locate(self, where: Where) -> str:
        """``file:line:column`` of a value, or of the nearest thing around it."""
        line, column = self._mark(where, self.marks)
        return f"{shown_path(self.path)}:{line}:{column}"

    def problem(self, where: Where, message: str, *, at_key: bool = False) -> Problem:
        """A message with the place of a value, or of its key, as every error of ours reads.

        What a reference stands for may be a secret: the message names the reference instead.
        """
        message = self._hidden(message)
        origin = self.origins.get(where)
        if origin is not None:
            return Problem(message, file=origin)
        marks = self.keys if at_key and where in self.keys else self.marks
        line, column = self._mark(where, marks)
        return Problem(
            message, file=shown_path(self.path), line=line, column=column, path=dotted(where)
        )

    def _hidden(self, message: str) -> str:
        for value, reference in self.references.items():
            if len(value) >= _HIDDEN_LENGTH_MIN:
                message = message.replace(value, reference)
                for part in (value, value[:_QUOTED_LENGTH_MAX]):
                    message = message.replace(repr(part)[1:-1], reference)
        return message

    def _mark(self, where: Where, marks: Marks) -> tuple[int, int]:
        while where and where not in marks:
            where = where[:-1]
        return marks.get(where, (1, 1))


def refusal(problems: Iterable[str]) -> PolicyError:
    """One PolicyError of many problems: each once, and not more than anyone reads."""
    distinct = tuple(dict.fromkeys(problems))
    if len(distinct) > PROBLEMS_MAX:
        rest = len(distinct) - PROBLEMS_MAX
        distinct = (*distinct[:PROBLEMS_MAX], Problem(f"and {rest} more problems"))
    return PolicyError(distinct)


def shown_path(path: Path) -> str:
    """The path as a person would name it: relative where it lies below the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """A regular file's bytes. Raises OSError, also where there are more than ``bytes_max``.

    A pipe or a terminal would keep us waiting for whoever writes to it.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise OSError(f"has more than {bytes_max} bytes")
    return content


def read_documents(path: Path, environ: Mapping[str, str] = os.environ) -> list[Document]:
    """All documents of a file. Raises PolicyError with every problem found."""
    try:
        content = read_bounded(path, FILE_BYTES_MAX)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise PolicyError((Problem(message, file=shown_path(path)),)) from None
    return parse_documents(content, path, environ)


def parse_documents(
    content: bytes, path: Path, environ: Mapping[str, str] = os.environ
) -> list[Document]:
    """All documents of a file's bytes. Raises PolicyError with every problem found."""
    name = shown_path(path)
    reader = _Reader(path, environ)
    try:
        documents = reader.read(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line, column = _place(content, error.start)
        problem = Problem(
            "is not UTF-8: save it in that encoding", file=name, line=line, column=column
        )
        raise PolicyError((problem,)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or ""
        began = error.context_mark
        if "not closed" in _plainly(said) and began is not None:
            mark = began  # the file's end tells nobody which quotation mark it is
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = Problem(_not_yaml(said), file=name, line=line, column=column)
        raise refusal((*reader.problems, problem)) from None
    except yaml.reader.ReaderError as error:
        line, column = _place(content.removeprefix(codecs.BOM_UTF8), error.position)
        problem = Problem(_not_yaml(error.reason), file=name, line=line, column=column)
        raise refusal((*reader.problems, problem)) from None
    except _GivenUp:
        raise refusal(reader.problems) from None
    if reader.problems:
        raise refusal(reader.problems)
    return documents


def _not_yaml(said: str) -> str:
    """The parser's words, after what a person can do."""
    plainly = _plainly(said)
    return f"this is not YAML: {plainly} (the parser: {said})" if plainly else f"not YAML: {said}"


def _plainly(said: str) -> str:
    return next((words for part, words in _IN_PLAIN_WORDS.items() if part in said), "")


def _place(content: bytes, offset: int) -> tuple[int, int]:
    before = content[:offset].decode(errors="replace")
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class _GivenUp(Exception):
    """Reading on would only cost time; the reason is among the problems."""


class _Reader:
    """Turns libyaml's events into plain values, noting positions and problems.

    Events and not composed nodes: an event still knows its anchor and tag, and nesting is refused
    where it passes the limit. libyaml takes minutes over a megabyte of opening brackets.
    """

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._path = path
        self._environ = environ
        self._marks: Marks = {}
        self._keys: Marks = {}
        self._references: dict[str, str] = {}
        self._events: Iterator[yaml.Event] = iter(())

    def read(self, text: str) -> list[Document]:
        documents: list[Document] = []
        self._events = iter(yaml.parse(text, Loader=yaml.CSafeLoader))
        for event in self._events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if len(documents) == DOCUMENTS_MAX:
                self._give_up(event, f"more than {DOCUMENTS_MAX} documents in one file")
            self._marks, self._keys = {}, {}
            value = self._value(next(self._events), ())
            documents.append(
                Document(self._path, value, self._marks, self._keys, references=self._references)
            )
        return documents

    def _value(self, event: yaml.Event, where: Where) -> Any:
        self._marks[where] = _position(event)
        if len(where) > DEPTH_MAX:
            self._give_up(event, f"nested deeper than {DEPTH_MAX} levels")
        self._refuse_tricks(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(where)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(where)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        return None  # an alias, which has been refused

    def _refuse_tricks(self, event: yaml.Event) -> None:
        """Anchors, aliases and tags hide what is meant, and can make a small file huge."""
        kind = None
        if isinstance(event, yaml.AliasEvent):
            kind = f"alias *{event.anchor}"
        elif getattr(event, "anchor", None) is not None:
            kind = f"anchor &{getattr(event, 'anchor')}"  # noqa: B009 - only some events have one
        elif getattr(event, "tag", None) is not None:
            kind = f"tag {getattr(event, 'tag')}"  # noqa: B009 - likewise
        if kind is not None:
            self._problem(event, f"a YAML {kind} is not accepted; write the value out")

    def _sequence(self, where: Where) -> list[Any]:
        found: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._value(event, (*where, len(found))))
        return found

    def _mapping(self, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, where)
            if key in found:
                self._problem(event, f"the key '{key}' is given twice")
            found[key] = self._value(next(self._events), (*where, key))
            self._keys[(*where, key)] = _position(event)
        return found

    def _key(self, event: yaml.Event, where: Where) -> str:
        self._refuse_tricks(event)
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)
        if not isinstance(event, yaml.AliasEvent):
            self._problem(event, "a key is a plain word")
            self._value(event, (*where, "?"))
        return "?"

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted or block: a text, whatever it looks like
            return self._text(event, text)
        value = plain_scalar(text)
        return self._text(event, value) if isinstance(value, str) else value

    def _text(self, event: yaml.Event, text: str) -> str:
        """Replace references. An unset variable or unreadable file is a problem, never empty."""
        literal = _REFERENCE.sub("", text)
        defaults = (match["default"] or "" for match in _REFERENCE.finditer(text))
        if any(map(_INLINE_SECRET.search, (literal, *defaults))):
            self._problem(event, "this looks like a key: write a reference, ${env:NAME} or"
                          " ${file:/path}, never the secret itself")  # fmt: skip
        if "${" not in text:
            return text
        if "${" in literal:
            self._problem(
                event, "a reference reads ${env:NAME}, ${env:NAME:-default} or ${file:/path}"
            )
        found = _REFERENCE.sub(lambda match: self._substitute(event, match), text)
        return Referenced(found, text)

    def _substitute(self, event: yaml.Event, match: re.Match[str]) -> str:
        value = self._resolve(event, match)
        self._references[value] = match[0]
        return value

    def _resolve(self, event: yaml.Event, match: re.Match[str]) -> str:
        if match["file"] is not None:
            return self._content(event, match["file"])
        name, default = match["name"], match["default"]
        value = self._environ.get(name)
        if value:
            return value
        if default is not None:
            return default
        try:
            value = self._environ[name]  # a mapping may make one up
        except KeyError:
            value = ""
        if not value:
            self._problem(event, f"the environment variable {name} is not set;"
                          f" set it, or give a default: ${{env:{name}:-default}}")  # fmt: skip
        return value

    def _content(self, event: yaml.Event, name: str) -> str:
        try:
            return read_bounded(Path(name), REFERENCED_BYTES_MAX).decode().strip()
        except UnicodeDecodeError:
            reason = "not UTF-8"
        except OSError as error:
            reason = error.strerror or str(error)
        self._problem(event, f"the file {name} cannot be read: {reason}")
        return ""

    def _problem(self, event: yaml.Event, message: str) -> None:
        line, column = _position(event)
        self.problems.append(
            Problem(message, file=shown_path(self._path), line=line, column=column)
        )
        if len(self.problems) > PROBLEMS_MAX:
            raise _GivenUp

    def _give_up(self, event: yaml.Event, message: str) -> None:
        self._problem(event, message)
        raise _GivenUp


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar stands for: null, a boolean, a number, or itself.

    A whole number is one however it is written: 1e+06 is what Helm makes of a million, and JSON
    Schema knows no difference.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return int(number) if number.is_integer() and abs(number) < _EXACT_BELOW else number
    return text


def _position(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None, "libyaml marks every event"
    return event.start_mark.line + 1, event.start_mark.column + 1


def validate(document: Document, model: type[M]) -> M:
    """The document as ``model``. Raises PolicyError with every problem, each at its place.

    Its longest list is validated slice by slice: all of 10,000 tenants in one call would keep every
    other thread waiting for 0.2 s.
    """
    value = document.value
    lists = value.items() if isinstance(value, dict) else ()
    key, items = max(
        ((name, listed) for name, listed in lists if isinstance(listed, list)),
        key=lambda named: len(named[1]),
        default=("", []),
    )
    parts: list[M] = []
    found: list[Problem] = []
    for start in range(0, len(items) or 1, _SLICE_MAX):
        sliced = value
        if len(items) > _SLICE_MAX:
            sliced = {**value, key: items[start : start + _SLICE_MAX]}
        try:
            parts.append(model.model_validate(sliced))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                loc = item["loc"]
                if start and len(loc) > 1 and loc[0] == key and isinstance(loc[1], int):
                    item["loc"] = (key, loc[1] + start, *loc[2:])
                found.append(_explain(document, model, dict(item)))
    if found:
        raise PolicyError(tuple(dict.fromkeys(found)))
    if len(parts) == 1:
        return parts[0]
    return parts[0].model_copy(
        update={key: [each for part in parts for each in getattr(part, key)]}
    )


def misplaced_references(
    document: Document, places: Mapping[str, tuple[str, ...]]
) -> list[Problem]:
    """References that stand where nobody expects a secret, from where it could be read.

    places: the keys that take references, and which kinds, ``env`` or ``file``.
    """
    found: list[Problem] = []
    for where, value in _references_in(document.value, ()) if document.references else ():
        key = next((part for part in reversed(where) if isinstance(part, str)), "")
        kinds = places.get(key, ())
        if any(f"${{{kind}:" in value.written for kind in ("env", "file") if kind not in kinds):
            takers = ", ".join(name for name, of in places.items() if "file" in of)
            message = (
                f"a reference {'to a file ' if kinds else ''}is for secrets alone, in {takers}"
                f"{'' if kinds else '; ${env:NAME} in base_url and ca_file too'}:"
                " write the value itself"
            )
            found.append(document.problem(where, message))
    return found


# No closure that calls itself: it would be a cycle, and keep its document when a load is frozen.
def _references_in(value: Any, where: Where) -> Iterator[tuple[Where, Referenced]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _references_in(inner, (*where, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _references_in(inner, (*where, number))
    elif isinstance(value, Referenced):
        yield where, value


def dotted(where: Where) -> str:
    """``routes.0.target`` for messages."""
    return ".".join(str(part) for part in where)


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing. The one word that begins so goes before a similar one."""
    words = list(known)
    begun = [each for each in words if len(word) >= _BEGINNING_MIN and each.startswith(word)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(word[:200], words, 1, 0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


_BEGINNING_MIN = 3
"""Letters of a beginning that tell which word was meant."""


# pydantic's error types in our words; {…} are the error's own particulars.
_IN_WORDS = {
    "string_type": "expected a text",
    "is_instance_of": "expected a path",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a number",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected a mapping of keys",
    "model_type": "expected a mapping of keys",
    "literal_error": "expected {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "needs at least {min_length} entry",
    "too_long": "takes at most {max_length} entries",
    "string_pattern_mismatch": "must match {pattern}",
}


def _explain(document: Document, model: type[BaseModel], error: dict[str, Any]) -> Problem:
    loc, kind, given = error["loc"], error["type"], error.get("input")
    where = _existing(document, loc)
    if kind == "extra_forbidden":
        key = str(loc[-1])
        hint = suggest(key, keys_of(model, loc[:-1]))
        return document.problem(where, f"unknown key '{key}'{hint}", at_key=True)
    if kind == "missing":
        return document.problem(where, f"the key '{loc[-1]}' is missing")
    context = error.get("ctx", {})
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind in _IN_WORDS:
        message = _IN_WORDS[kind].format_map(context)
    if kind == UNSHOWN or (kind == "value_error" and isinstance(given, dict | list)):
        return document.problem(where, message)
    hint = ""
    if kind == "literal_error" and isinstance(given, str):
        words = re.findall(r"'([^']+)'", context["expected"])
        hint = suggest(given, words)
        if "on" in words and given.lower() in _SWITCHES:
            hint = f"; write {'on' if _SWITCHES[given.lower()] == 'true' else 'off'}"
    if kind == "bool_type" and isinstance(given, str) and given.lower() in _SWITCHES:
        hint = f"; write {_SWITCHES[given.lower()]}"
    if kind == "string_type" and isinstance(given, int | float):
        hint = "; put it in quotes"
    return document.problem(where, f"{message}, not {_in_words(given)}{hint}")


# What other languages, YAML 1.1 among them, call a boolean, and one in quotes.
_SWITCHES = {
    "on": "true", "yes": "true", "y": "true", "true": "true",
    "off": "false", "no": "false", "n": "false", "false": "false",
}  # fmt: skip


def _in_words(given: Any) -> str:
    """A value as its writer would recognise it; nothing that may be a secret."""
    if given is None:
        return "nothing"
    if isinstance(given, Referenced):
        return "what the reference stands for"
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, int | float):
        return f"the number {given}"
    if isinstance(given, str):
        return f"the text {given[:_QUOTED_LENGTH_MAX]!r}"
    return "a list" if isinstance(given, list) else "a mapping of keys"


def _existing(document: Document, loc: tuple[Any, ...]) -> Where:
    """The part of pydantic's location that is in the document: its union tags are not."""
    where: Where = ()
    for part in loc:
        if (*where, part) in document.marks or (*where, part) in document.origins:
            where = (*where, part)
    return where


def keys_of(model: Any, loc: tuple[Any, ...] = ()) -> list[str]:
    """The keys that ``model`` knows at ``loc``."""
    for part in loc:
        model = _field_type(model, part)
    return sorted({f.alias or n for m in models_in(model) for n, f in m.model_fields.items()})


def _field_type(kind: Any, part: Any) -> Any:
    for model in models_in(kind):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
    return kind  # an index, or a tag of a union


def models_in(kind: Any) -> list[type[BaseModel]]:
    """The models that a type annotation mentions, in order."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for inner in getattr(kind, "__args__", ()) for model in models_in(inner)]
