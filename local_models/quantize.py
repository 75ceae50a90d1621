"""Turn stored GGUF blocks into the layouts the operators read, without a loss.

Knows bits. Does not know graphs, nor which tensor is which.
"""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from local_models.gguf import Tensor
from local_models.messages import InvalidModel

Float = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]

BLOCK = 32


class Q4(msgspec.Struct, frozen=True):
    """A matrix [N, K] of 4-bit codes in blocks of 32: W = d * code + m.

    q: uint8 [N, K/32, 16], the even k in the low half, MatMulNBits' order; d, m: [N, K/32].
    """

    q: npt.NDArray[np.uint8]
    d: Float
    m: Float

    @property
    def correction(self) -> Float:
        """What MatMulNBits with its default zero point 8 leaves out: W - d * (code - 8)."""
        return self.m + 8 * self.d


class Q8(msgspec.Struct, frozen=True):
    """A matrix [N, K] of 8-bit codes in blocks of 32: W = d * (code - 128).

    q: uint8 [N, K/32, 32]; d: [N, K/32].
    """

    q: npt.NDArray[np.uint8]
    d: Float

    def dequantized(self) -> Float:
        """The weights as float32 [N, K]."""
        weights = self.d[..., None] * (self.q.astype(np.float32) - 128)
        return weights.reshape(len(self.q), -1)


Matrix = Q4 | Q8 | Float


def matrix(tensor: Tensor) -> Matrix:
    """A weight matrix in the layout its precision is computed in; half precision becomes float."""
    if len(tensor.shape) != 2:
        raise InvalidModel(f"tensor {tensor.name} is not a matrix")
    match tensor.type:
        case "Q4_1":
            m = tensor.stored["m"].astype(np.float32)
            return Q4(_packed(tensor), tensor.stored["d"].astype(np.float32), m)
        case "Q4_0":
            d = tensor.stored["d"].astype(np.float32)
            return Q4(_packed(tensor), d, -8 * d)
        case "Q8_0":
            codes = tensor.stored["codes"].view(np.uint8) ^ np.uint8(128)  # plus 128, modulo 256
            return Q8(codes, tensor.stored["d"].astype(np.float32))
        case _:
            return tensor.dequantized()


def _packed(tensor: Tensor) -> npt.NDArray[np.uint8]:
    codes = tensor.nibbles()
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8, copy=False)


def rows(weights: Matrix, order: Order) -> Matrix:
    """The matrix with its rows in another order."""
    match weights:
        case Q4():
            return Q4(weights.q[order], weights.d[order], weights.m[order])
        case Q8():
            return Q8(weights.q[order], weights.d[order])
        case _:
            return weights[order]


def stacked(parts: list[Matrix]) -> Matrix | None:
    """The matrices as one, first on top; None when their precisions differ."""

    def join(field: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, field) for part in parts])

    if all(isinstance(part, Q4) for part in parts):
        return Q4(join("q"), join("d"), join("m"))
    if all(isinstance(part, Q8) for part in parts):
        return Q8(join("q"), join("d"))
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    return None


def half_split_order(heads: int, head_dim: int) -> Order:
    """Row order that takes query or key weights from neighbouring rotary pairs to split halves.

    GGUF stores a head's rows so that pair i is rows (2i, 2i + 1); ONNX Runtime's faster rotary
    form wants it at rows (i, i + head_dim / 2).
    """
    pairs = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return np.swapaxes(pairs, 1, 2).reshape(-1)
