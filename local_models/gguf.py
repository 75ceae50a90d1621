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

from local_models import blocks
from local_models.blocks import BLOCK_TYPES
from local_models.messages import InvalidModel

ARRAY_DEPTH_MAX = 4
DIMENSIONS_MAX = 4
HEADER_BYTES_MAX = 64 << 20
"""Metadata and tensor list; those of a vocabulary of 152,000 take 6 MB."""

ENTRIES_MAX = 1 << 22
"""Metadata values, each in a list counted: a list of bytes takes eight times their room."""

TENSORS_MAX = 1 << 16
NAME_BYTES_MAX = 255
ALIGNMENT_MAX = 1 << 20

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

_FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_TYPE_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"}
_TYPE_NAMES |= {12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"}

# Types that exist and are not read, with the nearest that is: the file's author often offers both.
_NEAREST = {9: ("Q8_1", "Q8_0"), 10: ("Q2_K", "Q4_K"), 11: ("Q3_K", "Q4_K"), 15: ("Q8_K", "Q8_0")}
_NEAREST |= {16: ("IQ2_XXS", "Q4_K"), 17: ("IQ2_XS", "Q4_K"), 18: ("IQ3_XXS", "Q4_K")}
_NEAREST |= {19: ("IQ1_S", "Q4_K"), 20: ("IQ4_NL", "Q4_0"), 21: ("IQ3_S", "Q4_K")}
_NEAREST |= {22: ("IQ2_S", "Q4_K"), 23: ("IQ4_XS", "Q4_K"), 28: ("F64", "F32")}
_NEAREST |= {29: ("IQ1_M", "Q4_K"), 34: ("TQ1_0", "Q4_0"), 35: ("TQ2_0", "Q4_0")}
_NEAREST |= {39: ("MXFP4", "Q4_K")}


class Tensor(msgspec.Struct, frozen=True):
    """One tensor as the file stores it.

    shape: rows first, as NumPy writes it (GGUF writes it the other way round). stored: a view of
    the file, of shape [..., K] for floats and [..., K / weights of a record] for blocks. offset:
    where it begins in the file, in bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    stored: npt.NDArray[Any]
    offset: int

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weights as float32, of ``shape``."""
        if self.type == "BF16":  # The upper half of a float32.
            return (self.stored.astype(np.uint32) << 16).view(np.float32)
        if self.type in _FLOATS:
            return self.stored.astype(np.float32)
        kind = BLOCK_TYPES[self.type]
        d = kind.per_block(kind.scales, self.stored)
        m = None if kind.offsets is None else kind.per_block(kind.offsets, self.stored)
        return blocks.dequantized(kind.codes(self.stored), d, m, kind.bits)


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
        self._entries = 0
        self._read()

    def _read(self) -> None:
        if self._bytes[:4] != b"GGUF":
            raise self._broken("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise self._broken(f"version {version} is not known")
        tensor_count = self._count(minimum_bytes=24)
        if tensor_count > TENSORS_MAX:
            raise self._broken(
                f"it announces {tensor_count} tensors; at most {TENSORS_MAX} are read"
            )
        entry_count = self._entries_count(minimum_bytes=13)
        self.metadata = {}
        for _ in range(entry_count):
            key = self._name()
            if key in self.metadata:
                raise self._broken(f"its metadata say {key[:60]} twice")
            self.metadata[key] = self._value(self._number("I"), depth=0)
        headers = [self._tensor_header() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= ALIGNMENT_MAX:
            raise self._broken(f"its alignment is no number from 1 to {ALIGNMENT_MAX}")
        start = -(-self._at // alignment) * alignment
        self.tensors = {header[0]: self._tensor(start, *header) for header in headers}
        if len(self.tensors) != tensor_count:
            raise self._broken("two tensors have one name")
        self._refuse_overlaps()

    def _refuse_overlaps(self) -> None:
        """A small file whose tensors share their bytes would become a graph of any size."""
        end = 0
        for tensor in sorted(self.tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._broken(f"tensor {tensor.name} begins within another one")
            end = tensor.offset + tensor.stored.nbytes

    def _take(self, size_bytes: int) -> bytes:
        end = self._at + size_bytes
        if end > len(self._bytes):
            raise self._broken(f"it ends inside its header, at byte {len(self._bytes)}")
        if end > HEADER_BYTES_MAX:
            raise self._broken(f"its header has more than {HEADER_BYTES_MAX} bytes")
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

    def _entries_count(self, minimum_bytes: int) -> int:
        count = self._count(minimum_bytes)
        self._entries += count
        if self._entries > ENTRIES_MAX:
            raise self._broken(f"its metadata have more than {ENTRIES_MAX} values")
        return count

    def _name(self) -> str:
        name = self._string()
        if not 0 < len(name.encode(errors="replace")) <= NAME_BYTES_MAX:
            raise self._broken(f"a name in it has {len(name)} characters")
        return name

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
            count = self._entries_count(_SMALLEST_BYTES[element])
            if element in _SCALARS:
                code = f"{count}{_SCALARS[element]}"
                return list(struct.unpack("<" + code, self._take(struct.calcsize("<" + code))))
            return [self._value(element, depth + 1) for _ in range(count)]
        raise self._broken(f"metadata type {type_number} is not known, or nested too deeply")

    def _tensor_header(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name()
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
            other, nearest = _NEAREST.get(type_number, (str(type_number), "Q4_K"))
            raise self._broken(
                f"tensor {name} has type {other}, which is not supported; the nearest that is, is"
                f" {nearest}"
            )
        kind = BLOCK_TYPES.get(type_name)
        dtype, unit_weights = (
            (_FLOATS[type_name], 1) if kind is None else (kind.record, kind.weights)
        )
        if 0 in shape:
            raise self._broken(f"tensor {name} has no weights: its shape is {shape}")
        if shape[-1] % unit_weights:
            raise self._broken(f"tensor {name}: rows of {shape[-1]} do not divide into blocks")
        units = (*shape[:-1], shape[-1] // unit_weights)
        begin = start + offset
        if begin + dtype.itemsize * math.prod(units) > len(self._bytes):
            raise self._broken(f"tensor {name} reaches beyond its end")
        stored = np.frombuffer(self._bytes, dtype, count=math.prod(units), offset=begin)
        return Tensor(name, type_name, shape, stored.reshape(units), begin)

    def _broken(self, reason: str) -> InvalidModel:
        return InvalidModel(f"{self._path.name} is not a usable GGUF file: {reason}")
