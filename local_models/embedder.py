"""Texts in, unit vectors out: a sentence encoder on ONNX Runtime's CPU provider.

Knows WordPiece, batches and one session. Does not know sockets, tenants or how a graph is made.
Calibration and the self-check's reference come from the same checkpoint in float32, when a graph
is built for the first time; the graph is kept beside the model under a digest of all it is made of.
"""

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from local_models import cpu_traits
from local_models.encoder_config import EncoderConfig, Precision, read_encoder_config
from local_models.messages import InvalidModel, InvalidPrompt
from local_models.safetensors import SafeTensors

DEFAULT_MAX_TOKENS = 128
"""Tokens of one text that are embedded unless the caller asks for more, with [CLS] and [SEP]."""

BATCH_TOKENS = 1024
"""Tokens of one run, padding included: 60 ms on one core, so that nobody waits longer."""

CHARACTERS_PER_TOKEN_MAX = 64
"""A text is cut to this many characters per wanted token before it is tokenized."""

MIN_PROBE_COSINE = 0.98
"""A probe's vector must be this close to its float32 reference; right is 0.995 or better."""

PROBES = (
    "How do I reset my password?",
    "I forgot my password, how can I change it?",
    "What is the capital of France?",
    "The committee postponed the vote until independent experts have examined the evidence.",
    "Error 504 while connecting to the database; retrying in 30 seconds",
    "thanks",
)
"""The first two mean nearly the same; every other pair differs."""

CALIBRATION_TEXTS = (
    *PROBES,
    "Good morning, could you help me write a short letter to my landlord about the heating?",
    "What is 17 times 23?",
    "ok",
    "def area(r): return 3.14159 * r ** 2  # of a circle",
    "Je voudrais réserver une table pour deux personnes ce soir à vingt heures.",
    "Wie viele Einwohner hat München?",
    "東京の天気を教えてください。",
    "Classify the sentiment as positive, negative or neutral: the battery lasts two days, but "
    "the screen scratches easily and the support never answered my three e-mails.",
    '{"order": 48213, "items": [{"sku": "A-77", "count": 2}], "paid": true}',
    "SELECT name, count(*) FROM users GROUP BY name HAVING count(*) > 3;",
    "Interest rates rose by 0.25 percentage points after Thursday's meeting of the central bank.",
    "Yes!",
)


class Embeddings(NamedTuple):
    """vectors: float32 [texts, width], unit length. tokens: how many of each text were embedded."""

    vectors: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[bool]


class Embedder:
    """One loaded encoder. Not for use by several threads at once."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        tokenizer: Tokenizer,
        config: EncoderConfig,
        precision: Precision,
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.dimensions = config.hidden_size
        self.max_tokens = config.max_position_embeddings
        self.precision = precision

    @classmethod
    def load(
        cls, model_dir: Path, *, threads: int = 1, precision: Precision = "int8"
    ) -> "Embedder":
        """Open ``config.json``, ``tokenizer.json`` and ``model.safetensors`` of a BERT encoder.

        The first load builds the graph (2 s); later ones open it. The int8 graph has the form
        whose products are exact on this CPU; should it still fail its self-check, the float32
        one is loaded instead. Raises InvalidModel.
        """
        try:
            return cls._load(model_dir, threads, precision)
        except _SelfCheckFailed:
            if precision == "float32":
                raise
            return cls._load(model_dir, threads, "float32")

    @classmethod
    def _load(cls, model_dir: Path, threads: int, precision: Precision) -> "Embedder":
        config, tokenizer = read_encoder_config(model_dir), _read_tokenizer(model_dir)
        session = _open(model_dir, config, tokenizer, precision, threads)
        embedder = cls(session, tokenizer, config, precision)
        embedder._check()
        return embedder

    def embed(self, texts: Sequence[str], *, max_tokens: int = DEFAULT_MAX_TOKENS) -> Embeddings:
        """Embed each text by itself: neighbours in the batch do not change a vector.

        A text of more than ``max_tokens`` keeps its first three quarters of them and its last
        quarter (128: 96 and 32), where questions and instructions stand. Raises InvalidPrompt.
        """
        if not 8 <= max_tokens <= self.max_tokens:
            raise InvalidPrompt(f"max_tokens must lie in 8..{self.max_tokens}, not {max_tokens}.")
        encoded = [self._encode(text, max_tokens) for text in texts]
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for batch in _batches([len(ids) for ids, _ in encoded]):
            vectors[batch] = _run(self._session, [encoded[i][0] for i in batch])
        return Embeddings(vectors, [len(ids) for ids, _ in encoded], [cut for _, cut in encoded])

    def _encode(self, text: str, max_tokens: int) -> tuple[list[int], bool]:
        characters = CHARACTERS_PER_TOKEN_MAX * max_tokens
        tail_tokens = max_tokens // 4
        cut = len(text) > characters
        if cut:
            text = text[: characters * 3 // 4] + " " + text[-characters // 4 :]
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) > max_tokens:
            return ids[: max_tokens - tail_tokens] + ids[-tail_tokens:], True
        return ids, cut

    def _check(self) -> None:
        """Embed the probes and compare with what float32 made of them on the day of the build."""
        stored = self._session.get_modelmeta().custom_metadata_map.get("probes", "")
        try:
            reference = np.frombuffer(base64.b64decode(stored), "<f4").reshape(len(PROBES), -1)
        except ValueError as error:
            raise InvalidModel("the embedding graph carries no probes.") from error
        vectors = self.embed(PROBES).vectors
        cosines = vectors @ vectors.T
        worst = float((vectors * reference).sum(axis=1).min())
        near, distinct = float(cosines[0, 1]), float(np.triu(cosines, 1)[:, 2:].max())
        # Written so that a NaN fails too.
        if not (worst >= MIN_PROBE_COSINE and near > 0.7 and distinct < 0.5):
            raise _SelfCheckFailed(
                f"the embedder fails its self-check ({self.precision}): cosine to the reference "
                f"{worst:.3f}, of equal meanings {near:.2f}, of different ones {distinct:.2f}."
            )


class _SelfCheckFailed(InvalidModel):
    """The graph runs on this machine but does not give the reference's vectors."""


def _read_tokenizer(model_dir: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise InvalidModel(f"{model_dir}/tokenizer.json cannot be read: {error}.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _open_session(graph: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = str(graph) if isinstance(graph, Path) else graph
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no common narrower base
        raise InvalidModel(f"the embedding graph cannot be loaded: {error}.") from error


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Indices of texts of similar length, at most BATCH_TOKENS with padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _feed(rows: Sequence[list[int]]) -> dict[str, npt.NDArray[Any]]:
    lengths = np.array([len(ids) for ids in rows], np.int32)
    input_ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for row, ids in zip(input_ids, rows, strict=True):
        row[: len(ids)] = ids
    return {"input_ids": input_ids, "lengths": lengths}


def _run(
    session: onnxruntime.InferenceSession, rows: Sequence[list[int]]
) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = session.run(["embeddings"], _feed(rows))[0]
    return vectors


def _open(
    model_dir: Path,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    precision: Precision,
    threads: int,
) -> onnxruntime.InferenceSession:
    """The cached graph's session; the graph is built where it is missing or damaged."""
    checkpoint = model_dir / "model.safetensors"
    unsigned = precision == "int8" and cpu_traits.byte_products_saturate()
    # A name for each form: machines that share the folder do not replace each other's graph.
    form = "uint8" if unsigned else precision
    path = model_dir / f"encoder-{form}-{_digest(checkpoint, config)}.onnx"
    if path.is_file():
        with contextlib.suppress(InvalidModel):
            return _open_session(path, threads)
    model = _build(SafeTensors(checkpoint), config, tokenizer, precision, unsigned)
    return _open_session(path if _store(model, path) else model, threads)


def _store(model: bytes, path: Path) -> bool:
    """Whether the graph could be kept; a folder that cannot be written costs only the next load."""
    part: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        for outdated in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.onnx"):
            if outdated != path:
                outdated.unlink(missing_ok=True)
    except OSError:
        if part is not None:
            part.unlink(missing_ok=True)
        return False
    return True


def _digest(checkpoint: Path, config: EncoderConfig) -> str:
    digest = hashlib.sha256(msgspec.json.encode(config))
    digest.update(json.dumps([PROBES, CALIBRATION_TEXTS]).encode())
    digest.update(resources.files("local_models").joinpath("embedding_graph.py").read_bytes())
    try:
        with checkpoint.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise InvalidModel(f"{checkpoint} cannot be read: {error}.") from error
    return digest.hexdigest()[:16]


def _build(
    tensors: SafeTensors,
    config: EncoderConfig,
    tokenizer: Tokenizer,
    precision: Precision,
    unsigned: bool,
) -> bytes:
    """Build in float32, observe it on the calibration texts, then build what was asked for."""
    # Needs the onnx package, 0.2 s and 30 MB that a load from the cache is spared.
    from local_models import embedding_graph

    model = embedding_graph.build(tensors.float32, config, precision="float32")
    layers = embedding_graph.linear_inputs(model)
    session = _open_session(model.SerializeToString(), threads=1)
    ranges: dict[str, npt.NDArray[np.float32]] = {}
    for text in CALIBRATION_TEXTS:
        names = ["embeddings", *layers.values()]
        _, *observed = session.run(names, _feed([tokenizer.encode(text).ids]))
        for layer, x in zip(layers, observed, strict=True):
            ranges[layer] = np.maximum(ranges.get(layer, np.float32(0)), np.abs(x).max(axis=(0, 1)))
    probes = np.concatenate([_run(session, [tokenizer.encode(text).ids]) for text in PROBES])
    model = embedding_graph.build(
        tensors.float32, config, precision=precision, ranges=ranges, unsigned=unsigned
    )
    metadata = model.metadata_props.add()
    metadata.key, metadata.value = (
        "probes",
        base64.b64encode(probes.astype("<f4").tobytes()).decode(),
    )
    graph: bytes = model.SerializeToString()
    return graph
