"""Repacking for the operators loses nothing."""

from pathlib import Path

import numpy as np
import pytest

from local_models import ops, quantize
from local_models.gguf import GgufFile, Tensor
from local_models.quantize import Quantized
from tests.local_models import gguf_files
from tests.local_models.gguf_files import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

KINDS = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K]
Tensors = tuple[Tensor, ops.Float]


def _tensor(folder: Path, kind: int, shape: tuple[int, int] = (8, 512)) -> Tensors:
    stored, weights = gguf_files.random_blocks(shape, kind, seed=4)
    gguf_files.write(folder / "m.gguf", {}, {"w": stored})
    return GgufFile(folder / "m.gguf").tensors["w"], weights


def _packed(folder: Path, kind: int) -> tuple[Quantized, ops.Float]:
    tensor, weights = _tensor(folder, kind)
    packed = quantize.matrix(tensor)
    assert isinstance(packed, Quantized)
    return packed, weights


@pytest.mark.parametrize("kind", KINDS)
def test_repacking_rounds_nothing(tmp_path: Path, kind: int) -> None:
    """Bit for bit the numbers of the format's definition, worked out one by one."""
    packed, weights = _packed(tmp_path, kind)
    assert np.array_equal(packed.dequantized(), weights)
    assert packed.codes.max() < 2**packed.bits


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q4_K])
def test_the_even_code_is_in_the_low_half(tmp_path: Path, kind: int) -> None:
    """The operators read nibbles in this order; the other one would give nonsense at full speed."""
    packed, _ = _packed(tmp_path, kind)
    for row, k in ((0, 0), (3, 17), (7, 511), (5, 300), (1, 33)):
        assert packed.low[row, k // 32, k % 32 // 2] >> (4 * (k % 2)) & 15 == packed.codes[row, k]


@pytest.mark.parametrize("kind", KINDS)
def test_two_readings_of_a_type_agree(tmp_path: Path, kind: int) -> None:
    """The operators' NumPy definition gives the weights of the format's, bit for bit."""
    tensor, weights = _tensor(tmp_path, kind)
    rows = tensor.stored.view(np.uint8).reshape(len(tensor.stored), -1)
    np.testing.assert_array_equal(ops.dequantize(ops.Records(tensor.type, rows)), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_middle_code_of_zero_and_the_correction_are_the_weights(
    tmp_path: Path, kind: int
) -> None:
    """The identity the graph relies on: W = d (byte - 128) + correction, both per block."""
    packed, weights = _packed(tmp_path, kind)
    centred = packed.in_bytes.astype(np.float64) - 128
    blocks = packed.d[..., None] * centred
    if packed.correction is not None:
        blocks += packed.correction[..., None]
    np.testing.assert_allclose(blocks.reshape(weights.shape), weights, rtol=0, atol=2e-6)
    assert (packed.correction is None) == (kind in (Q4_0, Q5_0, Q8_0, Q6_K))


def test_like_matrices_are_stacked_and_unlike_ones_stay_apart(tmp_path: Path) -> None:
    """Widening 5 bits to 8 changes no weight; an offset or another block is another matrix."""
    found = {kind: _packed(tmp_path, kind)[0] for kind in KINDS}
    (wide,) = quantize.stacked([found[Q5_0], found[Q5_0], found[Q8_0]])
    assert isinstance(wide, Quantized)
    expected = [found[kind].dequantized() for kind in (Q5_0, Q5_0, Q8_0)]
    assert (wide.bits, len(wide.codes)) == (8, 24)
    assert np.array_equal(wide.dequantized(), np.concatenate(expected))
    apart = quantize.stacked([found[Q4_K], found[Q4_K], found[Q6_K]])
    assert [part.bits for part in apart if isinstance(part, Quantized)] == [4, 6]
    floats = found[Q4_0].dequantized()
    (both,) = quantize.stacked([floats, floats])
    assert isinstance(both, np.ndarray)
    assert np.array_equal(both, np.concatenate([floats, floats]))
    assert len(quantize.stacked([floats, found[Q4_0]])) == 2


@pytest.mark.parametrize("kind", [Q4_1, Q6_K])
def test_rows_keep_their_weights_in_another_order(tmp_path: Path, kind: int) -> None:
    """Reordered rows have the same weights bit for bit."""
    packed, weights = _packed(tmp_path, kind)
    order = quantize.half_split_order(2, 4)
    moved = quantize.rows(packed, order)
    assert isinstance(moved, Quantized)
    assert np.array_equal(moved.dequantized(), weights[order])


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
