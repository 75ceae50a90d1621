"""Benchmark: fused operators on Q4_1 weights against ONNX Runtime's chain of the same arithmetic.

One command, SmolLM2-135M's shapes and type, accuracy level 4 on both sides:

    python tests/bench/bench_kernels.py [--rounds 15] [--json raw.json]

Both sides take the same W = d * q + m and must agree before they are timed. The baseline is what
the engine runs without the library: SkipSimplifiedLayerNormalization, MatMulNBits and a product of
block sums for the offset m; "no offset" drops that last part, which leaves other weights than
asked for but is the most that MatMulNBits alone can do. Each graph holds enough copies of the
operator, all with weights of their own, to read past the last-level cache in every run. Rounds of
the three are interleaved, so that a busy neighbour hits all of them; a time is the median over
rounds, with the 10th and 90th percentile. Not a test: nothing here is collected by pytest.
"""

import argparse
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from local_models import native

MICROSOFT, TOLLHOUSE = "com.microsoft", "tollhouse"
BLOCK = 32
EPSILON = 1e-5
COLD_BYTES = 64 << 20
"""Weights read per run: twice the last-level cache of the machines at hand."""

VARIANTS = ("ours", "ORT", "ORT, no offset")


@dataclass(frozen=True)
class Case:
    """One product of the model: y [rows, columns] from x [rows, width]."""

    name: str
    width: int
    columns: int
    norm: bool = False
    gated: bool = False

    @property
    def weight_bytes(self) -> int:
        """Bytes that a pass must read: 4 bits a weight, and d and m as fp16 for 32 of them."""
        return (2 if self.gated else 1) * self.width * self.columns * 5 // 8


CASES = (
    Case("norm + qkv", 576, 960, norm=True),
    Case("norm + gate/up + SwiGLU", 576, 1536, norm=True, gated=True),
    Case("down", 1536, 576),
    Case("head", 576, 49152),
)


class GraphMaker:
    """Builds one graph of ``copies`` independent operators on one x."""

    def __init__(self, case: Case, variant: str, copies: int) -> None:
        self._case, self._variant = case, variant
        self._rng = np.random.default_rng(7)  # the same weights in every variant
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._add("gain", self._rng.uniform(0.5, 1.5, case.width).astype(np.float32))
        self._add("blocked", np.array([0, 0, -1, BLOCK], np.int64))
        self._add("last_axis", np.array([3], np.int64))
        for copy in range(copies):
            result = self._operator(f"{copy}")
            shape: list[str | int | None] = [1, "rows", case.columns]
            self._outputs.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, shape))

    def model(self) -> bytes:
        """The serialised model; inputs x and skip, float32 [1, rows, width]."""
        names = ["x", "skip"] if self._case.norm else ["x"]
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", self._case.width])
            for name in names
        ]
        graph = helper.make_graph(self._nodes, "bench", inputs, self._outputs, self._weights)
        opsets = [helper.make_opsetid(d, v) for d, v in (("", 18), (MICROSOFT, 1), (TOLLHOUSE, 1))]
        serialised: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=10
        ).SerializeToString()
        return serialised

    def _operator(self, name: str) -> str:
        case = self._case
        parts = [self._matrix(f"{name}.{part}") for part in range(2 if case.gated else 1)]
        if self._variant == "ours":
            of_node = {"types": " ".join(["Q4_1"] * len(parts)), "accuracy_level": 4}
            if not case.norm:
                return self._node("MatMulQ", ["x", *parts], TOLLHOUSE, **of_node)
            of_node["epsilon"] = EPSILON
            if case.gated:
                inputs = ["x", "skip", "gain", *parts]
                return self._node("RmsNormSwiGLUQ", inputs, TOLLHOUSE, **of_node)
            inputs = ["x", "skip", "gain", "", *parts]
            return self._node("RmsNormMatMulQ", inputs, TOLLHOUSE, **of_node)
        h = "x"
        if case.norm:
            norm = "SkipSimplifiedLayerNormalization"
            h = self._node(norm, ["x", "skip", "gain"], MICROSOFT, epsilon=EPSILON)
        products = [self._product(h, part, f"{name}.sums") for part in parts]
        if not case.gated:
            return products[0]
        gate = self._node("QuickGelu", [products[0]], MICROSOFT, alpha=1.0)
        return self._node("Mul", [gate, products[1]])

    def _product(self, h: str, part: str, sums: str) -> str:
        case = self._case
        y = self._node(
            "MatMulNBits",
            [h, f"{part}.q", f"{part}.d"],
            MICROSOFT,
            K=case.width,
            N=case.columns,
            bits=4,
            block_size=BLOCK,
            accuracy_level=4,
        )
        if self._variant == "ORT, no offset":
            return y
        if not any(sums in node.output for node in self._nodes):
            blocks = self._node("Reshape", [h, "blocked"])
            node = helper.make_node("ReduceSum", [blocks, "last_axis"], [sums], keepdims=0)
            self._nodes.append(node)
        return self._node("Add", [y, self._node("MatMul", [sums, f"{part}.offset"])])

    def _matrix(self, name: str) -> str:
        case, rng = self._case, self._rng
        blocks = case.width // BLOCK
        q = rng.integers(0, 256, (case.columns, blocks, BLOCK // 2), dtype=np.uint8)
        d = rng.uniform(0.002, 0.004, (case.columns, blocks)).astype(np.float16)
        m = (-8 * d.astype(np.float32) * rng.uniform(0.9, 1.1, d.shape)).astype(np.float16)
        if self._variant == "ours":
            self._add(name, records_of(q, d, m))
            return name
        d, m = d.astype(np.float32), m.astype(np.float32)
        self._add(f"{name}.q", q)
        self._add(f"{name}.d", d)
        if self._variant == "ORT":
            self._add(f"{name}.offset", np.ascontiguousarray((m + 8 * d).T))
        return name

    def _add(self, name: str, array: npt.NDArray[Any]) -> None:
        self._weights.append(numpy_helper.from_array(array, name))

    def _node(self, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        result = f"{op}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [result], domain=domain, **attributes))
        return result


def records_of(
    q: npt.NDArray[np.uint8], d: npt.NDArray[np.float16], m: npt.NDArray[np.float16]
) -> npt.NDArray[np.uint8]:
    """Codes in MatMulNBits' order, with scales and minima, as rows of Q4_1 records."""
    codes = np.stack([q & 15, q >> 4], axis=-1).reshape(*q.shape[:2], BLOCK)
    packed = codes[..., :16] | codes[..., 16:] << 4
    halves = np.stack([d, m], axis=-1).view(np.uint8)
    return np.concatenate([halves, packed], axis=-1).reshape(len(q), -1)


class Runner:
    """One session whose outputs all go to one buffer, so that writing them costs little."""

    def __init__(self, case: Case, variant: str, copies: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # As the engine sets them; above all, no session's threads spin while another is timed.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not native.register(options):
            raise SystemExit("the fused operators are not built: run `make kernels`")
        self._session = ort.InferenceSession(
            GraphMaker(case, variant, copies).model(), options, ["CPUExecutionProvider"]
        )
        self._case = case

    def prepare(self, rows: int) -> tuple[Callable[[], None], npt.NDArray[np.float32]]:
        """A call that runs everything once, and the buffer that holds the last output."""
        rng = np.random.default_rng(rows)
        inputs = {
            i.name: rng.standard_normal((1, rows, self._case.width), dtype=np.float32)
            for i in self._session.get_inputs()
        }
        y = np.zeros((1, rows, self._case.columns), np.float32)
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
        return lambda: (inputs, self._session.run_with_iobinding(binding))[1], y


def read_bandwidth(threads: int) -> float:
    """GB/s of a plain read of 512 MB, best of ten: a dot product of each half with itself."""
    parts = np.array_split(np.ones(128 << 20, np.float32), threads)
    seconds = []
    for _ in range(10):
        workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / min(seconds) / 1e9


def percentile(values: list[float], percent: int) -> float:
    """By nearest rank."""
    return sorted(values)[round((len(values) - 1) * percent / 100)]


def measure(case: Case, threads: int, row_counts: list[int], rounds: int) -> list[dict[str, Any]]:
    """Microseconds per operator of every variant, at every number of rows."""
    copies = max(2, COLD_BYTES // case.weight_bytes)
    runners = {variant: Runner(case, variant, copies, threads) for variant in VARIANTS}
    results = []
    for rows in row_counts:
        calls = {variant: runner.prepare(rows) for variant, runner in runners.items()}
        for call, _ in calls.values():
            call()
        ours, theirs = calls["ours"][1], calls["ORT"][1]
        difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        if difference > 0.02:  # both round activations to int8, each in its own way
            raise SystemExit(f"{case.name}, {rows} rows: results differ by {difference:.1%}")
        micros: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(rounds):
            for variant, (call, _) in calls.items():
                start = time.perf_counter()
                call()
                micros[variant].append((time.perf_counter() - start) / copies * 1e6)
        results.append(
            {"case": case.name, "threads": threads, "rows": rows, "difference": difference,
             "weight_bytes": case.weight_bytes, "microseconds": micros}
        )  # fmt: skip
    return results


def print_table(results: list[dict[str, Any]], bandwidth: dict[int, float]) -> None:
    """Markdown, one line per case; spreads are the 10th and 90th percentile."""
    print("| case | threads | rows | ours, us | GB/s | of read | ORT, us | times | no offset, us |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        cells = []
        median = {v: statistics.median(us) for v, us in r["microseconds"].items()}
        for variant, micros in r["microseconds"].items():
            low, high = percentile(micros, 10), percentile(micros, 90)
            cells.append(f"{median[variant]:.1f} ({low:.1f}-{high:.1f})")
        rate = r["weight_bytes"] / median["ours"] / 1e3
        share = f"{rate:.1f} | {rate / bandwidth[r['threads']]:.0%}"
        times = f"{median['ORT'] / median['ours']:.2f}"
        print(
            f"| {r['case']} | {r['threads']} | {r['rows']} | {cells[0]} | {share} | {cells[1]} "
            f"| {times} | {cells[2]} ({median['ORT, no offset'] / median['ours']:.2f} x) |"
        )


def main() -> None:
    """Measure everything and print what it ran on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="where to keep the raw times")
    arguments = parser.parse_args()

    load = os.getloadavg()[0]
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    print(f"{cpu}, {os.cpu_count()} cores, load {load:.1f} at the start; Python "
          f"{platform.python_version()}, onnxruntime {ort.__version__}, numpy {np.__version__}, "
          f"instruction set {os.environ.get('TOLLHOUSE_ISA', 'chosen')}")  # fmt: skip
    bandwidth = {threads: read_bandwidth(threads) for threads in arguments.threads}
    print("read bandwidth:", ", ".join(f"{t} threads {b:.1f} GB/s" for t, b in bandwidth.items()))
    print()
    results = [
        result
        for threads in arguments.threads
        for case in CASES
        if case.name in arguments.cases
        for result in measure(case, threads, arguments.rows, arguments.rounds)
    ]
    print_table(results, bandwidth)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"bandwidth": bandwidth, "results": results}))


if __name__ == "__main__":
    main()
