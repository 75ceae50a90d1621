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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.policy.load import SourceFile
from gateway.private_files import private_folder

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
    pinned_over: str | None = None  # digest of the files that the pin overrides


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

    def remember(
        self,
        version: str,
        files: Sequence[SourceFile],
        now_us: int,
        *,
        pinned_over: str | None = None,
    ) -> None:
        """Put a version on record as the one now in force. Raises OSError.

        ``pinned_over``: it is pinned over files with this digest; else nothing is pinned any more.
        """
        self._keep(version, files)
        history = self.history()
        entries = history.entries
        if not entries or entries[-1].version != version:
            names = tuple(str(file.path) for file in files)
            entries = (*entries, Entry(version, now_us, names))
        pinned = version if pinned_over is not None else None
        changed = History(entries[-VERSIONS_MAX:], pinned, pinned_over)
        if changed != history:
            write_atomically(self._index, msgspec.json.encode(changed))
        kept = {entry.version for entry in changed.entries}
        for entry in entries[:-VERSIONS_MAX]:
            if entry.version not in kept:
                shutil.rmtree(self._directory / entry.version, ignore_errors=True)

    def _keep(self, version: str, files: Sequence[SourceFile]) -> None:
        private_folder(self._directory)
        folder = self._directory / version
        if folder.is_dir():
            return
        staging = Path(tempfile.mkdtemp(dir=self._directory, prefix=".new-"))
        try:
            for number, file in enumerate(files):
                write_atomically(staging / f"{number:03}-{file.path.name}", file.content)
            staging.rename(folder)
        except OSError:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def files_of(self, version: str) -> tuple[SourceFile, ...]:
        """The source files of a version. Raises KeyError where it is not on record."""
        folder = self._directory / version
        if not (version.isascii() and version.isalnum()) or not folder.is_dir():
            raise KeyError(version)
        return tuple(
            SourceFile(Path(file.name[4:]), file.read_bytes()) for file in sorted(folder.iterdir())
        )

    @property
    def _index(self) -> Path:
        return self._directory / "history.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file: a reader sees the old or the new content, never a part. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
