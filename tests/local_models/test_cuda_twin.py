"""The CUDA kernels' program, run by loops on the CPU, against the operators' NumPy definition.

kernels/common/cuda_cta.cuh is one text for both machines. What only a GPU can show (shuffles,
launch, speed) is kernels/verify_gpu.py's to check.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_models import ops
from tests.local_models.quantized_weights import TYPES, Array, difference, random_weights

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "kernels" / "build.sh"
EPSILON = 1e-5
OPS = ("MatMulQ", "RmsNormMatMulQ", "RmsNormSwiGLUQ")


class Weights(ctypes.Structure):
    """struct Weights of kernels/common/cuda_problem.h."""

    _fields_ = [("records", ctypes.c_void_p), ("type", ctypes.c_int), ("columns", ctypes.c_int)]

    @classmethod
    def of(cls, weights: ops.Records) -> "Weights":
        return cls(weights.rows.ctypes.data, TYPES.index(weights.type), len(weights.rows))


class Problem(ctypes.Structure):
    """struct Problem of kernels/common/cuda_problem.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("skip", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("epsilon", ctypes.c_float),
        ("weights", Weights * 3),
        ("rows", ctypes.c_int),
        ("width", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("y", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
    ]


class GatherProblem(ctypes.Structure):
    """struct GatherProblem of kernels/common/cuda_problem.h."""

    _fields_ = [
        ("ids", ctypes.c_void_p),
        ("records", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("count", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("width", ctypes.c_int),
        ("y", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def twin() -> ctypes.CDLL:
    """The twin's library, built from the sources as they are."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler: the CUDA kernels' host twin cannot be built")
    done = subprocess.run([str(BUILD), "--twin"], check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(ROOT / done.stdout.strip()))


def run(
    twin: ctypes.CDLL,
    op: str,
    tensors: dict[str, Array | None],
    parts: list[ops.Records],
    *,
    level: int,
    rows_per_cta: int,
    columns_per_cta: int = 16,
    backwards: bool = False,
) -> tuple[Array, Array]:
    """One launch's worth of CTAs; y and the residual are not a number where nothing was written."""
    x = tensors["x"]
    assert x is not None
    columns = len(parts[0].rows) if op == "RmsNormSwiGLUQ" else sum(len(p.rows) for p in parts)
    y = np.full((len(x), columns), np.nan, np.float32)
    residual = np.full_like(x, np.nan)
    places = [tensors.get(name) for name in ("x", "skip", "gain", "bias")]
    problem = Problem(
        *(None if a is None else a.ctypes.data for a in places),
        EPSILON,
        (Weights * 3)(*(Weights.of(part) for part in parts)),
        *x.shape,
        columns,
        y.ctypes.data,
        residual.ctypes.data if op != "MatMulQ" else None,
    )
    twin.tollhouse_twin_run(
        ctypes.byref(problem),
        OPS.index(op),
        ctypes.c_bool(level == 4),
        rows_per_cta,
        columns_per_cta,
        ctypes.c_bool(backwards),
    )
    return y, residual


def expected(
    op: str, tensors: dict[str, Array | None], parts: list[ops.Records], level: int
) -> tuple[Array, Array | None]:
    """What ops.py says."""
    x, skip, gain = tensors["x"], tensors["skip"], tensors["gain"]
    assert x is not None
    assert gain is not None
    if op == "MatMulQ":
        return ops.matmul_q(x, parts[0], accuracy_level=level), None
    options: dict[str, Any] = {"epsilon": EPSILON, "accuracy_level": level}
    if op == "RmsNormMatMulQ":
        return ops.rms_norm_matmul_q(x, skip, gain, tensors["bias"], parts, **options)
    return ops.rms_norm_swiglu_q(x, skip, gain, parts[0], parts[1], **options)


def parts_of(op: str, rng: np.random.Generator, kind: str, n: int, k: int) -> list[ops.Records]:
    """One matrix, three of several types and heights, or gate and up of two types."""
    first = random_weights(rng, kind, n, k)
    if op == "MatMulQ":
        return [first]
    kinds = [other for other in TYPES if k % ops.RECORDS[other][1] == 0]
    beside = kinds[(kinds.index(kind) + 1) % len(kinds)]
    if op == "RmsNormSwiGLUQ":
        return [first, random_weights(rng, beside, n, k)]
    return [first, random_weights(rng, beside, 7, k), random_weights(rng, kind, 3, k)]


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", TYPES)
def test_the_cuda_program_means_what_numpy_says(
    twin: ctypes.CDLL, kind: str, op: str, level: int
) -> None:
    """Widths of part of a warp's reach and more, odd columns, full and partial groups of rows."""
    rng = np.random.default_rng(21)
    count = ops.RECORDS[kind][1]
    for records, n in ((1, 5), (5, 33), (9, 16)):
        k = records * count
        parts = parts_of(op, rng, kind, n, k)
        for rows, rows_per_cta in ((1, 1), (3, 1), (1, 8), (11, 8)):
            x, skip = rng.standard_normal((2, rows, k), dtype=np.float32)
            gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
            bias = rng.standard_normal(n + 10, dtype=np.float32)
            tensors: dict[str, Array | None] = {"x": x, "skip": skip, "gain": gain, "bias": bias}
            if op != "RmsNormMatMulQ":
                tensors["bias"] = None
            if op == "MatMulQ" or rows == 3:
                tensors["skip"] = None
            found, residual = run(twin, op, tensors, parts, level=level, rows_per_cta=rows_per_cta)
            y, sums = expected(op, tensors, parts, level)
            # int8: a step of a value that lies between two steps; floats: rounding.
            assert difference(found, y) < (2e-3 if level == 4 else 1e-5), (k, n, rows)
            if sums is not None:
                np.testing.assert_array_equal(residual, sums)


@pytest.mark.parametrize("kind", TYPES)
def test_gathered_rows_are_what_numpy_says(twin: ctypes.CDLL, kind: str) -> None:
    """Bit for bit; a row that is not there is not a number, and nothing is read outside."""
    weights = random_weights(np.random.default_rng(24), kind, 6, 512)
    ids = np.array([5, 0, 5, 6, -1], np.int64)
    y = np.zeros((len(ids), 512), np.float32)
    problem = GatherProblem(
        ids.ctypes.data, *(weights.rows.ctypes.data, TYPES.index(kind)), *(len(ids), 6, 512),
        y.ctypes.data,
    )  # fmt: skip
    twin.tollhouse_twin_gather(ctypes.byref(problem))
    np.testing.assert_array_equal(y[:3], ops.gather_q(ids[:3], weights))
    assert np.isnan(y[3:]).all()


@pytest.mark.parametrize("kind", TYPES)
def test_int8_activations_that_fit_exactly_lose_nothing(twin: ctypes.CDLL, kind: str) -> None:
    """127 in each block makes the scale a power of two: level 4 then equals level 1."""
    rng = np.random.default_rng(22)
    steps = rng.integers(-126, 127, (8, 16, 32)).astype(np.float32)
    steps[:, :, 31] = 127
    x = (steps * np.float32(2.0**-6)).reshape(8, 512)
    weights = random_weights(rng, kind, 24, 512)
    tensors: dict[str, Array | None] = {"x": x, "skip": None, "gain": np.ones(512, np.float32)}
    found, _ = run(twin, "MatMulQ", tensors, [weights], level=4, rows_per_cta=8)
    assert difference(found, ops.matmul_q(x, weights)) < 1e-5


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("op", OPS)
def test_no_result_depends_on_the_order_of_warps_or_on_the_grid(
    twin: ctypes.CDLL, op: str, level: int
) -> None:
    """Bit for bit: warps last to first, and other cuts of the columns. Else a phase has a race."""
    rng = np.random.default_rng(23)
    parts = parts_of(op, rng, "Q5_0", 37, 288)
    x, skip = rng.standard_normal((2, 9, 288), dtype=np.float32)
    tensors: dict[str, Array | None] = {"x": x, "skip": skip, "gain": np.ones(288, np.float32)}
    results = [
        run(twin, op, tensors, parts, level=level, rows_per_cta=8, columns_per_cta=cut, backwards=b)
        for cut, b in ((16, False), (16, True), (8, False), (64, True))
    ]
    for y, residual in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(residual, results[0][1])


@pytest.mark.long
def test_the_cuda_library_compiles_and_needs_only_the_cuda_runtime() -> None:
    """For every architecture, where nvcc is; running it takes a GPU and kernels/verify_gpu.py."""
    if shutil.which(os.environ.get("NVCC", "nvcc")) is None:
        pytest.skip("no nvcc: the CUDA operators cannot be built")
    done = subprocess.run([str(BUILD), "--cuda"], check=True, capture_output=True, text=True)
    needed = subprocess.run(
        ["readelf", "-d", str(ROOT / done.stdout.strip())],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    cuda = {line.split("[")[1] for line in needed.splitlines() if "NEEDED" in line and "cu" in line}
    assert len(cuda) == 1
    assert cuda.pop().startswith("libcudart.so")
