"""The graph computes what the NumPy decoder computes, whatever the weights are stored as."""

import hashlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_models import graph, native
from local_models.decoder_graph import Options
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.messages import InvalidModel, ModelUnavailable
from local_models.ops import Float, ReferenceDecoder
from local_models.origins import Origin, read_origin, write_origin
from local_models.session import DecoderSession
from tests.local_models import gguf_files
from tests.local_models.gguf_files import F32, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

PROMPT = [5, 99, 3, 127, 64, 64, 0]
BLOCK_MATRICES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
STORED: dict[str, dict[str, int]] = {
    "Q4_1": {},
    "Q5_0 and Q8_0": dict.fromkeys(BLOCK_MATRICES, Q5_0) | {"attn_v": Q8_0, "output": Q8_0},
    "Q5_1": dict.fromkeys([*BLOCK_MATRICES, "token_embd"], Q5_1),
    "Q4_K and Q6_K": dict.fromkeys([*BLOCK_MATRICES, "token_embd"], Q4_K)
    | {"attn_v": Q6_K, "ffn_down": Q6_K, "output": Q6_K},
    "Q5_K": dict.fromkeys([*BLOCK_MATRICES, "token_embd"], Q5_K),
    "Q4_0 with a float head": dict.fromkeys(BLOCK_MATRICES, Q4_0) | {"output": F32},
    "mixed": {"ffn_down": Q8_0, "ffn_gate": F32, "attn_output": Q4_0, "output": Q8_0},
    "float embedding": {"token_embd": F32},
}

FUSED = {name: kinds for name, kinds in STORED.items() if F32 not in kinds.values()}
needs_library = pytest.mark.skipif(
    native.library_path() is None, reason="the native library is not built"
)


def _open(
    folder: Path, kinds: dict[str, int], family: str = "llama", **chosen: Any
) -> tuple[DecoderSession, Any]:
    metadata, tensors, weights = gguf_files.tiny_decoder(kinds, family)
    gguf_files.write(folder / "model.gguf", metadata, tensors)
    shape = read_shape(GgufFile(folder / "model.gguf"))
    options = Options(context_tokens=64, **chosen)
    session = DecoderSession(
        graph.ensure_graph(folder / "model.gguf", options),
        shape,
        options,
        threads=1,
        slots=3,
        library=native.library_path() if options.fused else None,
    )
    reference = ReferenceDecoder(
        weights,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        rope_base=shape.rope_base,
        epsilon=shape.epsilon,
        half_split=family == "qwen2",
    )
    return session, reference


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kinds", STORED.values(), ids=STORED)
def test_prefill_and_decode_equal_the_reference(
    tmp_path: Path, kinds: dict[str, int], family: str
) -> None:
    """Logits agree for each family and storage type, when a prompt comes in two chunks too."""
    session, reference = _open(tmp_path, kinds, family, accuracy_level=1)
    expected: Float = reference.logits(PROMPT)
    _close(session.prefill(0, PROMPT[:4], 0), expected[3])
    _close(session.prefill(0, PROMPT[4:], 4), expected[6])
    _close(session.decode([17], [7])[0], reference.logits([17])[0])


@needs_library
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kinds", STORED.values(), ids=STORED)
def test_the_fused_graph_equals_the_reference(
    tmp_path: Path, kinds: dict[str, int], family: str
) -> None:
    """Also where some matrices are of a kind that the operators do not take."""
    session, reference = _open(tmp_path, kinds, family, accuracy_level=1, fused=True)
    _close(session.prefill(2, PROMPT, 0), reference.logits(PROMPT)[-1])
    session.move(2, 0, len(PROMPT))
    _close(session.decode([17], [7])[0], reference.logits([17])[0])


@needs_library
@pytest.mark.parametrize("accuracy_level", [1, 4])
@pytest.mark.parametrize("kinds", FUSED.values(), ids=FUSED)
def test_fused_a_token_alone_gets_the_bits_it_gets_in_a_batch(
    tmp_path: Path, kinds: dict[str, int], accuracy_level: int
) -> None:
    """An answer must not depend on how many other users ask at that moment."""
    session, _ = _open(tmp_path, kinds, "qwen2", accuracy_level=accuracy_level, fused=True)
    for slot in range(3):
        session.prefill(slot, PROMPT, 0)
    alone = session.decode([9], [7])[0].copy()
    assert all(np.array_equal(row, alone) for row in session.decode([9, 9, 9], [7, 7, 7]))


@needs_library
def test_a_fused_graph_takes_its_weights_from_the_model_file(tmp_path: Path) -> None:
    """By a hard link, which takes no room; copied where there can be none, with the same bits."""
    kinds = FUSED["Q5_0 and Q8_0"]
    session, _ = _open(tmp_path, kinds, "qwen2", fused=True)
    linked = session.prefill(0, PROMPT, 0).copy()
    (folder,) = (tmp_path / "graphs").iterdir()
    model = tmp_path / "model.gguf"
    assert (folder / "source").samefile(model)
    assert (folder / "weights.bin").stat().st_size < model.stat().st_size / 2
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))  # Another file system.
    try:
        (elsewhere / "model.gguf").symlink_to(model)
        options = Options(context_tokens=64, fused=True)
        copied_path = graph.ensure_graph(elsewhere / "model.gguf", options)
        assert not (copied_path.parent / "source").exists()
        library = native.library_path()
        shape = read_shape(GgufFile(model))
        copied = DecoderSession(copied_path, shape, options, threads=1, slots=1, library=library)
        assert np.array_equal(copied.prefill(0, PROMPT, 0), linked)
    finally:
        shutil.rmtree(elsewhere)


@pytest.mark.parametrize("kinds", STORED.values(), ids=STORED)
@pytest.mark.parametrize("accuracy_level", [1, 4])
def test_in_pairs_a_token_alone_gets_the_bits_it_gets_in_a_batch(
    tmp_path: Path, kinds: dict[str, int], accuracy_level: int
) -> None:
    """Whatever loop this CPU has for one row."""
    session, reference = _open(tmp_path, kinds, accuracy_level=accuracy_level, pairs=True)
    for slot in range(3):
        session.prefill(slot, PROMPT, 0)
    alone = session.decode([9], [7])[0].copy()
    if accuracy_level == 1:
        _close(alone, reference.logits([*PROMPT, 9])[-1])
    assert all(np.array_equal(row, alone) for row in session.decode([9, 9, 9], [7, 7, 7]))


def test_rows_of_a_batch_do_not_see_each_other(tmp_path: Path) -> None:
    """Three sequences of different lengths, one of them moved, decode as each does alone."""
    session, _ = _open(tmp_path, {}, accuracy_level=1)
    alone = []
    for prompt in (PROMPT, PROMPT[:2], PROMPT[2:]):
        session.prefill(0, prompt, 0)
        alone.append(session.decode([9], [len(prompt)])[0].copy())
    session.prefill(2, PROMPT, 0)
    session.move(2, 0, len(PROMPT))
    session.prefill(1, PROMPT[:2], 0)
    session.prefill(2, PROMPT[2:], 0)
    together = session.decode([9, 9, 9], [7, 2, 5])
    _close(together, np.array(alone))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_attention_in_half_precision_is_near_the_reference(tmp_path: Path, family: str) -> None:
    """The graph for GPUs, on the CPU: chunks, a moved slot, and a step of the batch."""
    session, reference = _open(tmp_path, {}, family, accuracy_level=1, half_cache=True)
    expected: Float = reference.logits(PROMPT)
    largest = float(np.abs(expected).max())
    session.prefill(2, PROMPT[:4], 0)
    found = session.prefill(2, PROMPT[4:], 4)
    np.testing.assert_allclose(found, expected[6], rtol=0, atol=0.01 * largest)
    session.move(2, 0, len(PROMPT))
    found = session.decode([17], [7])[0]
    np.testing.assert_allclose(found, reference.logits([17])[0], rtol=0, atol=0.01 * largest)


def test_a_graph_is_built_once_and_appears_whole(tmp_path: Path) -> None:
    """Four builders at once: one folder, nothing half-built beside it; other options, another."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    path = tmp_path / "model.gguf"
    gguf_files.write(path, metadata, tensors)
    options = Options(context_tokens=64)
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(lambda _: graph.ensure_graph(path, options), range(4)))
    assert len(built) == 1
    assert [folder.name for folder in (tmp_path / "graphs").iterdir()] == [built.pop().parent.name]
    graph.ensure_graph(path, Options(context_tokens=32))
    assert len(list((tmp_path / "graphs").iterdir())) == 2


def test_a_repacked_copy_says_that_it_is_changed_and_from_what(tmp_path: Path) -> None:
    """The licence asks for it, and it stays with the copy when somebody moves the folder."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    path = tmp_path / "model.gguf"
    gguf_files.write(path, metadata, tensors)
    origin = Origin(model="tiny", license="MIT", publisher="someone", revision="a" * 40)
    write_origin(tmp_path, origin)
    copy = read_origin(graph.ensure_graph(path, Options()).parent)
    assert copy is not None
    assert copy.changed
    assert (copy.license, copy.publisher, copy.revision) == ("MIT", "someone", "a" * 40)
    assert copy.remark.startswith("changed by tollhouse: repacked as an ONNX graph from")
    assert copy.sha256 == {"model.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_only_the_newest_graphs_are_kept(tmp_path: Path) -> None:
    """Each context length that was ever tried would else leave its graph on the disk."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    path = tmp_path / "model.gguf"
    gguf_files.write(path, metadata, tensors)
    built = [
        graph.ensure_graph(path, Options(context_tokens=context))
        for context in range(8, 8 + graph.GRAPHS_MAX + 2)
    ]
    assert [graph_path.exists() for graph_path in built] == [False] * 2 + [True] * graph.GRAPHS_MAX


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A user reads where the graph should go in place of a bare error of the system."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    gguf_files.write(tmp_path / "model.gguf", metadata, tensors)
    (tmp_path / "graphs").write_text("in the way")
    with pytest.raises(ModelUnavailable, match="the graph cannot be kept in"):
        graph.ensure_graph(tmp_path / "model.gguf", Options(context_tokens=64))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"general.architecture": "mamba"}, "family 'mamba'.*nearest family that is, is llama"),
        ({"general.architecture": "qwen3"}, "family 'qwen3'.*nearest family that is, is qwen2"),
        ({"llama.expert_count": 8}, "8 experts are not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary scaling 'yarn' is not supported"),
        ({"llama.attention.key_length": 32}, "do not fill a width of 64"),
        ({"llama.block_count": 2.5}, "positive llama.block_count"),
        ({"llama.block_count": 3}, r"no tensor blk\.2"),
        ({"llama.attention.head_count": 0}, "positive llama.attention.head_count"),
        ({"llama.embedding_length": 32}, "does not fit its metadata"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """The message says what is not supported and which family is nearest; no folder is left."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    gguf_files.write(tmp_path / "model.gguf", metadata | change, tensors)
    with pytest.raises(InvalidModel, match=complaint):
        graph.ensure_graph(tmp_path / "model.gguf", Options(context_tokens=64))
    assert not list(tmp_path.glob("graphs/*"))


def _close(actual: Float, expected: Float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
