"""Write small GGUF files, for tests: an own reading of the format, independent of the product's."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Stored = tuple[tuple[int, ...], int, bytes]
"""A tensor's shape (rows first), GGUF type number and bytes."""

F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8


def floats(array: npt.NDArray[np.float32]) -> Stored:
    """A float32 tensor."""
    return array.shape, F32, array.astype("<f4").tobytes()


def random_blocks(shape: tuple[int, ...], kind: int, seed: int) -> tuple[Stored, Any]:
    """A tensor of random blocks, and the weights it stands for, worked out number by number."""
    rng = np.random.default_rng(seed)
    raw, weights = b"", []
    for _ in range(int(np.prod(shape)) // 32):
        scale = float(np.float16(rng.uniform(0.001, 0.1)))
        offset = float(np.float16(rng.uniform(-0.5, 0.1)))
        if kind == Q8_0:
            codes = [int(code) for code in rng.integers(-128, 128, 32)]
            raw += struct.pack("<e32b", scale, *codes)
            weights += [scale * code for code in codes]
            continue
        codes = [int(code) for code in rng.integers(0, 16, 32)]
        packed = [codes[i] | codes[i + 16] << 4 for i in range(16)]
        if kind == Q4_0:
            raw += struct.pack("<e16B", scale, *packed)
            weights += [scale * (code - 8) for code in codes]
        else:
            raw += struct.pack("<ee16B", scale, offset, *packed)
            weights += [scale * code + offset for code in codes]
    return (shape, kind, raw), np.array(weights, np.float32).reshape(shape)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [str(), *_]:
            body = b"".join(map(_string, value))
            return struct.pack("<IIQ", 9, 8, len(value)) + body
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Stored]) -> int:
    """Write a version 3 file. Returns the length of everything before the tensors' bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        body += b"\0" * (-len(body) % 32)
        head += _string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack(
            "<IQ", kind, len(body)
        )
        body += raw
    padding = b"\0" * (-len(head) % 32)
    path.write_bytes(head + padding + body)
    return len(head)


def tiny_llama(
    kinds: dict[str, int], seed: int = 0
) -> tuple[dict[str, Any], dict[str, Stored], Any]:
    """A random two-layer llama: metadata, stored tensors, and its float32 weights.

    kinds: GGUF type by the last part of a matrix's name (attn_q, ffn_down, token_embd, output);
    Q4_1 where nothing is said, and no head of its own unless ``output`` is named.
    """
    width, feed_forward, vocabulary, kv = 64, 96, 128, 32
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.feed_forward_length": feed_forward,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    matrices = {"token_embd": (vocabulary, width)}
    if "output" in kinds:
        matrices["output"] = (vocabulary, width)
    vectors = ["output_norm"]
    for layer in range(2):
        sizes = {"attn_q": (width, width), "attn_k": (kv, width), "attn_v": (kv, width)}
        sizes |= {"attn_output": (width, width), "ffn_gate": (feed_forward, width)}
        sizes |= {"ffn_up": (feed_forward, width), "ffn_down": (width, feed_forward)}
        matrices |= {f"blk.{layer}.{name}": size for name, size in sizes.items()}
        vectors += [f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm"]
    rng = np.random.default_rng(seed)
    tensors, weights = {}, {}
    for place, (name, shape) in enumerate(matrices.items()):
        kind = kinds.get(name.rpartition(".")[2], Q8_0 if name == "token_embd" else Q4_1)
        full = f"{name}.weight"
        if kind == F32:
            weights[full] = rng.normal(0, 0.2, shape).astype(np.float32)
            tensors[full] = floats(weights[full])
        else:
            tensors[full], weights[full] = random_blocks(shape, kind, seed * 100 + place)
    for name in vectors:
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        tensors[f"{name}.weight"] = floats(weights[f"{name}.weight"])
    return metadata, tensors, weights
