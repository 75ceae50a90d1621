"""What is asked of this CPU is asked rightly."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from local_models import cpu_traits


def test_the_model_kept_as_bytes_is_a_product_of_bytes() -> None:
    """What onnx makes of the sentence that describes it."""
    kinds = {"a": ("UINT8", [1, 64]), "b": ("INT8", [64, 16]), "y": ("INT32", [1, 16])}
    a, b, y = (
        helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
        for name, (kind, shape) in kinds.items()
    )
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "g", [a, b], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model.SerializeToString(deterministic=True) == cpu_traits.BYTE_PRODUCT


def test_small_factors_never_saturate() -> None:
    """So a wrong product of large ones is saturation, and not a wrong question."""
    session = onnxruntime.InferenceSession(
        cpu_traits.BYTE_PRODUCT, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (1, 64)).astype(np.uint8)
    b = random.integers(-64, 64, (64, 16)).astype(np.int8)
    (product,) = session.run(None, {"a": a, "b": b})
    assert np.array_equal(product, a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_an_answer_stays_the_same(accuracy_level: int) -> None:
    """A graph is kept under it."""
    asked = cpu_traits.single_rows_differ.__wrapped__
    assert len({asked(accuracy_level) for _ in range(5)}) == 1
