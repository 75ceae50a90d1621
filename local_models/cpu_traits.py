"""How ONNX Runtime's own operators behave on this CPU: asked by running them, once per process.

They differ by instruction set in ways that no flag states and the next version may change, so
each question is a product whose right answer is known. Knows two operators; does not know models.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

BYTE_PRODUCT = bytes.fromhex(
    "08083a5c0a180a01610a0162120179220d4d61744d756c496e74656765721201675a130a0161120e0a0c08"
    "0212080a0208010a0208405a130a0162120e0a0c080312080a0208400a02081062130a0179120e0a0c0806"
    "12080a0208010a02081042040a00100d"
)
"""MatMulInteger of uint8 [1, 64] and int8 [64, 16] as an ONNX model: without the onnx package,
whose import costs every start of an embedder 0.2 s and 30 MB."""

_COLUMNS, _DEPTH = 64, 576


@functools.cache
def byte_products_saturate() -> bool:
    """Whether uint8 × int8 products go wrong here when both factors are large.

    Without VNNI two products are added in 16 bits (vpmaddubsw): 2 * 255 * 127 does not fit.
    """
    product = _run(
        BYTE_PRODUCT, a=np.full((1, 64), 255, np.uint8), b=np.full((64, 16), 127, np.int8)
    )
    return bool((product != 64 * 255 * 127).any())


@functools.cache
def single_rows_differ(accuracy_level: int) -> bool:
    """Whether MatMulNBits gives a row other bits when it is alone than among others.

    It has a loop of its own for one row. With AVX2 that adds up in another order at level 4; at
    level 1 it does so on every x86 CPU.
    """
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (_COLUMNS, _DEPTH // 32, 16)).astype(np.uint8)
    scales = random.standard_normal(_COLUMNS * _DEPTH // 32).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        domain="com.microsoft",
        N=_COLUMNS,
        K=_DEPTH,
        bits=4,
        block_size=32,
        accuracy_level=accuracy_level,
    )
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", _DEPTH), ("y", _COLUMNS))
    ]
    weights = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph([node], "rows", shapes[:1], shapes[1:], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    x = random.standard_normal((2, _DEPTH)).astype(np.float32)
    return not np.array_equal(_run(model, x=x)[:1], _run(model, x=x[:1]))


def _run(model: bytes, **inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    result: npt.NDArray[Any] = session.run(None, inputs)[0]
    return result
