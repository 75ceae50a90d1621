"""Keep what the state folder holds from other users of the machine.

Knows file modes. Does not know what is in a file.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o600, 0o700
UMASK = 0o077
_LEFTOVERS = ".new-*"  # what ``write_atomically`` and the policy history begin with
_FILES = ("ledger.*", "keys.sqlite*", "pepper", "switches.json", "gateway-id")
_LOCK = "lock"
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


def make_scratch(prefix: str, parent: Path | None = None) -> tuple[Path, int]:
    """Make a temporary folder, and remove those of the same prefix whose users are all gone.

    parent: where; None: where the system wants such folders. The second value is its lock, for
    ``leave_scratch``: a folder whose lock nobody holds is left from a killed process. Its name is
    short: the path of a socket has 107 bytes.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for abandoned in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if abandoned.stat().st_uid == os.geteuid():
                _remove_unused(abandoned)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    (folder / _LOCK).touch(FILE_MODE)
    return folder, use_scratch(folder)


def use_scratch(folder: Path) -> int:
    """Hold a temporary folder for as long as the returned lock is open. Raises OSError."""
    lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def leave_scratch(folder: Path, lock: int) -> None:
    """Give a temporary folder up; the last to do so removes it."""
    os.close(lock)
    with contextlib.suppress(OSError):
        _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or BlockingIOError: in use
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _ours(state_dir: Path) -> Iterator[Path]:
    for pattern in _FILES:
        yield from state_dir.glob(pattern)
    for name in _FOLDERS:
        folder = state_dir / name
        if folder.is_dir():
            yield folder
            yield from folder.rglob("*")
