"""Products with quantized matrices, by ONNX Runtime's own operators, exact in the weights.

Knows one matrix at a time; does not know which one of a model it is.
"""

import numpy as np

from local_models.onnx_builder import MICROSOFT, OnnxBuilder
from local_models.quantize import Float, Matrix, Quantized


class Products:
    """Appends nodes that multiply by a matrix or look up its rows."""

    def __init__(self, onnx: OnnxBuilder, accuracy_level: int) -> None:
        self._onnx = onnx
        self._accuracy_level = accuracy_level
        self._sums: set[str] = set()

    def linear(self, x: str, name: str, weights: Matrix, result: str | None = None) -> str:
        """x [..., K] times the matrix [N, K], transposed: [..., N].

        MatMulNBits takes the middle code as 0; what that leaves out is one number in a block, so
        its product needs x's block sums only: exact, and 1/32 of the work. Float zero points
        would be as exact but leave the fast kernels: 1,420 against 73 microseconds (fp32, one
        row, one thread, 1536 x 576).
        """
        if isinstance(weights, Quantized) and weights.bits > 4 and self._accuracy_level == 1:
            # ONNX Runtime has no fast kernel for 8-bit weights with float activations: 176 ms for
            # a head of 49,152 x 576, 2.5 as floats (two threads, fastest of 30, busy machine).
            weights = weights.dequantized()
        if not isinstance(weights, Quantized):
            return self._onnx.node("MatMul", [x, self._transposed(name, weights)], result=result)
        correction = weights.correction
        if correction is None:
            return self._centred(x, name, weights, result)
        centred = self._centred(x, name, weights, None)
        transposed = self._transposed(f"{name}.correction", correction)
        rest = self._onnx.node("MatMul", [self._block_sums(x, weights.block), transposed])
        return self._onnx.node("Add", [centred, rest], result=result)

    def embed(self, name: str, weights: Matrix, ids: str) -> str:
        """Rows of the matrix: [..., K] for the ids [...]."""
        if not isinstance(weights, Quantized):
            return self._onnx.node("Gather", [self._onnx.weight(name, weights), ids], axis=0)
        d = self._onnx.weight(f"{name}.d", weights.d)
        if weights.m is None:
            codes = self._onnx.weight(f"{name}.rows", weights.in_bytes.reshape(weights.codes.shape))
            return self._onnx.node(
                "GatherBlockQuantized",
                [codes, ids, d],
                domain=MICROSOFT,
                bits=8,
                block_size=weights.block,
                gather_axis=0,
                quantize_axis=1,
            )
        # GatherBlockQuantized has no offsets that are floats.
        m = self._onnx.weight(f"{name}.m", weights.m)
        rows = self._onnx.weight(f"{name}.rows", weights.codes)
        codes = self._onnx.node("Gather", [rows, ids], axis=0)
        floats = self._onnx.node("Cast", [codes], to=1)
        into = self._onnx.weight("into_embedding", np.array([0, 0, -1, weights.block], np.int64))
        last = self._onnx.weight("last_axis", np.array([-1], np.int64))
        parts = [
            self._onnx.node("Unsqueeze", [self._onnx.node("Gather", [part, ids], axis=0), last])
            for part in (d, m)
        ]
        scaled = self._onnx.node("Mul", [self._onnx.node("Reshape", [floats, into]), parts[0]])
        flat = self._onnx.weight("from_embedding", np.array([0, 0, -1], np.int64))
        return self._onnx.node("Reshape", [self._onnx.node("Add", [scaled, parts[1]]), flat])

    def _centred(self, x: str, name: str, weights: Quantized, result: str | None) -> str:
        codes = weights.low if weights.bits == 4 else weights.in_bytes
        rows, columns = weights.codes.shape
        return self._onnx.node(
            "MatMulNBits",
            [x, self._onnx.weight(f"{name}.q", codes), self._onnx.weight(f"{name}.d", weights.d)],
            result=result,
            domain=MICROSOFT,
            N=rows,
            K=columns,
            bits=4 if weights.bits == 4 else 8,
            block_size=weights.block,
            accuracy_level=self._accuracy_level,
        )

    def _transposed(self, name: str, weights: Float) -> str:
        return self._onnx.weight(name, np.ascontiguousarray(weights.T))

    def _block_sums(self, x: str, block: int) -> str:
        name = f"{x}.sums_of_{block}"
        if name not in self._sums:
            self._sums.add(name)
            into = self._onnx.weight(f"into_{block}", np.array([0, 0, -1, block], np.int64))
            last_axis = self._onnx.weight("last_axis", np.array([-1], np.int64))
            parts = self._onnx.node("Reshape", [x, into])
            self._onnx.node("ReduceSum", [parts, last_axis], result=name, keepdims=0)
        return name
