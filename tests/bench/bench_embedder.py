"""Text to vector: time, processor time, closeness to float32, memory and time to ready.

    python tests/bench/bench_embedder.py [--rounds N]

Fetches the model where it is missing. Rounds of the variants are interleaved, because the clock of
a shared machine drifts; the figures are median and best of all rounds, on one core.
"""

import argparse
import functools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from local_models import protocol
from local_models.catalogue import ensure
from local_models.embedder import Embedder

EMBEDDING, GENERATION = "all-minilm-l6-v2", "smollm2-135m-instruct"
SHORT = "Where is my parcel?"
MIDDLE = (
    "My parcel with the two lamps was due on Monday, the tracking page has not changed since; "
    "can you find out where it is?"
)
LONG = (MIDDLE + " ") * 5
UNSEEN = (
    SHORT,
    MIDDLE,
    "Has my package been lost?",
    "Please write a haiku about autumn rain.",
    "Compare merge sort with quicksort for nearly sorted input.",
    "Which vaccines do I need for a trip to Peru in March?",
    "thx bye",
    "SELECT * FROM orders WHERE paid = false LIMIT 10",
    "¿Dónde puedo renovar mi pasaporte?",
    "The defendant shall bear the costs of the proceedings.",
    "What is 12 % of 250?",
    "Summarise this meeting: Ana ships the beta on Friday, Tom writes the release notes.",
    "今日はいい天気ですね。",
    "Traceback (most recent call last): KeyError: 'user_id'",
    "Suggest three names for a bakery near the harbour.",
    "no",
)


def timed(work: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each call."""
    samples = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        samples.append((time.perf_counter() - wall, time.process_time() - cpu))
    return samples


def embedder_figures(rounds: int) -> dict[str, Any]:
    """Both precisions, three lengths, one text at a time and sixteen."""
    folder = ensure(EMBEDDING)
    variants = {name: Embedder.load(folder, precision=name) for name in ("int8", "float32")}
    texts = {"short": [SHORT], "middle": [MIDDLE], "long": [LONG], "16 x middle": [MIDDLE] * 16}
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, embedder in variants.items():
            for label, batch in texts.items():
                work = functools.partial(embedder.embed, batch)
                samples.setdefault((name, label), []).extend(timed(work, 10))
    figures: dict[str, Any] = {}
    for (name, label), pairs in samples.items():
        wall, cpu = (np.array(column) for column in zip(*pairs, strict=True))
        figures[f"{name}, {label}"] = {
            "tokens": sum(variants[name].embed(texts[label]).tokens),
            "ms_p50": round(float(np.median(wall)) * 1e3, 3),
            "ms_best": round(float(wall.min()) * 1e3, 3),
            "ms_p99": round(float(np.quantile(wall, 0.99)) * 1e3, 3),
            "cpu_us_p50": round(float(np.median(cpu)) * 1e6),
        }
    int8, float32 = (variants[name].embed(UNSEEN).vectors for name in ("int8", "float32"))
    cosines = (int8 * float32).sum(axis=1)
    moved = np.abs(int8 @ int8.T - float32 @ float32.T)[np.triu_indices(len(UNSEEN), 1)]
    figures["int8 against float32, unseen texts"] = {
        "texts": len(UNSEEN),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "pair_moved_mean": round(float(moved.mean()), 4),
        "pair_moved_max": round(float(moved.max()), 4),
    }
    return figures


def process_figures(generation: str) -> dict[str, Any]:
    """A model process from its start: time to ready, memory, round trip over the socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.sock"
        arguments = ["--socket", str(path), "--embedding", EMBEDDING, "--generation", generation]
        start_seconds = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "local_models.server", *arguments], stderr=subprocess.DEVNULL
        )
        while True:
            peer = socket.socket(socket.AF_UNIX)
            try:
                peer.connect(str(path))
                break
            except OSError:
                peer.close()
                time.sleep(0.005)
        splitter = protocol.FrameSplitter()
        frames: list[bytes] = []

        def ask(frame: protocol.ClientFrame | None) -> protocol.ServerFrame:
            if frame is not None:
                peer.sendall(protocol.encode_frame(frame))
            while not frames:
                frames.extend(splitter.feed(peer.recv(1 << 20)))
            return protocol.decode_server_frame(frames.pop(0))

        ready_seconds: dict[str, float] = {}
        state = ask(protocol.Hello(protocol.PROTOCOL_VERSION, "bench"))
        while True:
            assert isinstance(state, protocol.Ready)
            for kind in ("embedding", "generation"):
                if getattr(state, f"{kind}_state") == "ready":
                    ready_seconds.setdefault(kind, time.perf_counter() - start_seconds)
            if "loading" not in (state.embedding_state, state.generation_state):
                break
            state = ask(None)
        trips = timed(lambda: ask(protocol.Embed(1, (MIDDLE,), 128)), 200)
        stats = ask(protocol.AskStats(2))
        assert isinstance(stats, protocol.Stats)
        peer.close()
        process.terminate()
        process.wait(20)
    wall = [sample[0] for sample in trips]
    return {
        "ready_seconds": {kind: round(value, 2) for kind, value in ready_seconds.items()},
        "resident_mb": round(stats.resident_bytes / 1e6),
        "round_trip_ms_p50": round(float(np.median(wall)) * 1e3, 3),
        "round_trip_ms_p99": round(float(np.quantile(wall, 0.99)) * 1e3, 3),
    }


def main() -> None:
    """Print machine, versions and all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "embedder, one core": embedder_figures(rounds),
        "process, embeddings only": process_figures(""),
        "process, both models": process_figures(GENERATION),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
