"""The parent process, with real children: what it starts, restarts, passes on and ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.supervisor import Child, StartError, bind, bind_shared, warn_exposed
from tests.gateway.running import RunningGateway, wait_for

SOON_SECONDS = 10.0


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def child(script: str) -> Child:
    return Child("child", lambda: python(script), ())


def reaped(running: Child) -> int:
    """Its exit status, once it has ended by itself."""
    found: list[int] = []

    def ended() -> bool:
        status = running.reap()
        if status is not None:
            found.append(status)
        return bool(found)

    wait_for(ended, SOON_SECONDS)
    return found[0]


def test_an_occupied_port_is_told_in_one_sentence_with_the_way_out() -> None:
    """The operator reads which port it is and where to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        with pytest.raises(StartError) as refused:
            bind("127.0.0.1", port)
    message = str(refused.value)
    assert f"Port {port} on 127.0.0.1 is in use" in message
    assert "choose another port in tollhouse.yaml" in message
    assert "\n" not in message


def test_an_address_that_is_not_ours_is_told_in_one_sentence() -> None:
    """A typing error in the address is named with its port, before any worker starts."""
    with pytest.raises(StartError, match=r"^Cannot listen on 192\.0\.2\.1:1"):
        bind("192.0.2.1", 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_bound_socket_takes_connections_before_anybody_serves_it(host: str) -> None:
    """Clients wait for a worker that is being restarted instead of being refused."""
    try:
        listener = bind(host, 0)
    except StartError:
        pytest.skip(f"this machine has no {host}")
    with listener, socket.create_connection(listener.getsockname()[:2], 5):
        pass


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", 0), ("127.0.0.2", 0), ("localhost", 0), ("0.0.0.0", 1)]
)
def test_an_admin_port_beyond_loopback_is_warned_of(
    host: str, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Admin keys would cross the network in clear text, so the log says it in capitals."""
    with bind(host, 0) as listener:
        warn_exposed(listener)
    assert sum("WITHOUT TLS" in message for message in caplog.messages) == warned


def test_connections_are_spread_over_the_sockets_of_one_port() -> None:
    """Of 64 each of four gets some: that one gets none happens once in 25 million times."""
    listeners = bind_shared("127.0.0.1", 0, 4)
    address = listeners[0].getsockname()
    assert {listener.getsockname() for listener in listeners} == {address}
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
            listener.setblocking(False)
        for _ in range(64):
            stack.enter_context(socket.create_connection(address, 5))
        accepted = []
        for listener in listeners:
            accepted.append(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(listener.accept()[0])
                    accepted[-1] += 1
    assert sum(accepted) == 64
    assert min(accepted) > 0


def test_a_port_of_another_gateway_is_not_shared_with_it() -> None:
    """Though the kernel would let two that may share."""
    first = bind_shared("127.0.0.1", 0, 2)
    try:
        with pytest.raises(StartError, match="is in use"):
            bind_shared("127.0.0.1", first[0].getsockname()[1], 2)
    finally:
        for listener in first:
            listener.close()


def test_a_child_that_dies_is_started_again_ever_more_slowly_up_to_a_limit() -> None:
    """Waits double from 0.2 to 5 seconds, so a crash at start burns no CPU."""
    dying = child("raise SystemExit(3)")
    delays = []
    for _ in range(8):
        dying.start()
        assert reaped(dying) == 3
        assert dying.start_at is not None
        delays.append(dying.start_at - time.monotonic())
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0], abs=0.05)


def test_a_child_that_ran_steadily_is_started_again_at_once() -> None:
    """After 11 good seconds earlier crashes are forgotten, and the wait is 0.1 seconds."""
    dying = child("raise SystemExit(0)")
    for _ in range(3):
        dying.start()
        reaped(dying)
    dying.start()
    dying.started -= 11.0  # as if it had begun so many seconds ago
    reaped(dying)
    assert dying.start_at is not None
    assert dying.start_at - time.monotonic() == pytest.approx(0.1, abs=0.05)


def test_a_child_that_cannot_be_started_is_tried_again_ever_more_slowly(tmp_path: Path) -> None:
    """The supervisor survives that, as do the children that run."""
    program = tmp_path / "python"
    absent = Child("child", lambda: [str(program), "-c", "raise SystemExit(4)"], ())
    delays = []
    for _ in range(3):
        absent.start()
        assert absent.reap() is None
        assert absent.start_at is not None
        delays.append(absent.start_at - time.monotonic())
    assert delays == pytest.approx([0.2, 0.4, 0.8], abs=0.05)
    program.symlink_to(sys.executable)
    absent.start()
    assert reaped(absent) == 4


def test_a_child_told_to_reload_before_it_listens_goes_on() -> None:
    """A hangup that early would kill a process without a handler, and lose a worker."""
    starting = child("import time; time.sleep(0.3); raise SystemExit(5)")
    starting.start()
    starting.signal(signal.SIGHUP)
    assert reaped(starting) == 5


def test_a_child_gets_its_sockets_and_no_others() -> None:
    """A port that a child holds by accident would stay open after its owner has gone."""
    with bind("127.0.0.1", 0) as given, bind("127.0.0.1", 0) as other:
        script = (
            f"import os, socket\nsocket.socket(fileno={given.fileno()}).getsockname()\n"
            f"try: os.fstat({other.fileno()})\nexcept OSError: raise SystemExit(7)"
        )
        running = Child("child", lambda: python(script), (given.fileno(),))
        running.start()
        assert reaped(running) == 7


def test_a_child_that_will_not_end_is_killed_and_not_started_again(tmp_path: Path) -> None:
    """A process that ignores SIGTERM cannot hold up a stop for ever."""
    deaf = tmp_path / "deaf"
    stubborn = child(
        "import pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(deaf)!r}).touch()\ntime.sleep(60)"
    )
    stubborn.start()
    wait_for(deaf.exists, SOON_SECONDS)
    stubborn.signal(signal.SIGTERM)
    assert stubborn.running()
    assert stubborn.end() == -signal.SIGKILL
    assert not stubborn.running()
    assert stubborn.start_at is None


def test_signals_to_a_child_that_is_not_running_go_nowhere() -> None:
    """No signal may reach a stranger whose process id was used before."""
    never = child("pass")
    never.signal(signal.SIGTERM)
    assert never.reap() is None
    assert never.end() is None


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    """A gateway without local models whose provider nobody asks."""
    made = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def answers(gateway: RunningGateway) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(gateway.admin_url + "/readyz", timeout=5, trust_env=False).is_success
    return False


def policy_version(gateway: RunningGateway) -> str:
    metrics = httpx.get(gateway.admin_url + "/metrics", timeout=5, trust_env=False).text
    found = re.search(r'policy_info\{version="(\w+)"\}', metrics)
    assert found is not None, metrics[:2000]
    return found[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_has_a_successor_on_the_same_sockets(
    gateway: RunningGateway,
) -> None:
    """A request sent meanwhile waits a moment and is answered."""
    gateway.start()
    first = gateway.child("worker")
    os.kill(first, signal.SIGKILL)
    assert answers(gateway), "the socket stayed open, so this request waited"
    assert gateway.child("worker") != first
    assert gateway.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop_ends_all_children_and_exits_0(
    gateway: RunningGateway, number: signal.Signals
) -> None:
    """Both ports are free again, so that the next start finds them."""
    gateway.start()
    worker = gateway.child("worker")
    assert gateway.process is not None
    gateway.process.send_signal(number)
    assert gateway.process.wait(SOON_SECONDS) == 0
    assert not alive(worker)
    for port in (gateway.port, gateway.admin_port):
        bind("127.0.0.1", port).close()


@pytest.mark.slow
def test_being_told_to_stop_while_a_worker_starts_is_no_failure(gateway: RunningGateway) -> None:
    """The successor of a killed worker had not begun to serve: nothing is lost with it."""
    gateway.start()
    first = gateway.child("worker")
    os.kill(first, signal.SIGKILL)

    def succeeded() -> bool:
        with contextlib.suppress(LookupError):
            return gateway.child("worker") != first
        return False

    wait_for(succeeded, SOON_SECONDS, gateway.describe)
    assert gateway.stop() == 0, gateway.describe()


@pytest.mark.slow
def test_hangup_reaches_the_worker_which_reads_its_policy_again(gateway: RunningGateway) -> None:
    """An operator can bring in a policy at once, without a restart."""
    with gateway.config.open("a") as config:
        config.write("limits: {reload_settle_seconds: 3600.0}\n")  # so nothing else reloads it
    gateway.start()
    before, worker = policy_version(gateway), gateway.child("worker")
    text = gateway.policy_file.read_text().replace("{id: globex}", "{id: globex, name: Globex}")
    gateway.policy_file.write_text(text)
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    wait_for(lambda: policy_version(gateway) != before, SOON_SECONDS, gateway.describe)
    assert gateway.child("worker") == worker, "it was told, not restarted"
    assert gateway.stop() == 0


@pytest.mark.slow
def test_no_child_outlives_a_supervisor_that_is_killed(gateway: RunningGateway) -> None:
    """An orphan would hold ports and state folder against the next start."""
    gateway.start()
    worker = gateway.child("worker")
    assert gateway.process is not None
    gateway.process.kill()
    gateway.process.wait()
    wait_for(lambda: not alive(worker), SOON_SECONDS, gateway.describe)


def refused(gateway: RunningGateway) -> tuple[int, str]:
    """(exit status, what it said) of a gateway that cannot start."""
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.config)],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.slow
def test_serve_on_an_occupied_port_ends_with_one_sentence(gateway: RunningGateway) -> None:
    """The command exits with 1 and one line, no stack trace."""
    with socket.create_server(("127.0.0.1", gateway.port)):
        status, said = refused(gateway)
    assert status == 1
    assert len(said.splitlines()) == 1
    assert f"Port {gateway.port} on 127.0.0.1 is in use" in said


@pytest.mark.slow
def test_serve_without_an_acceptable_policy_says_where_and_ends(gateway: RunningGateway) -> None:
    """A restart would find the same policy, so there is none."""
    gateway.policy_file.write_text("apiVersion: tollhouse/v1\nkind: Model\n")
    status, said = refused(gateway)
    assert status == 1
    assert "policy.yaml:2:" in said
    assert "Traceback" not in said
    assert said.count("policy.yaml:2:") == 1


@pytest.mark.slow
def test_a_second_gateway_on_the_folder_ends_with_one_sentence_and_leaves_it_alone(
    gateway: RunningGateway,
) -> None:
    """Its policy must not become the one that the first goes back to, nor may it wait to take over
    while the first one's worker is being started again.
    """
    gateway.start()
    history = gateway.state_dir / "policies" / "history.json"
    before = history.read_bytes()
    folder = gateway.folder / "other"
    folder.mkdir()
    text = gateway.policy_file.read_text().replace("{id: globex}", "{id: globex, name: Other}")
    (folder / "policy.yaml").write_text(text)
    settings = gateway.config.read_text()
    for port in (gateway.port, gateway.admin_port):
        settings = settings.replace(str(port), "0")
    (folder / "tollhouse.yaml").write_text(settings)
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "tollhouse.yaml")],
        env=gateway.environment, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "another Tollhouse process has the ledger" in ended.stderr
    assert history.read_bytes() == before
    assert gateway.stop() == 0
