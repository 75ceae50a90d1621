"""A llama or qwen2 decoder as an ONNX graph.

The graph takes ``input_ids`` [batch, tokens] with a key-value cache that the caller owns, and
gives the ``logits`` of each row's last token. Two forms of the same arithmetic: ONNX Runtime's
own operators, and our fused ones (domain ``tollhouse``). Knows GGUF's tensor names and ONNX; does
not know sessions, tokens or requests.
"""

from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto

from local_models import quantize
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.messages import InvalidModel
from local_models.onnx_builder import MICROSOFT, TOLLHOUSE, OnnxBuilder
from local_models.products import Products
from local_models.quantize import Float, Matrix, Quantized

_WAYS = ("past", "present")


class Options(msgspec.Struct, frozen=True):
    """What of the graph can be chosen. accuracy_level: 1 float activations, 4 int8 activations.

    pairs: a token that is computed alone has a row of zeros for company, because on some CPUs
    ONNX Runtime's loop for one row gives other bits than its loop for many.
    """

    accuracy_level: int = 4
    fused: bool = False
    context_tokens: int = 2048
    pairs: bool = False


class DecoderGraph:
    """Builds one graph. Methods append to it and return their result's name."""

    def __init__(self, gguf: GgufFile, options: Options, folder: Path) -> None:
        self._gguf = gguf
        self._options = options
        self._shape = read_shape(gguf)
        self._onnx = OnnxBuilder(folder)
        self._products = Products(self._onnx, options.accuracy_level)

    def write(self) -> None:
        """Write ``model.onnx`` and ``weights.bin`` into the folder. Raises InvalidModel."""
        try:
            self._decoder()
            self._onnx.write("decoder")
        finally:
            self._onnx.close()

    def _decoder(self) -> None:
        shape, onnx = self._shape, self._onnx
        onnx.inputs += [
            onnx.value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            onnx.value("last_positions", TensorProto.INT32, ["batch"]),
            onnx.value("total_tokens", TensorProto.INT32, []),
        ]
        onnx.outputs.append(onnx.value("logits", TensorProto.FLOAT, ["batch", 1, shape.vocabulary]))
        self._rotary_tables()
        x, skip = self._paired(self._embed(), "input_ids"), ""
        for layer in range(shape.layers):
            x, skip = self._layer(layer, x, skip)
        # Only the last token's logits are wanted: the head is a third of all the weights.
        onnx.weight("last", np.array([-1], np.int64))
        last, last_skip = (
            onnx.node("Gather", [self._unpaired(name, "input_ids"), "last"], axis=1)
            for name in (x, skip)
        )
        h, _ = self._norm(last, last_skip, "output_norm.weight")
        own = "output.weight" if "output.weight" in self._gguf.tensors else "token_embd.weight"
        head = self._matrix(own, shape.vocabulary, shape.width)
        if self._options.pairs and isinstance(head, Quantized):
            product = self._linear(self._paired(h, last), "head", head)
            self._unpaired(product, last, result="logits")
        else:
            self._linear(h, "head", head, result="logits")

    def _rotary_tables(self) -> None:
        shape = self._shape
        speed = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        if "rope_freqs.weight" in self._gguf.tensors:  # Some llamas turn their slow pairs slower.
            speed /= self._floats("rope_freqs.weight", len(speed))
        angle = np.outer(np.arange(self._options.context_tokens, dtype=np.float64), speed)
        self._onnx.weight("cos", np.cos(angle).astype(np.float32))
        self._onnx.weight("sin", np.sin(angle).astype(np.float32))

    def _embed(self) -> str:
        table = self._matrix("token_embd.weight", self._shape.vocabulary, self._shape.width)
        return self._products.embed("embedding", table, "input_ids")

    def _layer(self, layer: int, x: str, skip: str) -> tuple[str, str]:
        shape, block = self._shape, f"blk.{layer}"
        qkv, residual = self._qkv(block, x, skip)
        seen = self._attention(layer, qkv)
        output = self._matrix(
            f"{block}.attn_output.weight", shape.width, shape.heads * shape.head_dim
        )
        attended = self._linear(seen, f"{block}.attn_output", output)
        gate, up = (
            self._matrix(f"{block}.ffn_{name}.weight", shape.feed_forward, shape.width)
            for name in ("gate", "up")
        )
        if self._options.fused:
            hidden, residual = self._fused_norm(
                "RmsNormSwiGLUQ4", residual, attended, f"{block}.ffn_norm.weight", [gate, up], "F"
            )
        else:
            h, residual = self._norm(residual, attended, f"{block}.ffn_norm.weight")
            gated = self._linear(h, f"{block}.gate", gate)
            # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU, in one pass.
            gated = self._onnx.node("QuickGelu", [gated], domain=MICROSOFT, alpha=1.0)
            hidden = self._onnx.node("Mul", [gated, self._linear(h, f"{block}.up", up)])
        down = self._matrix(f"{block}.ffn_down.weight", shape.width, shape.feed_forward)
        return residual, self._linear(hidden, f"{block}.ffn_down", down)

    def _qkv(self, block: str, x: str, skip: str) -> tuple[str, str]:
        """Queries, keys and values of the normalised rows, side by side; and the residual."""
        weights, bias = self._qkv_weights(block)
        gain = f"{block}.attn_norm.weight"
        if self._options.fused and len(weights) == 1:
            qkv, residual = self._fused_norm("RmsNormMatMulQ4", x, skip, gain, weights, "N")
        else:
            h, residual = self._norm(x, skip, gain)
            parts = [
                self._linear(h, f"{block}.qkv.{number}", part)
                for number, part in enumerate(weights)
            ]
            qkv = parts[0] if len(parts) == 1 else self._onnx.node("Concat", parts, axis=-1)
        if bias is not None:
            qkv = self._onnx.node("Add", [qkv, self._onnx.weight(f"{block}.qkv.bias", bias)])
        return qkv, residual

    def _qkv_weights(self, block: str) -> tuple[list[Matrix], Float | None]:
        """The three matrices on top of each other, and their biases where the file has any."""
        shape = self._shape
        parts: list[Matrix] = []
        biases = []
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            size = heads * shape.head_dim
            part = self._matrix(f"{block}.attn_{name}.weight", size, shape.width)
            bias = np.zeros(size, np.float32)
            if f"{block}.attn_{name}.bias" in self._gguf.tensors:
                bias = self._floats(f"{block}.attn_{name}.bias", size)
            if name != "v" and not shape.half_split:
                order = quantize.half_split_order(heads, shape.head_dim)
                part, bias = quantize.rows(part, order), bias[order]
            parts.append(part)
            biases.append(bias)
        bias = np.concatenate(biases)
        return quantize.stacked(parts), bias if bias.any() else None

    def _attention(self, layer: int, qkv: str) -> str:
        shape, onnx = self._shape, self._onnx
        context = self._options.context_tokens
        cache: list[str | int] = ["batch", shape.kv_heads, context, shape.head_dim]
        names = {way: [f"{way}.{layer}.{what}" for what in ("key", "value")] for way in _WAYS}
        for way, values in zip(_WAYS, (onnx.inputs, onnx.outputs), strict=True):
            values += [onnx.value(name, TensorProto.FLOAT, cache) for name in names[way]]
        qkv = self._unpaired(qkv, "input_ids")
        seen = onnx.node(
            "GroupQueryAttention",
            [qkv, "", "", *names["past"], "last_positions", "total_tokens", "cos", "sin"],
            results=[f"blk.{layer}.seen", *names["present"]],
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self._paired(seen, "input_ids")

    def _paired(self, x: str, like: str) -> str:
        """x [batch, tokens, width] as [1, rows, width] of two rows or more, where that is wanted.

        like: any tensor whose first two dimensions are x's.
        """
        if not self._options.pairs:
            return x
        one_by = self._onnx.weight("one_by", np.array([1, -1, self._shape.width], np.int64))
        rows = self._onnx.node("Reshape", [x, one_by])
        return self._onnx.node("Concat", [rows, self._company(like)], axis=1)

    def _unpaired(self, x: str, like: str, result: str | None = None) -> str:
        """Undo ``_paired``, for rows of any width.

        ONNX Runtime computes once what is the same for every layer.
        """
        if not self._options.pairs:
            return x
        first, axis = (self._onnx.weight(f"{n}", np.array([n], np.int64)) for n in (0, 1))
        real = self._onnx.node("Slice", [x, first, self._row_count(like), axis])
        rest = self._onnx.weight("rest", np.array([-1], np.int64))
        shape = self._onnx.node("Concat", [self._extents(like), rest], axis=0)
        return self._onnx.node("Reshape", [real, shape], result=result)

    def _company(self, like: str) -> str:
        """The zeros [1, 0 or 1, width] that make two rows of one."""
        two = self._onnx.weight("two", np.array([2], np.int64))
        none, one = (self._onnx.weight(f"{n}", np.array([n], np.int64)) for n in (0, 1))
        missing = self._onnx.node("Sub", [two, self._row_count(like)])
        missing = self._onnx.node("Max", [missing, none])
        width = self._onnx.weight("width", np.array([self._shape.width], np.int64))
        shape = self._onnx.node("Concat", [one, missing, width], axis=0)
        return self._onnx.node("ConstantOfShape", [shape])

    def _row_count(self, like: str) -> str:
        return self._onnx.node("ReduceProd", [self._extents(like)], keepdims=1)

    def _extents(self, like: str) -> str:
        return self._onnx.node("Shape", [like], start=0, end=2)

    def _norm(self, x: str, skip: str, gain: str) -> tuple[str, str]:
        epsilon = self._shape.epsilon
        self._gain(gain)
        if not skip:
            return self._onnx.node("SimplifiedLayerNormalization", [x, gain], epsilon=epsilon), x
        h, residual = f"{gain}.h", f"{gain}.residual"
        self._onnx.node(
            "SkipSimplifiedLayerNormalization",
            [x, skip, gain],
            results=[h, "", "", residual],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return h, residual

    def _fused_norm(
        self, op: str, x: str, skip: str, gain: str, parts: list[Matrix], size_name: str
    ) -> tuple[str, str]:
        self._gain(gain)
        inputs, size = [x, skip, gain], 0
        for number, part in enumerate(parts):
            if not isinstance(part, Quantized) or part.bits != 4:
                raise InvalidModel("the fused operators take 4-bit weights only")
            inputs += self._q4(f"{gain}.{number}", part)
            size = len(part.codes)
        y, residual = f"{gain}.y", f"{gain}.residual"
        self._onnx.node(
            op,
            inputs,
            results=[y, residual],
            domain=TOLLHOUSE,
            K=self._shape.width,
            epsilon=self._shape.epsilon,
            accuracy_level=self._options.accuracy_level,
            attributes={size_name: size},
        )
        return y, residual

    def _linear(self, x: str, name: str, weights: Matrix, result: str | None = None) -> str:
        if not self._options.fused or not isinstance(weights, Quantized) or weights.bits != 4:
            return self._products.linear(x, name, weights, result)
        rows, columns = weights.codes.shape
        return self._onnx.node(
            "MatMulQ4",
            [x, *self._q4(name, weights)],
            result=result,
            domain=TOLLHOUSE,
            accuracy_level=self._options.accuracy_level,
            N=rows,
            K=columns,
        )

    def _q4(self, name: str, weights: Quantized) -> list[str]:
        parts = (("q", weights.low), ("d", weights.d), ("m", weights.offsets))
        return [self._onnx.weight(f"{name}.{part}", array) for part, array in parts]

    def _matrix(self, name: str, rows: int, columns: int) -> Matrix:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (rows, columns):
            raise InvalidModel(f"the model has no tensor {name} of shape {rows} x {columns}")
        return quantize.matrix(tensor)

    def _gain(self, name: str) -> str:
        return self._onnx.weight(name, self._floats(name, self._shape.width))

    def _floats(self, name: str, length: int) -> Float:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (length,):
            raise InvalidModel(f"the model has no tensor {name} of length {length}")
        return tensor.dequantized()
