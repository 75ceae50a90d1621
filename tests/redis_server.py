"""A real redis-server of a test's own: a Unix socket and a free port, nothing kept on disk."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import hiredis
import pytest

_START_SECONDS = 10.0


class RedisServer:
    """Runs from ``__enter__`` to ``__exit__``. Skips the test where the program is missing."""

    def __init__(self, folder: Path, *options: str) -> None:
        """options: of the command line, such as ``--maxmemory 1mb``."""
        self.folder = folder
        self.socket = folder / "redis.sock"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Over the Unix socket."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """Over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def version(self) -> str:
        """Such as ``Redis 7.0.15``."""
        found: str = self.ask("INFO", "server").decode()
        return "Redis " + found.partition("redis_version:")[2].split()[0]

    def start(self) -> None:
        """Start, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (make system)")
        self._process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--dir", str(self.folder), "--unixsocket", str(self.socket),
             *self._options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if self.ask("PING") == b"PONG":
                    return
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it; nothing is kept."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        """It accepts connections (the kernel does) and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *args: str | bytes | int) -> Any:
        """Run one command on a connection of its own; the reply, errors as values."""
        command: Any = args
        reader = hiredis.Reader()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            connection.sendall(hiredis.pack_command(command))
            while (reply := reader.gets()) is False:
                reader.feed(connection.recv(65_536))
        return reply

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
