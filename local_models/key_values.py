"""The key-value cache of a session: buffers that stay at their addresses, on the CPU or a GPU.

One array [slots, kv_heads, context, head_dim] per layer and kind, bound as past and present at
once. Knows slots and addresses; does not know graphs or tokens.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import helper

from local_models.onnx_builder import identity_model


class KeyValueCache:
    """Named buffers of equal shape. dtype: float32 or float16; device: ``cpu`` or ``cuda``.

    arrays: those on the CPU.
    """

    def __init__(
        self,
        names: Sequence[str],
        extents: tuple[int, int, int, int],
        dtype: type[np.generic],
        device: str,
        *,
        copies_by_graph: bool | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._extents = extents
        self._slot_numbers = int(np.prod(extents[1:]))
        # Memory comes from the operating system page by page, as positions are used. Zeros,
        # because attention multiplies what it masks by 0, and 0 times a stray NaN is NaN.
        self.arrays: dict[str, npt.NDArray[np.generic]] = {}
        self._values: dict[str, ort.OrtValue] = {}
        for name in names:
            zeros = np.zeros(extents, dtype)
            if device == "cpu":
                self.arrays[name] = zeros
            else:
                self._values[name] = ort.OrtValue.ortvalue_from_numpy(zeros, device, 0)
        by_graph = device != "cpu" if copies_by_graph is None else copies_by_graph
        self._copier = _copier(dtype, device) if by_graph else None

    def bind(self, binding: ort.IOBinding, first: int, rows: int) -> None:
        """Bind ``rows`` slots from ``first`` on as every past and every present."""
        shape = [rows, *self._extents[1:]]
        for name in (*self.arrays, *self._values):
            address = self._address(name, first)
            binding.bind_input(f"past.{name}", self._device, 0, self._dtype, shape, address)
            binding.bind_output(f"present.{name}", self._device, 0, self._dtype, shape, address)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another, or the whole slot."""
        if self._copier is None:
            for cache in self.arrays.values():
                cache[target, :, :length] = cache[source, :, :length]
            return
        shape = [self._slot_numbers]
        for name in (*self.arrays, *self._values):
            binding = self._copier.io_binding()
            place = (self._device, 0, self._dtype, shape)
            binding.bind_input("x", *place, self._address(name, source))
            binding.bind_output("y", *place, self._address(name, target))
            self._copier.run_with_iobinding(binding)

    def _address(self, name: str, slot: int) -> int:
        array = self.arrays.get(name)
        start = self._values[name].data_ptr() if array is None else array.ctypes.data
        return int(start) + slot * self._slot_numbers * np.dtype(self._dtype).itemsize


def _copier(dtype: type[np.generic], device: str) -> ort.InferenceSession:
    """A session that copies x to y where both are: ONNX Runtime gives Python no other way."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(identity_model(kind), options, providers=providers(device))


def providers(device: str) -> list[str]:
    """ONNX Runtime's providers for a device, the CPU's last for what the first has not."""
    return (["CUDAExecutionProvider"] if device == "cuda" else []) + ["CPUExecutionProvider"]
