"""What a CPU without AVX-512 or VNNI costs the local models: this one, and this one masked.

    python -m tests.bench.bench_cpus [--rounds N]

Processor time on one thread, the fastest call of all rounds: a busy machine changes it least.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from local_models import cpu_traits, graph, native
from local_models.catalogue import ensure
from local_models.decoder_graph import Options
from local_models.embedder import Embedder
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession
from tests.bench.bench_embedder import EMBEDDING, GENERATION, LONG, MIDDLE
from tests.elsewhere import emulated_cpu, masked_cpu

BUILD = Path(__file__).parents[2] / "build" / "elsewhere" / "masked"


def fastest(work: Callable[[], object], calls: int) -> float:
    """Processor seconds of the fastest of some calls."""
    samples = []
    for _ in range(calls):
        began = time.process_time()
        work()
        samples.append(time.process_time() - began)
    return min(samples)


def decoder(fused: bool) -> DecoderSession:
    """The small model on one thread, as the engine would load it."""
    path = ensure(GENERATION) / "model.gguf"
    shape = read_shape(GgufFile(path))
    pairs = not fused and cpu_traits.single_rows_differ(4)
    options = Options(fused=fused, pairs=pairs)
    return DecoderSession(
        graph.ensure_graph(path, options), shape, options, threads=1, slots=4,
        library=native.library_path() if fused else None,
    )  # fmt: skip


def measure(rounds: int) -> None:
    """Print every figure of the CPU that this process sees."""
    embedder = Embedder.load(ensure(EMBEDDING))
    works: dict[str, tuple[Callable[[], object], int]] = {}
    for text in (MIDDLE, LONG):
        tokens = embedder.embed([text]).tokens[0]
        works[f"embedding, {tokens} tokens"] = (partial(embedder.embed, [text]), 0)
    for form, session in (("fused", decoder(fused=True)), ("plain", decoder(fused=False))):
        for rows in (1, 4):
            decode = partial(session.decode, [5] * rows, [100] * rows)
            works[f"{form}, batch {rows}"] = (decode, rows)
        prefill = partial(session.prefill, 0, list(range(100, 356)), 0)
        works[f"{form}, prefill"] = (prefill, 256)
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, (work, _) in works.items():
            best[name] = min(best[name], fastest(work, 5))
    for name, (_, tokens_each) in works.items():
        figure = f"{tokens_each / best[name]:6.0f} tokens/s" if tokens_each else ""
        print(f"  {name:24} {figure or f'{best[name] * 1e3:6.1f} ms'}", flush=True)


def main() -> None:
    """This CPU in this process, then a process for each of what it can hide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--here", action="store_true", help="only the CPU as it is seen")
    options = parser.parse_args()
    if options.here:
        measure(options.rounds)
        return
    own = emulated_cpu.own_class()
    print(f"{own}: this machine", flush=True)
    measure(options.rounds)
    for kind in masked_cpu.KINDS if own == "AVX-512 with VNNI" else ():
        print(f"{kind}: this machine, masked", flush=True)
        command = [sys.executable, "-m", __spec__.name, "--here", "--rounds", str(options.rounds)]
        environment = os.environ | masked_cpu.environment(BUILD, kind)
        subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
