"""A GGUF file is read exactly, and a damaged one is refused with a reason."""

import os
import struct
import time
import tracemalloc
from pathlib import Path
from random import Random

import numpy as np
import pytest

from local_models.decoder_graph import DecoderGraph, Options
from local_models.engine import Engine
from local_models.family import read_shape
from local_models.fit import require_room
from local_models.gguf import GgufFile
from local_models.messages import InvalidModel, ModelUnavailable
from tests.local_models import gguf_files
from tests.local_models.gguf_files import BF16, F16, F32, Q4_1, Q4_K, Q5_0, Q6_K, Q8_0

METADATA = {
    "general.architecture": "llama",
    "count": 7,
    "scale": 0.5,
    "flag": True,
    "words": ["ä", "b", ""],
    "numbers": [1, -2, 3],
}


@pytest.mark.parametrize("kind", gguf_files.RECORDS)
def test_blocks_dequantize_to_the_numbers_they_stand_for(tmp_path: Path, kind: int) -> None:
    """Bit for bit, compared with loops that follow the format's definition."""
    stored, weights = gguf_files.random_blocks((6, 768), kind, seed=1)
    gguf_files.write(tmp_path / "m.gguf", {}, {"w": stored})
    tensor = GgufFile(tmp_path / "m.gguf").tensors["w"]
    assert tensor.shape == (6, 768)
    assert np.array_equal(tensor.dequantized(), weights)


def test_plain_floats_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    """Single and half precision are exact, and bfloat16 is its own 16 bits."""
    single = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    half = single.astype(np.float16)
    brain = (single.view(np.uint32) >> 16).astype("<u2")
    tensors = {"single": gguf_files.floats(single), "half": ((3, 5), F16, half.tobytes())}
    tensors["brain"] = ((3, 5), BF16, brain.tobytes())
    gguf_files.write(tmp_path / "m.gguf", METADATA, tensors)
    gguf = GgufFile(tmp_path / "m.gguf")
    assert gguf.metadata == METADATA
    assert np.array_equal(gguf.tensors["single"].dequantized(), single)
    assert np.array_equal(gguf.tensors["half"].dequantized(), half.astype(np.float32))
    cut = (brain.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(gguf.tensors["brain"].dequantized(), cut)
    np.testing.assert_allclose(cut, single, rtol=2**-7, atol=0)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """Cut at every byte of the header, and inside and just before the end of the tensors."""
    stored, _ = gguf_files.random_blocks((2, 64), Q4_1, seed=2)
    path = tmp_path / "m.gguf"
    head_bytes = gguf_files.write(path, METADATA, {"w": stored, "v": stored})
    whole = path.read_bytes()
    for length in [*range(head_bytes + 1), len(whole) - 40, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidModel):
            GgufFile(path)


def test_a_flipped_header_byte_never_crashes_the_reader(tmp_path: Path) -> None:
    """Each header byte in turn becomes 0xFF: the file is refused, or only a name has changed."""
    stored, _ = gguf_files.random_blocks((2, 64), Q4_1, seed=3)
    path = tmp_path / "m.gguf"
    head_bytes = gguf_files.write(path, METADATA, {"w": stored})
    whole = path.read_bytes()
    refused = 0
    for place in range(head_bytes):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        try:
            for tensor in GgufFile(path).tensors.values():
                tensor.dequantized()
        except InvalidModel:
            refused += 1
    assert refused > head_bytes // 3


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        (((2, 64), 10, b"\0" * 200), "type Q2_K, .*the nearest that is, is Q4_K"),
        (((2, 64), 4, b"\0" * 200), "type 4, which is not supported"),
        (((2, 33), Q4_1, b"\0" * 200), "do not divide into blocks"),
        (((2**40, 2**40), F32, b"\0" * 200), "beyond its end"),
        (((2**63, 0, 32), F32, b"\0" * 200), "has no weights"),
        (((0, 2**62), Q4_1, b"\0" * 200), "has no weights"),
        (((2**63, 2**63, 2**63, 32), F32, b"\0" * 200), "beyond its end"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(
    tmp_path: Path, stored: gguf_files.Stored, complaint: str
) -> None:
    """Overflowing sizes and unknown types give a name and a reason, never a huge allocation."""
    gguf_files.write(tmp_path / "m.gguf", {}, {"blk.0.bad": stored})
    with pytest.raises(InvalidModel, match=rf"blk\.0\.bad.*{complaint}"):
        GgufFile(tmp_path / "m.gguf")


def test_something_else_is_not_a_gguf_file(tmp_path: Path) -> None:
    """An empty, a short, a zipped and an absent file each end in an InvalidModel."""
    for content in (b"", b"GG", b"PK\x03\x04" + b"\0" * 100):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(InvalidModel):
            GgufFile(tmp_path / "m.gguf")
    with pytest.raises(InvalidModel, match="cannot be read"):
        GgufFile(tmp_path / "absent.gguf")


MEMORY_BYTES_MAX = 32 << 20
SECONDS_MAX = float(os.environ.get("TESTS_WAIT_SECONDS", "10"))
WORDS = [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**63), struct.pack("<Q", 2**31), b"\x7f" * 4]
WORDS += [struct.pack("<I", 9), struct.pack("<II", 9, 9), struct.pack("<IIQ", 9, 0, 2**62)]


def _read_all(path: Path, *, fused: bool = False) -> None:
    """Everything that loading a model reads, up to the weights as the operators take them."""
    gguf = GgufFile(path)
    context_tokens = min(64, read_shape(gguf).context_tokens)
    options = Options(context_tokens=context_tokens, fused=fused)
    DecoderGraph(gguf, options, path.parent, path).write()


@pytest.mark.slow
def test_a_damaged_file_is_refused_in_bounded_memory_and_time(tmp_path: Path) -> None:
    """600 files: cut, flipped, overwritten, spliced. Each is read, or ends in one InvalidModel."""
    kinds = {"ffn_down": Q6_K, "attn_v": Q5_0, "output": Q8_0, "ffn_up": Q4_K}
    metadata, tensors, _ = gguf_files.tiny_decoder(kinds, "qwen2")
    path = tmp_path / "m.gguf"
    head_bytes = gguf_files.write(path, METADATA | metadata, tensors)
    whole = path.read_bytes()
    random = Random(8)
    refusals: list[str] = []
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 1, 2, 5))):
            place = random.randrange(head_bytes if random.random() < 0.8 else len(whole))
            match random.randrange(4):
                case 0:
                    damaged = damaged[:place]
                case 1:
                    damaged[place : place + 1] = bytes([whole[place] ^ 1 << random.randrange(8)])
                case 2:
                    word = random.choice(WORDS)
                    damaged[place : place + len(word)] = word
                case _:
                    other = random.randrange(head_bytes)
                    damaged[place:place] = whole[other : other + random.randrange(64)]
        path.write_bytes(damaged)
        tracemalloc.start()
        begin_seconds = time.perf_counter()
        try:
            _read_all(path)
        except InvalidModel as error:
            refusals.append(str(error))
        finally:
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak_bytes < MEMORY_BYTES_MAX
        assert time.perf_counter() - begin_seconds < SECONDS_MAX
    assert len(refusals) > 300
    assert max(map(len, refusals)) < 600


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (struct.pack("<IIQ", 9, 0, 5 << 20), "more than 4194304 values"),
        (struct.pack("<IQ", 8, 70 << 20), "more than 67108864 bytes"),
        (struct.pack("<IIQ", 9, 0, 2**62), "more than fit in it"),
        (struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6, "nested too deeply"),
    ],
)
def test_a_large_file_gets_no_large_allocation(
    tmp_path: Path, metadata: bytes, complaint: str
) -> None:
    """The file really has the bytes it announces: 80 MB, most of them a hole."""
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    path.write_bytes(head + metadata)
    os.truncate(path, 80 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidModel, match=complaint):
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fused", [False, True])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, fused: bool) -> None:
    """A flipped bit can make a scale infinite; each answer of the model would be nonsense."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    shape, kind, raw = tensors["blk.1.ffn_up.weight"]
    tensors["blk.1.ffn_up.weight"] = shape, kind, struct.pack("<e", float("inf")) + raw[2:]
    gguf_files.write(tmp_path / "m.gguf", metadata, tensors)
    with pytest.raises(InvalidModel, match=r"blk\.1\.ffn_up\.weight .*damaged"):
        _read_all(tmp_path / "m.gguf", fused=fused)


def test_a_model_that_does_not_fit_says_how_much_it_needs(tmp_path: Path) -> None:
    """Before anything is allocated: its weights, its cache, and what would need less."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    metadata["llama.context_length"] = 2**31
    gguf_files.write(tmp_path / "model.gguf", metadata, tensors)
    gguf = GgufFile(tmp_path / "model.gguf")
    shape = read_shape(gguf)
    # Two layers of keys and values, two heads of 16 numbers, 4 bytes each.
    cache = "1024.00 GiB for 1 slots of 2147483648 tokens"
    with pytest.raises(ModelUnavailable, match=rf"needs 1024\.09 GiB of memory .*{cache}"):
        require_room(gguf, shape, slots=1, context_tokens=2**31)
    require_room(gguf, shape, slots=1, context_tokens=64)
    with pytest.raises(ModelUnavailable, match=r"0\.05 GiB are free; fewer slots"):
        require_room(gguf, shape, slots=1, context_tokens=64, free_bytes=50 << 20)
    with pytest.raises(ModelUnavailable, match="does not fit"):
        Engine.load(tmp_path, slots=1, context_tokens=2**31)
