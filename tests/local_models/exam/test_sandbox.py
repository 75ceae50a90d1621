"""Foreign code computes, or fails; it reaches nothing else."""

import pytest

from local_models.exam import sandbox

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="no seccomp on this machine")


def test_a_function_is_run_on_each_case() -> None:
    """Results come back as JSON gives them: a tuple is a list."""
    code = "def pair(a, b):\n    return (a, b)"
    assert sandbox.run_function(code, "pair", ((1, "x"), (2.5, None))) == [[1, "x"], [2.5, None]]


@pytest.mark.parametrize(
    "body",
    [
        "return open('/etc/passwd').read()",
        "return open('mine', 'w').write('x')",
        "import os; return os.listdir('/')",
        "import os; return os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; return subprocess.run(['true']).returncode",
        "import socket; return socket.socket().fileno()",
        "import os; os.kill(os.getppid(), 0); return 1",
        "import threading; t = threading.Thread(target=print); t.start(); t.join(); return 1",
        "return 'x' * (1 << 40)",
        "return [bytearray(1 << 20) for _ in range(4096)] and 1",
        "return f()",
        "raise SystemExit(0)",
        "import ctypes; ctypes.string_at(0)",
        "return object()",
        "return 'x' * 100_000",
        "return (1).missing",
    ],
)
def test_code_that_wants_more_than_to_compute_gets_nothing(body: str) -> None:
    """Files, processes, sockets, signals, memory, crashes: no result, and nothing is lost."""
    assert sandbox.run_function(f"def f():\n    {body}", "f", ((),)) is None


def test_the_kernel_refuses_system_calls_made_behind_pythons_back() -> None:
    """ctypes reaches the C library, and its calls fail as Python's own do."""
    code = "import ctypes\ndef f():\n    return ctypes.CDLL(None).getpid()"
    assert sandbox.run_function(code, "f", ((),)) == [-1]


def test_the_environment_is_empty() -> None:
    """No key of ours can be read by a model's code."""
    code = "import os\ndef f():\n    return [k for k in os.environ if not k.startswith('LC_')]"
    assert sandbox.run_function(code, "f", ((),)) == [[]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True: print('x' * 100_000)",
        "import os\n    while True: os.write(1, b'x' * 9_999)",
    ],
)
def test_code_without_an_end_is_ended(body: str) -> None:
    """The limit on processor time ends it, whatever it prints."""
    assert sandbox.run_function(f"def f():\n    {body}", "f", ((),)) is None


def test_code_that_is_no_python_or_too_long_gives_nothing() -> None:
    """A fence, prose or a megabyte of code is a wrong answer, not an error."""
    assert sandbox.run_function("Sure! Here it is:", "f", ((),)) is None
    assert sandbox.run_function("def f():\n    return 1\n" + "#" * 2**20, "f", ((),)) is None
