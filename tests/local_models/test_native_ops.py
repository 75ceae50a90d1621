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
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from local_models import native, ops
from tests.local_models.q4_weights import Array, Weights, difference, random_weights

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "kernels" / "build.sh"
ISAS = ("avx512vnni", "avx2", "scalar")
EPSILON = 1e-5

Run = Callable[..., list[Array]]

SHAPES = ((32, 5), (64, 16), (160, 33), (576, 96), (1536, 40))  # K, N
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
    feeds = [name for name, value in inputs.items() if value is None and name]
    graph_inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.UINT8 if name.endswith("q") else TensorProto.FLOAT, None
        )
        for name in feeds
    ]
    node = helper.make_node(op, list(inputs), list(outputs), "n", domain="tollhouse", **attributes)
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


def matmul(weights: Weights, level: int, threads: int = 1) -> Run:
    """tollhouse.MatMulQ4 as a function of x."""
    q, d, m = weights
    attributes = {"K": q.shape[1] * 32, "N": q.shape[0], "accuracy_level": level}
    tensors = {"x": None, "q": q, "d": d, "m": m}
    opened = session(model("MatMulQ4", tensors, attributes, ("y",)), threads)
    return lambda x: opened.run(None, {"x": x})


def fused(
    gain: Array, parts: list[Weights], level: int, *, skip: bool = True, threads: int = 1
) -> Run:
    """RmsNormMatMulQ4 (one part) or RmsNormSwiGLUQ4 (gate and up) as a function of x and skip."""
    n, blocks, _ = parts[0][0].shape
    tensors: dict[str, Array | None] = {"x": None, "skip" if skip else "": None, "gain": gain}
    for number, part in enumerate(parts):
        q, d, m = part
        tensors |= {f"{number}.q": q, f"{number}.d": d, f"{number}.m": m}
    op, size = ("RmsNormMatMulQ4", "N") if len(parts) == 1 else ("RmsNormSwiGLUQ4", "F")
    attributes = {"K": blocks * 32, size: n, "epsilon": EPSILON, "accuracy_level": level}
    opened = session(model(op, tensors, attributes, ("y", "residual")), threads)
    return lambda x, s=None: opened.run(None, {"x": x} | ({} if s is None else {"skip": s}))


def worst_differences(threads: int) -> dict[str, float]:
    """Every operator at every shape and number of rows: the worst deviation of each kind."""
    worst: dict[str, float] = {}

    def note(kind: str, found: Array, expected: Array) -> None:
        worst[kind] = max(worst.get(kind, 0.0), difference(found, expected))

    rng = np.random.default_rng(11)
    for k, n in SHAPES:
        for half in (True, False):
            first, second = (random_weights(rng, n, k, half=half) for _ in range(2))
            gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
            x, skip = rng.standard_normal((2, max(ROWS[threads]), k), dtype=np.float32)
            # 127 in every block: int8 holds this exactly, so nothing may be lost.
            steps = rng.integers(-126, 127, (max(ROWS[threads]), k // 32, 32)).astype(np.float32)
            steps[:, :, 0] = 127
            exact = (steps * np.float32(2.0**-6)).reshape(-1, k)
            for level in (1, 4):
                product = matmul(first, level, threads)
                normed = fused(gain, [first], level, threads=threads)
                alone = fused(gain, [first], level, skip=False, threads=threads)
                gated = fused(gain, [first, second], level, threads=threads)
                options: dict[str, Any] = {"accuracy_level": level}
                for rows in ROWS[threads]:
                    a, s, e = (array[:rows] for array in (x, skip, exact))
                    note(f"matmul {level}", product(a)[0], ops.matmul_q4(a, *first, **options))
                    note(f"exact {level}", product(e)[0], ops.matmul_q4(e, *first))
                    options["epsilon"] = EPSILON
                    y, r = ops.rms_norm_matmul_q4(a, s, gain, *first, **options)
                    found = normed(a, s)
                    note(f"rms_norm_matmul {level}", found[0], y)
                    note("residual", found[1], r)
                    y, r = ops.rms_norm_matmul_q4(a, None, gain, *first, **options)
                    found = alone(a)
                    note(f"rms_norm_matmul {level}", found[0], y)
                    note("residual", found[1], r)
                    y, r = ops.rms_norm_swiglu_q4(a, s, gain, first, second, **options)
                    found = gated(a, s)
                    note(f"rms_norm_swiglu {level}", found[0], y)
                    note("residual", found[1], r)
                    del options["epsilon"]
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


@pytest.mark.parametrize("level", [1, 4])
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(level: int) -> None:
    """Bit for bit: 40 rows at once, on one thread or two, equal each row alone."""
    rng = np.random.default_rng(5)
    parts = [random_weights(rng, 200, 288) for _ in range(2)]
    gain = rng.uniform(0.5, 1.5, 288).astype(np.float32)
    x, skip = rng.standard_normal((2, 40, 288), dtype=np.float32)
    one, two = (fused(gain, parts, level, threads=threads) for threads in (1, 2))
    together = one(x, skip)[0]
    np.testing.assert_array_equal(two(x, skip)[0], together)
    for row in range(len(x)):
        np.testing.assert_array_equal(
            one(x[row : row + 1], skip[row : row + 1])[0][0], together[row]
        )


def test_callers_on_several_threads_do_not_disturb_each_other() -> None:
    """One session, four threads, each with its own rows; scratch memory belongs to the caller."""
    rng = np.random.default_rng(6)
    run = matmul(random_weights(rng, 64, 160), 4, threads=2)
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
    weights = random_weights(rng, 24, 64)
    run = matmul(weights, 1)
    x = rng.standard_normal((2, 3, 64), dtype=np.float32)
    np.testing.assert_allclose(run(x)[0], ops.matmul_q4(x, *weights), rtol=1e-4, atol=1e-5)
    assert run(x[:, :0])[0].shape == (2, 0, 24)
    for parts in ([weights], [weights, weights]):
        nothing = fused(np.ones(64, np.float32), parts, 4)(x[:, :0], x[:, :0])
        assert [array.shape for array in nothing] == [(2, 0, 24), (2, 0, 64)]


def test_rows_of_zeros_give_zeros_and_not_nan() -> None:
    """The int8 scale of an empty block is 0, and the norm has epsilon."""
    rng = np.random.default_rng(8)
    parts = [random_weights(rng, 20, 64) for _ in range(2)]
    zeros = np.zeros((3, 64), np.float32)
    for level in (1, 4):
        y, residual = fused(np.ones(64, np.float32), parts, level)(zeros, zeros)
        assert not y.any()
        assert not residual.any()


def test_large_gates_saturate_instead_of_overflowing() -> None:
    """silu(+-1e4) is 1e4 and 0: sigmoid never computes e^x of a positive x."""
    q = np.full((16, 1, 16), 0x11, np.uint8)  # every weight is d
    rows = np.ones((2, 32), np.float32)
    for sign, expected in ((1.0, 32 * 320.0 * 32), (-1.0, 0.0)):
        gate = (q, np.full((16, 1), sign * 320, np.float32), np.zeros((16, 1), np.float32))
        up = (q, np.ones((16, 1), np.float32), np.zeros((16, 1), np.float32))
        y, _ = fused(np.ones(32, np.float32), [gate, up], 1, skip=False)(rows)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-20)


def test_a_residual_that_nobody_reads_may_be_left_out() -> None:
    """The last norm before the head needs no residual."""
    rng = np.random.default_rng(9)
    q, d, m = weights = random_weights(rng, 24, 64)
    gain = np.ones(64, np.float32)
    tensors = {"x": None, "skip": None, "gain": gain, "q": q, "d": d, "m": m}
    attributes = {"K": 64, "N": 24, "epsilon": EPSILON, "accuracy_level": 1}
    opened = session(model("RmsNormMatMulQ4", tensors, attributes, ("y",)))
    x, skip = rng.standard_normal((2, 3, 64), dtype=np.float32)
    y, _ = ops.rms_norm_matmul_q4(x, skip, gain, *weights, epsilon=EPSILON)
    np.testing.assert_allclose(opened.run(None, {"x": x, "skip": skip})[0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"K": 48}, "K is 48, not a multiple of 32"),
        ({"K": 0}, "K is 0"),
        ({"K": 96}, r"q has shape \[24, 2, 16\], expected \[24, 3, 16\]"),
        ({"N": 25}, r"expected \[25, 2, 16\]"),
        ({"accuracy_level": 2}, "accuracy_level is 2"),
        ({"N": None}, "attribute N is missing"),
        ({"d": np.ones((24, 1), np.float32)}, r"d has shape \[24, 1\], expected \[24, 2\]"),
        ({"m": np.ones((2, 24), np.float32)}, r"m has shape \[2, 24\], expected \[24, 2\]"),
        ({"q": None}, "q must be a constant initializer"),
    ],
)
def test_a_wrong_node_is_refused_when_the_session_opens(
    change: dict[str, Any], message: str
) -> None:
    """With the operator's name, the node's name, what is wrong and what was expected."""
    q, d, m = random_weights(np.random.default_rng(1), 24, 64)
    tensors: dict[str, Array | None] = {"x": None, "q": q, "d": d, "m": m}
    attributes: dict[str, Any] = {"K": 64, "N": 24, "accuracy_level": 4}
    for name, value in change.items():
        (tensors if name in tensors else attributes)[name] = value
    attributes = {name: value for name, value in attributes.items() if value is not None}
    with pytest.raises(Exception, match=f"MatMulQ4 'n': .*{message}"):
        session(model("MatMulQ4", tensors, attributes, ("y",)))


@pytest.mark.parametrize(
    ("x_shape", "skip_shape", "gain_size", "message"),
    [
        ((3, 32), (3, 32), 64, r"x has shape \[3, 32\], expected \[..., 64\]"),
        ((3, 64), (1, 64), 64, r"skip has shape \[1, 64\], x \[3, 64\]"),
        ((3, 64), (3, 64), 32, r"gain has shape \[32\], expected \[64\]"),
        ((), (3, 64), 64, "x has rank 0"),
    ],
)
def test_a_wrong_tensor_is_refused_and_the_session_lives_on(
    x_shape: tuple[int, ...], skip_shape: tuple[int, ...], gain_size: int, message: str
) -> None:
    """An error of ONNX Runtime, not a crash; the next run is served."""
    rng = np.random.default_rng(2)
    q, d, m = random_weights(rng, 24, 64)
    attributes = {"K": 64, "N": 24, "epsilon": EPSILON, "accuracy_level": 4}
    names = ("x", "skip", "gain")
    tensors: dict[str, Array | None] = {**dict.fromkeys(names), "q": q, "d": d, "m": m}
    opened = session(model("RmsNormMatMulQ4", tensors, attributes, ("y", "residual")))
    shapes = (x_shape, skip_shape, (gain_size,))
    wrong = {n: np.ones(s, np.float32) for n, s in zip(names, shapes, strict=True)}
    with pytest.raises(Exception, match=f"RmsNormMatMulQ4 'n': {message}"):
        opened.run(None, wrong)
    right = {
        n: np.ones(s, np.float32) for n, s in zip(names, ((3, 64), (3, 64), (64,)), strict=True)
    }
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
