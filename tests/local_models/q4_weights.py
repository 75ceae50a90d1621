"""Random 4-bit weights, and the measure by which two results of them are compared."""

from typing import Any

import numpy as np
import numpy.typing as npt

from local_models import ops

Array = npt.NDArray[Any]
Weights = tuple[ops.Codes, ops.Float, ops.Float]


def random_weights(rng: np.random.Generator, n: int, k: int, *, half: bool = True) -> Weights:
    """4-bit weights [n, k]; half: scales that fp16 holds exactly, as GGUF files have them."""
    q = rng.integers(0, 256, (n, k // 32, 16), dtype=np.uint8)
    d = rng.uniform(-0.02, 0.02, (n, k // 32)).astype(np.float32)
    m = (-7.5 * d + rng.uniform(-0.02, 0.02, d.shape)).astype(np.float32)
    if half:
        d, m = (a.astype(np.float16).astype(np.float32) for a in (d, m))
    return q, d, m


def difference(found: Array, expected: Array) -> float:
    """Largest deviation, as a part of the largest value; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if found.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / np.abs(expected).max())
