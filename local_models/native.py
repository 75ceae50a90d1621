"""Find the library of fused operators and hand it to ONNX Runtime.

The library is built from kernels/ by `make kernels`. Without it everything still runs, on ONNX
Runtime's own operators. Knows files and the library's stamp; does not know graphs or arithmetic.
"""

import ctypes
import functools
import hashlib
import logging
import os
from pathlib import Path

import onnxruntime as ort

SWITCH = "TOLLHOUSE_NATIVE"
"""Environment variable: `off` runs on ONNX Runtime's own operators alone."""

INTERFACE = 2
"""The operators that graphs are written for; a library says which it has."""

_LIBRARY = Path(__file__).parent / "lib" / "libtollhouse_ops.so"
_SOURCES = Path(__file__).parent.parent / "kernels"
_SOURCE_SUFFIXES = frozenset({".cc", ".h", ".cu", ".cuh", ".sh"})

_log = logging.getLogger(__name__)


def library_path() -> Path | None:
    """The built library, or None where the fused operators cannot be used.

    None if it is switched off, not built, does not load, has other operators than graphs are
    written for, or TOLLHOUSE_ISA asks for an instruction set that this CPU lacks; the log says
    which, once. A library that is merely older than its sources is used, with a warning.
    """
    if os.environ.get(SWITCH, "").lower() == "off":
        return None
    return usable(_LIBRARY, _SOURCES)


def register(session_options: ort.SessionOptions) -> bool:
    """Make the fused operators known to sessions opened with these options. False without them."""
    path = library_path()
    if path is None:
        return False
    session_options.register_custom_ops_library(str(path))
    return True


def sources_stamp(sources: Path) -> str | None:
    """SHA-256 over the native sources, or None where they are not shipped (an installed wheel)."""
    files = [path for path in sources.rglob("*") if path.suffix in _SOURCE_SUFFIXES]
    if not files:
        return None
    # The order of build.sh: whole paths, byte by byte.
    files.sort(key=lambda path: path.relative_to(sources.parent).as_posix().encode())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def instruction_set() -> str:
    """The instruction set that the fused operators run on here; "plain" where they are not used."""
    path = library_path()
    if path is None:
        return "plain"
    return _text(ctypes.CDLL(str(path)), "tollhouse_ops_isa") or "plain"


@functools.cache
def usable(library: Path, sources: Path) -> Path | None:
    """The library itself if it can be used, else None; what is wrong goes to the log, once."""
    if not library.is_file():
        _log.info("fused operators are not built (`make kernels`); ONNX Runtime's own are used")
        return None
    try:
        native = ctypes.CDLL(str(library))
        stamp = _text(native, "tollhouse_ops_stamp")
        isa = _text(native, "tollhouse_ops_isa")
        interface = getattr(native, "tollhouse_ops_interface", lambda: 1)()
    except (OSError, AttributeError) as error:
        _log.warning("fused operators do not load, ONNX Runtime's own are used: %s", error)
        return None
    if interface != INTERFACE:
        _log.warning("fused operators are of another version; rebuild them with `make kernels`")
        return None
    if isa is None:
        _log.warning("TOLLHOUSE_ISA names no instruction set of this CPU; fused operators are off")
        return None
    if sources_stamp(sources) not in (stamp, None):
        _log.warning("fused operators are older than kernels/; rebuild them with `make kernels`")
    return library


def _text(native: ctypes.CDLL, function: str) -> str | None:
    read = getattr(native, function)
    read.restype = ctypes.c_char_p
    answer: bytes | None = read()
    return None if answer is None else answer.decode()
