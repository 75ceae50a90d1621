"""Turn stored GGUF blocks into the layouts the operators read, without a loss.

Knows bits. Does not know graphs, nor which tensor is which.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from local_models import blocks
from local_models.blocks import BLOCK_TYPES, BlockType
from local_models.gguf import Tensor
from local_models.messages import InvalidModel

Float = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Order = npt.NDArray[np.int64]

Bits = Literal[4, 5, 6, 8]
BLOCK = 32


class Quantized(msgspec.Struct, frozen=True):
    """A matrix [N, K] of codes; ``block`` neighbours along K share a scale.

    W = d * code + m, or W = d * (code - 2**(bits - 1)) where m is None. codes: uint8 [N, K], one
    in a byte, 0..2**bits - 1. d, m: float32 [N, K / block]; block is 32 or 16. The packed forms
    below are what operators take; all are exact.
    """

    bits: Bits
    block: int
    codes: Codes
    d: Float
    m: Float | None = None

    @property
    def correction(self) -> Float | None:
        """W - d * (code - 2**(bits - 1)): what a product with the middle code as 0 leaves out.

        float32 [N, K / block]; None where that is nothing.
        """
        if self.m is None:
            return None
        correction: Float = self.m + np.float32(1 << (self.bits - 1)) * self.d
        return correction if correction.any() else None

    @property
    def low(self) -> Codes:
        """The lower four bits, two codes in a byte, the even k in the low half.

        uint8 [N, K / 32, 16]: with four bits, MatMulNBits' order.
        """
        even, odd = self.codes[:, 0::2], self.codes[:, 1::2]
        packed: Codes = (even & np.uint8(15)) | (odd << np.uint8(4))
        return packed.reshape(len(packed), -1, 16)

    @property
    def in_bytes(self) -> Codes:
        """The codes so that 128 takes the middle code's place: uint8 [N, K / block, block].

        MatMulNBits' order of eight bits: d * (byte - 128) is d * (code - 2**(bits - 1)).
        """
        shifted = self.codes + np.uint8(128 - (1 << (self.bits - 1)))
        return shifted.reshape(*self.d.shape, self.block)

    def dequantized(self) -> Float:
        """The weights as float32 [N, K]."""
        return blocks.dequantized(self.codes, self.d, self.m, self.bits)


Matrix = Quantized | Float


def matrix(tensor: Tensor) -> Matrix:
    """A weight matrix in the layout its precision is computed in; half precision becomes float."""
    if len(tensor.shape) != 2:
        raise InvalidModel(f"tensor {tensor.name} is not a matrix")
    kind = BLOCK_TYPES.get(tensor.type)
    if kind is None:
        return finite(tensor.name, tensor.dequantized())
    d, m = scales(tensor, kind)
    bits: Bits = kind.bits  # type: ignore[assignment]  # an int in the table of all types
    return Quantized(bits, kind.block, kind.codes(tensor.stored), d, m)


def scales(tensor: Tensor, kind: BlockType) -> tuple[Float, Float | None]:
    """Scales of the blocks, and their offsets where there are any: float32 [N, K / block].

    Raises InvalidModel where one is no finite number.
    """
    m = None
    with np.errstate(invalid="ignore"):  # Infinity times 0, of a damaged file.
        d = finite(tensor.name, kind.per_block(kind.scales, tensor.stored))
        if kind.offsets is not None:
            m = finite(tensor.name, kind.per_block(kind.offsets, tensor.stored))
    return d, m


def finite(name: str, values: Float) -> Float:
    """The values. Raises InvalidModel where one is no number: every answer would be nonsense."""
    if not np.isfinite(values).all():
        raise InvalidModel(f"tensor {name} holds what is no finite number; the file is damaged")
    return values


def rows(weights: Matrix, order: Order) -> Matrix:
    """The matrix with its rows in another order."""
    if not isinstance(weights, Quantized):
        return weights[order]
    return msgspec.structs.replace(
        weights,
        codes=weights.codes[order],
        d=weights.d[order],
        m=None if weights.m is None else weights.m[order],
    )


def stacked(parts: list[Matrix]) -> list[Matrix]:
    """The matrices on top of each other, in as few as their precisions allow, in their order.

    Codes of few bits are widened, which changes no weight: [5, 5, 8 bits] is one of 8 bits.
    """
    joined = parts[:1]
    for part in parts[1:]:
        both = _joined(joined[-1], part)
        joined[-1:] = [joined[-1], part] if both is None else [both]
    return joined


def _joined(top: Matrix, below: Matrix) -> Matrix | None:
    if not isinstance(top, Quantized) or not isinstance(below, Quantized):
        if isinstance(top, Quantized) or isinstance(below, Quantized):
            return None
        return np.concatenate([top, below])
    if top.block != below.block or (top.m is None) != (below.m is None):
        return None
    if top.m is not None and top.bits != below.bits:
        return None
    bits = max(top.bits, below.bits)
    top, below = _widened(top, bits), _widened(below, bits)
    return Quantized(
        bits,
        top.block,
        np.concatenate([top.codes, below.codes]),
        np.concatenate([top.d, below.d]),
        None if top.m is None or below.m is None else np.concatenate([top.m, below.m]),
    )


def _widened(weights: Quantized, bits: Bits) -> Quantized:
    """Symmetric codes in more bits: the middle code moves, the weights stay."""
    if weights.bits == bits:
        return weights
    shift = np.uint8((1 << (bits - 1)) - (1 << (weights.bits - 1)))
    return msgspec.structs.replace(weights, bits=bits, codes=weights.codes + shift)


def half_split_order(heads: int, head_dim: int) -> Order:
    """Row order that takes query or key weights from neighbouring rotary pairs to split halves.

    A llama's file stores a head's rows so that pair i is rows (2i, 2i + 1); ONNX Runtime's faster
    rotary form wants it at rows (i, i + head_dim / 2), which is how a qwen2's file has it.
    """
    pairs = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return np.swapaxes(pairs, 1, 2).reshape(-1)
