"""Collect the nodes of an ONNX graph, and write its weights to disk as they come.

Knows ONNX; does not know models. Weights are not kept: a graph of two gigabytes is built in the
memory of its largest matrix.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

MICROSOFT, TOLLHOUSE = "com.microsoft", "tollhouse"

Attribute = int | float | str

_WEIGHTS, _SOURCE = "weights.bin", "source"
_INLINE_BYTES_MAX = 1024
_ALIGNMENT_BYTES = 4096  # ONNX Runtime maps external weights by page.


def identity_model(kind: int) -> bytes:
    """A model that gives its input ``x``, one row of numbers of this ONNX type, as ``y``."""
    x, y = (helper.make_tensor_value_info(name, kind, ["numbers"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "copy", [x], [y])
    opset = helper.make_opsetid("", 18)
    model: bytes = helper.make_model(
        graph, opset_imports=[opset], ir_version=10
    ).SerializeToString()
    return model


class OnnxBuilder:
    """Nodes, inputs, outputs and weights of one graph, written into a folder.

    source: a file whose parts may be weights where they are. The folder gets a hard link to it,
    which costs no room; where there can be none, such weights are copied like others.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._folder = folder
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._file = (folder / _WEIGHTS).open("wb")
        self._source = source
        self._linked: bool | None = None

    def node(
        self,
        op: str,
        inputs: list[str],
        *,
        result: str | None = None,
        results: list[str] | None = None,
        domain: str = "",
        attributes: dict[str, Attribute] | None = None,
        **more: Attribute,
    ) -> str:
        """Append a node with its attributes; the name of its first result."""
        attributes = more | (attributes or {})
        results = results or [result or f"{op}.{len(self._nodes)}"]
        node = helper.make_node(op, inputs, results, domain=domain)
        node.attribute.extend(helper.make_attribute(key, attributes[key]) for key in attributes)
        self._nodes.append(node)
        return results[0]

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Store a constant under this name, where there is none yet; the name."""
        if name not in self._weights:
            self._weights[name] = self._stored(name, np.ascontiguousarray(array))
        return name

    def source_weight(self, name: str, array: npt.NDArray[Any], offset: int) -> str:
        """A constant that lies in the source file, ``offset`` bytes from its start; the name."""
        if self._linked is None:
            self._linked = self._link()
        if not self._linked:
            return self.weight(name, array)
        if name not in self._weights:
            self._weights[name] = _external(name, array, _SOURCE, offset)
        return name

    def _link(self) -> bool:
        try:
            # ONNX Runtime opens no file outside the graph's folder, nor a symbolic link to one.
            os.link(self._source.resolve(), self._folder / _SOURCE)
        except OSError:  # Another file system, or one without hard links.
            return False
        return True

    def _stored(self, name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
        if array.nbytes <= _INLINE_BYTES_MAX:
            tensor = _declared(name, array)
            tensor.raw_data = array.tobytes()
            return tensor
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT_BYTES))
        tensor = _external(name, array, _WEIGHTS, self._file.tell())
        self._file.write(array.data)
        return tensor

    def value(self, name: str, kind: int, dimensions: list[str | int]) -> onnx.ValueInfoProto:
        """The declaration of an input or an output."""
        return helper.make_tensor_value_info(name, kind, dimensions)

    def write(self, name: str) -> None:
        """Write ``model.onnx`` beside ``weights.bin``."""
        self._file.close()
        graph = helper.make_graph(
            self._nodes, name, self.inputs, self.outputs, initializer=list(self._weights.values())
        )
        opsets = [("", 18), (MICROSOFT, 1), (TOLLHOUSE, 1)]
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=10
        )
        (self._folder / "model.onnx").write_bytes(model.SerializeToString())

    def close(self) -> None:
        """Close the weights' file, also where nothing was written to its end."""
        self._file.close()


def _declared(name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
    tensor = TensorProto(name=name, dims=array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    return tensor


def _external(name: str, array: npt.NDArray[Any], file: str, offset: int) -> onnx.TensorProto:
    tensor = _declared(name, array)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": file, "offset": offset, "length": array.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
