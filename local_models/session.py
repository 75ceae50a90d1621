"""Run a decoder graph: ONNX Runtime on buffers that stay where they are.

Owns the key-value cache, bound as past and present at once, so that nothing is copied between
steps; on a GPU it stays there, and only tokens and logits travel. Rows 0..n-1 decode together; any
slot prefills alone, because GroupQueryAttention on the CPU takes several new tokens only for a
batch of one. Knows slots and positions; does not know requests or sampling. Not thread-safe.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from local_models.decoder_graph import Options
from local_models.family import Shape
from local_models.key_values import KeyValueCache, providers
from local_models.messages import InvalidModel, ModelUnavailable

SPIN_MICROSECONDS_MAX = 100
"""How long a worker thread of a running step looks for its next operator before it sleeps.

Without any spinning a decode step is a third slower (two threads: 120 against 175 tokens/s).
"""

Logits = npt.NDArray[np.float32]


class DecoderSession:
    """One loaded graph with its cache of ``slots`` sequences."""

    def __init__(
        self,
        graph_path: Path,
        shape: Shape,
        options: Options,
        *,
        threads: int,
        slots: int,
        library: Path | None,
        device: str = "cpu",
    ) -> None:
        self._session = _open(graph_path, threads, library, device)
        self.slots = slots
        self._shape = shape
        self._context_tokens = options.context_tokens
        self._cache = KeyValueCache(
            [f"{layer}.{what}" for layer in range(shape.layers) for what in ("key", "value")],
            (slots, shape.kv_heads, options.context_tokens, shape.head_dim),
            np.float16 if options.half_cache else np.float32,
            device,
        )
        self._tokens = np.zeros((slots, 1), np.int64)
        self._last_positions = np.zeros(slots, np.int32)
        self._total_tokens = np.zeros((), np.int32)
        self._logits = np.empty((slots, 1, shape.vocabulary), np.float32)
        self._decodes = [self._bind_decode(rows) for rows in range(1, slots + 1)]
        self._prefills = [self._bind_cache(slot, 1) for slot in range(slots)]

    def decode(self, tokens: list[int], lengths: list[int]) -> Logits:
        """Append one token to each of the first ``len(tokens)`` slots.

        lengths: tokens each slot already holds. Returns float32 [rows, vocabulary], valid until
        the next call.
        """
        rows = len(tokens)
        self._tokens[:rows, 0] = tokens
        self._last_positions[:rows] = lengths
        self._total_tokens[...] = max(lengths) + 1
        self._session.run_with_iobinding(self._decodes[rows - 1])
        logits: Logits = self._logits[:rows, 0]
        return logits

    def prefill(self, slot: int, tokens: list[int], length: int) -> Logits:
        """Append tokens to one slot that holds ``length``.

        Returns the last token's logits, float32 [vocabulary], valid until the next call.
        """
        chunk = np.array([tokens], np.int64)
        self._last_positions[0] = self._total_tokens[...] = length + len(tokens)
        self._last_positions[0] -= 1
        binding = self._prefills[slot]
        _bind(binding.bind_input, "input_ids", chunk)
        self._bind_positions(binding, 1)
        self._session.run_with_iobinding(binding)
        logits: Logits = self._logits[0, 0]
        return logits

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot over another."""
        self._cache.move(source, target, length)

    def _bind_decode(self, rows: int) -> ort.IOBinding:
        binding = self._bind_cache(0, rows)
        _bind(binding.bind_input, "input_ids", self._tokens[:rows])
        self._bind_positions(binding, rows)
        return binding

    def _bind_positions(self, binding: ort.IOBinding, rows: int) -> None:
        _bind(binding.bind_input, "last_positions", self._last_positions[:rows])
        _bind(binding.bind_input, "total_tokens", self._total_tokens)
        _bind(binding.bind_output, "logits", self._logits[:rows])

    def _bind_cache(self, first: int, rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        self._cache.bind(binding, first, rows)
        return binding


def _bind(bind: "ort.IOBinding.bind_input", name: str, array: npt.NDArray[np.generic]) -> None:
    # By address: what is bound must outlive the run, and every array here does.
    bind(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


def _open(
    graph_path: Path, threads: int, library: Path | None, device: str
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Workers may spin for the next operator of a step, never between steps.
    spin_microseconds = str(SPIN_MICROSECONDS_MAX)
    options.add_session_config_entry("session.intra_op.spin_duration_us", spin_microseconds)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(str(library))
    try:
        session = ort.InferenceSession(str(graph_path), options, providers=providers(device))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own.
        raise InvalidModel(f"ONNX Runtime refuses {graph_path}: {error}") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ModelUnavailable("ONNX Runtime's CUDA provider does not open; its log says why")
    return session
