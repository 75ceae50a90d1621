"""A BERT sentence encoder as an ONNX graph, made from its weights without torch.

    input_ids int64 [batch, tokens], lengths int32 [batch]  →  embeddings float32 [batch, width]

Mean pooling over the first ``lengths`` tokens and L2 normalisation are part of the graph. Knows
ONNX and arithmetic. Does not know tokenizers, files or sessions.

Quantized linear layers ("int8") are per-row × per-channel:

    y = (quantize(x / smooth + shift) · W8) · row_scale · channel_scale + bias

- A row of activations has its own scale, so a text's vector does not depend on its neighbours in
  the batch; ONNX Runtime's dynamic quantization takes one scale for all of them.
- ``smooth`` moves outlier channels of x into W, where they cost nothing (Xiao et al. 2022,
  SmoothQuant, with alpha 0.5), and needs the ranges that ``linear_inputs`` lets a caller observe.
- GELU's output starts at −0.17: shifted by that, it uses all 8 bits instead of seven.
- ``unsigned`` stores W8 + 128 with that zero point: ONNX Runtime's uint8 × uint8 loops never
  saturate, its uint8 × int8 loops do without VNNI, and with it are 2.3 times as fast. The
  integers, and so the vectors, are the same.
Mean cosine to float32 on 32 unseen texts: 0.993 as ONNX Runtime does it, 0.996 with row scales,
0.999 with all three.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from local_models.encoder_config import EncoderConfig, Precision

Floats = npt.NDArray[np.float32]

_MICROSOFT = "com.microsoft"
_OPSETS = {"": 21, _MICROSOFT: 1}
_IR_VERSION = 10
_GELU_MINIMUM = np.float32(0.17)  # GELU(x) >= -0.16997
_RANGE_FLOOR = np.float32(1e-3)  # a channel that is never active must not become a divisor
_SCALE_FLOOR = np.float32(1e-12)


class _Graph:
    """Nodes and weights under construction."""

    def __init__(self, unsigned: bool) -> None:
        self.unsigned = unsigned
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        return self.nodes_of(op, inputs, [output], **attributes)[0]

    def nodes_of(
        self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs


def build(
    tensor: Callable[[str], Floats],
    config: EncoderConfig,
    *,
    precision: Precision,
    ranges: Mapping[str, Floats] | None = None,
    unsigned: bool = False,
) -> onnx.ModelProto:
    """The encoder as one model. ``tensor`` gives a weight by its name in the checkpoint.

    ranges: the largest magnitude of each input channel of each linear layer, as observed on the
    outputs that ``linear_inputs`` names; "int8" needs it.
    unsigned: how "int8" stores its weights.
    """
    graph = _Graph(unsigned)
    x = _embed(graph, tensor, config, precision)
    for layer in range(config.num_hidden_layers):
        x = _layer(graph, tensor, config, layer, x, ranges if precision == "int8" else None)
    _pool(graph, x)
    return _model(graph, config)


def linear_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Let a float32 model also return what enters its linear layers: layer → name of the output."""
    found = {
        node.input[1].removesuffix(".weight"): node.input[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1].endswith(".weight")
    }
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in {*found.values()} - known
    )
    return found


def _embed(
    graph: _Graph, tensor: Callable[[str], Floats], config: EncoderConfig, precision: Precision
) -> str:
    words = tensor("embeddings.word_embeddings.weight")
    if precision == "float32":
        graph.constant("words", words)
        word = graph.node("Gather", ["words", "input_ids"], "word")
    else:
        # One scale per word: 12 MB instead of 47, and no measurable loss.
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), _RANGE_FLOOR) / np.float32(127)
        graph.constant("words", np.rint(words / scale).astype(np.int8))
        graph.constant("words.scale", scale)
        graph.node("Gather", ["words", "input_ids"], "word.int8")
        graph.node("Cast", ["word.int8"], "word.unscaled", to=TensorProto.FLOAT)
        graph.node("Gather", ["words.scale", "input_ids"], "word.scale")
        word = graph.node("Mul", ["word.unscaled", "word.scale"], "word")
    # Every token is of the first segment, so its embedding is a constant part of the position's.
    positions = tensor("embeddings.position_embeddings.weight")
    graph.constant("positions", positions + tensor("embeddings.token_type_embeddings.weight")[0])
    graph.constant("zero", np.array([0], np.int64))
    graph.node("Shape", ["input_ids"], "tokens", start=1, end=2)
    graph.node("Slice", ["positions", "zero", "tokens"], "position")
    graph.node("Add", [word, "position"], "embedded")
    return _layer_norm(graph, tensor, config, "embeddings.LayerNorm", "embedded")


def _layer(
    graph: _Graph,
    tensor: Callable[[str], Floats],
    config: EncoderConfig,
    layer: int,
    x: str,
    ranges: Mapping[str, Floats] | None,
) -> str:
    prefix = f"encoder.layer.{layer}."

    def linear(name: str, x: str, *sources: str, shift: np.float32 | None = None) -> str:
        weight = np.concatenate([tensor(f"{prefix}{source}.weight") for source in sources])
        bias = np.concatenate([tensor(f"{prefix}{source}.bias") for source in sources])
        name = prefix + name
        if ranges is None:
            return _linear(graph, name, x, weight, bias)
        return _linear_int8(graph, name, x, weight, bias, ranges[name], shift)

    def add_norm(x: str, y: str, name: str) -> str:
        # Not SkipLayerNormalization: its CPU kernel takes 50 µs for 28 tokens, these two 14.
        added = graph.node("Add", [x, y], f"{y}.added")
        return _layer_norm(graph, tensor, config, prefix + name, added)

    qkv = linear("qkv", x, *(f"attention.self.{part}" for part in ("query", "key", "value")))
    parts = [f"{prefix}{part}" for part in "qkv"]
    graph.nodes_of("Split", [qkv], parts, axis=2, num_outputs=3)
    attended = graph.node(
        "MultiHeadAttention",
        [*parts, "", "lengths"],
        f"{prefix}attended",
        domain=_MICROSOFT,
        num_heads=config.num_attention_heads,
    )
    projected = linear("output", attended, "attention.output.dense")
    x = add_norm(x, projected, "attention.output.LayerNorm")
    up = linear("up", x, "intermediate.dense")
    activated = graph.node("Gelu", [up], f"{prefix}activated", domain=_MICROSOFT)
    down = linear("down", activated, "output.dense", shift=_GELU_MINIMUM)
    return add_norm(x, down, "output.LayerNorm")


def _linear(graph: _Graph, name: str, x: str, weight: Floats, bias: Floats) -> str:
    graph.constant(f"{name}.weight", weight.T)
    graph.constant(f"{name}.bias", bias)
    graph.node("MatMul", [x, f"{name}.weight"], f"{name}.product")
    return graph.node("Add", [f"{name}.product", f"{name}.bias"], name)


def _linear_int8(
    graph: _Graph,
    name: str,
    x: str,
    weight: Floats,
    bias: Floats,
    channel_range: Floats,
    shift: np.float32 | None,
) -> str:
    """The module's formula. weight: float32 [out, in]; channel_range: float32 [in]."""
    weight_range = np.maximum(np.abs(weight).max(axis=0), _RANGE_FLOOR)
    smooth = np.sqrt(np.maximum(channel_range, _RANGE_FLOOR) / weight_range)
    smooth /= np.median(smooth)
    smoothed = (weight * smooth).T
    channel_scale = np.maximum(np.abs(smoothed).max(axis=0) / np.float32(127), _SCALE_FLOOR)
    quantized = np.rint(smoothed / channel_scale).astype(np.int8)

    graph.constant(f"{name}.smooth", 1 / smooth)
    x = graph.node("Mul", [x, f"{name}.smooth"], f"{name}.smoothed")
    if shift is None:
        levels, zero_point = 127, 128
        magnitude = graph.node("Abs", [x], f"{name}.magnitude")
    else:
        levels, zero_point = 255, 0
        shifts = shift / smooth
        bias = bias - shifts @ (quantized * channel_scale)
        graph.constant(f"{name}.shift", shifts)
        x = magnitude = graph.node("Add", [x, f"{name}.shift"], f"{name}.shifted")
    graph.constant(f"{name}.last", np.array([-1], np.int64))
    graph.constant(f"{name}.level", np.array(1 / levels, np.float32))
    graph.constant(f"{name}.floor", np.array(_SCALE_FLOOR))
    graph.constant(f"{name}.one", np.array(1, np.float32))
    graph.constant(f"{name}.zero_point", np.array(zero_point, np.uint8))
    if graph.unsigned:
        graph.constant(f"{name}.weight", (quantized.astype(np.int16) + 128).astype(np.uint8))
        graph.constant(f"{name}.weight_zero_point", np.array(128, np.uint8))
    else:
        graph.constant(f"{name}.weight", quantized)
    graph.constant(f"{name}.channel_scale", channel_scale)
    graph.constant(f"{name}.bias", bias)

    graph.node("ReduceMax", [magnitude, f"{name}.last"], f"{name}.row_range", keepdims=1)
    graph.node("Mul", [f"{name}.row_range", f"{name}.level"], f"{name}.row_scale.raw")
    row_scale = graph.node("Max", [f"{name}.row_scale.raw", f"{name}.floor"], f"{name}.row_scale")
    graph.node("Div", [x, row_scale], f"{name}.levels")
    inputs = [f"{name}.levels", f"{name}.one", f"{name}.zero_point"]
    graph.node("QuantizeLinear", inputs, f"{name}.quantized")
    inputs = ["quantized", "weight", "one", "channel_scale", "zero_point"]
    inputs += ["weight_zero_point"] if graph.unsigned else []
    graph.node(
        "MatMulIntegerToFloat",
        [f"{name}.{part}" for part in inputs],
        f"{name}.product",
        domain=_MICROSOFT,
    )
    graph.node("Mul", [f"{name}.product", row_scale], f"{name}.scaled")
    return graph.node("Add", [f"{name}.scaled", f"{name}.bias"], name)


def _layer_norm(
    graph: _Graph, tensor: Callable[[str], Floats], config: EncoderConfig, name: str, x: str
) -> str:
    graph.constant(f"{name}.weight", tensor(f"{name}.weight"))
    graph.constant(f"{name}.bias", tensor(f"{name}.bias"))
    inputs = [x, f"{name}.weight", f"{name}.bias"]
    return graph.node("LayerNormalization", inputs, name, epsilon=config.layer_norm_eps)


def _pool(graph: _Graph, x: str) -> None:
    """Sum the tokens that are no padding, then scale to unit length (so a mean need not divide)."""
    for name, value in (("start", 0), ("step", 1)):
        graph.constant(name, np.array(value, np.int64))
    graph.constant("row", np.array([1], np.int64))
    graph.node("Squeeze", ["tokens"], "count")
    graph.node("Range", ["start", "count", "step"], "index")
    graph.node("Cast", ["lengths"], "lengths.int64", to=TensorProto.INT64)
    graph.node("Unsqueeze", ["lengths.int64", "row"], "limit")
    graph.node("Less", ["index", "limit"], "real")
    graph.node("Cast", ["real"], "real.float", to=TensorProto.FLOAT)
    graph.node("Unsqueeze", ["real.float", "row"], "mask")
    graph.node("MatMul", ["mask", x], "summed")
    graph.node("Squeeze", ["summed", "row"], "pooled")
    graph.node("LpNormalization", ["pooled"], "embeddings", axis=1, p=2)


def _model(graph: _Graph, config: EncoderConfig) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
    ]
    shape: list[str | int | None] = ["batch", config.hidden_size]
    outputs = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, shape)]
    body = helper.make_graph(graph.nodes, "sentence_encoder", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    return helper.make_model(body, opset_imports=opsets, ir_version=_IR_VERSION)
