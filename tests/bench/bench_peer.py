"""Decode and prefill beside llama.cpp, on the same GGUF files, in the same minutes.

    python -m tests.bench.bench_peer --llama PYTHON [--rounds 7] MODEL.gguf...

PYTHON is an interpreter that has llama-cpp-python; without it only our own figures are printed.
Both hold the model all the time and take turns within a round, so that a busy neighbour meets
both; a ratio is that of each round's pair. Prompts are random tokens; decode is greedy, behind
128 tokens. Only ratios within one run mean anything.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from local_models import graph, native
from local_models.decoder_graph import Options
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession
from tests.bench.bench_local_model import processor
from tests.bench.llama_peer import LlamaPeer

SLOTS = 8
CONTEXT = 2048
PREFILLS = (128, 512)
BATCHES = (1, 4, 8)
STEPS = 24
Seconds = dict[str, list[float]]


class Ours:
    """The fused graph, with the child's methods."""

    def __init__(self, model: Path, threads: int) -> None:
        options = Options(fused=True, context_tokens=CONTEXT)
        self._session = DecoderSession(
            graph.ensure_graph(model, options),
            read_shape(GgufFile(model)),
            options,
            threads=threads,
            slots=SLOTS,
            library=native.library_path(),
        )

    def prefill_seconds(self, tokens: list[int]) -> float:
        """Time of one prompt in slot 0."""
        begin = time.perf_counter()
        self._session.prefill(0, tokens, 0)
        return time.perf_counter() - begin

    def decode_seconds(self, prompt: list[int], batch: int, steps: int) -> list[float]:
        """Times of greedy steps of ``batch`` slots behind one prompt."""
        for slot in range(batch):
            self._session.prefill(slot, prompt, 0)
        tokens, times = [prompt[-1]] * batch, []
        for step in range(steps):
            begin = time.perf_counter()
            logits = self._session.decode(tokens, [len(prompt) + step] * batch)
            tokens = [int(token) for token in logits.argmax(axis=-1)]
            times.append(time.perf_counter() - begin)
        return times


def measure(model: Path, llama: str | None, threads: int, rounds: int) -> None:
    """Print one model's table."""
    ours = Ours(model, threads)
    resident = {"ours": resident_mb()}
    peer = None
    if llama is not None:
        peer = LlamaPeer(llama, model, threads=threads, slots=SLOTS, context=CONTEXT)
        print(peer.system)
    prompt = [int(t) for t in np.random.default_rng(0).integers(0, 1000, max(PREFILLS))]
    rates: dict[str, Seconds] = {}

    def note(case: str, who: str, tokens_per_second: float) -> None:
        rates.setdefault(case, {}).setdefault(who, []).append(tokens_per_second)

    for _ in range(rounds):
        for length in PREFILLS:
            case = f"prefill, {length} tokens"
            note(case, "ours", length / ours.prefill_seconds(prompt[:length]))
            if peer is not None:
                seconds = peer.ask("prefill_seconds", tokens=prompt[:length])
                note(case, "llama.cpp", length / seconds)
        for batch in BATCHES:
            case = f"decode, batch {batch}"
            times = ours.decode_seconds(prompt[:128], batch, STEPS)
            note(case, "ours", batch / statistics.median(times))
            if peer is not None:
                wanted = {"prompt": prompt[:128], "batch": batch, "steps": STEPS}
                times = peer.ask("decode_seconds", **wanted)
                note(case, "llama.cpp", batch / statistics.median(times))
    resident["ours, every slot used"] = resident_mb()
    if peer is not None:
        resident["llama.cpp, its process"] = peer.resident_mb()
        peer.close()
    print(f"\n| {model.name}, tokens/s | ours | llama.cpp | ratio |\n|---|---|---|---|")
    for case, by in rates.items():
        columns = [by["ours"], by.get("llama.cpp", [])]
        columns.append([a / b for a, b in zip(*columns, strict=False)])
        print(f"| {case} | " + " | ".join(cell(column) for column in columns) + " |")
    print("\nmemory, MB: " + ", ".join(f"{who} {mb:.0f}" for who, mb in resident.items()) + "\n")


def resident_mb() -> float:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if "VmRSS" in line)


def cell(values: list[float]) -> str:
    """Median (lowest to highest)."""
    if not values:
        return ""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Measure each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--llama", help="a Python that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    if native.library_path() is None:
        raise SystemExit("the fused operators are not built: run `make kernels`")
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} CPUs, {chosen.threads} threads, load {load:.1f}")
    print(f"ONNX Runtime {ort.__version__}, instruction set {native.instruction_set()}")
    if chosen.llama is None:
        print("no --llama: our own figures alone")
    for model in chosen.models:
        measure(model, chosen.llama, chosen.threads, chosen.rounds)


if __name__ == "__main__":
    main()
