"""What each operator means, in NumPy: the reference that graphs and kernels are compared with.

Written for reading, not for speed, and from the formulas alone: shares no code with graph.py,
blocks.py or the kernels. Knows arrays; does not know ONNX, files or tokens.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 32
RECORDS = {
    "Q4_0": (18, 32),
    "Q4_1": (20, 32),
    "Q5_0": (22, 32),
    "Q5_1": (24, 32),
    "Q8_0": (34, 32),
    "Q4_K": (144, 256),
    "Q5_K": (176, 256),
    "Q6_K": (210, 256),
}
"""Bytes of a type's record, and how many weights it holds."""


class Records(NamedTuple):
    """A matrix W [N, K] as GGUF stores it: a type of ``RECORDS``, and uint8 [N, bytes of a row]."""

    type: str
    rows: Bytes


def dequantize(weights: Records) -> Float:
    """W as float32 [N, K]. Source: ggml's block definitions, ggml-common.h and ggml-quants.c."""
    size_bytes, count = RECORDS[weights.type]
    records = weights.rows.reshape(-1, size_bytes)
    found: Float = _DEQUANTIZE[weights.type](records).astype(np.float32)
    return found.reshape(len(weights.rows), -1, count).reshape(len(weights.rows), -1)


def _half(records: Bytes, at: int) -> Float:
    """The fp16 number at byte ``at`` of each record, as float32 [records, 1]."""
    half = np.ascontiguousarray(records[:, at : at + 2]).view("<f2")
    return half.astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """All low halves of a record's bytes, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _bits(packed: Bytes) -> Bytes:
    """One bit in a byte, the lowest of the first byte first."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _q4_0(r: Bytes) -> Float:
    return _half(r, 0) * (_nibbles(r[:, 2:]).astype(np.float32) - 8)


def _q4_1(r: Bytes) -> Float:
    return _half(r, 0) * _nibbles(r[:, 4:]) + _half(r, 2)


def _q5_0(r: Bytes) -> Float:
    codes = _nibbles(r[:, 6:]) + 16 * _bits(r[:, 2:6])
    return _half(r, 0) * (codes.astype(np.float32) - 16)


def _q5_1(r: Bytes) -> Float:
    codes = _nibbles(r[:, 8:]) + 16 * _bits(r[:, 4:8])
    return _half(r, 0) * codes + _half(r, 2)


def _q8_0(r: Bytes) -> Float:
    codes = np.ascontiguousarray(r[:, 2:]).view(np.int8)
    weights: Float = _half(r, 0) * codes.astype(np.float32)
    return weights


def _k_scales(r: Bytes) -> tuple[Float, Float]:
    """Scale and minimum of the eight blocks of Q4_K and Q5_K records: float32 [records, 8, 1].

    Twelve bytes hold sixteen numbers of six bits. Of blocks 0..3 they are the lower six of bytes
    0..3 (scales) and 4..7 (minima); of blocks 4..7 the halves of bytes 8..11 with those bytes'
    upper two on top.
    """
    first, second, third = r[:, 4:8], r[:, 8:12], r[:, 12:16]
    scales = np.concatenate([first & 63, (third & 15) + 16 * (first >> 6)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) + 16 * (second >> 6)], axis=1)
    return (_half(r, 0) * scales)[..., None], (_half(r, 2) * minima)[..., None]


def _k_nibbles(packed: Bytes) -> Bytes:
    """Each 32 bytes hold a block in their low halves and the next in their high: [.., 8, 32]."""
    pairs = packed.reshape(-1, 4, 32)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(r: Bytes) -> Float:
    scale, minimum = _k_scales(r)
    return scale * _k_nibbles(r[:, 16:]) - minimum


def _q5_k(r: Bytes) -> Float:
    scale, minimum = _k_scales(r)
    fifth: Bytes = np.stack([r[:, 16:48] >> block & 1 for block in range(8)], axis=1)
    return scale * (_k_nibbles(r[:, 48:]) + 16 * fifth) - minimum


def _q6_k(r: Bytes) -> Float:
    low, high = r[:, :128].reshape(-1, 2, 2, 32), r[:, 128:192].reshape(-1, 2, 32)
    codes = np.empty((len(r), 2, 4, 32), np.float32)
    for block in range(4):
        nibble = low[:, :, block % 2] >> (4 * (block // 2)) & 15
        codes[:, :, block] = nibble + 16 * (high >> (2 * block) & 3)
    scales = np.ascontiguousarray(r[:, 192:208]).view(np.int8)
    return (_half(r, 208) * scales)[..., None] * (codes.reshape(-1, 16, 16) - 32)


_DEQUANTIZE = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def gather_q(ids: npt.NDArray[np.int64], weights: Records) -> Float:
    """tollhouse.GatherQ: rows of W. ids: int64 [...]; returns float32 [..., K]."""
    rows = dequantize(Records(weights.type, weights.rows[ids.reshape(-1)]))
    return rows.reshape(*ids.shape, -1)


def quantize_activations(x: Float) -> Float:
    """What int8 leaves of x: each block of 32 rounded, half to even, to multiples of amax / 127.

    x: float32 [..., K]; returns [..., K]. All of a product sees the rounded x, the offset's term
    too: then the error is weighed by W itself, which is centred, and not by its codes.
    """
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    steps = np.rint(np.divide(blocks, scale, where=scale > 0, out=np.zeros_like(blocks)))
    rounded: Float = (steps * scale).reshape(x.shape)
    return rounded


def matmul_q(x: Float, weights: Records, *, accuracy_level: int = 1) -> Float:
    """tollhouse.MatMulQ: x @ W^T. x: float32 [..., K]; returns [..., N].

    accuracy_level 1 takes x as it is, 4 takes what quantize_activations leaves of it.
    """
    if accuracy_level == 4:
        x = quantize_activations(x)
    y: Float = x @ dequantize(weights).T
    return y


def rms_norm(x: Float, gain: Float, epsilon: float) -> Float:
    """Divide each row by its root mean square, then scale. x: float32 [..., K]; gain: [K].

    Source: Zhang & Sennrich 2019, eq. 4.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    y: Float = x / np.sqrt(mean_square + np.float32(epsilon)) * gain
    return y


def rms_norm_matmul_q(
    x: Float,
    skip: Float | None,
    gain: Float,
    bias: Float | None,
    parts: list[Records],
    *,
    epsilon: float,
    accuracy_level: int = 1,
) -> tuple[Float, Float]:
    """tollhouse.RmsNormMatMulQ: add the skip, normalise, multiply with each part, add the bias.

    x, skip: float32 [..., K]; bias: [sum of N]. Returns y [..., sum of N], the parts' products
    side by side, and the residual x + skip [..., K].
    """
    residual = x if skip is None else x + skip
    h = rms_norm(residual, gain, epsilon)
    products = [matmul_q(h, part, accuracy_level=accuracy_level) for part in parts]
    y: Float = np.concatenate(products, axis=-1)
    return y if bias is None else y + bias, residual


def silu(x: Float) -> Float:
    """x * sigmoid(x), written with tanh so that no exponential overflows."""
    y: Float = x * (np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1)))
    return y


def rms_norm_swiglu_q(
    x: Float,
    skip: Float | None,
    gain: Float,
    gate: Records,
    up: Records,
    *,
    epsilon: float,
    accuracy_level: int = 1,
) -> tuple[Float, Float]:
    """tollhouse.RmsNormSwiGLUQ: add the skip, normalise, silu(h @ gate^T) * (h @ up^T).

    x, skip: float32 [..., K]; gate, up: [F, K]. Returns y [..., F] and the residual [..., K].
    Source: Shazeer 2020, eq. 6.
    """
    residual = x if skip is None else x + skip
    h = rms_norm(residual, gain, epsilon)
    gated = silu(matmul_q(h, gate, accuracy_level=accuracy_level))
    return gated * matmul_q(h, up, accuracy_level=accuracy_level), residual


def rotate(x: Float, positions: npt.NDArray[np.int64], base: float) -> Float:
    """Rotary position embedding of neighbouring pairs (2i, 2i + 1), the order GGUF stores.

    x: float32 [tokens, heads, head_dim]; positions: [tokens]. Pair i turns by
    position * base ** (-2i / head_dim). Source: Su et al. 2021, eq. 34.
    """
    head_dim = x.shape[-1]
    speed = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angle = positions[:, None] * speed
    cos, sin = (f(angle).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    turned: Float = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


def rotate_halves(x: Float, positions: npt.NDArray[np.int64], base: float) -> Float:
    """The same rotation of pairs (i, i + head_dim / 2), the order a qwen2's file stores."""
    paired = np.stack(np.split(x, 2, axis=-1), axis=-1).reshape(x.shape)
    turned = rotate(paired, positions, base).reshape(*x.shape[:-1], -1, 2)
    return np.concatenate([turned[..., 0], turned[..., 1]], axis=-1)


def softmax(x: Float) -> Float:
    """Exponentials that sum to one along the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Float = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def attention(queries: Float, keys: Float, values: Float) -> Float:
    """Causal attention with grouped heads; the queries are the last of the keys' positions.

    queries: float32 [new, heads, head_dim]; keys, values: [all, kv_heads, head_dim]; head h reads
    kv head h // (heads / kv_heads). Returns [new, heads * head_dim]. Source: Ainslie et al. 2023.
    """
    new, heads, head_dim = queries.shape
    total, kv_heads, _ = keys.shape
    keys, values = (np.repeat(x, heads // kv_heads, axis=1) for x in (keys, values))
    scores = np.einsum("qhd,khd->hqk", queries, keys) / np.float32(np.sqrt(head_dim))
    future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]
    scores[:, future] = -np.inf
    seen: Float = np.einsum("hqk,khd->qhd", softmax(scores), values)
    return seen.reshape(new, heads * head_dim)


class ReferenceDecoder:
    """A whole llama or qwen2 decoder on float32 weights, one sequence, with a key-value cache.

    weights: GGUF's tensor names to float32 arrays [N, K]; biases [N] of queries, keys and values
    where there are any. half_split: query and key rows as a qwen2's file has them, and not in a
    llama's neighbouring pairs. Without an ``output.weight`` the head is the embedding.
    """

    def __init__(
        self,
        weights: dict[str, Float],
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        rope_base: float,
        epsilon: float,
        half_split: bool = False,
    ) -> None:
        self._weights = weights
        self._half_split = half_split
        self._heads = heads
        self._kv_heads = kv_heads
        self._rope_base = rope_base
        self._epsilon = epsilon
        head_dim = weights["blk.0.attn_q.weight"].shape[0] // heads
        empty = np.zeros((0, kv_heads, head_dim), np.float32)
        self._cache = [(empty, empty)] * layers

    def logits(self, tokens: list[int]) -> Float:
        """Append the tokens to the sequence; returns float32 [len(tokens), vocabulary]."""
        w = self._weights
        x = w["token_embd.weight"][tokens]
        for layer in range(len(self._cache)):
            x = x + self._attend(layer, x)
            x = x + self._feed_forward(layer, x)
        h = rms_norm(x, w["output_norm.weight"], self._epsilon)
        y: Float = h @ w.get("output.weight", w["token_embd.weight"]).T
        return y

    def _attend(self, layer: int, x: Float) -> Float:
        w, block = self._weights, f"blk.{layer}"
        h = rms_norm(x, w[f"{block}.attn_norm.weight"], self._epsilon)
        q, k, v = (
            self._product(h, f"{block}.attn_{name}").reshape(len(x), heads, -1)
            for name, heads in (("q", self._heads), ("k", self._kv_heads), ("v", self._kv_heads))
        )
        past_keys, past_values = self._cache[layer]
        positions = np.arange(len(past_keys), len(past_keys) + len(x))
        keys = np.concatenate([past_keys, self._rotate(k, positions)])
        values = np.concatenate([past_values, v])
        self._cache[layer] = keys, values
        seen = attention(self._rotate(q, positions), keys, values)
        y: Float = seen @ w[f"{block}.attn_output.weight"].T
        return y

    def _product(self, h: Float, name: str) -> Float:
        y: Float = h @ self._weights[f"{name}.weight"].T
        return y + self._weights.get(f"{name}.bias", np.float32(0))

    def _rotate(self, x: Float, positions: npt.NDArray[np.int64]) -> Float:
        turn = rotate_halves if self._half_split else rotate
        return turn(x, positions, self._rope_base)

    def _feed_forward(self, layer: int, x: Float) -> Float:
        w, block = self._weights, f"blk.{layer}"
        h = rms_norm(x, w[f"{block}.ffn_norm.weight"], self._epsilon)
        gate, up = (h @ w[f"{block}.ffn_{name}.weight"].T for name in ("gate", "up"))
        y: Float = (silu(gate) * up) @ w[f"{block}.ffn_down.weight"].T
        return y
