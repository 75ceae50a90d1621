"""``tollhouse simulate`` as a process: it says where it is, refuses a taken port, and ends."""

import signal
import socket
import subprocess
import sys

import httpx

from gateway.simulator import FAULTS

COMMAND = [sys.executable, "-m", "gateway", "simulate"]


def test_it_serves_until_sigterm_and_exits_cleanly() -> None:
    """The printed URL answers, marked as simulated, and a supervisor sees exit status 0."""
    with subprocess.Popen([*COMMAND, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            body = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}
            answer = httpx.post(f"{url}/chat/completions", json=body, trust_env=False)
            assert answer.json()["choices"][0]["message"]["content"].startswith("[simulated]")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_taken_port_is_one_clear_sentence_and_exit_status_1() -> None:
    """The message is compared to the letter: address and port, and no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, timeout=20
        )
    assert ended.returncode == 1
    assert ended.stderr == f"Cannot listen on 127.0.0.1:{port}: address already in use.\n"


def test_the_help_names_every_fault() -> None:
    """A fault that the help leaves out would never be rehearsed."""
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=20).stdout
    assert [name for name in FAULTS if f"  {name} " not in shown] == []
