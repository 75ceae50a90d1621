"""Backup and restore of a state folder: one archive that holds books, keys and policies.

The archive is a compressed tar file. Its first member, ``manifest.json``, names every other with
its size and SHA-256, so a damaged or foreign file is refused before anything is put in place.
Knows files and SQLite. Does not know what an event or a key means.
"""

import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from gateway import __version__
from gateway.errors import MeteringUnavailable
from gateway.ledger.books import hold_state
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import is_held
from gateway.private_files import UMASK, leave_scratch, make_scratch, private_folder

FORMAT = 1
_MANIFEST = "manifest.json"
_MANIFEST_BYTES_MAX = 16 << 20
_FILES_MAX = 100_000
_LOCK = "ledger.lock"
_STAGING = ".new-restore"  # a start removes what a killed restore leaves
_LEDGER, _KEYS = "ledger.sqlite", "keys.sqlite"
_DATABASES = (_LEDGER, _KEYS)
_SINGLE = ("pepper", "switches.json", "gateway-id")
_FOLDERS = ("policies", "wal")


class BackupError(Exception):
    """A backup or restore cannot be done; the message says why and what to do."""


class Member(msgspec.Struct, frozen=True):
    """One file of an archive."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds."""

    format: int
    tollhouse: str  # the release that made it
    made_us: int
    members: tuple[Member, ...]


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a state folder after it was verified."""

    made_us: int
    events: int
    keys: int
    policy_versions: int
    problems: tuple[str, ...]  # contradictions in the books; none is how it should be


def back_up(state_dir: Path, target: Path) -> Contents:
    """Write an archive of a state folder, also while a gateway runs on it, and verify it.

    The archive appears under its name only when it is whole. Raises BackupError or OSError.
    """
    if not (state_dir / _LEDGER).is_file():
        raise BackupError(f"{state_dir} holds no ledger: it is no state folder of Tollhouse.")
    if target.exists():
        raise BackupError(f"{target} exists already, and a backup is never overwritten.")
    with _scratch(target.absolute().parent) as folder:
        snapshot = folder / "snapshot"
        _snapshot(state_dir, snapshot)
        partial = folder / "archive"
        _write(snapshot, partial, time.time_ns() // 1000)
        shutil.rmtree(snapshot)
        check = folder / "check"
        check.mkdir()
        found = _verified(check, _extract(partial, check))
        os.replace(partial, target)
    return found


def restore(archive: Path, state_dir: Path) -> Contents:
    """Fill an empty or absent state folder from an archive, verified before it is put in place.

    Raises BackupError, also where a gateway runs on the folder, or OSError.
    """
    if is_held(state_dir / _LOCK):
        raise BackupError(f"A gateway runs on {state_dir}: stop it first.")
    if state_dir.exists() and any(path.name != _LOCK for path in state_dir.iterdir()):
        raise BackupError(
            f"{state_dir} is not empty, and a restore replaces nothing: move it away first."
        )
    if not archive.is_file():
        raise BackupError(f"There is no backup at {archive}.")
    try:
        lock = hold_state(state_dir)
    except MeteringUnavailable as error:
        raise BackupError(error.message) from None
    staging = state_dir / _STAGING
    try:
        private_folder(staging)
        found = _verified(staging, _extract(archive, staging))
        # The ledger last: without it the folder is not taken for a whole one.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == _LEDGER):
            os.replace(path, state_dir / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)
    return found


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder beside the archive, where there is room for it; closed to others."""
    before = os.umask(UMASK)
    folder, lock = make_scratch(".tollhouse-backup-", parent)
    try:
        yield folder
    finally:
        leave_scratch(folder, lock)
        os.umask(before)


def _snapshot(state_dir: Path, snapshot: Path) -> None:
    """Copy the state at one moment, as far as several files have one.

    The log's segments are opened before the ledger is copied and read after: what the copy of the
    ledger lacks is in them, and one that is deleted meanwhile can still be read.
    """
    snapshot.mkdir()
    (snapshot / "wal").mkdir()
    with ExitStack() as stack:
        segments: dict[str, IO[bytes]] = {}

        def open_segments() -> None:
            for path in (state_dir / "wal").glob("usage-*.wal"):
                if path.name not in segments:
                    segments[path.name] = stack.enter_context(path.open("rb"))

        open_segments()
        for name in _DATABASES:
            if (state_dir / name).exists():
                _copy_database(state_dir / name, snapshot / name)
        open_segments()
        for name, segment in segments.items():
            with (snapshot / "wal" / name).open("wb") as copy:
                shutil.copyfileobj(segment, copy)
    for name in _SINGLE:
        if (state_dir / name).exists():
            shutil.copyfile(state_dir / name, snapshot / name)
    if (state_dir / "policies").is_dir():
        shutil.copytree(
            state_dir / "policies", snapshot / "policies", ignore=shutil.ignore_patterns(".new-*")
        )


def _copy_database(source: Path, target: Path) -> None:
    """One consistent state of a database that others may be writing."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)
            # One file, and none beside it: the copy is complete without a log of its own.
            writing.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied: {error}.") from None


def _write(snapshot: Path, target: Path, made_us: int) -> None:
    paths = sorted(path for path in snapshot.rglob("*") if path.is_file())
    manifest = Manifest(
        format=FORMAT,
        tollhouse=__version__,
        made_us=made_us,
        members=tuple(
            Member(str(path.relative_to(snapshot)), path.stat().st_size, _digest(path))
            for path in paths
        ),
    )
    described = msgspec.json.encode(manifest)
    with target.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            head = tarfile.TarInfo(_MANIFEST)
            head.size, head.mode, head.mtime = len(described), 0o600, made_us // 1_000_000
            archive.addfile(head, io.BytesIO(described))
            for path in paths:
                archive.add(path, str(path.relative_to(snapshot)), recursive=False)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(archive: Path, folder: Path) -> Manifest:
    """Unpack an archive whose every file is as its manifest says. Raises BackupError."""
    try:
        with tarfile.open(archive, "r:gz") as packed:
            manifest = _read_manifest(packed)
            awaited = {member.name: member for member in manifest.members}
            for info in packed:
                if info.name == _MANIFEST:
                    continue
                member = awaited.pop(info.name, None)
                if member is None or not info.isreg() or not _belongs(info.name):
                    raise BackupError(f"{archive} holds {info.name!r}: no part of a backup.")
                _unpack(packed, info, member, folder / info.name)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BackupError(f"{archive} is no whole backup of Tollhouse: {error}.") from None
    except msgspec.MsgspecError as error:
        raise BackupError(f"{archive} is no backup of Tollhouse: {error}.") from None
    if awaited:
        raise BackupError(f"{archive} is not whole: it lacks {min(awaited)}.")
    if _LEDGER not in {member.name for member in manifest.members}:
        raise BackupError(f"{archive} holds no ledger.")
    return manifest


def _read_manifest(packed: tarfile.TarFile) -> Manifest:
    first = packed.next()
    if first is None or first.name != _MANIFEST or first.size > _MANIFEST_BYTES_MAX:
        raise ValueError("it does not begin with a manifest")
    file = packed.extractfile(first)
    manifest = msgspec.json.decode(file.read() if file is not None else b"", type=Manifest)
    if manifest.format != FORMAT:
        raise ValueError(f"release {manifest.tollhouse} made it in format {manifest.format}")
    if len(manifest.members) > _FILES_MAX:
        raise ValueError(f"it names more than {_FILES_MAX} files")
    return manifest


def _belongs(name: str) -> bool:
    """Whether a name is one of a state folder, and of nothing outside it."""
    first, *rest = name.split("/")
    if any(part in ("", ".", "..") for part in (first, *rest)):
        return False
    return first in _FOLDERS if rest else first in (*_DATABASES, *_SINGLE)


def _unpack(packed: tarfile.TarFile, info: tarfile.TarInfo, member: Member, target: Path) -> None:
    private_folder(target.parent)
    source = packed.extractfile(info)
    assert source is not None, "a regular file has content"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if info.size == member.size_bytes:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
    if info.size != member.size_bytes or _digest(target) != member.sha256:
        raise ValueError(f"{member.name} is damaged")


def _verified(folder: Path, manifest: Manifest) -> Contents:
    """Open what was unpacked and look into it. Raises BackupError where it cannot be used."""
    try:
        store = LedgerStore(folder / _LEDGER)
        try:
            problems = store.verify()
            with store.reader() as connection:
                (events,) = connection.execute("SELECT count(*) FROM usage_event").fetchone()
        finally:
            store.close()
        keys = 0
        if (folder / _KEYS).exists():
            with closing(sqlite3.connect(folder / _KEYS)) as connection:
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if state != "ok":
                    raise BackupError(f"The keys in the backup are damaged: {state}.")
                (keys,) = connection.execute("SELECT count(*) FROM access_key").fetchone()
    except (sqlite3.Error, ValueError) as error:
        raise BackupError(f"The backup cannot be used: {error}.") from None
    policies = folder / "policies"
    versions = sum(path.is_dir() for path in policies.iterdir()) if policies.is_dir() else 0
    return Contents(
        made_us=manifest.made_us,
        events=events,
        keys=keys,
        policy_versions=versions,
        problems=tuple(problems),
    )
