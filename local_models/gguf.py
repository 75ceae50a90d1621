"""Read a GGUF file: its metadata and its tensors, mapped and not copied.

Every count, size and offset in the file is checked against the file's end before it is believed,
so that a truncated or hostile file gives InvalidModel. Knows the format; does not know models.
Source: the GGUF specification, versions 2 and 3, little endian.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from local_models.messages import InvalidModel

ARRAY_DEPTH_MAX = 4
DIMENSIONS_MAX = 4
Q_BLOCK = 32

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_SMALLEST_BYTES = {_STRING: 8, _ARRAY: 12} | {k: struct.calcsize(v) for k, v in _SCALARS.items()}

# Bytes of one stored unit, and how many weights it holds.
_UNITS = {"F32": (4, 1), "F16": (2, 1), "Q4_0": (18, 32), "Q4_1": (20, 32), "Q8_0": (34, 32)}
_TYPE_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}

_Q4_0 = np.dtype([("d", "<f2"), ("codes", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("codes", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("codes", "i1", 32)])
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "Q4_0": _Q4_0,
    "Q4_1": _Q4_1,
    "Q8_0": _Q8_0,
}


class Tensor(msgspec.Struct, frozen=True):
    """One tensor as the file stores it.

    shape: rows first, as NumPy writes it (GGUF writes it the other way round). stored: a view of
    the file, of shape [..., K] for floats and [..., K / 32] records (d, m, codes) for blocks.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    stored: npt.NDArray[Any]

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weights as float32, of ``shape``."""
        if self.type in ("F32", "F16"):
            return self.stored.astype(np.float32)
        d = self.stored["d"].astype(np.float32)[..., None]
        match self.type:
            case "Q8_0":
                weights = d * self.stored["codes"]
            case "Q4_0":
                weights = d * (self.nibbles().astype(np.float32) - 8)
            case _:
                weights = d * self.nibbles() + self.stored["m"].astype(np.float32)[..., None]
        dequantized: npt.NDArray[np.float32] = weights.reshape(self.shape)
        return dequantized

    def nibbles(self) -> npt.NDArray[np.uint8]:
        """The 4-bit codes in the weights' order: uint8 0..15, [..., K / 32, 32].

        A block's sixteen bytes hold weights 0..15 in their low halves and 16..31 in their high.
        """
        codes = self.stored["codes"]
        return np.concatenate([codes & 0x0F, codes >> 4], axis=-1)


class GgufFile:
    """An open GGUF file. The arrays it gives out keep the mapping alive."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InvalidModel(f"{path} cannot be read: {error}") from error
        self._path = path
        self._at = 0
        self._read()

    def _read(self) -> None:
        if self._bytes[:4] != b"GGUF":
            raise self._broken("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise self._broken(f"version {version} is not known")
        tensor_count = self._count(minimum_bytes=24)
        entry_count = self._count(minimum_bytes=13)
        self.metadata = {}
        for _ in range(entry_count):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"), depth=0)
        headers = [self._tensor_header() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._broken("its alignment is not a positive number")
        start = -(-self._at // alignment) * alignment
        self.tensors = {header[0]: self._tensor(start, *header) for header in headers}
        if len(self.tensors) != tensor_count:
            raise self._broken("two tensors have one name")

    def _take(self, size_bytes: int) -> bytes:
        end = self._at + size_bytes
        if end > len(self._bytes):
            raise self._broken(f"it ends inside its header, at byte {len(self._bytes)}")
        taken = self._bytes[self._at : end]
        self._at = end
        return taken

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _count(self, minimum_bytes: int) -> int:
        count = int(self._number("Q"))
        if count * minimum_bytes > len(self._bytes) - self._at:
            raise self._broken(f"it announces {count} entries, more than fit in it")
        return count

    def _string(self) -> str:
        return self._take(self._count(minimum_bytes=1)).decode("utf-8", errors="replace")

    def _value(self, type_number: int, depth: int) -> Any:
        if type_number in _SCALARS:
            return self._number(_SCALARS[type_number])
        if type_number == _STRING:
            return self._string()
        if type_number == _ARRAY and depth < ARRAY_DEPTH_MAX:
            element = self._number("I")
            if element not in _SMALLEST_BYTES:
                raise self._broken(f"metadata type {element} is not known")
            count = self._count(_SMALLEST_BYTES[element])
            if element in _SCALARS:
                code = f"{count}{_SCALARS[element]}"
                return list(struct.unpack("<" + code, self._take(struct.calcsize("<" + code))))
            return [self._value(element, depth + 1) for _ in range(count)]
        raise self._broken(f"metadata type {type_number} is not known, or nested too deeply")

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("I")
        if not 1 <= dimensions <= DIMENSIONS_MAX:
            raise self._broken(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _tensor(
        self, start: int, name: str, shape: tuple[int, ...], type_number: int, offset: int
    ) -> Tensor:
        type_name = _TYPE_NAMES.get(type_number)
        if type_name is None:
            raise self._broken(f"tensor {name} has type {type_number}, which is not supported")
        unit_bytes, unit_weights = _UNITS[type_name]
        if shape[-1] % unit_weights:
            raise self._broken(f"tensor {name}: rows of {shape[-1]} do not divide into blocks")
        units = (*shape[:-1], shape[-1] // unit_weights)
        begin = start + offset
        if begin + unit_bytes * math.prod(units) > len(self._bytes):
            raise self._broken(f"tensor {name} reaches beyond its end")
        # NumPy multiplies the other dimensions even where one of them is 0.
        if 8 * math.prod(max(1, length) for length in shape) >= 2**63:
            raise self._broken(f"tensor {name} has a shape that cannot be")
        stored = np.frombuffer(
            self._bytes, _DTYPES[type_name], count=math.prod(units), offset=begin
        )
        return Tensor(name, type_name, shape, stored.reshape(units))

    def _broken(self, reason: str) -> InvalidModel:
        return InvalidModel(f"{self._path.name} is not a usable GGUF file: {reason}")
