"""The history of policies on disk: every version that was ever in force, by its digest.

    state_dir/policies/
      history.json   versions and when they came into force, oldest first; what is pinned
      <version>/     the source files of that version as they were read: references, no secrets

A rollback pins an old version: it stays in force until the files change again, or it is cleared.
Knows files. Does not know what is in them.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from gateway.policy.load import SourceFile

VERSIONS_MAX = 200


class Entry(msgspec.Struct, frozen=True):
    """One version's coming into force."""

    version: str
    since_us: int
    files: tuple[str, ...]  # original paths, in order


class History(msgspec.Struct, frozen=True):
    """history.json."""

    entries: tuple[Entry, ...] = ()
    pinned: str | None = None
    pinned_over: str | None = None  # fingerprint of the files that the pin overrides


class Versions:
    """The history folder. One owner: the serving process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def history(self) -> History:
        """What is on record; empty where nothing is, or where the record is damaged."""
        try:
            return msgspec.json.decode(self._index.read_bytes(), type=History)
        except (OSError, msgspec.DecodeError):
            return History()

    def remember(self, version: str, files: Sequence[SourceFile], now_us: int) -> None:
        """Put a version on record as the one now in force."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._directory / version
        if not folder.is_dir():
            staging = Path(tempfile.mkdtemp(dir=self._directory, prefix=".new-"))
            for number, file in enumerate(files):
                write_atomically(staging / f"{number:03}-{file.path.name}", file.content)
            staging.rename(folder)
        history = self.history()
        if history.entries and history.entries[-1].version == version:
            return
        entry = Entry(version, now_us, tuple(str(file.path) for file in files))
        entries = (*history.entries, entry)[-VERSIONS_MAX:]
        self._write(msgspec.structs.replace(history, entries=entries))
        self._forget(entry.version for entry in history.entries[: -VERSIONS_MAX + 1])

    def files_of(self, version: str) -> tuple[SourceFile, ...]:
        """The source files of a version. Raises KeyError where it is not on record."""
        folder = self._directory / version
        if not (version.isascii() and version.isalnum()) or not folder.is_dir():
            raise KeyError(version)
        return tuple(
            SourceFile(Path(file.name[4:]), file.read_bytes()) for file in sorted(folder.iterdir())
        )

    def pin(self, version: str | None, over: str | None) -> None:
        """Keep ``version`` in force over files with this fingerprint; None: no more."""
        self._write(msgspec.structs.replace(self.history(), pinned=version, pinned_over=over))

    def _forget(self, versions: Iterable[str]) -> None:
        """Remove the sources of versions that nothing refers to any more."""
        history = self.history()
        kept = {entry.version for entry in history.entries} | {history.pinned}
        for version in set(versions) - kept:
            shutil.rmtree(self._directory / version, ignore_errors=True)

    @property
    def _index(self) -> Path:
        return self._directory / "history.json"

    def _write(self, history: History) -> None:
        write_atomically(self._index, msgspec.json.encode(history))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader sees the old or the new content, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)
