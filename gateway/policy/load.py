"""Files to one Policy: read, validate, compile, and run the policy's own tests.

Reports every problem of a step at once, each at its file:line:column. Nothing half-loaded ever
leaves this module. Knows files and the environment; no clock but what is passed in.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Limits
from gateway.errors import PolicyError
from gateway.policy.compile import Sources, compile_policy
from gateway.policy.evaluate import run_tests
from gateway.policy.schema import KINDS, ModelsDocument, RoutingDocument, TenantsDocument
from gateway.policy.snapshot import Policy
from gateway.yaml_documents import (
    Document,
    Problem,
    misplaced_references,
    parse_documents,
    read_bounded,
    refusal,
    shown_path,
    suggest,
    validate,
)

FILES_MAX = 200
FILE_BYTES_MAX: int = Limits().policy_file_bytes_max
# Who writes a policy must not be able to read what the gateway can: nothing shows these.
_REFERENCES = {
    "bearer": ("env", "file"), "key": ("env", "file"), "proxy": ("env", "file"),
    "client_cert": ("env", "file"), "client_key": ("env", "file"),
    "base_url": ("env",), "ca_file": ("env",),
}  # fmt: skip
_SUFFIXES = (".yaml", ".yml")
_looked_at = 0  # objects that were left when the collector last looked at all


class SourceFile(msgspec.Struct, frozen=True):
    """One file as it was read."""

    path: Path
    content: bytes


def load_policy(
    paths: Sequence[Path],
    *,
    environ: Mapping[str, str] = os.environ,
    now_us: int,
    file_bytes_max: int = FILE_BYTES_MAX,
) -> Policy:
    """The policy of these files and folders. Raises PolicyError with every problem found."""
    return compile_files(read_files(paths, file_bytes_max), environ=environ, now_us=now_us)


def read_files(
    paths: Sequence[Path], file_bytes_max: int = FILE_BYTES_MAX
) -> tuple[SourceFile, ...]:
    """The YAML files named, and those of the folders named, in order. Raises PolicyError."""
    found: list[SourceFile] = []
    problems: list[str] = []
    for path in paths:
        try:
            for file in policy_files(path):
                if len(found) == FILES_MAX:
                    raise PolicyError((Problem(f"more than {FILES_MAX} policy files"),))
                found.append(SourceFile(file, _read(file, file_bytes_max)))
        except PolicyError as error:
            problems += error.problems
        except OSError as error:
            message = f"cannot be read: {error.strerror or error}"
            problems.append(Problem(message, file=shown_path(path)))
    if not found and not problems:
        named = ", ".join(str(path) for path in paths) or "none are named in tollhouse.yaml"
        problems.append(Problem(f"no policy files: {named}"))
    if problems:
        raise refusal(problems)
    return tuple(found)


def _read(file: Path, bytes_max: int) -> bytes:
    """A policy file. Raises OSError, and PolicyError where it is too large."""
    size = file.stat().st_size
    if size > bytes_max:
        message = (
            f"has {size} bytes and a policy file may have {bytes_max}: split it, or raise"
            " limits.policy_file_bytes_max in tollhouse.yaml"
        )
        raise PolicyError((Problem(message, file=shown_path(file)),))
    return read_bounded(file, bytes_max)


def policy_files(path: Path) -> list[Path]:
    """``path`` itself, or the YAML files directly in it, sorted by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())


def compile_files(
    files: Sequence[SourceFile], *, environ: Mapping[str, str], now_us: int
) -> Policy:
    """The policy of these files' contents. Raises PolicyError."""
    with _uncollected():
        return _compile(files, environ, now_us)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away while a million objects are made that will stay.

    It would look at all of them, 0.1 s at a time, in which no other thread gets a turn.
    """
    if not gc.isenabled():
        yield
        return
    gc.collect(1)  # what is young and garbage would be frozen with the rest; a millisecond
    gc.disable()
    try:
        yield
        _freeze()  # what was refused is not kept, and needs no freezing
    finally:
        gc.enable()


def _freeze() -> None:
    """Let the collector never look at what there is now, until there is twice as much.

    What was alive at an earlier load, and is garbage since, would stay for ever. Now and then all
    is looked at, which holds other threads up: 0.1 s with 10,000 tenants.
    """
    global _looked_at
    gc.freeze()
    if gc.get_freeze_count() > 2 * _looked_at:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _looked_at = gc.get_freeze_count()


def _compile(files: Sequence[SourceFile], environ: Mapping[str, str], now_us: int) -> Policy:
    problems: list[str] = []
    sources = Sources()
    for file in files:
        try:
            documents = parse_documents(file.content, file.path, environ)
        except PolicyError as error:
            problems += error.problems
            continue
        if all(document.value is None for document in documents):
            sources.empty.append(shown_path(file.path))
        for document in documents:
            try:
                _sort_in(document, sources)
            except PolicyError as error:
                problems += error.problems
    if problems:
        raise refusal(problems)
    policy = compile_policy(sources, now_us=now_us)
    failed = [
        problem
        for document, routing in sources.routing
        for problem in run_tests(policy, document, routing)
    ]
    if failed:
        raise refusal(failed)
    _let_go(sources)
    return policy


def _let_go(sources: Sources) -> None:
    """Free what was read piece by piece: all at once, it would keep other threads for 0.1 s."""
    for document, parsed in (*sources.models, *sources.routing, *sources.tenants):
        for places in (document.marks, document.keys):
            while places:
                places.popitem()
        for holder in (document.value, vars(parsed)):
            for sections in holder.values():
                while isinstance(sections, list) and sections:
                    sections.pop()


def _sort_in(document: Document, sources: Sources) -> None:
    """Validate one document by its ``kind`` and put it with its like. Raises PolicyError."""
    value = document.value
    if value is None:
        return
    kind: Any = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        hint = suggest(kind, KINDS) if isinstance(kind, str) else ""
        message = f"a document has a kind: one of {', '.join(KINDS)}{hint}"
        raise PolicyError((document.problem(("kind",), message),))
    misplaced = misplaced_references(document, _REFERENCES)
    if misplaced:
        raise PolicyError(tuple(misplaced))
    parsed = validate(document, KINDS[kind])
    if isinstance(parsed, ModelsDocument):
        sources.models.append((document, parsed))
    elif isinstance(parsed, RoutingDocument):
        sources.routing.append((document, parsed))
    elif isinstance(parsed, TenantsDocument):
        sources.tenants.append((document, parsed))
