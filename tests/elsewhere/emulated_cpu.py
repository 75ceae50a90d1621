"""A Python that sees another CPU: qemu's user mode, and a virtual environment around it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

EMULATOR = "qemu-x86_64"
HASWELL = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid"
"""AVX2 and no AVX-512; without what qemu's user mode would only warn of."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TESTS_WAIT_SECONDS": "900"
}  # fmt: skip

CLASSES: dict[str, Callable[[set[str]], bool]] = {
    "AVX-512 with VNNI": lambda flags: "avx512_vnni" in flags,
    "AVX-512 without VNNI": lambda flags: "avx512f" in flags and "avx512_vnni" not in flags,
    "AVX2 with VNNI": lambda flags: "avx_vnni" in flags and "avx512f" not in flags,
    "AVX2 alone": lambda flags: not flags & {"avx512f", "avx_vnni"} and "avx2" in flags,
}
"""The CPUs that run different code, by the flags of ``/proc/cpuinfo``."""


def own_class() -> str:
    """The class of this machine, or what it is called where it is of none."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    return next((name for name, has in CLASSES.items() if has(flags)), "older than AVX2")


def python(folder: Path) -> Path:
    """Make, in ``folder``, a Python whose every process is emulated; its children are, too.

    qemu runs what a program starts on the real CPU. So ``sys.executable`` must be the wrapper: it
    gives itself as argv[0], and looks like the environment that runs us.
    """
    environment = Path(sys.prefix)
    wrapper = folder / "bin" / "python"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(environment / "pyvenv.cfg", folder / "pyvenv.cfg")
    (folder / "lib").unlink(missing_ok=True)
    (folder / "lib").symlink_to(environment / "lib")
    real = environment / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {EMULATOR} -cpu {HASWELL} -0 "{wrapper}" "{real}" "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def available() -> bool:
    """Whether the emulator is installed and this is the machine it emulates best."""
    return shutil.which(EMULATOR) is not None and os.uname().machine == "x86_64"


_TESTS = "tests/local_models/test_"
SELECTED = (
    f"{_TESTS}cpu_traits.py",
    f"{_TESTS}native_ops.py",
    f"{_TESTS}graph.py",
    f"{_TESTS}embedder.py::test_int8_stays_within_a_cosine_of_0_995",
    f"{_TESTS}embedder.py::test_a_long_text_keeps_its_head_and_its_tail",
    f"{_TESTS}embedder.py::test_more_tokens_are_embedded_on_request",
    f"{_TESTS}embedder.py::test_both_forms_of_the_int8_graph_give_the_same_vectors",
    f"{_TESTS}engine.py::test_requests_in_a_batch_are_answered_as_they_are_alone[onnxruntime]",
    "-k",
    "not scalar",
)
LEFT_OUT = "left out: quality of generation, the model's process, what no instruction set changes"
"""Emulated, a token costs a hundred times what it costs here; all of it would take hours."""
