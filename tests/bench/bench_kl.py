"""What rounding activations costs: mean KL divergence to float32, ours and llama.cpp's.

    python -m tests.bench.bench_kl --llama PYTHON [--tokens 20480] MODEL.gguf...

The text is the project's own prose, cut into windows of 128 tokens that start anew. The reference
is the fused graph at accuracy level 1: the file's weights, exactly, on float32 activations, which
tests/local_models/test_graph.py compares with NumPy. Each window goes through the reference, our
default graph (level 4) and llama.cpp; KL(reference || other) of the next token is summed over all
positions. llama.cpp reads a window at once, ours token by token, eight windows beside each other.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from local_models import graph, native
from local_models.decoder_graph import Options
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession
from local_models.tokenizer import Tokenizer
from tests.bench.bench_local_model import processor
from tests.bench.llama_peer import LlamaPeer

ROOT = Path(__file__).parents[2]
PROSE = ("README.md", "gateway/README.md", "local_models/README.md", "kernels/README.md",
         "CONTRIBUTING.md", "policies/README.md", "CHANGELOG.md")  # fmt: skip
WINDOW = 128
SLOTS = 8
Float = npt.NDArray[np.float32]


def windows_of(model: Path, tokens: int) -> list[list[int]]:
    """The prose in whole windows, as many as hold ``tokens`` and the prose has."""
    text = "\n".join((ROOT / name).read_text() for name in PROSE if (ROOT / name).exists())
    encoded = Tokenizer(GgufFile(model).metadata).encode(text)
    count = min(tokens, len(encoded)) // WINDOW // SLOTS * SLOTS
    return [encoded[i * WINDOW : (i + 1) * WINDOW] for i in range(count)]


def session(model: Path, level: int, threads: int) -> DecoderSession:
    """The fused graph at an accuracy level."""
    options = Options(fused=True, accuracy_level=level, context_tokens=WINDOW)
    return DecoderSession(
        graph.ensure_graph(model, options),
        read_shape(GgufFile(model)),
        options,
        threads=threads,
        slots=SLOTS,
        library=native.library_path(),
    )


def log_probabilities(logits: Float) -> Float:
    """Along the last axis."""
    shifted: Float = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype("f4")
    return shifted


class Divergence:
    """Sums over positions."""

    def __init__(self) -> None:
        self.nats: list[float] = []
        self.same_top = 0

    def add(self, reference: Float, logits: Float) -> None:
        """Log-probabilities of the reference and the other's logits, both [rows, vocabulary]."""
        other = log_probabilities(logits)
        kl = (np.exp(reference) * (reference - other)).sum(axis=-1, dtype=np.float64)
        self.nats += [float(k) for k in kl]
        self.same_top += int((reference.argmax(axis=-1) == other.argmax(axis=-1)).sum())

    def __str__(self) -> str:
        nats = np.array(self.nats)
        error = nats.std() / np.sqrt(len(nats))
        top = self.same_top / len(nats)
        return f"{nats.mean():.5f} ± {error:.5f} | {np.median(nats):.5f} | {top:.2%}"


def measure(model: Path, llama: str | None, threads: int, tokens: int) -> None:
    """Print one model's table."""
    begin = time.monotonic()
    windows = windows_of(model, tokens)
    reference, ours = (session(model, level, threads) for level in (1, 4))
    found = {"ours": Divergence()}
    peer = None
    if llama is not None:
        peer = LlamaPeer(llama, model, threads=threads, slots=1, context=512)
        found["llama.cpp"] = Divergence()
    for first in range(0, len(windows), SLOTS):
        group = windows[first : first + SLOTS]
        expected = []
        for place in range(WINDOW):
            step = [window[place] for window in group]
            lengths = [place] * SLOTS
            expected.append(log_probabilities(reference.decode(step, lengths)))
            found["ours"].add(expected[-1], ours.decode(step, lengths))
        if peer is not None:
            for slot, window in enumerate(group):
                rows = np.stack([step[slot] for step in expected])
                found["llama.cpp"].add(rows, peer.logits(window))
    if peer is not None:
        peer.close()
    print(f"\n{model.name}: {len(windows) * WINDOW} tokens, {time.monotonic() - begin:.0f} s\n")
    print("| | mean KL, nats | median | same top token |\n|---|---|---|---|")
    for who, divergence in found.items():
        print(f"| {who} | {divergence} |")
    if peer is not None:
        mean = {who: float(np.mean(divergence.nats)) for who, divergence in found.items()}
        print(f"\nours / llama.cpp: {mean['ours'] / mean['llama.cpp']:.3f}", flush=True)


def main() -> None:
    """Measure each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20480)
    chosen = parser.parse_args()
    if native.library_path() is None:
        raise SystemExit("the fused operators are not built: run `make kernels`")
    print(f"{processor()}, instruction set {native.instruction_set()}")
    for model in chosen.models:
        measure(model, chosen.llama, chosen.threads, chosen.tokens)


if __name__ == "__main__":
    main()
