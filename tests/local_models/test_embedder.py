"""The embedder against a NumPy encoder written here from the BERT paper, and its promises."""

import json
import shutil
from collections.abc import Sequence
from math import erf
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from local_models import cpu_traits
from local_models import embedder as embedder_module
from local_models.catalogue import ensure
from local_models.embedder import Embedder
from local_models.encoder_config import read_encoder_config
from local_models.messages import InvalidModel, InvalidPrompt
from local_models.safetensors import SafeTensors

Floats = npt.NDArray[np.float32]

TEXTS = (
    "How can I get my money back for a broken kettle?",
    "The kettle I bought is defective and I would like a refund.",
    "Our train to Vienna leaves at a quarter past nine from platform four.",
    "hi",
    "Translate the following contract clause into plain English, keeping every deadline: the "
    "lessee shall within fourteen days notify the lessor in writing of any defect.",
    "for i in range(10): print(i ** 2)",
    "Quelle est la capitale de l'Australie ?",
    "你好,世界",
)


@pytest.fixture(scope="module")
def model_dir() -> Path:
    """The real model."""
    return ensure("all-minilm-l6-v2")


@pytest.fixture(scope="module")
def embedder(model_dir: Path) -> Embedder:
    """The variant that is shipped."""
    return Embedder.load(model_dir)


class Reference:
    """all-MiniLM-L6-v2 in float32, one text at a time. Source: Devlin et al. 2018, section 3."""

    def __init__(self, model_dir: Path) -> None:
        self.weights = SafeTensors(model_dir / "model.safetensors")
        self.tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def dense(self, x: Floats, name: str) -> Floats:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"])

    def attention(self, x: Floats, prefix: str) -> Floats:
        parts = [self.dense(x, f"{prefix}.self.{part}") for part in ("query", "key", "value")]
        q, k, v = (part.reshape(len(x), 12, 32).transpose(1, 0, 2) for part in parts)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(32))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.asarray((weights @ v).transpose(1, 0, 2).reshape(len(x), 384))

    def embed_ids(self, ids: Sequence[int]) -> Floats:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][list(ids)]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for layer in range(6):
            name = f"encoder.layer.{layer}"
            projected = self.dense(
                self.attention(x, f"{name}.attention"), f"{name}.attention.output.dense"
            )
            x = self.norm(x + projected, f"{name}.attention.output.LayerNorm")
            up = self.dense(x, f"{name}.intermediate.dense")
            gelu = up * 0.5 * (1 + np.vectorize(erf)(up / np.sqrt(2)))
            x = self.norm(x + self.dense(gelu, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = x.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def embed(self, text: str) -> Floats:
        return self.embed_ids(self.tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Reference:
    """Float32, from the same checkpoint."""
    return Reference(model_dir)


def test_float32_equals_the_reference(model_dir: Path, reference: Reference) -> None:
    """The fused graph computes what the paper's formulas compute."""
    vectors = Embedder.load(model_dir, precision="float32").embed(TEXTS).vectors
    expected = np.stack([reference.embed(text) for text in TEXTS])
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_int8_stays_within_a_cosine_of_0_995(embedder: Embedder, reference: Reference) -> None:
    """Mean above 0.998, and no pair's similarity moves by more than 0.02."""
    assert embedder.precision == "int8"
    vectors = embedder.embed(TEXTS).vectors
    expected = np.stack([reference.embed(text) for text in TEXTS])
    cosines = (vectors * expected).sum(axis=1)
    assert cosines.min() > 0.995
    assert cosines.mean() > 0.998
    assert np.abs(vectors @ vectors.T - expected @ expected.T).max() < 0.02


@pytest.mark.slow
def test_both_forms_of_the_int8_graph_give_the_same_vectors(
    model_dir: Path, reference: Reference
) -> None:
    """Where products do not saturate the shipped form equals the one that is exact everywhere.

    Both are built here: what calibrates them is computed in float32, whose last bits are the CPU's.
    """
    if cpu_traits.byte_products_saturate():
        pytest.skip("this CPU has the exact form alone")
    config, checkpoint = (
        read_encoder_config(model_dir),
        SafeTensors(model_dir / "model.safetensors"),
    )
    texts = [*TEXTS, "kettle " * 126]
    exact, shipped = (
        Embedder(
            embedder_module._open_session(
                embedder_module._build(checkpoint, config, reference.tokenizer, "int8", unsigned),
                threads=1,
            ),
            reference.tokenizer,
            config,
            "int8",
        ).embed(texts)
        for unsigned in (True, False)
    )
    np.testing.assert_allclose(exact.vectors, shipped.vectors, atol=1e-4)


def test_vectors_have_unit_length(embedder: Embedder) -> None:
    """So a dot product is a cosine."""
    lengths = np.linalg.norm(embedder.embed(TEXTS).vectors, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_a_rewording_is_nearer_than_another_topic(embedder: Embedder) -> None:
    """Two refund requests against a train's departure."""
    refund, same, train = embedder.embed(TEXTS[:3]).vectors
    assert refund @ same > 0.7
    assert refund @ train < 0.3


def test_a_text_does_not_depend_on_its_neighbours(embedder: Embedder) -> None:
    """One batch of mixed lengths equals the same texts one by one."""
    texts = [*TEXTS, "word " * 100, "many words " * 120]
    together = embedder.embed(texts)
    alone = [embedder.embed([text]) for text in texts]
    np.testing.assert_allclose(
        together.vectors, np.concatenate([one.vectors for one in alone]), atol=1e-5
    )
    assert together.tokens == [one.tokens[0] for one in alone]


def test_more_texts_than_one_run_takes_come_back_in_order(embedder: Embedder) -> None:
    """200 different lengths, shuffled: each row is its own text's."""
    texts = [f"item {i} " + "again " * (i * 37 % 90) for i in range(200)]
    vectors = embedder.embed(texts).vectors
    for index in (0, 57, 123, 199):
        assert vectors[index] @ embedder.embed([texts[index]]).vectors[0] > 0.9999


def test_a_long_text_keeps_its_head_and_its_tail(embedder: Embedder, reference: Reference) -> None:
    """Of 128 tokens, the first 96 and the last 32, with [CLS] and [SEP] among them."""
    text = " ".join(f"sentence number {i} says something." for i in range(80))
    ids = reference.tokenizer.encode(text).ids
    expected = reference.embed_ids(ids[:96] + ids[-32:])
    result = embedder.embed([text, "short"])
    assert result.tokens == [128, 3]
    assert result.truncated == [True, False]
    assert result.vectors[0] @ expected > 0.995


def test_more_tokens_are_embedded_on_request(embedder: Embedder, reference: Reference) -> None:
    """300 tokens fit into 512 without being cut."""
    text = "kettle " * 298
    result = embedder.embed([text], max_tokens=512)
    assert (result.tokens, result.truncated) == ([300], [False])
    assert result.vectors[0] @ reference.embed(text) > 0.995


def test_an_enormous_text_is_cut_before_it_is_tokenized(embedder: Embedder) -> None:
    """Ten megabytes are answered like any long text; its beginning and end both count."""
    filler = "lorem ipsum " * 900_000
    first, second = embedder.embed(["refund " + filler, filler + " refund"]).vectors
    assert embedder.embed([filler]).truncated == [True]
    assert first @ second < 0.99999


def test_empty_and_odd_texts_have_vectors_too(embedder: Embedder) -> None:
    """Nothing a tenant sends may produce a NaN."""
    result = embedder.embed(["", " ", "\x00", "\ud7ff", "🙂" * 500, "ａｂ\u0301"])
    assert np.isfinite(result.vectors).all()
    assert result.tokens[0] == 2
    assert embedder.embed([]).vectors.shape == (0, 384)


@pytest.mark.parametrize("max_tokens", [0, 7, 513])
def test_a_limit_the_model_does_not_have_is_refused(embedder: Embedder, max_tokens: int) -> None:
    """The model knows 512 positions."""
    with pytest.raises(InvalidPrompt, match=r"8\.\.512"):
        embedder.embed(["x"], max_tokens=max_tokens)


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    """The model's three files in a folder of its own, without a built graph."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(model_dir / name)
    return tmp_path


@pytest.mark.slow
def test_the_graph_is_built_once_and_again_when_the_checkpoint_differs(copied: Path) -> None:
    """The cached file's name is a digest; neither an outdated graph nor a part of one remains."""
    Embedder.load(copied)
    (built,) = copied.glob("*.onnx")
    stamp_ns = built.stat().st_mtime_ns
    Embedder.load(copied)
    assert built.stat().st_mtime_ns == stamp_ns
    raw = bytearray((copied / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").write_bytes(raw)
    Embedder.load(copied)
    (rebuilt,) = copied.glob("*.onnx")
    assert rebuilt != built
    assert not list(copied.glob("*.part"))


@pytest.mark.slow
def test_a_damaged_graph_is_rebuilt(copied: Path) -> None:
    """A cached file that cannot be loaded costs one build, not the service."""
    Embedder.load(copied)
    (built,) = copied.glob("*.onnx")
    built.write_bytes(built.read_bytes()[:1000])
    assert Embedder.load(copied).embed(["hello"]).tokens == [3]


@pytest.mark.slow
def test_weights_that_mean_nothing_fail_the_self_check(copied: Path) -> None:
    """All zeros: every text would get the same vector, and every cache lookup would hit."""
    raw = bytearray((copied / "model.safetensors").read_bytes())
    header_bytes = int.from_bytes(raw[:8], "little")
    raw[8 + header_bytes :] = bytes(len(raw) - 8 - header_bytes)
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").write_bytes(raw)
    with pytest.raises(InvalidModel, match="self-check"):
        Embedder.load(copied)


def test_another_architecture_is_refused_by_its_config(copied: Path) -> None:
    """The sentence names the file."""
    config = json.loads((copied / "config.json").read_text())
    config["hidden_act"] = "relu"
    (copied / "config.json").unlink()
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=r"config\.json"):
        Embedder.load(copied)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    """And the error is ours, whatever library met it."""
    (copied / name).unlink()
    with pytest.raises(InvalidModel, match=name.replace(".", r"\.")):
        Embedder.load(copied)


def test_a_folder_that_cannot_be_written_still_serves(copied: Path) -> None:
    """The graph then lives in memory only. Shown by a name that is taken by a folder."""
    elsewhere = copied / "sub"
    shutil.copytree(copied, elsewhere, symlinks=True, ignore=shutil.ignore_patterns("sub"))
    Embedder.load(copied)
    (built,) = copied.glob("*.onnx")
    (elsewhere / built.name).mkdir()
    assert Embedder.load(elsewhere).embed(["hello"]).tokens == [3]
