"""YAML documents with positions: every value knows its file, line and column.

One loader for settings and policies. Scalars are those of YAML 1.2 (``no`` is a word and 12:30 is
not a number); duplicate keys, anchors, aliases and tags are refused, so that what a person reads is
what the program sees. References ``${env:NAME}``, ``${env:NAME:-default}`` and ``${file:/path}`` are
resolved here. Knows no schema of its own: a pydantic model is passed in.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from pydantic import BaseModel, ValidationError

from gateway.errors import PolicyError

FILE_BYTES_MAX = 1 << 20
DEPTH_MAX = 32

Where = tuple[str | int, ...]
Marks = dict[Where, tuple[int, int]]
M = TypeVar("M", bound=BaseModel)

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_REFERENCE = re.compile(r"\$\{(env|file):([^}]*)\}")


class Referenced(str):
    """A text that came, in part at least, from the environment or a file: fit for a secret."""

    __slots__ = ()


class Document(msgspec.Struct, frozen=True):
    """One YAML document and where each of its values stands."""

    path: Path
    value: Any
    marks: Marks

    def locate(self, where: Where) -> str:
        """``file:line:column`` of a value, or of the nearest thing around it."""
        while where and where not in self.marks:
            where = where[:-1]
        line, column = self.marks.get(where, (1, 1))
        return f"{self.path.name}:{line}:{column}"

    def problem(self, where: Where, message: str) -> str:
        """A message with its place, as every error of ours reads."""
        name = dotted(where)
        return (
            f"{self.locate(where)}: {name}: {message}"
            if name
            else f"{self.locate(where)}: {message}"
        )


def read_documents(path: Path, environ: Mapping[str, str] = os.environ) -> list[Document]:
    """All documents of a file. Raises PolicyError with every problem found."""
    try:
        size = path.stat().st_size
        if size > FILE_BYTES_MAX:
            raise PolicyError(
                (f"{path}: {size} bytes; a policy file has at most {FILE_BYTES_MAX}",)
            )
        text = path.read_bytes()
    except OSError as error:
        raise PolicyError((f"{path}: {error.strerror or error}",)) from None
    return parse_documents(text, path, environ)


def parse_documents(
    text: bytes, path: Path, environ: Mapping[str, str] = os.environ
) -> list[Document]:
    """All documents of a file's bytes. Raises PolicyError with every problem found."""
    try:
        nodes = list(yaml.compose_all(text.decode(), Loader=yaml.CSafeLoader))
    except UnicodeDecodeError as error:
        raise PolicyError((f"{path.name}: not UTF-8 at byte {error.start}",)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path.name}:{mark.line + 1}:{mark.column + 1}" if mark else path.name
        raise PolicyError((f"{place}: not valid YAML: {error.problem or error.context}",)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PolicyError((f"{path.name}: not valid YAML: {str(error)[:200]}",)) from None
    documents: list[Document] = []
    problems: list[str] = []
    _refuse_anchors(text, path, problems)
    if problems:
        raise PolicyError(tuple(problems))
    for node in nodes:
        builder = _Builder(path, environ)
        value = builder.build(node, ())
        problems += builder.problems
        documents.append(Document(path, value, builder.marks))
    if problems:
        raise PolicyError(tuple(problems))
    return documents


def _refuse_anchors(text: bytes, path: Path, problems: list[str]) -> None:
    """Anchors and aliases hide what is meant, and can make a small file huge."""
    try:
        for token in yaml.scan(text.decode(), Loader=yaml.CSafeLoader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                kind = type(token).__name__.removesuffix("Token").lower()
                mark = token.start_mark
                problems.append(
                    f"{path.name}:{mark.line + 1}:{mark.column + 1}: YAML {kind}s are not accepted;"
                    " write the value out"
                )
    except yaml.YAMLError:  # compose has accepted it, so this cannot differ
        return


class _Builder:
    """Turns a node tree into plain values, noting positions and problems."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.marks: Marks = {}
        self.problems: list[str] = []
        self._path = path
        self._environ = environ

    def build(self, node: yaml.Node | None, where: Where) -> Any:
        if node is None:
            return None
        mark = node.start_mark
        self.marks[where] = (mark.line + 1, mark.column + 1)
        if len(where) > DEPTH_MAX:
            self._problem(node, f"nested deeper than {DEPTH_MAX} levels")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*where, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode), "YAML has three kinds of nodes"
        if node.style in ('"', "'", "|", ">"):  # quoted or block: a text
            return self._resolve(node, node.value)
        return self._plain(node)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be a plain word")
                continue
            key = key_node.value
            if key in found:
                self._problem(key_node, f"the key '{key}' is given twice")
            found[key] = self.build(value_node, (*where, key))
            self.marks[(*where, key)] = (
                key_node.start_mark.line + 1,
                key_node.start_mark.column + 1,
            )
        return found

    def _plain(self, node: yaml.ScalarNode) -> Any:
        """A scalar of YAML 1.2's core schema."""
        text = node.value
        if text.lower() in _WORDS and text in (text.lower(), text.capitalize(), text.upper()):
            return _WORDS[text.lower()]
        if _INTEGER.fullmatch(text) and len(text) < 20:
            return int(text)
        if _FLOAT.fullmatch(text) and len(text) < 40:
            return float(text)
        return self._resolve(node, text)

    def _resolve(self, node: yaml.Node, text: str) -> str:
        """Replace references. An unset variable or unreadable file is a problem, never empty."""
        if "${" not in text:
            return text

        def replace(match: re.Match[str]) -> str:
            kind, name = match.groups()
            if kind == "file":
                try:
                    return Path(name).read_text().strip()
                except (OSError, UnicodeDecodeError) as error:
                    self._problem(node, f"the file {name} cannot be read: {error}")
                    return ""
            name, has_default, default = name.partition(":-")
            value = self._environ.get(name)
            if value:
                return value
            if not has_default:
                self._problem(node, f"the environment variable {name} is not set")
            return default

        resolved, count = _REFERENCE.subn(replace, text)
        if "${" in resolved and not count:
            self._problem(
                node, "a reference reads ${env:NAME}, ${env:NAME:-default} or ${file:/path}"
            )
        return Referenced(resolved) if count else resolved

    def _problem(self, node: yaml.Node, message: str) -> None:
        mark = node.start_mark
        self.problems.append(f"{self._path.name}:{mark.line + 1}:{mark.column + 1}: {message}")


def validate(document: Document, model: type[M]) -> M:
    """The document as ``model``. Raises PolicyError with every problem, each at its place."""
    try:
        return model.model_validate(document.value)
    except ValidationError as error:
        problems = [_explain(document, model, dict(item)) for item in error.errors()]
        raise PolicyError(tuple(dict.fromkeys(problems))) from None


def dotted(where: Where) -> str:
    """``routes.0.target`` for messages."""
    return ".".join(str(part) for part in where)


def suggest(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """``; did you mean 'x'?`` or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _explain(document: Document, model: type[BaseModel], error: dict[str, Any]) -> str:
    where = _existing(document, error["loc"])
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        known = _keys_at(model, error["loc"][:-1])
        return document.problem((*where[:-1], key) if where else (key,),
                                f"unknown key{suggest(key, known)}")  # fmt: skip
    if kind == "missing":
        return document.problem(where, f"the key '{error['loc'][-1]}' is missing")
    message = str(error["msg"]).removeprefix("Value error, ")
    if isinstance(given, str | int | float | bool) and len(str(given)) < 60:
        shown = "***" if isinstance(given, Referenced) else repr(given)
        return document.problem(where, f"{message[:1].lower()}{message[1:]}, not {shown}")
    return document.problem(where, message[:1].lower() + message[1:])


def _existing(document: Document, loc: tuple[Any, ...]) -> Where:
    """The part of pydantic's location that is in the document: its union tags are not."""
    where: Where = ()
    for part in loc:
        if (*where, part) in document.marks:
            where = (*where, part)
    return where


def _keys_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that ``model`` knows at ``loc``, for suggestions."""
    for part in loc:
        model = _field_type(model, part)
    models = _models_in(model)
    return sorted({f.alias or n for m in models for n, f in m.model_fields.items()})


def _field_type(kind: Any, part: Any) -> Any:
    for model in _models_in(kind):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
    return kind  # an index, or a tag of a union


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for inner in getattr(kind, "__args__", ()) for model in _models_in(inner)]
