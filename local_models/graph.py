"""Build a llama-family decoder as an ONNX graph from a GGUF file, and keep it beside the model.

The graph takes ``input_ids`` [batch, tokens] with a key-value cache that the caller owns, and
gives the ``logits`` of each row's last token. Two forms of the same arithmetic: ONNX Runtime's
own operators, and our fused ones (domain ``tollhouse``). Knows GGUF's tensor names and ONNX; does
not know sessions, tokens or requests.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from local_models import quantize
from local_models.gguf import GgufFile
from local_models.messages import InvalidModel, ModelUnavailable
from local_models.quantize import Q4, Q8, Matrix

CONVERTER_VERSION = 2
"""Raise it when the same GGUF file must give another graph: every cached graph is then rebuilt."""

BLOCK = quantize.BLOCK
MICROSOFT, TOLLHOUSE = "com.microsoft", "tollhouse"
GRAPHS_MAX = 6
"""Graphs kept beside a model, the newest; one takes about as much room as the model."""

_INLINE_BYTES_MAX = 1024
_ALIGNMENT_BYTES = 4096  # ONNX Runtime maps external weights by page.


class Shape(msgspec.Struct, frozen=True):
    """A decoder's dimensions, as its GGUF metadata state them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    context_tokens: int
    rope_base: float
    epsilon: float


class Options(msgspec.Struct, frozen=True):
    """What of the graph can be chosen. accuracy_level: 1 float activations, 4 int8 activations.

    pairs: a token that is computed alone has a row of zeros for company, because on some CPUs
    ONNX Runtime's loop for one row gives other bits than its loop for many.
    """

    accuracy_level: int = 4
    fused: bool = False
    context_tokens: int = 2048
    pairs: bool = False


def read_shape(gguf: GgufFile) -> Shape:
    """The decoder's dimensions. Raises InvalidModel for another family or missing metadata."""
    family = gguf.metadata.get("general.architecture")
    if family != "llama":
        raise InvalidModel(f"models of the family {family!r} are not supported, only llama")

    def number(key: str) -> Any:
        value = gguf.metadata.get(f"llama.{key}")
        if not isinstance(value, int | float) or value <= 0:
            raise InvalidModel(f"the model's metadata lack a positive llama.{key}")
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or embedding.shape[-1] != width or width % heads:
        raise InvalidModel("the model's embedding does not fit its metadata")
    return Shape(
        layers=number("block_count"),
        width=width,
        heads=heads,
        kv_heads=number("attention.head_count_kv"),
        head_dim=width // heads,
        feed_forward=number("feed_forward_length"),
        vocabulary=embedding.shape[0],
        context_tokens=number("context_length"),
        rope_base=float(gguf.metadata.get("llama.rope.freq_base", 10000.0)),
        epsilon=float(number("attention.layer_norm_rms_epsilon")),
    )


def can_be_fused(gguf: GgufFile) -> bool:
    """Whether every matrix of the decoder's blocks has the 4-bit form the fused operators take."""
    blocks = (tensor for name, tensor in gguf.tensors.items() if name.startswith("blk."))
    return all(tensor.type in ("Q4_0", "Q4_1") for tensor in blocks if len(tensor.shape) == 2)


def ensure_graph(gguf_path: Path, options: Options) -> Path:
    """Path of the model's ONNX graph, built when there is none for this file and these options.

    Graphs lie in ``graphs/`` beside the file, each in a folder named by what it was made from;
    a folder appears complete or not at all. Raises InvalidModel, or ModelUnavailable when it
    cannot be written.
    """
    made_from = hashlib.sha256(f"{CONVERTER_VERSION} {options}".encode())
    with gguf_path.open("rb") as file:
        made_from.update(hashlib.file_digest(file, "sha256").digest())
    folder = gguf_path.parent / "graphs" / made_from.hexdigest()[:16]
    if not folder.is_dir():
        try:
            _build(gguf_path, options, folder)
        except OSError as error:
            raise ModelUnavailable(f"the graph cannot be kept in {folder}: {error}") from error
    return folder / "model.onnx"


def _build(gguf_path: Path, options: Options, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        _Builder(GgufFile(gguf_path), options).write(scratch)
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():  # Another process may have been faster; its graph is ours.
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # Also what a killed process left half-built; a graph in use stays mapped until it is closed.
    built = sorted(folder.parent.iterdir(), key=_changed_ns, reverse=True)
    for old in built[GRAPHS_MAX:]:
        shutil.rmtree(old, ignore_errors=True)


def _changed_ns(path: Path) -> int:
    """When a folder was last changed; 0 where somebody has just removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class _Builder:
    """Collects nodes and weights. Methods append to the graph and return their result's name."""

    def __init__(self, gguf: GgufFile, options: Options) -> None:
        self._gguf = gguf
        self._options = options
        self._shape = read_shape(gguf)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, npt.NDArray[Any]] = {}
        self._sums: set[str] = set()
        self._outputs: list[onnx.ValueInfoProto] = []
        self._inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("last_positions", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("total_tokens", TensorProto.INT32, []),
        ]

    def write(self, folder: Path) -> None:
        """Write ``model.onnx`` and ``weights.bin``."""
        self._decoder()
        initializers = _store_weights(self._weights, folder / "weights.bin")
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, initializer=initializers
        )
        opsets = [("", 18), (MICROSOFT, 1), (TOLLHOUSE, 1)]
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=10
        )
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    def _decoder(self) -> None:
        shape, context = self._shape, self._options.context_tokens
        embedding = self._matrix("token_embd.weight", shape.vocabulary, shape.width)
        positions = np.arange(context, dtype=np.float64)
        speed = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
        self._weight("cos", np.cos(np.outer(positions, speed)).astype(np.float32))
        self._weight("sin", np.sin(np.outer(positions, speed)).astype(np.float32))
        x, skip = self._paired(self._embed(embedding), "input_ids"), ""
        for layer in range(shape.layers):
            x, skip = self._layer(layer, x, skip)
        # Only the last token's logits are wanted: the head is a third of all the weights.
        self._weight("last", np.array([-1], np.int64))
        last, last_skip = (
            self._node("Gather", [self._unpaired(name, "input_ids"), "last"], axis=1)
            for name in (x, skip)
        )
        h, _ = self._norm(last, last_skip, "output_norm.weight")
        head = embedding
        if "output.weight" in self._gguf.tensors:
            head = self._matrix("output.weight", shape.vocabulary, shape.width)
        # ONNX Runtime's operators for other heads have one loop for any number of rows.
        if self._options.pairs and isinstance(head, Q4):
            product = self._linear(self._paired(h, last), "head", head)
            self._unpaired(product, last, result="logits")
        else:
            self._linear(h, "head", head, result="logits")
        logits: list[str | int | None] = ["batch", 1, shape.vocabulary]
        value = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits)
        self._outputs.insert(0, value)

    def _layer(self, layer: int, x: str, skip: str) -> tuple[str, str]:
        shape, block = self._shape, f"blk.{layer}"
        if self._options.fused:
            qkv, residual = self._fused_norm(
                "RmsNormMatMulQ4", x, skip, f"{block}.attn_norm.weight", [self._qkv(block)], "N"
            )
        else:
            h, residual = self._norm(x, skip, f"{block}.attn_norm.weight")
            qkv = self._linear(h, f"{block}.qkv", self._qkv(block))
        seen = self._attention(layer, qkv)
        output = self._matrix(f"{block}.attn_output.weight", shape.width, shape.width)
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
            gated = self._node("QuickGelu", [gated], domain=MICROSOFT, alpha=1.0)
            hidden = self._node("Mul", [gated, self._linear(h, f"{block}.up", up)])
        down = self._matrix(f"{block}.ffn_down.weight", shape.width, shape.feed_forward)
        return residual, self._linear(hidden, f"{block}.ffn_down", down)

    def _qkv(self, block: str) -> Matrix:
        shape = self._shape
        parts = []
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            part = self._matrix(f"{block}.attn_{name}.weight", heads * shape.head_dim, shape.width)
            if name != "v":
                part = quantize.rows(part, quantize.half_split_order(heads, shape.head_dim))
            parts.append(part)
        stacked = quantize.stacked(parts)
        if stacked is None:
            raise InvalidModel(f"{block}: query, key and value weights differ in precision")
        return stacked

    def _attention(self, layer: int, qkv: str) -> str:
        shape = self._shape
        context = self._options.context_tokens
        cache: list[str | int | None] = ["batch", shape.kv_heads, context, shape.head_dim]
        names = {way: [f"{way}.{layer}.{what}" for what in ("key", "value")] for way in _WAYS}
        for way, values in zip(_WAYS, (self._inputs, self._outputs), strict=True):
            values += [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in names[way]
            ]
        qkv = self._unpaired(qkv, "input_ids")
        inputs = [qkv, "", "", *names["past"], "last_positions", "total_tokens", "cos", "sin"]
        seen = f"blk.{layer}.seen"
        node = helper.make_node(
            "GroupQueryAttention",
            inputs,
            [seen, *names["present"]],
            domain=MICROSOFT,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        self._nodes.append(node)
        return self._paired(seen, "input_ids")

    def _paired(self, x: str, like: str) -> str:
        """x [batch, tokens, width] as [1, rows, width] of two rows or more, where that is wanted.

        like: any tensor whose first two dimensions are x's.
        """
        if not self._options.pairs:
            return x
        one_by = self._weight("one_by", np.array([1, -1, self._shape.width], np.int64))
        rows = self._node("Reshape", [x, one_by])
        return self._node("Concat", [rows, self._company(like)], axis=1)

    def _unpaired(self, x: str, like: str, result: str | None = None) -> str:
        """Undo ``_paired``, for rows of any width.

        ONNX Runtime computes once what is the same for every layer.
        """
        if not self._options.pairs:
            return x
        first, axis = (self._weight(f"{n}", np.array([n], np.int64)) for n in (0, 1))
        real = self._node("Slice", [x, first, self._row_count(like), axis])
        rest = self._weight("rest", np.array([-1], np.int64))
        shape = self._node("Concat", [self._extents(like), rest], axis=0)
        return self._node("Reshape", [real, shape], result=result)

    def _company(self, like: str) -> str:
        """The zeros [1, 0 or 1, width] that make two rows of one."""
        two = self._weight("two", np.array([2], np.int64))
        none, one = (self._weight(f"{n}", np.array([n], np.int64)) for n in (0, 1))
        missing = self._node("Sub", [two, self._row_count(like)])
        missing = self._node("Max", [missing, none])
        width = self._weight("width", np.array([self._shape.width], np.int64))
        shape = self._node("Concat", [one, missing, width], axis=0)
        return self._node("ConstantOfShape", [shape])

    def _row_count(self, like: str) -> str:
        return self._node("ReduceProd", [self._extents(like)], keepdims=1)

    def _extents(self, like: str) -> str:
        return self._node("Shape", [like], start=0, end=2)

    def _embed(self, embedding: Matrix) -> str:
        if isinstance(embedding, Q8):
            width = embedding.q.shape[1] * embedding.q.shape[2]
            codes = self._weight("embedding.q", embedding.q.reshape(-1, width))
            scales = self._weight("embedding.d", embedding.d)
            return self._node(
                "GatherBlockQuantized",
                [codes, "input_ids", scales],
                domain=MICROSOFT,
                bits=8,
                block_size=BLOCK,
                gather_axis=0,
                quantize_axis=1,
            )
        table = self._gguf.tensors["token_embd.weight"].dequantized()
        return self._node("Gather", [self._weight("embedding", table), "input_ids"], axis=0)

    def _norm(self, x: str, skip: str, gain: str) -> tuple[str, str]:
        epsilon = self._shape.epsilon
        self._vector(gain)
        if not skip:
            return self._node("SimplifiedLayerNormalization", [x, gain], epsilon=epsilon), x
        h, residual = f"{gain}.h", f"{gain}.residual"
        node = helper.make_node(
            "SkipSimplifiedLayerNormalization",
            [x, skip, gain],
            [h, "", "", residual],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        self._nodes.append(node)
        return h, residual

    def _fused_norm(
        self, op: str, x: str, skip: str, gain: str, parts: list[Matrix], size_name: str
    ) -> tuple[str, str]:
        self._vector(gain)
        inputs, size = [x, skip, gain], 0
        for number, part in enumerate(parts):
            if not isinstance(part, Q4):
                raise InvalidModel("the fused operators take 4-bit weights only")
            inputs += self._q4(f"{gain}.{number}", part)
            size = part.q.shape[0]
        y, residual = f"{gain}.y", f"{gain}.residual"
        node = helper.make_node(
            op,
            inputs,
            [y, residual],
            domain=TOLLHOUSE,
            K=self._shape.width,
            epsilon=self._shape.epsilon,
            accuracy_level=self._options.accuracy_level,
        )
        node.attribute.append(helper.make_attribute(size_name, size))
        self._nodes.append(node)
        return y, residual

    def _linear(self, x: str, name: str, weights: Matrix, result: str | None = None) -> str:
        if isinstance(weights, Q4):
            if self._options.fused:
                inputs = [x, *self._q4(name, weights)]
                return self._matmul("MatMulQ4", TOLLHOUSE, inputs, weights.q, result)
            return self._linear_q4(x, name, weights, result)
        if isinstance(weights, Q8) and self._options.accuracy_level == 1:
            # ONNX Runtime has no fast kernel for 8-bit weights with float activations: 176 ms for
            # a head of 49,152 x 576, 2.5 as floats (two threads, fastest of 30, busy machine).
            weights = weights.dequantized()
        if isinstance(weights, Q8):
            inputs = [
                x,
                self._weight(f"{name}.q", weights.q),
                self._weight(f"{name}.d", weights.d),
            ]
            return self._matmul("MatMulNBits", MICROSOFT, inputs, weights.q, result, bits=8)
        transposed = self._weight(name, np.ascontiguousarray(weights.T))
        return self._node("MatMul", [x, transposed], result=result)

    def _linear_q4(self, x: str, name: str, weights: Q4, result: str | None) -> str:
        """MatMulNBits with its default zero point 8, plus what that leaves out.

        W = d * (code - 8) + correction, and the correction is one number in a block of 32, so
        its product needs x's block sums only: exact, and 1/32 of the work. Float zero points
        would be as exact but leave the fast kernels: 1,420 against 73 microseconds (fp32, one
        row, one thread, 1536 x 576).
        """
        q, d, correction = weights.q, weights.d, weights.correction
        inputs = [x, self._weight(f"{name}.q", q), self._weight(f"{name}.d", d)]
        if not correction.any():
            return self._matmul("MatMulNBits", MICROSOFT, inputs, q, result, bits=4)
        centred = self._matmul("MatMulNBits", MICROSOFT, inputs, q, None, bits=4)
        transposed = self._weight(f"{name}.correction", np.ascontiguousarray(correction.T))
        rest = self._node("MatMul", [self._block_sums(x), transposed])
        return self._node("Add", [centred, rest], result=result)

    def _block_sums(self, x: str) -> str:
        name = f"{x}.block_sums"
        if name not in self._sums:
            self._sums.add(name)
            into_blocks = self._weight("into_blocks", np.array([0, 0, -1, BLOCK], np.int64))
            last_axis = self._weight("last_axis", np.array([-1], np.int64))
            blocks = self._node("Reshape", [x, into_blocks])
            self._node("ReduceSum", [blocks, last_axis], result=name, keepdims=0)
        return name

    def _matmul(
        self,
        op: str,
        domain: str,
        inputs: list[str],
        q: npt.NDArray[np.uint8],
        result: str | None,
        bits: int | None = None,
    ) -> str:
        attributes = {"N": q.shape[0], "K": q.shape[1] * BLOCK}
        if bits is not None:
            attributes |= {"bits": bits, "block_size": BLOCK}
        level = self._options.accuracy_level
        return self._node(
            op, inputs, result=result, domain=domain, accuracy_level=level, **attributes
        )

    def _q4(self, name: str, weights: Q4) -> list[str]:
        parts = (("q", weights.q), ("d", weights.d), ("m", weights.m))
        return [self._weight(f"{name}.{part}", array) for part, array in parts]

    def _matrix(self, name: str, rows: int, columns: int) -> Matrix:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (rows, columns):
            raise InvalidModel(f"the model has no tensor {name} of shape {rows} x {columns}")
        return quantize.matrix(tensor)

    def _vector(self, name: str) -> str:
        tensor = self._gguf.tensors.get(name)
        if tensor is None or tensor.shape != (self._shape.width,):
            raise InvalidModel(f"the model has no tensor {name} of length {self._shape.width}")
        return self._weight(name, tensor.dequantized())

    def _weight(self, name: str, array: npt.NDArray[Any]) -> str:
        self._weights.setdefault(name, array)
        return name

    def _node(
        self,
        op: str,
        inputs: list[str],
        *,
        result: str | None = None,
        domain: str = "",
        **attributes: int | float,
    ) -> str:
        result = result or f"{op}.{len(self._nodes)}"
        node = helper.make_node(op, inputs, [result], domain=domain)
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in attributes)
        self._nodes.append(node)
        return result


_WAYS = ("past", "present")


def _store_weights(weights: dict[str, npt.NDArray[Any]], path: Path) -> list[onnx.TensorProto]:
    """Write the arrays into one file by page and return the tensors that point into it."""
    tensors = []
    with path.open("wb") as file:
        for name, array in weights.items():
            tensor = TensorProto(name=name, dims=array.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            if array.nbytes <= _INLINE_BYTES_MAX:
                tensor.raw_data = array.tobytes()
            else:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": path.name, "offset": file.tell(), "length": array.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                file.write(np.ascontiguousarray(array).data)
            tensors.append(tensor)
    return tensors
