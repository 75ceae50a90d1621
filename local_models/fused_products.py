"""Products with quantized matrices by our fused operators, on the bytes that the GGUF file has.

Nothing is repacked here: the operators read GGUF's records (kernels/README.md). Knows one operator
at a time; does not know which one of a model it is.
"""

from collections.abc import Sequence

import numpy as np

from local_models import ops
from local_models.gguf import Tensor
from local_models.onnx_builder import TOLLHOUSE, OnnxBuilder
from local_models.quantize import Float, Order


def can_be_fused(tensor: Tensor) -> bool:
    """Whether the operators take this tensor: a matrix in one of the types they know."""
    return tensor.type in ops.RECORDS and len(tensor.shape) == 2


class FusedProducts:
    """Appends nodes of the domain ``tollhouse``. Its weights are tensors that can be fused."""

    def __init__(self, onnx: OnnxBuilder, accuracy_level: int) -> None:
        self._onnx = onnx
        self._accuracy_level = accuracy_level

    def embed(self, weights: Tensor, ids: str) -> str:
        """Rows of the matrix: [..., K] for the ids [...]."""
        inputs = [ids, self._weight(weights)]
        return self._onnx.node("GatherQ", inputs, domain=TOLLHOUSE, types=weights.type)

    def linear(self, x: str, weights: Tensor, result: str | None = None) -> str:
        """x [..., K] times the matrix [N, K], transposed: [..., N]."""
        return self._onnx.node(
            "MatMulQ",
            [x, self._weight(weights)],
            result=result,
            domain=TOLLHOUSE,
            types=weights.type,
            accuracy_level=self._accuracy_level,
        )

    def norm_linear(
        self,
        x: str,
        skip: str,
        gain: str,
        parts: Sequence[tuple[Tensor, Order | None]],
        bias: Float | None,
        epsilon: float,
    ) -> tuple[str, str]:
        """Normalise x + skip and multiply with each part; the products side by side, and x + skip.

        skip: "" for none. parts: matrices [.., K], each with an order of its rows, None for its
        own. bias: one number for each row of all parts.
        """
        biases = "" if bias is None else self._onnx.weight(f"{gain}.bias", bias)
        inputs = [x, skip, gain, biases, *(self._weight(*part) for part in parts)]
        types = " ".join(weights.type for weights, _ in parts)
        return self._norm("RmsNormMatMulQ", inputs, gain, types, epsilon)

    def norm_swiglu(
        self, x: str, skip: str, gain: str, gate: Tensor, up: Tensor, epsilon: float
    ) -> tuple[str, str]:
        """Normalise x + skip, then silu(h @ gate^T) * (h @ up^T); that, and x + skip."""
        inputs = [x, skip, gain, self._weight(gate), self._weight(up)]
        return self._norm("RmsNormSwiGLUQ", inputs, gain, f"{gate.type} {up.type}", epsilon)

    def _norm(
        self, op: str, inputs: list[str], gain: str, types: str, epsilon: float
    ) -> tuple[str, str]:
        y, residual = f"{gain}.y", f"{gain}.residual"
        self._onnx.node(
            op,
            inputs,
            results=[y, residual],
            domain=TOLLHOUSE,
            types=types,
            epsilon=epsilon,
            accuracy_level=self._accuracy_level,
        )
        return y, residual

    def _weight(self, tensor: Tensor, order: Order | None = None) -> str:
        rows = tensor.stored.view(np.uint8).reshape(len(tensor.stored), -1)
        if order is None:
            return self._onnx.source_weight(tensor.name, rows, tensor.offset)
        return self._onnx.weight(f"{tensor.name}.ordered", rows[order])
