"""Random weights in GGUF's records, and the measure by which two results of them are compared."""

from typing import Any

import numpy as np
import numpy.typing as npt

from local_models import ops

Array = npt.NDArray[Any]
TYPES = tuple(ops.RECORDS)

# Where a record's fp16 numbers lie, and how large they may be for weights of about 0.1.
_HALVES = {
    "Q4_0": {0: 0.02},
    "Q4_1": {0: 0.02, 2: 0.1},
    "Q5_0": {0: 0.01},
    "Q5_1": {0: 0.01, 2: 0.1},
    "Q8_0": {0: 0.001},
    "Q4_K": {0: 0.0004, 2: 0.003},
    "Q5_K": {0: 0.0002, 2: 0.003},
    "Q6_K": {208: 0.00004},
}


def random_weights(rng: np.random.Generator, kind: str, n: int, k: int) -> ops.Records:
    """Weights [n, k] of a type whose every bit is drawn, scales of both signs among them."""
    size_bytes, count = ops.RECORDS[kind]
    records = rng.integers(0, 256, (n * k // count, size_bytes), dtype=np.uint8)
    for at, largest in _HALVES[kind].items():
        halves = rng.uniform(-largest, largest, (len(records), 1)).astype("<f2")
        records[:, at : at + 2] = halves.view(np.uint8)
    return ops.Records(kind, records.reshape(n, -1))


def difference(found: Array, expected: Array) -> float:
    """Largest deviation, as a part of the largest value; infinite if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if found.size == 0:
        return 0.0
    return float(np.abs(found - expected).max() / np.abs(expected).max())
