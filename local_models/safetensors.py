"""Tensors of a safetensors file, as read-only NumPy views of the mapped file.

Trusts nothing in the file: every length, offset, type and shape is checked before it is used.
Knows the file format. Does not know models.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from local_models.messages import InvalidModel

MAX_HEADER_BYTES = 32 << 20
MAX_DIMENSIONS = 8

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16: the upper half of a float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


class SafeTensors(Mapping[str, npt.NDArray[Any]]):
    """An open file: name → view. The views keep the mapping alive; nothing is copied.

    Raises InvalidModel where the file is truncated, inconsistent or of an unknown type.
    Source: the format's description in the safetensors repository (8 bytes of little-endian header
    length, a JSON header, then the tensors).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            if size_bytes < 8:
                raise self._invalid("it is shorter than its own header length")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header_bytes = int.from_bytes(self._map[:8], "little")
        if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
            raise self._invalid(f"its header claims {header_bytes} bytes")
        self._start = 8 + header_bytes
        self._entries = self._parse(self._map[8 : self._start], size_bytes - self._start)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        kind, shape, begin = self._entries[name]
        array = np.frombuffer(
            self._map, _DTYPES[kind], count=math.prod(shape), offset=self._start + begin
        )
        return array.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor widened or narrowed to float32; raises InvalidModel where it is missing."""
        if name not in self._entries:
            raise self._invalid(f"it has no tensor {name!r}")
        array = self[name]
        if self._entries[name][0] == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)

    def _parse(
        self, header: bytes, payload_bytes: int
    ) -> dict[str, tuple[str, tuple[int, ...], int]]:
        try:
            document = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise self._invalid("its header is not JSON") from error
        if not isinstance(document, dict):
            raise self._invalid("its header is not a JSON object")
        document.pop("__metadata__", None)
        return {name: self._entry(name, entry, payload_bytes) for name, entry in document.items()}

    def _entry(self, name: str, entry: Any, payload_bytes: int) -> tuple[str, tuple[int, ...], int]:
        try:
            kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            item_bytes = _DTYPES[kind].itemsize
        except (KeyError, TypeError, ValueError) as error:
            raise self._invalid(f"tensor {name!r} is described wrongly") from error
        counts = (*shape, begin, end)
        if len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in counts):
            raise self._invalid(f"tensor {name!r} has an impossible shape or offset")
        if not begin <= end <= payload_bytes or math.prod(shape) * item_bytes != end - begin:
            raise self._invalid(f"tensor {name!r} does not fit its bytes {begin}..{end}")
        # NumPy multiplies the other dimensions even where one of them is 0.
        if math.prod(max(1, n) for n in shape) * item_bytes >= 2**63:
            raise self._invalid(f"tensor {name!r} has an impossible shape")
        return kind, shape, begin

    def _invalid(self, why: str) -> InvalidModel:
        return InvalidModel(f"{self._path.name} is no usable safetensors file: {why}.")
