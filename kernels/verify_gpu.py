"""Verify and time the CUDA operators on a machine with a GPU, in one command.

    python kernels/verify_gpu.py [--json raw.json]

Needs a GPU of compute capability 8.0, 8.6, 8.9 or 9.0, nvcc 12 or 13, onnxruntime-gpu of the same
CUDA major version, and this repository's test dependencies. Builds the CUDA library, checks every
operator against NumPy at many shapes, checks that a row does not depend on its neighbours, then
answers with a whole model on the device and on the CPU, then times each operator against the CUDA
provider's own chain of the same arithmetic, with and without CUDA graphs. Prints the machine and
a table; the exit status is 1 if anything was wrong.

`--dry-run` does the same with the CPU's library and provider: it tests this script, not the GPU.
"""
# ruff: noqa: S603, S607 - fixed commands, found where the machine has them

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "local_models"), str(ROOT / "tests" / "bench")]

from bench_kernels import CASES, Case, GraphMaker  # noqa: E402
from quantized_weights import TYPES, difference, random_weights  # noqa: E402
from test_native_ops import EPSILON, model  # noqa: E402

from local_models import ops  # noqa: E402
from local_models.catalogue import ensure  # noqa: E402
from local_models.engine import Engine  # noqa: E402
from tests.local_models.generating import request, run  # noqa: E402

Array = npt.NDArray[Any]

SHAPES = ((256, 5), (512, 960), (1536, 576), (8192, 48))  # K, N
OPS = ("MatMulQ", "RmsNormMatMulQ", "RmsNormSwiGLUQ")
ROWS = (1, 2, 3, 7, 8, 9, 16, 17, 64, 130)


class Target:
    """Where sessions run: the GPU, or the CPU in a dry run."""

    def __init__(self, *, dry_run: bool) -> None:
        self.device = "cpu" if dry_run else "cuda"
        self.provider = "CPUExecutionProvider" if dry_run else "CUDAExecutionProvider"
        command = [str(ROOT / "kernels" / "build.sh")] + ([] if dry_run else ["--cuda"])
        built = subprocess.run(command, check=True, capture_output=True, text=True)
        if not built.stdout:
            raise SystemExit(built.stderr)
        self.library = ROOT / built.stdout.strip()

    def session(self, serialised: bytes, *, graph: bool = False) -> ort.InferenceSession:
        """A session that may not fall back to another provider."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(str(self.library))
        settings: dict[str, str] = {}
        if self.device == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            settings = {"enable_cuda_graph": "1"} if graph else {}
        return ort.InferenceSession(serialised, options, [(self.provider, settings)])


def check_op(target: Target, op: str, kind: str, k: int, n: int, level: int) -> list[str]:
    """What is wrong with one operator at one shape, over all numbers of rows."""
    rng = np.random.default_rng(k + n)
    beside = TYPES[(TYPES.index(kind) + 1) % len(TYPES)]
    parts = [random_weights(rng, kind, n, k), random_weights(rng, beside, n, k)]
    gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
    bias = rng.standard_normal(2 * n, dtype=np.float32)
    x, skip = rng.standard_normal((2, max(ROWS), k), dtype=np.float32)
    used = parts[:1] if op == "MatMulQ" else parts
    tensors: dict[str, Array | None] = {"x": None}
    types = " ".join(part.type for part in used)
    attributes: dict[str, Any] = {"types": types, "accuracy_level": level}
    if op != "MatMulQ":
        tensors |= {"skip": None, "gain": gain}
        attributes["epsilon"] = EPSILON
    if op == "RmsNormMatMulQ":
        tensors["bias"] = bias
    tensors |= {f"w{number}": part.rows for number, part in enumerate(used)}
    outputs = ("y",) if op == "MatMulQ" else ("y", "residual")
    opened = target.session(model(op, tensors, attributes, outputs))

    def run(rows: slice) -> list[Array]:
        feeds = {"x": x[rows]} | ({"skip": skip[rows]} if op != "MatMulQ" else {})
        found: list[Array] = opened.run(None, feeds)
        return found

    options: dict[str, Any] = {"accuracy_level": level}
    if op == "MatMulQ":
        expected: tuple[Array, ...] = (ops.matmul_q(x, *used, **options),)
    elif op == "RmsNormMatMulQ":
        expected = ops.rms_norm_matmul_q(x, skip, gain, bias, used, epsilon=EPSILON, **options)
    else:
        expected = ops.rms_norm_swiglu_q(x, skip, gain, *used, epsilon=EPSILON, **options)
    wrong = []
    title = f"{op} {types} K {k} N {n} level {level}"
    for rows in ROWS:
        limit = 2e-3 if level == 4 else 1e-5
        for name, f, e in zip(outputs, run(slice(rows)), expected, strict=True):
            if not difference(f, e[:rows]) < limit:
                wrong.append(f"{title} rows {rows}: {name} is off")
    together = run(slice(9))[0]
    if not all(np.array_equal(run(slice(row, row + 1))[0][0], together[row]) for row in range(9)):
        wrong.append(f"{title}: a row depends on its neighbours")
    return wrong


def check_gather(target: Target, kind: str) -> list[str]:
    """What is wrong with the lookup of rows in one type."""
    weights = random_weights(np.random.default_rng(3), kind, 100, 512)
    serialised = model("GatherQ", {"ids": None, "w": weights.rows}, {"types": kind}, ("y",))
    ids = np.array([[0, 99, 7]])
    found = target.session(serialised).run(None, {"ids": ids})[0]
    right = np.array_equal(found, ops.gather_q(ids, weights))
    return [] if right else [f"GatherQ {kind} is off"]


def verify(target: Target) -> int:
    """Number of failures, each printed."""
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        (
            f"{op} {kind} K {k} N {n} level {level}",
            functools.partial(check_op, target, op, kind, k, n, level),
        )
        for op in OPS
        for kind in TYPES
        for k, n in SHAPES
        for level in (1, 4)
    ]
    for kind in TYPES:
        checks.append((f"GatherQ {kind}", functools.partial(check_gather, target, kind)))
    checks.append(("engine", functools.partial(check_engine, target)))
    failures = 0
    for title, check in checks:
        try:
            wrong = check()
        except Exception as error:  # anything ONNX Runtime raises is a finding
            wrong = [f"{title}: {error}"]
        failures += len(wrong)
        for line in wrong:
            print("WRONG", line)
    print(f"verification: {failures} failures\n")
    return failures


PROMPTS = ("What is the capital of France?", "List three prime numbers.", "How do I boil an egg?")


def answers(device: Literal["cpu", "cuda"]) -> tuple[list[str], float]:
    """The default model's greedy answers on a device, by ONNX Runtime's operators; tokens/s."""
    engine = Engine.load(ensure("smollm2-135m-instruct"), device=device, fused=False)
    try:
        # One after the other and then all at once: slots move when a neighbour ends.
        alone = [run(engine, [request(text, text, 32)])[text].text for text in PROMPTS]
        start = time.perf_counter()
        sizes = dict(zip(PROMPTS, (8, 32, 24), strict=True))
        together = run(engine, [request(text, text, size) for text, size in sizes.items()])
        tokens = sum(outcome.finished.completion_tokens for outcome in together.values())
        rate = tokens / (time.perf_counter() - start)
    finally:
        engine.close()
    for text, whole in zip(PROMPTS, alone, strict=True):
        if not whole.startswith(together[text].text):
            raise ValueError(f"{device}: the answer to {text!r} depends on its batch")
    return alone, rate


def check_engine(target: Target) -> list[str]:
    """What is wrong with a whole model on the device, beside the same on the CPU.

    Half-precision attention may choose another word; an answer that differs in its first words is
    another model.
    """
    device: Literal["cpu", "cuda"] = "cpu" if target.device == "cpu" else "cuda"
    expected, cpu_rate = answers("cpu")
    found, rate = answers(device)
    print(f"engine: {rate:.0f} tokens/s on {device}, {cpu_rate:.0f} on the CPU")
    pairs = zip(PROMPTS, expected, found, strict=True)
    return [f"engine: {p!r}: {e!r} became {f!r}" for p, e, f in pairs if e[:20] != f[:20]]


def time_case(
    target: Target, case: Case, variant: str, rows: int, *, graph: bool, copies: int
) -> list[float]:
    """Microseconds per operator, one value per round; everything stays on the device."""
    opened = target.session(GraphMaker(case, variant, copies).model(), graph=graph)
    rng = np.random.default_rng(rows)
    binding = opened.io_binding()
    shape = (1, rows, case.width)
    held = []  # OrtValues must outlive the binding's runs
    for i in opened.get_inputs():
        value = rng.standard_normal(shape, dtype=np.float32)
        held.append(ort.OrtValue.ortvalue_from_numpy(value, target.device, 0))
        binding.bind_ortvalue_input(i.name, held[-1])
    for o in opened.get_outputs():
        y = np.zeros((1, rows, case.columns), np.float32)
        held.append(ort.OrtValue.ortvalue_from_numpy(y, target.device, 0))
        binding.bind_ortvalue_output(o.name, held[-1])
    micros = []
    for round_number in range(25):
        start = time.perf_counter()
        opened.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if round_number >= 5:  # the first runs capture the graph and tune
            micros.append((time.perf_counter() - start) / copies * 1e6)
    return micros


def benchmark(target: Target) -> list[dict[str, Any]]:
    """Ours and ONNX Runtime's, interleaved by case, over enough copies to leave the L2 cache."""
    results = []
    print("| case | rows | CUDA graph | ours, us | GB/s | ORT, us | times |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        # 128 MB is twice an H200's L2.
        copies = max(2, (128 << 20) // case.weight_bytes)
        for rows in (1, 4, 8, 32):
            for graph in (False, True) if target.device == "cuda" else (False,):
                times = {
                    variant: time_case(target, case, variant, rows, graph=graph, copies=copies)
                    for variant in ("ours", "ORT")
                }
                ours, theirs = (statistics.median(times[v]) for v in ("ours", "ORT"))
                rate = case.weight_bytes / ours / 1e3
                print(
                    f"| {case.name} | {rows} | {'yes' if graph else 'no'} | {ours:.1f} "
                    f"| {rate:.0f} | {theirs:.1f} | {theirs / ours:.2f} |",
                    flush=True,
                )
                results.append({"case": case.name, "rows": rows, "graph": graph, "us": times})
    return results


def main() -> None:
    """Verify, then time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true", help="the CPU's library and provider")
    parser.add_argument("--json", type=Path, help="where to keep the raw times")
    arguments = parser.parse_args()
    if not arguments.dry_run:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise SystemExit("this onnxruntime has no CUDA provider: install onnxruntime-gpu")
        query = "--query-gpu=name,driver_version,compute_cap,clocks.sm,clocks.mem"
        subprocess.run(["nvidia-smi", query, "--format=csv"], check=False)
        subprocess.run(["nvcc", "--version"], check=False)
    print(f"onnxruntime {ort.__version__}, numpy {np.__version__}")
    target = Target(dry_run=arguments.dry_run)
    failures = verify(target)
    results = benchmark(target)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"failures": failures, "results": results}))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
