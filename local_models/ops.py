"""What each operator means, in NumPy: the reference that graphs and kernels are compared with.

Written for reading, not for speed, and from the formulas alone: shares no code with graph.py or
the kernels. Knows arrays; does not know ONNX, files or tokens.

Quantized weights: a matrix W [N, K] is cut along K into blocks of 32. Block b of row n holds 32
codes 0..15, a scale d and an offset m: W[n, k] = d[n, b] * code + m[n, b]. Codes are packed two
in a byte, the even k in the low half: q uint8 [N, K/32, 16].
"""

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

BLOCK = 32


def unpack_q4(q: Codes) -> Codes:
    """Codes 0..15, one in a byte. q: uint8 [N, K/32, 16]; returns uint8 [N, K]."""
    codes: Codes = np.stack([q & 0x0F, q >> 4], axis=-1).reshape(q.shape[0], -1)
    return codes


def dequantize_q4(q: Codes, d: Float, m: Float) -> Float:
    """W = d * code + m. q: uint8 [N, K/32, 16]; d, m: float32 [N, K/32]; returns [N, K]."""
    codes = unpack_q4(q).reshape(*d.shape, BLOCK).astype(np.float32)
    weights: Float = (d[..., None] * codes + m[..., None]).reshape(q.shape[0], -1)
    return weights


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


def matmul_q4(x: Float, q: Codes, d: Float, m: Float, *, accuracy_level: int = 1) -> Float:
    """tollhouse.MatMulQ4: x @ W^T. x: float32 [..., K]; returns [..., N].

    accuracy_level 1 takes x as it is, 4 takes what quantize_activations leaves of it.
    """
    if accuracy_level == 4:
        x = quantize_activations(x)
    y: Float = x @ dequantize_q4(q, d, m).T
    return y


def rms_norm(x: Float, gain: Float, epsilon: float) -> Float:
    """Divide each row by its root mean square, then scale. x: float32 [..., K]; gain: [K].

    Source: Zhang & Sennrich 2019, eq. 4.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    y: Float = x / np.sqrt(mean_square + np.float32(epsilon)) * gain
    return y


def rms_norm_matmul_q4(
    x: Float,
    skip: Float | None,
    gain: Float,
    q: Codes,
    d: Float,
    m: Float,
    *,
    epsilon: float,
    accuracy_level: int = 1,
) -> tuple[Float, Float]:
    """tollhouse.RmsNormMatMulQ4: add the skip, normalise, multiply.

    x, skip: float32 [..., K]; returns y [..., N] and the residual x + skip [..., K].
    """
    residual = x if skip is None else x + skip
    y = matmul_q4(rms_norm(residual, gain, epsilon), q, d, m, accuracy_level=accuracy_level)
    return y, residual


def silu(x: Float) -> Float:
    """x * sigmoid(x), written with tanh so that no exponential overflows."""
    y: Float = x * (np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1)))
    return y


def rms_norm_swiglu_q4(
    x: Float,
    skip: Float | None,
    gain: Float,
    gate: tuple[Codes, Float, Float],
    up: tuple[Codes, Float, Float],
    *,
    epsilon: float,
    accuracy_level: int = 1,
) -> tuple[Float, Float]:
    """tollhouse.RmsNormSwiGLUQ4: add the skip, normalise, silu(h @ gate^T) * (h @ up^T).

    x, skip: float32 [..., K]; gate, up: (q, d, m) of [F, K] matrices; returns y [..., F] and the
    residual [..., K]. Source: Shazeer 2020, eq. 6.
    """
    residual = x if skip is None else x + skip
    h = rms_norm(residual, gain, epsilon)
    gated = silu(matmul_q4(h, *gate, accuracy_level=accuracy_level))
    return gated * matmul_q4(h, *up, accuracy_level=accuracy_level), residual


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
