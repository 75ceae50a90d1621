"""The fused operators inside ONNX Runtime, against their NumPy definition.

Every instruction set runs in a process of its own, because the library chooses once, at load: this
file is also that process (see the end).
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from local_models import native, ops
from tests.local_models.quantized_weights import TYPES, Array, difference, random_weights

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "kernels" / "build.sh"
ISAS = ("avx512vnni", "avx2", "scalar")
EPSILON = 1e-5

Run = Callable[..., list[Array]]

SHAPES = ((32, 5), (160, 33), (256, 16), (768, 40), (2304, 24))  # K, N
ROWS = {1: (*range(1, 18), 33, 130), 2: (1, 5, 16, 33, 130)}  # by number of threads


def built_library() -> Path:
    """The library, built now unless it is fresh; a skip where there is no compiler."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler: the fused operators cannot be built")
    done = subprocess.run([str(BUILD)], check=True, capture_output=True, text=True)
    return ROOT / done.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def library() -> Path:
    """Everything in this file needs the library."""
    return built_library()


def model(
    op: str, inputs: dict[str, Array | None], attributes: dict[str, Any], outputs: tuple[str, ...]
) -> bytes:
    """A graph of one node. Arrays become initializers, None a graph input; "" is left out."""
    kinds = {"ids": TensorProto.INT64, "w": TensorProto.UINT8}
    graph_inputs = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
        for name, value in inputs.items()
        if value is None and name.strip()
    ]
    names = [name.strip() for name in inputs]  # Each input that is left out has its own blanks.
    node = helper.make_node(op, names, list(outputs), "n", domain="tollhouse", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        graph_inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in inputs.items() if a is not None],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("tollhouse", 1)]
    serialised: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return serialised


def session(serialised: bytes, threads: int = 1) -> ort.InferenceSession:
    """A CPU session that knows our operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    assert native.register(options)
    return ort.InferenceSession(serialised, options, ["CPUExecutionProvider"])


def matmul(weights: ops.Records, level: int, threads: int = 1) -> Run:
    """tollhouse.MatMulQ as a function of x."""
    attributes = {"types": weights.type, "accuracy_level": level}
    serialised = model("MatMulQ", {"x": None, "w": weights.rows}, attributes, ("y",))
    opened = session(serialised, threads)
    return lambda x: opened.run(None, {"x": x})


def fused(
    op: str,
    gain: Array,
    parts: list[ops.Records],
    level: int,
    *,
    bias: Array | None = None,
    skip: bool = True,
    threads: int = 1,
) -> Run:
    """RmsNormMatMulQ or RmsNormSwiGLUQ as a function of x and skip."""
    tensors: dict[str, Array | None] = {"x": None, "skip" if skip else "": None, "gain": gain}
    if op == "RmsNormMatMulQ":
        tensors["bias" if bias is not None else " "] = bias
    tensors |= {f"w{number}": part.rows for number, part in enumerate(parts)}
    types = " ".join(part.type for part in parts)
    attributes = {"types": types, "epsilon": EPSILON, "accuracy_level": level}
    opened = session(model(op, tensors, attributes, ("y", "residual")), threads)
    return lambda x, s=None: opened.run(None, {"x": x} | ({} if s is None else {"skip": s}))


def worst_differences(threads: int) -> dict[str, float]:
    """Every operator and type, at every shape and number of rows: the worst of each kind."""
    worst: dict[str, float] = {}

    def note(kind: str, found: Array, expected: Array) -> None:
        worst[kind] = max(worst.get(kind, 0.0), difference(found, expected))

    rng = np.random.default_rng(11)
    for k, n in SHAPES:
        kinds = [kind for kind in TYPES if k % ops.RECORDS[kind][1] == 0]
        for place, kind in enumerate(kinds):
            first = random_weights(rng, kind, n, k)
            # Beside it weights of another type, of another number of rows.
            other = random_weights(rng, kinds[(place + 1) % len(kinds)], n + 3, k)
            second = random_weights(rng, kinds[(place + 3) % len(kinds)], n, k)
            bias = rng.standard_normal(3 * n + 3, dtype=np.float32)
            gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
            most = max(ROWS[threads])
            x, skip = rng.standard_normal((2, most, k), dtype=np.float32)
            # 127 in every block: int8 holds this exactly, so nothing may be lost. Extreme in its
            # first two rows, where sums of 16 bits would overflow first.
            steps = rng.integers(-126, 127, (most, k // 32, 32)).astype(np.float32)
            steps[:, :, 0] = 127
            steps[0], steps[1] = 127, -127
            exact = (steps * np.float32(2.0**-6)).reshape(-1, k)
            ids = rng.integers(0, n, (2, 3))
            gather = session(
                model("GatherQ", {"ids": None, "w": first.rows}, {"types": kind}, ("y",))
            )
            found = gather.run(None, {"ids": ids})
            note("gather", found[0], ops.gather_q(ids, first))
            for level in (1, 4):
                product = matmul(first, level, threads)
                three = [first, other, second]
                normed = fused("RmsNormMatMulQ", gain, three, level, bias=bias, threads=threads)
                alone = fused("RmsNormMatMulQ", gain, [first], level, skip=False, threads=threads)
                gated = fused("RmsNormSwiGLUQ", gain, [first, second], level, threads=threads)
                options: dict[str, Any] = {"accuracy_level": level}
                normal: dict[str, Any] = options | {"epsilon": EPSILON}
                expected = {
                    f"matmul {level}": (ops.matmul_q(x, first, **options),),
                    f"exact {level}": (ops.matmul_q(exact, first),),
                    f"rms_norm_matmul {level}": ops.rms_norm_matmul_q(
                        x, skip, gain, bias, three, **normal
                    ),
                    f"without skip {level}": ops.rms_norm_matmul_q(
                        x, None, gain, None, [first], **normal
                    ),
                    f"rms_norm_swiglu {level}": ops.rms_norm_swiglu_q(
                        x, skip, gain, first, second, **normal
                    ),
                }
                for rows in ROWS[threads]:
                    a, s, e = (array[:rows] for array in (x, skip, exact))
                    results = {
                        f"matmul {level}": product(a),
                        f"exact {level}": product(e),
                        f"rms_norm_matmul {level}": normed(a, s),
                        f"without skip {level}": alone(a),
                        f"rms_norm_swiglu {level}": gated(a, s),
                    }
                    for name, found in results.items():
                        y, *residual = (array[:rows] for array in expected[name])
                        note(name, found[0], y)
                        for array in residual:
                            note("residual", found[1], array)
    return worst


def in_own_process(isa: str, threads: int) -> dict[str, float]:
    """worst_differences() on one instruction set; skips where the CPU lacks it."""
    done = subprocess.run(
        [sys.executable, __file__, str(threads)],
        env=os.environ | {"TOLLHOUSE_ISA": isa, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if "lacks" in done.stdout:
        pytest.skip(f"this CPU lacks {isa}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_every_operator_means_what_numpy_says_on_every_instruction_set(
    isa: str, threads: int
) -> None:
    """Float activations to rounding; int8 to a step of a value that lies between two steps."""
    worst = in_own_process(isa, threads)
    for kind, deviation in worst.items():
        limit = 2e-3 if kind.endswith("4") and kind != "exact 4" else 1e-5
        assert deviation < limit, (kind, worst)
    assert worst["residual"] == 0.0
    assert worst["gather"] == 0.0


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("kind", TYPES)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(kind: str, level: int) -> None:
    """Bit for bit: 40 rows at once, on one thread or two, equal each row alone."""
    rng = np.random.default_rng(5)
    parts = [random_weights(rng, kind, 200, 512) for _ in range(2)]
    gain = rng.uniform(0.5, 1.5, 512).astype(np.float32)
    x, skip = rng.standard_normal((2, 40, 512), dtype=np.float32)
    one, two = (fused("RmsNormSwiGLUQ", gain, parts, level, threads=threads) for threads in (1, 2))
    together = one(x, skip)[0]
    np.testing.assert_array_equal(two(x, skip)[0], together)
    for row in range(len(x)):
        np.testing.assert_array_equal(
            one(x[row : row + 1], skip[row : row + 1])[0][0], together[row]
        )


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    """One session, four threads, each with its own rows; scratch memory belongs to the caller."""
    rng = np.random.default_rng(6)
    run = matmul(random_weights(rng, "Q5_0", 64, 160), 4, threads=2)
    batches = [rng.standard_normal((rows, 160), dtype=np.float32) for rows in (1, 7, 20, 40)]
    alone = [run(batch)[0] for batch in batches]
    wrong: list[int] = []

    def repeat(number: int) -> None:
        if any(not np.array_equal(run(batches[number])[0], alone[number]) for _ in range(50)):
            wrong.append(number)

    callers = [threading.Thread(target=repeat, args=(i,)) for i in range(len(batches))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_leading_dimensions_are_kept_and_no_row_is_a_row_of_nothing() -> None:
    """[2, 3, K] gives [2, 3, N]; [2, 0, K] gives [2, 0, N]."""
    rng = np.random.default_rng(7)
    weights = random_weights(rng, "Q4_1", 24, 64)
    run = matmul(weights, 1)
    x = rng.standard_normal((2, 3, 64), dtype=np.float32)
    np.testing.assert_allclose(run(x)[0], ops.matmul_q(x, weights), rtol=1e-4, atol=1e-5)
    assert run(x[:, :0])[0].shape == (2, 0, 24)
    for op, parts in (("RmsNormMatMulQ", [weights]), ("RmsNormSwiGLUQ", [weights, weights])):
        nothing = fused(op, np.ones(64, np.float32), parts, 4)(x[:, :0], x[:, :0])
        assert [array.shape for array in nothing] == [(2, 0, 24), (2, 0, 64)]


def test_rows_of_zeros_give_zeros_and_not_nan() -> None:
    """The int8 scale of an empty block is 0, and the norm has epsilon."""
    rng = np.random.default_rng(8)
    parts = [random_weights(rng, "Q5_1", 20, 64) for _ in range(2)]
    zeros = np.zeros((3, 64), np.float32)
    for level in (1, 4):
        y, residual = fused("RmsNormSwiGLUQ", np.ones(64, np.float32), parts, level)(zeros, zeros)
        assert not y.any()
        assert not residual.any()


def test_large_gates_saturate_instead_of_overflowing() -> None:
    """silu(+-1e4) is 1e4 and 0: sigmoid never computes e^x of a positive x."""

    def all_of(value: float) -> ops.Records:
        codes = np.full((16, 32), 64, np.int8)
        d = np.full((16, 1), value / 64, "<f2")
        return ops.Records("Q8_0", np.concatenate([d.view(np.uint8), codes.view(np.uint8)], axis=1))

    rows = np.ones((2, 32), np.float32)
    for sign, expected in ((1.0, 32 * 320.0 * 32), (-1.0, 0.0)):
        parts = [all_of(sign * 320), all_of(1)]
        y, _ = fused("RmsNormSwiGLUQ", np.ones(32, np.float32), parts, 1, skip=False)(rows)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-20)


def test_a_residual_that_nobody_reads_may_be_left_out() -> None:
    """The last norm before the head needs no residual."""
    rng = np.random.default_rng(9)
    weights = random_weights(rng, "Q8_0", 24, 64)
    gain = np.ones(64, np.float32)
    tensors = {"x": None, "skip": None, "gain": gain, "": None, "w": weights.rows}
    attributes = {"types": "Q8_0", "epsilon": EPSILON, "accuracy_level": 1}
    opened = session(model("RmsNormMatMulQ", tensors, attributes, ("y",)))
    x, skip = rng.standard_normal((2, 3, 64), dtype=np.float32)
    y, _ = ops.rms_norm_matmul_q(x, skip, gain, None, [weights], epsilon=EPSILON)
    np.testing.assert_allclose(opened.run(None, {"x": x, "skip": skip})[0], y, rtol=1e-4, atol=1e-5)


def test_an_id_without_a_row_is_refused_and_the_session_lives_on() -> None:
    """Nothing is read outside the weights."""
    weights = random_weights(np.random.default_rng(10), "Q6_K", 24, 256)
    opened = session(model("GatherQ", {"ids": None, "w": weights.rows}, {"types": "Q6_K"}, ("y",)))
    for wrong in (24, -1, 2**40):
        with pytest.raises(Exception, match=f"id {wrong} is none of 0 to 23"):
            opened.run(None, {"ids": np.array([[3, wrong]])})
    ids = np.array([[3, 23]])
    np.testing.assert_array_equal(opened.run(None, {"ids": ids})[0], ops.gather_q(ids, weights))
    assert opened.run(None, {"ids": ids[:, :0]})[0].shape == (1, 0, 256)


def test_repacked_weights_of_a_file_are_not_held_twice(tmp_path: Path) -> None:
    """An external initializer stays a mapped file whose pages are given back after repacking."""
    weights = random_weights(np.random.default_rng(12), "Q8_0", 4096, 4096)
    (tmp_path / "weights.bin").write_bytes(weights.rows.tobytes())
    attributes = {"types": "Q8_0", "accuracy_level": 4}
    loaded = onnx.load_from_string(
        model("MatMulQ", {"x": None, "w": weights.rows}, attributes, ("y",))
    )
    tensor = loaded.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    (tmp_path / "model.onnx").write_bytes(loaded.SerializeToString())
    options = ort.SessionOptions()
    assert native.register(options)
    opened = ort.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    mapped, resident = 0, 0
    of_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            of_file = line.endswith(str(tmp_path / "weights.bin"))
        elif of_file and line.startswith("Size:"):
            mapped += int(line.split()[1])
        elif of_file and line.startswith("Rss:"):
            resident += int(line.split()[1])
    assert mapped * 1024 >= weights.rows.nbytes
    assert resident < 64
    x = np.random.default_rng(13).standard_normal((1, 4096), dtype=np.float32)
    expected = ops.matmul_q(x, weights, accuracy_level=4)
    assert difference(opened.run(None, {"x": x})[0], expected) < 2e-3


def test_a_closed_session_gives_its_weights_back() -> None:
    """Matrices share large reservations: those of sessions that are gone leave nothing behind."""
    weights = random_weights(np.random.default_rng(14), "Q8_0", 4096, 4096)
    x = np.ones((1, 4096), np.float32)
    resident = []
    for _ in range(6):
        product = matmul(weights, level=4)
        product(x)
        del product
        status = Path("/proc/self/status").read_text()
        resident.append(int(status.partition("VmRSS:")[2].split()[0]) << 10)
    # The first two rounds grow ONNX Runtime's and Python's own memory.
    assert resident[-1] - resident[1] < weights.rows.nbytes / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": "Q9_9"}, "type Q9_9 is none of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"),
        ({"types": "Q5_0 Q5_0"}, "types names too many weights"),
        ({"types": ""}, "types names too few weights"),
        ({"types": None}, "attribute types is missing"),
        ({"types": "Q4_1"}, r"w has shape \[24, 44\], expected rows of 20-byte records of Q4_1"),
        ({"accuracy_level": 2}, "accuracy_level is 2"),
        ({"accuracy_level": None}, "attribute accuracy_level is missing"),
        ({"w": np.zeros((24, 0), np.uint8)}, r"w has shape \[24, 0\]"),
        ({"w": np.zeros(44, np.uint8)}, r"w has shape \[44\], expected rows"),
        ({"w": None}, "w must be a constant initializer"),
    ],
)
def test_a_wrong_node_is_refused_when_the_session_opens(
    change: dict[str, Any], message: str
) -> None:
    """With the operator's name, the node's name, what is wrong and what was expected."""
    weights = random_weights(np.random.default_rng(1), "Q5_0", 24, 64)
    tensors: dict[str, Array | None] = {"x": None, "w": weights.rows}
    attributes: dict[str, Any] = {"types": "Q5_0", "accuracy_level": 4}
    for name, value in change.items():
        (tensors if name in tensors else attributes)[name] = value
    attributes = {name: value for name, value in attributes.items() if value is not None}
    with pytest.raises(Exception, match=f"MatMulQ 'n': .*{message}"):
        session(model("MatMulQ", tensors, attributes, ("y",)))


def test_weights_that_do_not_go_together_are_refused() -> None:
    """Of two widths, or gate and up of different heights."""
    rng = np.random.default_rng(3)
    gain, first = np.ones(64, np.float32), random_weights(rng, "Q5_0", 24, 64)
    with pytest.raises(Exception, match="weights are 64 and 96 wide"):
        fused("RmsNormMatMulQ", gain, [first, random_weights(rng, "Q4_0", 24, 96)], 4)
    with pytest.raises(Exception, match="gate has 24 rows, up 25"):
        fused("RmsNormSwiGLUQ", gain, [first, random_weights(rng, "Q4_0", 25, 64)], 4)
    tensors = {"x": None, "skip": None, "gain": gain, "gate": first.rows, "up": first.rows}
    attributes = {"types": "Q5_0", "epsilon": EPSILON, "accuracy_level": 4}
    with pytest.raises(Exception, match="types names too few weights"):
        session(model("RmsNormSwiGLUQ", tensors, attributes, ("y", "residual")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3, 32)}, r"x has shape \[3, 32\], expected \[..., 64\]"),
        ({"skip": (1, 64)}, r"skip has shape \[1, 64\], x \[3, 64\]"),
        ({"gain": (32,)}, r"gain has shape \[32\], expected \[64\]"),
        ({"bias": (64,)}, r"bias has shape \[64\], expected \[24\]"),
        ({"x": ()}, "x has rank 0"),
    ],
)
def test_a_wrong_tensor_is_refused_and_the_session_lives_on(
    change: dict[str, tuple[int, ...]], message: str
) -> None:
    """An error of ONNX Runtime, not a crash; the next run is served."""
    weights = random_weights(np.random.default_rng(2), "Q5_0", 24, 64)
    attributes = {"types": "Q5_0", "epsilon": EPSILON, "accuracy_level": 4}
    shapes: dict[str, tuple[int, ...]] = {
        "x": (3, 64),
        "skip": (3, 64),
        "gain": (64,),
        "bias": (24,),
    }
    tensors: dict[str, Array | None] = {**dict.fromkeys(shapes), "w0": weights.rows}
    opened = session(model("RmsNormMatMulQ", tensors, attributes, ("y", "residual")))
    wrong = {name: np.ones(size, np.float32) for name, size in (shapes | change).items()}
    with pytest.raises(Exception, match=f"RmsNormMatMulQ 'n': {message}"):
        opened.run(None, wrong)
    right = {name: np.ones(size, np.float32) for name, size in shapes.items()}
    assert opened.run(None, right)[0].shape == (3, 24)


def test_the_operators_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOLLHOUSE_NATIVE=off leaves ONNX Runtime's own operators."""
    monkeypatch.setenv("TOLLHOUSE_NATIVE", "off")
    assert native.library_path() is None
    assert not native.register(ort.SessionOptions())


def test_a_library_that_is_absent_broken_or_stale_is_said_to_be_so(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Absent and broken mean none; stale is used, with a warning; no sources means no question."""
    caplog.set_level(logging.INFO)
    sources = tmp_path / "kernels"
    assert native.usable(tmp_path / "absent.so", sources) is None
    assert "not built" in caplog.text
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    assert native.usable(broken, sources) is None
    assert "do not load" in caplog.text
    caplog.clear()
    assert native.usable(library, sources) == library
    assert native.usable(library, ROOT / "kernels") == library
    assert caplog.text == ""
    sources.mkdir()
    (sources / "newer.cc").write_text("// edited since")
    native.usable.cache_clear()
    assert native.usable(library, sources) == library
    assert "older than kernels/" in caplog.text


def test_a_library_of_other_operators_is_not_used(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Left from before an update: the graphs of today would not open with it."""
    functions = 'const char* tollhouse_ops_stamp() { return ""; }'
    functions += 'const char* tollhouse_ops_isa() { return "scalar"; }'
    for number, interface in enumerate(("", "int tollhouse_ops_interface() { return 99; }")):
        source, other = tmp_path / f"{number}.c", tmp_path / f"{number}.so"
        source.write_text(functions + interface)
        subprocess.run(
            [
                os.environ.get("CXX", "g++"),
                "-x",
                "c",
                "-shared",
                "-fPIC",
                str(source),
                "-o",
                str(other),
            ],
            check=True,
        )
        caplog.clear()
        assert native.usable(other, tmp_path) is None
        assert "of another version; rebuild them with `make kernels`" in caplog.text


def test_an_unknown_instruction_set_turns_the_operators_off(library: Path) -> None:
    """A misspelt TOLLHOUSE_ISA must not silently test another set than was asked for."""
    done = subprocess.run(
        [sys.executable, "-c", "from local_models import native; print(native.library_path())"],
        env=os.environ | {"TOLLHOUSE_ISA": "avx9000", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "None\n"
    assert "TOLLHOUSE_ISA names no instruction set" in done.stderr


def test_without_a_compiler_the_build_says_so_in_one_sentence() -> None:
    """And succeeds: everything still works, on ONNX Runtime's own operators."""
    done = subprocess.run(
        [str(BUILD)], env=os.environ | {"CXX": "no-such-g++"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "no no-such-g++ here, so ONNX Runtime's own operators will be used" in done.stderr


if __name__ == "__main__":
    if native.library_path() is None:
        print("this CPU lacks", os.environ["TOLLHOUSE_ISA"])
    else:
        print(json.dumps(worst_differences(int(sys.argv[1]))))
