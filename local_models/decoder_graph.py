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
from local_models.blocks import BLOCK_TYPES
from local_models.family import read_shape
from local_models.fused_products import FusedProducts, can_be_fused
from local_models.gguf import GgufFile, Tensor
from local_models.messages import InvalidModel
from local_models.onnx_builder import MICROSOFT, OnnxBuilder
from local_models.products import Products
from local_models.quantize import Float, Order

_WAYS = ("past", "present")


class Options(msgspec.Struct, frozen=True):
    """What of the graph can be chosen. accuracy_level: 1 float activations, 4 int8 activations.

    pairs: a token that is computed alone has a row of zeros for company, because on some CPUs
    ONNX Runtime's loop for one row gives other bits than its loop for many. half_cache: attention
    in half precision, the only one that ONNX Runtime has on a GPU.
    """

    accuracy_level: int = 4
    fused: bool = False
    context_tokens: int = 2048
    pairs: bool = False
    half_cache: bool = False


class DecoderGraph:
    """Builds one graph. Methods append to it and return their result's name.

    source: the path of gguf; the graph's folder links to it, and the fused operators' weights are
    read there.
    """

    def __init__(self, gguf: GgufFile, options: Options, folder: Path, source: Path) -> None:
        self._gguf = gguf
        self._options = options
        self._shape = read_shape(gguf)
        self._onnx = OnnxBuilder(folder, source)
        self._plain = Products(self._onnx, options.accuracy_level)
        self._fused = FusedProducts(self._onnx, options.accuracy_level)

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
        h, _ = self._norm(last, last_skip, self._gain("output_norm.weight"))
        own = "output.weight" if "output.weight" in self._gguf.tensors else "token_embd.weight"
        head = self._matrix(own, shape.vocabulary, shape.width)
        if self._options.pairs and head.type in BLOCK_TYPES:
            product = self._linear(self._paired(h, last), head)
            self._unpaired(product, last, result="logits")
        else:
            self._linear(h, head, result="logits")

    def _rotary_tables(self) -> None:
        shape = self._shape
        speed = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        if "rope_freqs.weight" in self._gguf.tensors:  # Some llamas turn their slow pairs slower.
            speed /= self._floats("rope_freqs.weight", len(speed))
        angle = np.outer(np.arange(self._options.context_tokens, dtype=np.float64), speed)
        dtype = np.float16 if self._options.half_cache else np.float32
        self._onnx.weight("cos", np.cos(angle).astype(dtype))
        self._onnx.weight("sin", np.sin(angle).astype(dtype))

    def _embed(self) -> str:
        table = self._matrix("token_embd.weight", self._shape.vocabulary, self._shape.width)
        if self._is_fused(table):
            return self._fused.embed(table, "input_ids")
        return self._plain.embed("embedding", quantize.matrix(table), "input_ids")

    def _layer(self, layer: int, x: str, skip: str) -> tuple[str, str]:
        shape, block = self._shape, f"blk.{layer}"
        qkv, residual = self._qkv(block, x, skip)
        seen = self._attention(layer, qkv)
        output = self._matrix(
            f"{block}.attn_output.weight", shape.width, shape.heads * shape.head_dim
        )
        attended = self._linear(seen, output)
        gate, up = (
            self._matrix(f"{block}.ffn_{name}.weight", shape.feed_forward, shape.width)
            for name in ("gate", "up")
        )
        gain = self._gain(f"{block}.ffn_norm.weight")
        if self._is_fused(gate, up):
            hidden, residual = self._fused.norm_swiglu(
                residual, attended, gain, gate, up, shape.epsilon
            )
        else:
            h, residual = self._norm(residual, attended, gain)
            # QuickGelu is x * sigmoid(alpha * x): with alpha 1 it is SiLU, in one pass.
            gated = self._onnx.node(
                "QuickGelu", [self._linear(h, gate)], domain=MICROSOFT, alpha=1.0
            )
            hidden = self._onnx.node("Mul", [gated, self._linear(h, up)])
        down = self._matrix(f"{block}.ffn_down.weight", shape.width, shape.feed_forward)
        return residual, self._linear(hidden, down)

    def _qkv(self, block: str, x: str, skip: str) -> tuple[str, str]:
        """Queries, keys and values of the normalised rows, side by side; and the residual."""
        shape = self._shape
        gain = self._gain(f"{block}.attn_norm.weight")
        parts: list[tuple[Tensor, Order | None]] = []
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            size = heads * shape.head_dim
            order = None
            if name != "v" and not shape.half_split:
                order = quantize.half_split_order(heads, shape.head_dim)
            parts.append((self._matrix(f"{block}.attn_{name}.weight", size, shape.width), order))
        bias = self._qkv_bias(block, parts)
        if self._is_fused(*(tensor for tensor, _ in parts)):
            return self._fused.norm_linear(x, skip, gain, parts, bias, shape.epsilon)
        h, residual = self._norm(x, skip, gain)
        matrices = [
            weights if order is None else quantize.rows(weights, order)
            for weights, order in ((quantize.matrix(tensor), order) for tensor, order in parts)
        ]
        products = [
            self._plain.linear(h, f"{block}.qkv.{number}", weights)
            for number, weights in enumerate(quantize.stacked(matrices))
        ]
        qkv = products[0] if len(products) == 1 else self._onnx.node("Concat", products, axis=-1)
        if bias is not None:
            qkv = self._onnx.node("Add", [qkv, self._onnx.weight(f"{block}.qkv.bias", bias)])
        return qkv, residual

    def _qkv_bias(self, block: str, parts: list[tuple[Tensor, Order | None]]) -> Float | None:
        """The three biases, in their rows' order; None where the file has none."""
        biases = []
        for name, (tensor, order) in zip("qkv", parts, strict=True):
            bias = np.zeros(tensor.shape[0], np.float32)
            if f"{block}.attn_{name}.bias" in self._gguf.tensors:
                bias = self._floats(f"{block}.attn_{name}.bias", len(bias))
            biases.append(bias if order is None else bias[order])
        bias = np.concatenate(biases)
        return bias if bias.any() else None

    def _attention(self, layer: int, qkv: str) -> str:
        shape, onnx = self._shape, self._onnx
        context = self._options.context_tokens
        cache: list[str | int] = ["batch", shape.kv_heads, context, shape.head_dim]
        kind = TensorProto.FLOAT16 if self._options.half_cache else TensorProto.FLOAT
        names = {way: [f"{way}.{layer}.{what}" for what in ("key", "value")] for way in _WAYS}
        for way, values in zip(_WAYS, (onnx.inputs, onnx.outputs), strict=True):
            values += [onnx.value(name, kind, cache) for name in names[way]]
        qkv = self._unpaired(qkv, "input_ids")
        if self._options.half_cache:
            qkv = onnx.node("Cast", [qkv], to=TensorProto.FLOAT16)
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
        if self._options.half_cache:
            seen = onnx.node("Cast", [seen], to=TensorProto.FLOAT)
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

    def _is_fused(self, *tensors: Tensor) -> bool:
        return self._options.fused and all(can_be_fused(tensor) for tensor in tensors)

    def _linear(self, x: str, weights: Tensor, result: str | None = None) -> str:
        if self._is_fused(weights):
            return self._fused.linear(x, weights, result)
        return self._plain.linear(x, f"{weights.name}.T", quantize.matrix(weights), result)

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (rows, columns):
            raise InvalidModel(f"the model has no tensor {name} of shape {rows} x {columns}")
        kind = BLOCK_TYPES.get(tensor.type)
        if self._options.fused and kind is not None:
            quantize.scales(tensor, kind)  # Our operators read the file's own bytes.
        return tensor

    def _gain(self, name: str) -> str:
        return self._onnx.weight(name, self._floats(name, self._shape.width))

    def _floats(self, name: str, length: int) -> Float:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (length,):
            raise InvalidModel(f"the model has no tensor {name} of length {length}")
        return quantize.finite(name, tensor.dequantized())
