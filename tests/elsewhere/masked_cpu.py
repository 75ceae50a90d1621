"""A CPU that hides what it can, at full speed: for ONNX Runtime, which has no switch for it.

ONNX Runtime chooses its loops by the CPUID instruction. In a copy of it every one is replaced by an
illegal instruction of the same length, whose signal a preloaded library answers.
"""

import re
import shutil
import subprocess
from pathlib import Path

import onnxruntime

from tests.elsewhere import moved_clock

SOURCE = Path(__file__).parent / "masked_cpuid.c"
CPUID, ILLEGAL = b"\x0f\xa2", b"\x0f\x0b"
KINDS = {"AVX-512 without VNNI": "avx512", "AVX2 alone": "avx2"}


def lacking() -> str | None:
    """The program that is missing here, or None."""
    if moved_clock.compiler() is None:
        return "C compiler"
    return None if shutil.which("objdump") else "objdump"


def environment(folder: Path, kind: str) -> dict[str, str]:
    """What a process and its children need to see one of KINDS. Makes the copy in ``folder``."""
    library = moved_clock.build(folder, SOURCE)
    copy = folder / "packages" / "onnxruntime"
    if not copy.is_dir():
        shutil.copytree(Path(onnxruntime.__file__).parent, copy)
        (native,) = copy.glob("capi/onnxruntime_pybind11_state*.so")
        _replace_cpuid(native)
    return {
        "LD_PRELOAD": str(library),
        "MASKED_CPU": KINDS[kind],
        "PYTHONPATH": str(copy.parent),
        "TOLLHOUSE_ISA": "avx2",  # our operators need VNNI for their AVX-512 loops
    }


def _replace_cpuid(library: Path) -> None:
    """By the disassembler's word: the same two bytes stand inside other instructions, too."""

    def objdump(*options: str) -> str:
        command = ["objdump", *options, str(library)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    text = re.search(r"\.text\s+\w+\s+(\w+)\s+\w+\s+(\w+)", objdump("-h", "-w"))
    assert text is not None, "a library without code"
    address, offset = (int(number, 16) for number in text.groups())
    code = bytearray(library.read_bytes())
    found = re.findall(r"^ *(\w+):\s+cpuid", objdump("-d", "--no-show-raw-insn"), re.MULTILINE)
    for place in found:
        at = int(place, 16) - address + offset
        assert code[at : at + 2] == CPUID
        code[at : at + 2] = ILLEGAL
    library.write_bytes(code)
