"""Write small GGUF files, for tests: an own reading of the format, independent of the product's."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Stored = tuple[tuple[int, ...], int, bytes]
"""A tensor's shape (rows first), GGUF type number and bytes."""

F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 0, 1, 2, 3, 6, 7, 8, 12, 13, 14
BF16 = 30


def floats(array: npt.NDArray[np.float32]) -> Stored:
    """A float32 tensor."""
    return array.shape, F32, array.astype("<f4").tobytes()


# Bytes of a record, weights in it, and where its half-precision numbers lie.
RECORDS = {
    Q4_0: (18, 32, [0]),
    Q4_1: (20, 32, [0, 2]),
    Q5_0: (22, 32, [0]),
    Q5_1: (24, 32, [0, 2]),
    Q8_0: (34, 32, [0]),
    Q4_K: (144, 256, [0, 2]),
    Q5_K: (176, 256, [0, 2]),
    Q6_K: (210, 256, [208]),
}


def random_blocks(shape: tuple[int, ...], kind: int, seed: int) -> tuple[Stored, Any]:
    """A tensor of random blocks, and the weights it stands for, worked out number by number."""
    rng = np.random.default_rng(seed)
    size, in_record, halves = RECORDS[kind]
    raw, weights = b"", []
    for _ in range(int(np.prod(shape)) // in_record):
        record = bytearray(rng.bytes(size))
        for place in halves:
            # A K block's scale is multiplied by up to 63 (Q6_K: 128) once more.
            scale = rng.uniform(0.001, 0.1) / (1 if in_record == 32 else 30)
            sign = -4 if place == 2 and in_record == 32 else 1
            struct.pack_into("<e", record, place, sign * scale)
        raw += record
        weights += block_weights(kind, bytes(record))
    return (shape, kind, raw), np.array(weights, np.float32).reshape(shape)


def block_weights(kind: int, record: bytes) -> list[float]:
    """What one record stands for, bit by bit: an own reading of the format."""
    d = struct.unpack_from("<e", record, RECORDS[kind][2][0])[0]
    if kind == Q8_0:
        return [d * code for code in struct.unpack("<32b", record[2:])]
    if kind == Q6_K:
        return _weights_of_six(d, record)
    if kind in (Q4_K, Q5_K):
        return _weights_of_k(d, record, five=kind == Q5_K)
    five, offset = kind in (Q5_0, Q5_1), kind in (Q4_1, Q5_1)
    low = record[-16:]
    high = int.from_bytes(record[-20:-16], "little") if five else 0
    weights = []
    for i in range(32):
        code = low[i] & 15 if i < 16 else low[i - 16] >> 4
        code += (high >> i & 1) * 16
        if offset:
            weights.append(d * code + struct.unpack_from("<e", record, 2)[0])
        else:
            weights.append(d * (code - (16 if five else 8)))
    return weights


def _weights_of_k(d: float, record: bytes, *, five: bool) -> list[float]:
    d_offset = struct.unpack_from("<e", record, 2)[0]
    packed, low = record[4:16], record[-128:]
    weights = []
    for i in range(256):
        block = i // 32
        if block < 4:
            scale, offset = packed[block] & 63, packed[block + 4] & 63
        else:
            scale = packed[block + 4] & 15 | (packed[block - 4] >> 6) << 4
            offset = packed[block + 4] >> 4 | (packed[block] >> 6) << 4
        byte = low[32 * (block // 2) + i % 32]
        code = byte >> 4 if block % 2 else byte & 15
        if five:
            code += (record[16 + i % 32] >> block & 1) * 16
        weights.append(d * scale * code - d_offset * offset)
    return weights


def _weights_of_six(d: float, record: bytes) -> list[float]:
    low, high, scales = record[:128], record[128:192], struct.unpack("<16b", record[192:208])
    weights = []
    for i in range(256):
        half, quarter, place = i // 128, i % 128 // 32, i % 32
        byte = low[64 * half + 32 * (quarter % 2) + place]
        code = byte >> 4 if quarter > 1 else byte & 15
        code += (high[32 * half + place] >> 2 * quarter & 3) * 16
        weights.append(d * scales[i // 16] * (code - 32))
    return weights


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


def tiny_decoder(
    kinds: dict[str, int], family: str = "llama", seed: int = 0
) -> tuple[dict[str, Any], dict[str, Stored], Any]:
    """A random two-layer decoder: metadata, stored tensors, and its float32 weights.

    kinds: GGUF type by the last part of a matrix's name (attn_q, ffn_down, token_embd, output);
    Q4_1 where nothing is said, and no head of its own unless ``output`` is named. A qwen2 has
    biases. Where a K block is asked for, all is wide enough for one.
    """
    width, feed_forward, vocabulary, kv = 64, 96, 128, 32
    if any(RECORDS.get(kind, (0, 0))[1] == 256 for kind in kinds.values()):
        width, feed_forward, kv = 256, 512, 128
    metadata = {
        "general.architecture": family,
        f"{family}.block_count": 2,
        f"{family}.context_length": 64,
        f"{family}.embedding_length": width,
        f"{family}.feed_forward_length": feed_forward,
        f"{family}.attention.head_count": 4,
        f"{family}.attention.head_count_kv": 2,
        f"{family}.rope.freq_base": 10000.0 if family == "llama" else 1e6,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
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
    if family == "qwen2":
        for name in [name for name in matrices if name[-6:] in ("attn_q", "attn_k", "attn_v")]:
            weights[f"{name}.bias"] = rng.normal(0, 0.5, matrices[name][0]).astype(np.float32)
            tensors[f"{name}.bias"] = floats(weights[f"{name}.bias"])
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
