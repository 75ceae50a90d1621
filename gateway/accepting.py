"""Accepting connections: as many at once as there are files for, and a word for one too many.

An event loop's own server accepts all that wait at once, and where files run out it resets the rest
and everything else fails with it: books, policy, providers. Knows no HTTP but that one refusal.
"""

import asyncio
import contextlib
import logging
import resource
import socket

from gateway.config import Limits
from gateway.errors import Overloaded
from gateway.server import Server, error_lines

_AT_ONCE = 64  # accepted in one turn of the event loop
_REFUSED_MAX = 16  # of those over the limit, given two seconds to read why
_PAUSE_SECONDS = 0.1  # where there are no files after all
_OWN_FILES = 96  # books, keys, log, Redis, model process, libraries
_CONNECTIONS_MIN = 8
_log = logging.getLogger("tollhouse")


def raise_file_limit() -> None:
    """Take as many files as the system lets us: a shell's 1,024 is a default and no decision."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the smaller limit is kept to instead
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fitted(limits: Limits, files: int) -> tuple[int, int]:
    """(public, admin) connections that so many files are enough for.

    Every client's may need one to a provider beside it; the admin port has its own, so that whoever
    fills the public one locks nobody out.
    """
    admin = min(limits.admin_connections_max, max(_CONNECTIONS_MIN, files // 8))
    spare = files - _OWN_FILES - admin - 2 * _REFUSED_MAX
    return min(limits.connections_max, max(_CONNECTIONS_MIN, spare // 2)), admin


def limits_of_ports(limits: Limits) -> tuple[Limits, Limits]:
    """The limits of the public and of the admin port, cut to the files that this process may open.

    Warns where that cuts the public one.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    public, admin = fitted(limits, files if files != resource.RLIM_INFINITY else 1 << 30)
    if public < limits.connections_max:
        _log.warning(
            "this process may open %d files, so it takes %d connections at once and not"
            " limits.connections_max (%d): raise the limit of open files (ulimit -n, LimitNOFILE)",
            files, public, limits.connections_max,
        )  # fmt: skip
    return tuple(  # type: ignore[return-value] # of two
        limits.model_copy(update={"connections_max": found}) for found in (public, admin)
    )


class Acceptor:
    """Takes the connections of one listening socket for one server."""

    def __init__(self, server: Server, fd: int) -> None:
        """fd: of a listening socket; it is ours from now on."""
        self._server = server
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._making: set[asyncio.Task[object]] = set()
        self._closed = False
        self._listen()

    def close(self) -> None:
        """Take no more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no file, or no memory: whoever waits goes on waiting
                _log.warning("cannot accept a connection: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_PAUSE_SECONDS, self._listen)
                return
            connection.setblocking(False)
            taken = len(self._server.connections) + len(self._making)
            if taken >= self._server.limits.connections_max + _REFUSED_MAX:
                _turn_away(connection, self._server)
                continue
            making: asyncio.Task[object] = self._loop.create_task(self._take(connection))
            self._making.add(making)
            making.add_done_callback(self._making.discard)

    async def _take(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._server, connection)
        except OSError:
            connection.close()  # it has left already


def _turn_away(connection: socket.socket, server: Server) -> None:
    """Say so and close at once: there is not even a file to wait in."""
    error = Overloaded("There are too many connections; try again.", retry_after_seconds=1.0)
    body = error.body()
    with contextlib.suppress(OSError):
        connection.send(
            b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (server.opening(error.status), error_lines(error), len(body), body)
        )
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65_536)  # unread, it would reset the connection
    connection.close()
