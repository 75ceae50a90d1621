"""Measure the default generation model: conversion, loading, memory, decode, prefill.

    python -m tests.bench.bench_local_model [--rounds 5] [--threads 2] [--json raw.json]

Each round runs every variant once in its own process, one after the other, so that a slow minute
of the machine meets all of them. Variants: ONNX Runtime's own operators, and our fused ones. A
variant is timed only after it has given the expected answer. Decode includes the engine's
sampling of greedy tokens; prompts are 128 tokens long. Only ratios within one run mean anything.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from local_models import graph, native
from local_models.catalogue import ensure
from local_models.decoder_graph import Options
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession
from local_models.tokenizer import Tokenizer

MODEL = "smollm2-135m-instruct"
PROMPT_TOKENS = 128
DECODE_STEPS = 60
PREFILL_TOKENS = 256
SLOTS = 8
BATCHES = (1, 4, 8)
VARIANTS = ("onnxruntime", "fused")


def measure(fused: bool, threads: int) -> dict[str, float]:
    """One variant in this process. Seconds, MB and tokens per second."""
    model_dir = ensure(MODEL)
    graph.ensure_graph(model_dir / "model.gguf", Options(fused=fused))
    begin_seconds = time.perf_counter()
    gguf = GgufFile(model_dir / "model.gguf")
    options = Options(fused=fused)
    path = graph.ensure_graph(model_dir / "model.gguf", options)
    session = DecoderSession(
        path,
        read_shape(gguf),
        options,
        threads=threads,
        slots=SLOTS,
        library=native.library_path() if fused else None,
    )
    tokenizer = Tokenizer(gguf.metadata)
    found = {"load_seconds": time.perf_counter() - begin_seconds}
    check(session, tokenizer)
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    prompt = (tokenizer.encode("The quick brown fox jumps over the lazy dog. ") * 32)[
        :PREFILL_TOKENS
    ]
    for slot in range(SLOTS):
        session.prefill(slot, prompt[:PROMPT_TOKENS], 0)
    for batch in BATCHES:
        found[f"decode_{batch}_tokens_per_second"] = batch / decode_step_seconds(session, batch)
    timings = []
    for _ in range(5):
        begin_seconds = time.perf_counter()
        session.prefill(0, prompt, 0)
        timings.append(time.perf_counter() - begin_seconds)
    found["prefill_tokens_per_second"] = PREFILL_TOKENS / statistics.median(timings)
    return found


def check(session: DecoderSession, tokenizer: Tokenizer) -> None:
    """Refuse to time a model that no longer counts: a greedy continuation must be the known one."""
    prompt = tokenizer.encode("One, two, three, four,")
    logits, said = session.prefill(0, prompt, 0), b""
    for place in range(4):
        token = int(logits.argmax())
        said += tokenizer.bytes_of(token)
        logits = session.decode([token], [len(prompt) + place])[0]
    if not said.startswith(b" five, six,"):
        raise SystemExit(f"wrong answer, not timed: {said!r}")


def decode_step_seconds(session: DecoderSession, batch: int) -> float:
    """Median time of one greedy step of ``batch`` rows at 128 to 188 tokens of context."""
    tokens, timings = [260] * batch, []
    for step in range(DECODE_STEPS):
        begin_seconds = time.perf_counter()
        logits = session.decode(tokens, [PROMPT_TOKENS + step] * batch)
        tokens = [int(token) for token in logits.argmax(axis=-1)]
        timings.append(time.perf_counter() - begin_seconds)
    return statistics.median(timings)


def conversion_seconds(fused: bool) -> float:
    """Time from the GGUF file to a graph on disk, in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.gguf"
        source.symlink_to(ensure(MODEL) / "model.gguf")
        begin_seconds = time.perf_counter()
        graph.ensure_graph(source, Options(fused=fused))
        return time.perf_counter() - begin_seconds


def processor() -> str:
    """The processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report(raw: dict[str, list[dict[str, float]]]) -> None:
    """Print the variants side by side, and their ratio: the median of the rounds' own ratios."""
    variants = list(raw)
    heads = [*variants, "ratio"] if len(variants) == 2 else variants
    print(f"\n{'median (lowest to highest)':32}" + "".join(f"{head:>28}" for head in heads))
    for key in raw[variants[0]][0]:
        columns = [[numbers[key] for numbers in raw[variant]] for variant in variants]
        if len(columns) == 2:
            columns.append([ours / theirs for theirs, ours in zip(*columns, strict=True)])
        print(f"{key:32}" + "".join(f"{_cell(column):>28}" for column in columns))


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the raw numbers here")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure(chosen.child == "fused", chosen.threads)))
        return
    variants = VARIANTS if native.library_path() else VARIANTS[:1]
    print(f"{processor()}, {os.cpu_count()} CPUs, {chosen.threads} threads, {platform.platform()}")
    libraries = f"ONNX Runtime {ort.__version__}, NumPy {np.__version__}"
    print(f"Python {platform.python_version()}, {libraries}")
    raw: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for _ in range(chosen.rounds):
        for variant in variants:
            command = [sys.executable, "-m", "tests.bench.bench_local_model"]
            command += ["--child", variant]
            command += ["--threads", str(chosen.threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            numbers = json.loads(output) | {
                "conversion_seconds": conversion_seconds(variant == "fused")
            }
            raw[variant].append(numbers)
    report(raw)
    if chosen.json:
        chosen.json.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
