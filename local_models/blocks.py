"""What the blocks of GGUF's tensor types say: codes, a scale for each block, sometimes an offset.

Each type stores a weight as ``scale * code + offset`` or ``scale * (code - centre)``; only the
places of the bits differ. Knows bits; does not know files, models or graphs.
Source: ggml's block definitions (ggml-common.h), written anew in NumPy.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

CHUNK_BLOCKS = 1 << 16
"""Stored blocks unpacked at a time: the intermediate arrays of one chunk stay below 100 MB."""


class BlockType(msgspec.Struct, frozen=True):
    """One tensor type whose weights are codes.

    weights: in one stored record. block: weights that share a scale. bits: codes are
    0..2**bits - 1. unpack: records [n] to codes uint8 [n, weights] in the weights' order.
    scales, offsets: records [n] to float32 [n, weights / block]; without offsets, a weight is
    ``scale * (code - centre)``.
    """

    name: str
    record: np.dtype[Any]
    weights: int
    block: int
    bits: int
    unpack: Callable[[Array], Array]
    scales: Callable[[Array], Array]
    offsets: Callable[[Array], Array] | None = None

    @property
    def centre(self) -> int:
        """The code of weight 0 where there are no offsets."""
        return 1 << (self.bits - 1)

    def codes(self, stored: Array) -> Codes:
        """Codes of records [..., n] in the weights' order: uint8 [..., n * weights]."""
        flat = stored.reshape(-1)
        codes = np.empty((len(flat), self.weights), np.uint8)
        for begin in range(0, len(flat), CHUNK_BLOCKS):
            chunk = slice(begin, begin + CHUNK_BLOCKS)
            codes[chunk] = self.unpack(flat[chunk])
        return codes.reshape(*stored.shape[:-1], stored.shape[-1] * self.weights)

    def per_block(self, read: Callable[[Array], Array], stored: Array) -> Float:
        """What ``scales`` or ``offsets`` read: float32 [..., n * weights / block]."""
        width = stored.shape[-1] * (self.weights // self.block)
        values: Float = read(stored.reshape(-1)).reshape(*stored.shape[:-1], width)
        return values


def _single(stored: Array, field: str) -> Array:
    single: Array = stored[field].astype(np.float32)[:, None]
    return single


def _d(stored: Array) -> Array:
    return _single(stored, "d")


def _m(stored: Array) -> Array:
    return _single(stored, "m")


def _nibbles(stored: Array) -> Array:
    """Sixteen bytes hold weights 0..15 in their low halves and 16..31 in their high."""
    low: Array = stored["low"]
    return np.concatenate([low & 0x0F, low >> 4], axis=-1)


def _fives(stored: Array) -> Array:
    """Nibbles, and the fifth bits of weights 0..31 from the lowest on."""
    fifth = np.unpackbits(stored["high"], axis=-1, bitorder="little")
    codes: Array = _nibbles(stored) | (fifth << 4)
    return codes


def _bytes(stored: Array) -> Array:
    signed: Array = np.ascontiguousarray(stored["codes"])
    return signed.view(np.uint8) ^ np.uint8(128)  # plus 128, modulo 256


def _k_scales(stored: Array) -> Array:
    """Scales of eight blocks, six bits each, times the record's own."""
    packed: Array = stored["scales"]
    late = (packed[:, 8:] & 0x0F) | ((packed[:, :4] >> 6) << 4)
    scales = np.concatenate([packed[:, :4] & 63, late], axis=-1)
    products: Array = _d(stored) * scales
    return products


def _k_offsets(stored: Array) -> Array:
    packed: Array = stored["scales"]
    late = (packed[:, 8:] >> 4) | ((packed[:, 4:8] >> 6) << 4)
    offsets = np.concatenate([packed[:, 4:8] & 63, late], axis=-1)
    products: Array = -_m(stored) * offsets
    return products


def _k_nibbles(stored: Array) -> Array:
    """32 bytes hold 32 weights in their low halves and the next 32 in their high; four times."""
    low: Array = stored["low"].reshape(-1, 4, 1, 32)
    codes: Array = np.concatenate([low & 0x0F, low >> 4], axis=2)
    return codes.reshape(-1, 256)


def _k_fives(stored: Array) -> Array:
    """Nibbles, and bit j of byte k is the fifth bit of weight 32 j + k."""
    places = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (stored["high"][:, None, :] >> places) & 1
    codes: Array = _k_nibbles(stored) | (fifth << 4).reshape(-1, 256)
    return codes


def _k_sixes(stored: Array) -> Array:
    """Two halves of 128 weights: 64 bytes of nibbles, 32 bytes of upper pairs of bits."""
    low = stored["low"].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    places = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = (stored["high"].reshape(-1, 2, 1, 32) >> places) & 3
    codes: Array = nibbles | (upper << 4)
    return codes.reshape(-1, 256)


def _six_scales(stored: Array) -> Array:
    scales: Array = stored["scales"]
    return _d(stored) * scales


def _record(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_HALF, _LOW = ("d", "<f2"), ("low", "u1", 16)
_K_HEAD = (_HALF, ("m", "<f2"), ("scales", "u1", 12))

BLOCK_TYPES = {
    kind.name: kind
    for kind in (
        BlockType("Q4_0", _record(_HALF, _LOW), 32, 32, 4, _nibbles, _d),
        BlockType("Q4_1", _record(_HALF, ("m", "<f2"), _LOW), 32, 32, 4, _nibbles, _d, _m),
        BlockType("Q5_0", _record(_HALF, ("high", "u1", 4), _LOW), 32, 32, 5, _fives, _d),
        BlockType(
            "Q5_1",
            _record(_HALF, ("m", "<f2"), ("high", "u1", 4), _LOW),
            *(32, 32, 5, _fives, _d, _m),
        ),
        BlockType("Q8_0", _record(_HALF, ("codes", "i1", 32)), 32, 32, 8, _bytes, _d),
        BlockType(
            "Q4_K",
            _record(*_K_HEAD, ("low", "u1", 128)),
            *(256, 32, 4, _k_nibbles, _k_scales, _k_offsets),
        ),
        BlockType(
            "Q5_K",
            _record(*_K_HEAD, ("high", "u1", 32), ("low", "u1", 128)),
            *(256, 32, 5, _k_fives, _k_scales, _k_offsets),
        ),
        BlockType(
            "Q6_K",
            _record(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _HALF),
            *(256, 16, 6, _k_sixes, _six_scales),
        ),
    )
}


def dequantized(codes: Codes, d: Float, m: Float | None, bits: int) -> Float:
    """W = d * code + m, or d * (code - 2**(bits - 1)) where m is None.

    codes: uint8 [..., K]; d, m: float32 [..., blocks]. Returns float32 [..., K].
    """
    blocks = codes.reshape(*d.shape, -1).astype(np.float32)
    if m is None:
        blocks -= np.float32(1 << (bits - 1))
    blocks *= d[..., None]
    if m is not None:
        blocks += m[..., None]
    return blocks.reshape(codes.shape)
