"""Running a model's short code: a process that can compute and answer, and nothing else.

Code from a model is hostile until shown otherwise. It runs in a child process without
environment, with limits on time, memory and files, and under a seccomp filter: after start-up the
kernel grants it memory, time, random bytes and its three pipes, and refuses every other system
call, so it opens no file, no socket and no process. Linux on x86-64; elsewhere nothing is run.
What the child prints is compared with results that it was never told.
"""

import contextlib
import json
import platform
import subprocess
import sys
import tempfile
from functools import cache
from typing import Any

from local_models.messages import LocalModelError

SECONDS_MAX = 5.0
"""Wall-clock time of one run, start-up of Python included."""

CPU_SECONDS_MAX = 2
MEMORY_BYTES_MAX = 512 << 20
CODE_BYTES_MAX = 16 << 10
OUTPUT_BYTES_MAX = 64 << 10

# Runs in the child, before any foreign code. Calls by number (x86-64): read, write, close, fstat,
# lseek, mmap, mprotect, munmap, brk, rt_sigaction, rt_sigprocmask, rt_sigreturn, mremap, madvise,
# exit, futex, sigaltstack, clock_gettime, exit_group, getrandom, rseq.
_CHILD = r"""
import collections, ctypes, datetime, functools, heapq, itertools, json, math, operator, random
import re, resource, statistics, string, struct, sys, typing
task = json.loads(sys.stdin.buffer.read())
for limit, value in (
    (resource.RLIMIT_CPU, task["cpu"]), (resource.RLIMIT_AS, task["memory"]),
    (resource.RLIMIT_FSIZE, task["output"]), (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NOFILE, 3),
):
    resource.setrlimit(limit, (value, value))
allowed = (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 60, 202, 131, 228, 231, 318, 334)
steps = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
for index, number in enumerate(allowed):
    steps.append((0x15, len(allowed) - index, 0, number))
steps += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = b"".join(struct.pack("HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(program)
header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0):
    sys.exit(77)
try:
    open("/proc/self/stat")
except OSError:
    pass
else:
    sys.exit(77)
out, sys.stdout = sys.stdout, sys.stderr
try:
    space = {"__name__": "answer"}
    exec(compile(task["code"], "answer", "exec"), space)
    found = [space[task["function"]](*case) for case in task["cases"]]
    text = json.dumps(found)
except BaseException as error:
    text = "null"
out.write(text)
out.flush()
"""


class NoSandbox(LocalModelError):
    """This machine cannot contain foreign code, so none is run."""


def run_function(code: str, function: str, cases: tuple[tuple[Any, ...], ...]) -> list[Any] | None:
    """Results of ``function`` of ``code`` for each case, as JSON gives them; None where it fails.

    A failure is any exception, any result that is no JSON, and any limit passed. Takes 40 ms and
    at most ``SECONDS_MAX``. Raises NoSandbox.
    """
    if not available():
        raise NoSandbox("code is run only on Linux on x86-64 with seccomp, which is not here")
    return _run(code, function, cases)


@cache
def available() -> bool:
    """Whether code can be contained here, found once by trying."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return _run("def one():\n    return 1", "one", ((),)) == [1]


def _run(code: str, function: str, cases: tuple[tuple[Any, ...], ...]) -> list[Any] | None:
    if len(code.encode("utf-8", "replace")) > CODE_BYTES_MAX:
        return None
    task = {
        "code": code, "function": function, "cases": cases, "cpu": CPU_SECONDS_MAX,
        "memory": MEMORY_BYTES_MAX, "output": OUTPUT_BYTES_MAX,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as answer:
        # To a file: the limit on its size is the kernel's, and a reader cannot be flooded.
        child = subprocess.Popen(  # noqa: S603 our own interpreter and our own program
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                child.communicate(json.dumps(task).encode("utf-8", "replace"), SECONDS_MAX)
        except subprocess.TimeoutExpired:
            pass
        finally:
            child.kill()
            child.wait()
        if child.returncode != 0:
            return None
        answer.seek(0)
        text = answer.read(OUTPUT_BYTES_MAX + 1)
    if len(text) > OUTPUT_BYTES_MAX:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and len(found) == len(cases) else None
