"""Owning a Unix socket's path: one server per path, and no leftovers that need a hand.

Knows the file system. Does not know what is said over the socket.
"""

import ctypes
import fcntl
import os
import signal
import socket
import stat
from pathlib import Path
from typing import IO

from local_models.messages import LocalModelError

MAX_PATH_BYTES = 107
"""What ``sockaddr_un`` holds on Linux."""

BACKLOG = 16

_PR_SET_PDEATHSIG = 1


class SocketInUse(LocalModelError):
    """Another process serves this path, or the path cannot be a socket."""


class OwnedSocket:
    """A listening socket with mode 0600 at ``path``, and the lock that makes it ours.

    The lock file beside it, not the socket's existence, says whether a server lives: the kernel
    drops the lock even after kill -9, so a socket file without a lock is stale and is replaced.
    Raises SocketInUse.
    """

    def __init__(self, path: Path) -> None:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise SocketInUse(f"{path} is longer than a socket's path may be ({MAX_PATH_BYTES}).")
        self.path = path
        self._lock = _lock(path)
        try:
            self.listener = _listen(path)
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Remove the socket file, then give up the lock."""
        self.listener.close()
        self.path.unlink(missing_ok=True)
        self._lock.close()


def _lock(path: Path) -> IO[str]:
    try:
        lock = Path(f"{path}.lock").open("w")  # noqa: SIM115 - held until the socket is closed
    except OSError as error:
        raise SocketInUse(f"{path}.lock cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SocketInUse(f"another model process already serves {path}.") from None
    return lock


def _listen(path: Path) -> socket.socket:
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise SocketInUse(f"{path} exists and is no socket; remove it or choose another path.")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A mask, not a chmod afterwards: there is no moment in which others may connect.
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketInUse(f"{path} cannot be bound: {error.strerror}.") from error
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started us dies. Only on Linux.

    Raises ProcessLookupError where the parent died before the kernel knew.
    """
    parent = os.getppid()
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise ProcessLookupError("the process that started this one is gone.")
