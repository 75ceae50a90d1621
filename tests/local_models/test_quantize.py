"""Repacking for the operators loses nothing."""

from pathlib import Path

import numpy as np
import pytest

from local_models import ops, quantize
from local_models.gguf import GgufFile, Tensor
from local_models.quantize import Q4, Q8
from tests.local_models import gguf_files
from tests.local_models.gguf_files import Q4_0, Q4_1, Q8_0


def _tensor(folder: Path, kind: int, shape: tuple[int, int] = (8, 64)) -> tuple[Tensor, ops.Float]:
    stored, weights = gguf_files.random_blocks(shape, kind, seed=4)
    gguf_files.write(folder / "m.gguf", {}, {"w": stored})
    return GgufFile(folder / "m.gguf").tensors["w"], weights


@pytest.mark.parametrize("kind", [Q4_0, Q4_1])
def test_packed_codes_stand_for_the_same_weights(tmp_path: Path, kind: int) -> None:
    tensor, weights = _tensor(tmp_path, kind)
    packed = quantize.matrix(tensor)
    assert isinstance(packed, Q4)
    np.testing.assert_allclose(
        ops.dequantize_q4(packed.q, packed.d, packed.m), weights, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", [Q4_0, Q4_1])
def test_zero_point_eight_and_the_correction_are_the_offset(tmp_path: Path, kind: int) -> None:
    """The identity the graph relies on: x W^T = x (d (code - 8))^T + block sums (m + 8 d)^T."""
    tensor, weights = _tensor(tmp_path, kind)
    packed = quantize.matrix(tensor)
    assert isinstance(packed, Q4)
    x = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)
    centred = ops.dequantize_q4(packed.q, packed.d, -8 * packed.d)
    product = x @ centred.T + x.reshape(3, -1, 32).sum(axis=-1) @ packed.correction.T
    np.testing.assert_allclose(product, x @ weights.T, rtol=0, atol=1e-5)
    if kind == Q4_0:
        assert not packed.correction.any()


def test_eight_bit_codes_stand_for_the_same_weights(tmp_path: Path) -> None:
    tensor, weights = _tensor(tmp_path, Q8_0)
    packed = quantize.matrix(tensor)
    assert isinstance(packed, Q8)
    np.testing.assert_allclose(packed.dequantized(), weights, rtol=0, atol=1e-6)


def test_half_split_rows_turn_as_neighbouring_pairs_do() -> None:
    """Rotating pairs (i, i + half) of reordered rows equals rotating neighbours, reordered."""
    rng = np.random.default_rng(6)
    tokens, heads, head_dim = 5, 3, 8
    x = rng.normal(size=(tokens, heads, head_dim)).astype(np.float32)
    positions = np.arange(tokens)
    order = quantize.half_split_order(heads, head_dim)
    expected = ops.rotate(x, positions, 100.0).reshape(tokens, -1)[:, order]
    first, second = np.split(x.reshape(tokens, -1)[:, order].reshape(x.shape), 2, axis=-1)
    angle = positions[:, None] * 100.0 ** (-2 * np.arange(head_dim // 2) / head_dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    np.testing.assert_allclose(turned.reshape(tokens, -1), expected, atol=1e-6)
