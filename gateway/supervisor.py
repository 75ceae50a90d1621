"""The parent process: binds the sockets, starts gateway workers, admin process and model processes,
and starts again what dies.

It holds no state and serves nothing, so that there is little in it that could fail. A worker that
dies finds its sockets still open: clients wait for its successor instead of being refused.

To read the settings takes many libraries, to watch children for months takes none. So the process
that has read them goes on, under its own id, as a bare interpreter that runs this very file: 16 MB
instead of 39. That is why nothing outside the standard library is imported at the top of it.
"""

import contextlib
import ctypes
import errno
import json
import logging
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from gateway.config import Settings

_LOG_LINES = Path(__file__).parents[1] / "local_models" / "log_lines.py"
_RESTART_SECONDS_MIN = 0.1
_RESTART_SECONDS_MAX = 5.0
_STEADY_SECONDS = 2.0  # one that ran this long is restarted without delay
_KILL_AFTER_SECONDS = 5.0
_ORPHANS_MARGIN_SECONDS = 15.0  # after their drain, to close their books
_BACKLOG = 2048
_UNSENT_BYTES_MAX = 16 * 1024
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1)
_MODEL_PROCESS = "model process"  # how the names of these begin
_WANTED_BYTES_MAX = 1 << 20
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)
_log = logging.getLogger("tollhouse.supervisor")

Arrived = Callable[[float], list[int]]  # waits so many seconds at most; the signals that came


class StartError(Exception):
    """The gateway cannot start; the message says what to do."""


class Child:
    """One child process that is to be running."""

    def __init__(self, name: str, command: Callable[[], list[str]], fds: tuple[int, ...]) -> None:
        self.name = name
        self.command = command
        self.fds = fds
        self._delay_seconds = _RESTART_SECONDS_MIN
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.starts = 0
        self.start_at: float | None = 0.0  # monotonic; None: not to be started again
        self.wanted = True

    @property
    def serves_a_model(self) -> bool:
        """Whether it is a model process, which gateway processes may want or not."""
        return self.name.startswith(_MODEL_PROCESS)

    def start(self) -> None:
        """Start it now, or later where that cannot be done."""
        self.started = time.monotonic()
        self.starts += 1
        self.start_at = None
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own modules, no text from outside
                self.command(),
                pass_fds=self.fds,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for us, who know in which order to end
                preexec_fn=partial(_in_child, os.getpid()),
            )
        except OSError as error:  # no process or memory to be had: the others must go on
            _log.error("%s cannot be started: %s", self.name, error.strerror)
            self._start_later()
            return
        _log.info("%s runs as process %d", self.name, self.process.pid)

    def reap(self) -> int | None:
        """The exit status if it has ended, and plan its restart; else None."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is None:
            return None
        self.process = None
        if self.wanted:
            self._start_later()
        return status

    def want(self, wanted: bool) -> None:
        """Let it end, or have it again: at once, or when it has ended."""
        if self.wanted and not wanted:
            self.start_at = None
            self.signal(signal.SIGTERM)
        elif wanted and not self.wanted and self.process is None:
            self.start_at = 0.0
        self.wanted = wanted

    def signal(self, number: int) -> None:
        """Send a signal if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def end(self) -> int | None:
        """Kill it if it still runs, and never start it again. Returns its exit status."""
        self.start_at = None
        if self.process is None:
            return None
        if self.running():
            _log.warning("%s has not ended in time and is killed", self.name)
            self.process.kill()
        return self.process.wait()

    def _start_later(self) -> None:
        steady = time.monotonic() - self.started >= _STEADY_SECONDS
        self._delay_seconds = (
            _RESTART_SECONDS_MIN
            if steady
            else min(_RESTART_SECONDS_MAX, max(_RESTART_SECONDS_MIN, self._delay_seconds * 2))
        )
        self.start_at = time.monotonic() + self._delay_seconds


def _in_child(supervisor: int) -> None:
    """Get SIGTERM when the supervisor dies, so that no orphan holds its sockets. Told to reload
    before it listens for that, a child need not: it is about to read everything.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it died before we had asked
        os._exit(1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def supervise(settings: "Settings", config_path: Path | None) -> NoReturn:
    """Become the process that runs the gateway until SIGTERM or SIGINT. Raises StartError."""
    from gateway.accepting import raise_file_limit
    from gateway.interpreter import COSTS_MORE, is_profile_guided
    from gateway.model_processes import embedder
    from gateway.private_files import make_scratch

    raise_file_limit()
    _await_orphans(settings)
    public = bind_shared(settings.listen.host, settings.listen.port, settings.workers)
    admin = bind(settings.admin.host, settings.admin.port)
    warn_exposed(admin)
    lock = _hold_state(settings.state_dir)  # before anybody reads or writes there
    try:
        run_dir, run_lock = make_scratch("tollhouse-")
    except OSError as error:
        where = tempfile.gettempdir()
        raise StartError(f"Cannot make a folder in {where}: {error.strerror}.") from None
    if settings.workers == 1:
        children = [_worker(public[0], admin, run_dir, lock, config_path)]
    else:
        node_socket = run_dir / "node.sock"
        children = [_admin_process(admin, node_socket, lock, config_path)]
        children += [
            _shared_worker(number, listener, node_socket, lock, config_path)
            for number, listener in enumerate(public)
        ]
    if settings.local.enabled != "off":
        # By the environment, because a mirror's address may have a password and everybody on the
        # machine sees command lines.
        os.environ["TOLLHOUSE_MODELS_MIRROR"] = settings.models.mirror
        os.environ["TOLLHOUSE_MODELS_SOURCES"] = ",".join(settings.models.sources) or "none"
        if settings.local.embedding:
            # Wanted in any case, so it need not wait until a worker has read the policy.
            name, arguments = embedder(settings).child(settings, run_dir)
            children.insert(0, _planned(name, arguments, []))
    if not is_profile_guided():
        _log.info(COSTS_MORE)
    grace_seconds = settings.unready_seconds + settings.drain_seconds
    os.set_inheritable(run_lock, True)  # the watcher's, as long as it lives
    _become_watcher(children, grace_seconds, (*public, admin), run_dir, settings)


def _await_orphans(settings: "Settings") -> None:
    """Wait until the children of a supervisor that was killed have given up ports and folder."""
    from gateway.ledger.books import is_abandoned

    deadline = time.monotonic() + settings.orphan_drain_seconds + _ORPHANS_MARGIN_SECONDS
    if is_abandoned(settings.state_dir):
        _log.warning("waiting for the children of a gateway that was killed to end")
    while is_abandoned(settings.state_dir) and time.monotonic() < deadline:
        time.sleep(0.05)


def bind_shared(host: str, port: int, processes: int) -> list[socket.socket]:
    """A listening socket per process, all on one port. Raises StartError as ``bind`` does.

    The kernel spreads connections over them by their addresses. Of 64 connections to four processes
    one got 25 at most and 7 at least; of one socket that all accept from, 64 and 0.
    """
    first = bind(host, port)  # alone first: sockets that may share would share with a stranger
    if processes == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()
    return [bind(host, port, shared=True) for _ in range(processes)]


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket. Raises StartError naming the address and the way out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Accepted sockets inherit it. Otherwise the kernel takes some 3 MB for a client that does not
    # read; what is on its way to one that reads is not limited by this.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"Port {port} on {host} is in use: stop what listens there (ss -ltnp 'sport = "
                f":{port}' shows it) or choose another port in tollhouse.yaml."
            ) from None
        raise StartError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return listener


def warn_exposed(admin: socket.socket) -> None:
    """Warn where the admin port can be reached from elsewhere: it speaks no TLS."""
    address, port = admin.getsockname()[:2]
    if not ip_address(address).is_loopback:
        _log.warning(
            "THE ADMIN PORT LISTENS ON %s:%d WITHOUT TLS: keys and sessions can be read on the way."
            " Put a proxy with TLS in front, or set admin.host to 127.0.0.1.", address, port,
        )  # fmt: skip


def _worker(
    public: socket.socket,
    admin: socket.socket,
    run_dir: Path,
    lock: int,
    config_path: Path | None,
) -> Child:
    def command() -> list[str]:
        arguments = [sys.executable, "-m", "gateway", "worker", "--lock-fd", str(lock)]
        arguments += ["--public-fd", str(public.fileno()), "--admin-fd", str(admin.fileno())]
        arguments += ["--run-dir", str(run_dir)]
        if config_path is not None:
            arguments += ["--config", str(config_path)]
        return arguments

    return Child("worker", command, (public.fileno(), admin.fileno(), lock))


def _shared_worker(
    number: int,
    public: socket.socket,
    node_socket: Path,
    lock: int,
    config_path: Path | None,
) -> Child:
    def command() -> list[str]:
        arguments = [sys.executable, "-m", "gateway", "worker", "--number", str(number)]
        arguments += ["--public-fd", str(public.fileno()), "--node-socket", str(node_socket)]
        arguments += ["--run-dir", str(node_socket.parent)]
        if config_path is not None:
            arguments += ["--config", str(config_path)]
        return arguments

    return Child("worker", command, (public.fileno(), lock))


def _admin_process(
    admin: socket.socket, node_socket: Path, lock: int, config_path: Path | None
) -> Child:
    def command() -> list[str]:
        arguments = [sys.executable, "-m", "gateway", "admin-process", "--lock-fd", str(lock)]
        arguments += ["--admin-fd", str(admin.fileno()), "--node-socket", str(node_socket)]
        if config_path is not None:
            arguments += ["--config", str(config_path)]
        return arguments

    return Child("admin process", command, (admin.fileno(), lock))


def _hold_state(state_dir: Path) -> int:
    """The state folder's lock, for us and every child: held until the last of us is gone."""
    from gateway.errors import MeteringUnavailable
    from gateway.ledger.books import hold_state

    try:
        return hold_state(state_dir)
    except MeteringUnavailable as error:
        raise StartError(error.message) from None
    except OSError as error:
        raise StartError(f"Cannot use the state folder {state_dir}: {error.strerror}.") from None


def _become_watcher(
    children: list[Child],
    grace_seconds: float,
    listeners: tuple[socket.socket, ...],
    run_dir: Path,
    settings: "Settings",
) -> NoReturn:
    """Go on in a bare interpreter: isolated, without site-packages, so with no way to import ours.

    The children get the environment as it is and import what they like.
    """
    from gateway.model_processes import WANTED_FILE

    plan = {
        "children": [(child.name, child.command(), child.fds) for child in children],
        "grace_seconds": grace_seconds,
        "listeners": [listener.fileno() for listener in listeners],
        "run_dir": str(run_dir),
        "wanted_file": str(run_dir / WANTED_FILE),
        "log": [settings.log.format, settings.log.level],
    }
    for fd in {listener.fileno() for listener in listeners}.union(*(c.fds for c in children)):
        os.set_inheritable(fd, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # what comes meanwhile waits for us
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, json.dumps(plan)])  # noqa: S606


def _main(plan_json: str) -> int:
    """What ``_become_watcher`` has planned; the exit status."""
    plan = json.loads(plan_json)
    runpy.run_path(str(_LOG_LINES))["configure"]("supervisor", *plan["log"])
    children = [_planned(*child) for child in plan["children"]]
    listeners = tuple(socket.socket(fileno=fd) for fd in plan["listeners"])
    try:
        return _watch(children, plan["grace_seconds"], listeners, Path(plan["wanted_file"]))
    finally:
        for listener in listeners:
            listener.close()
        shutil.rmtree(plan["run_dir"], ignore_errors=True)


def _planned(name: str, command: list[str], fds: list[int]) -> Child:
    return Child(name, lambda: command, tuple(fds))


def _watch(
    children: list[Child],
    grace_seconds: float,
    listeners: tuple[socket.socket, ...],
    wanted_file: Path,
) -> int:
    """Start the children, restart the dead, end all on SIGTERM or SIGINT."""
    with _signals() as arrived:
        while True:
            for number in arrived(_next_wait(children)):
                if number in (signal.SIGTERM, signal.SIGINT):
                    # Ours too, or the kernel would go on queueing connections nobody accepts.
                    for listener in listeners:
                        listener.close()
                    return _end(children, grace_seconds, arrived, number)
                if number == signal.SIGHUP:
                    for child in children:
                        if not child.serves_a_model:
                            child.signal(signal.SIGHUP)
                if number == signal.SIGUSR1:
                    _follow(children, wanted_file)
            for child in children:
                status = child.reap()
                # It said why, and a restart changes nothing. Later on a full disk may be over soon,
                # so then it is tried again.
                if status == os.EX_CONFIG or (status == os.EX_IOERR and child.starts == 1):
                    _end(children, grace_seconds, arrived)
                    return 1
                if status is not None and child.wanted:
                    _log.warning("%s ended with status %d; starting it again", child.name, status)
                if child.start_at is not None and time.monotonic() >= child.start_at:
                    child.start()


def _follow(children: list[Child], wanted_file: Path) -> None:
    """Have the model processes that the gateway's processes want now, and no others."""
    try:
        with wanted_file.open("rb") as file:
            wanted = dict(json.loads(file.read(_WANTED_BYTES_MAX)))
    except (OSError, ValueError) as error:
        _log.error("which model processes are wanted cannot be read: %s", error)
        return
    children[:] = [child for child in children if child.wanted or child.running()]
    for child in children:
        if child.serves_a_model:
            if child.wanted and child.name not in wanted:
                _log.info("%s is not wanted any more", child.name)
            child.want(wanted.pop(child.name, None) is not None)
    children[:0] = [_planned(name, command, []) for name, command in wanted.items()]


def _next_wait(children: list[Child]) -> float:
    waits = [child.start_at - time.monotonic() for child in children if child.start_at is not None]
    return max(0.0, min(waits, default=60.0))


def _end(
    children: list[Child], grace_seconds: float, arrived: Arrived, number: int = signal.SIGTERM
) -> int:
    """The model processes last: the others may still be answering from it.

    They get the signal that came, because after Ctrl-C nobody need notice that they are not ready.
    The admin process is told with its workers, and ends after them.
    """
    status = 0
    others = [child for child in children if not child.serves_a_model]
    for child in others:
        child.signal(number)
    deadline = time.monotonic() + grace_seconds + _KILL_AFTER_SECONDS
    for child in reversed(children):
        if child not in others:
            child.signal(signal.SIGTERM)
            deadline = time.monotonic() + _KILL_AFTER_SECONDS
        elif child.name == "admin process":
            deadline += _KILL_AFTER_SECONDS  # to book what the workers have left
        while child.running() and (left := deadline - time.monotonic()) > 0:
            again = arrived(left)
            if signal.SIGINT in again:
                break  # a second Ctrl-C: whoever sits there does not want to wait
            if signal.SIGTERM in again:
                for other in others:
                    other.signal(signal.SIGTERM)  # they need not wait to be noticed
        ended = child.end()
        if ended in (-signal.SIGTERM, -signal.SIGINT):
            continue  # told before it listened for that: it had not begun to serve
        if ended:
            _log.warning("%s ended with status %d", child.name, ended)
            status = 1
    return status


@contextlib.contextmanager
def _signals() -> Iterator[Arrived]:
    """Catch the signals that concern us, and tell them one by one."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    previous = {number: signal.signal(number, lambda *_: None) for number in _HANDLED}
    previous_fd = signal.set_wakeup_fd(write_fd)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    selector = selectors.DefaultSelector()
    selector.register(read_fd, selectors.EVENT_READ)

    def arrived(seconds: float) -> list[int]:
        if selector.select(seconds):
            with contextlib.suppress(BlockingIOError):
                return list(os.read(read_fd, 64))
        return []

    try:
        yield arrived
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        selector.close()
        os.close(read_fd)
        os.close(write_fd)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
