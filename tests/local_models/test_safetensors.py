"""The safetensors reader gives back what was written, and refuses everything else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.messages import InvalidModel
from local_models.safetensors import SafeTensors


def written(path: Path, header: Any, payload: bytes) -> Path:
    """A file with this header, as JSON unless it is bytes."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + payload)
    return path


def test_tensors_come_back_with_shape_type_and_values(tmp_path: Path) -> None:
    """Two tensors and metadata, laid out by hand after the format's description."""
    floats = np.arange(6, dtype="<f4").reshape(2, 3)
    integers = np.array([7, -8], "<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [40, 40]},
    }
    payload = floats.tobytes() + integers.tobytes()
    tensors = SafeTensors(written(tmp_path / "m.safetensors", header, payload))
    assert set(tensors) == {"a", "b", "empty"}
    np.testing.assert_array_equal(tensors["a"], floats)
    np.testing.assert_array_equal(tensors["b"], integers)
    assert tensors["empty"].shape == (0, 4)
    with pytest.raises(ValueError, match="read-only"):
        tensors["a"][0, 0] = 1


def test_bfloat16_widens_to_the_same_number(tmp_path: Path) -> None:
    """1.5 and −2 have short mantissas: bfloat16 holds them exactly, as a float32's upper half."""
    upper = (np.array([1.5, -2.0], "<f4").view("<u4") >> 16).astype("<u2")
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    tensors = SafeTensors(written(tmp_path / "m.safetensors", header, upper.tobytes()))
    np.testing.assert_array_equal(tensors.float32("x"), np.array([1.5, -2.0], np.float32))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """The sentence says which tensor the model lacks."""
    tensors = SafeTensors(written(tmp_path / "m.safetensors", {}, b""))
    with pytest.raises(InvalidModel, match="no tensor 'w'"):
        tensors.float32("w")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]},  # longer than its shape
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},  # past the end of the file
        {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [4, 4]},
        {"dtype": "F32", "shape": [2**40, 0, 2**40], "data_offsets": [4, 4]},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F8", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"shape": [1], "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_an_entry_that_does_not_add_up_is_refused(tmp_path: Path, entry: Any) -> None:
    """The file has 12 bytes of tensors."""
    with pytest.raises(InvalidModel):
        SafeTensors(written(tmp_path / "m.safetensors", {"x": entry}, bytes(12)))


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff", b"", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, header: bytes) -> None:
    """Deep nesting included: it must not exhaust the stack."""
    with pytest.raises(InvalidModel):
        SafeTensors(written(tmp_path / "m.safetensors", header, b""))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_do_anything_but_refuse(tmp_path_factory: Any, raw: bytes) -> None:
    """Arbitrary files raise InvalidModel, or are an empty but valid file."""
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    path.write_bytes(raw)
    try:
        assert all(tensors is not None for tensors in SafeTensors(path).values())
    except InvalidModel:
        pass
