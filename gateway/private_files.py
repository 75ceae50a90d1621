"""Keep what the state folder holds from other users of the machine.

Knows file modes. Does not know what is in a file.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
UMASK = 0o077
_LEFTOVERS = ".new-*"  # what ``write_atomically`` and the policy history begin with
_FILES = ("ledger.*", "keys.sqlite*", "pepper", "switches.json", "gateway-id")
_FOLDERS = ("wal", "policies")


def private_file(path: Path) -> Path:
    """Make a file for its owner alone, empty where it does not exist. Raises OSError.

    SQLite gives the files beside a database the mode of the database.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & UMASK:
            os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)
    return path


def private_folder(path: Path) -> Path:
    """Make a folder for its owner alone, with its parents. Raises OSError where it cannot be made.

    A folder that belongs to somebody else stays as it is, and so does a shared one such as /tmp.
    """
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_mode & UMASK and not found.st_mode & stat.S_ISVTX:
        with contextlib.suppress(PermissionError):
            path.chmod(FOLDER_MODE)
    return path


def tidy_state(state_dir: Path) -> None:
    """Close a state folder to others, whoever made it, and remove half-written files.

    Only what is ours by its name is touched. The caller holds the folder's lock. Raises OSError.
    """
    private_folder(state_dir)
    for path in _ours(state_dir):
        if not path.is_symlink() and path.stat().st_mode & UMASK:
            with contextlib.suppress(PermissionError):
                path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
    for folder in (state_dir, state_dir / "policies"):
        for left in folder.glob(_LEFTOVERS):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _ours(state_dir: Path) -> Iterator[Path]:
    for pattern in _FILES:
        yield from state_dir.glob(pattern)
    for name in _FOLDERS:
        folder = state_dir / name
        if folder.is_dir():
            yield folder
            yield from folder.rglob("*")
