"""Linear heads, fitted: ridge-penalised logistic regression on NumPy, for training only.

Knows matrices. Does not know what a prompt is.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gateway.routing.prior import CLIP, Head

Floats: TypeAlias = npt.NDArray[np.float64]


def logits_of(head: Head, rows: Floats) -> Floats:
    """One head's log-odds for many prompts. rows: float64 [n, features]; returns [n]."""
    standard = standardise(rows, np.array(head.mean), np.array(head.scale))
    return np.asarray(standard @ np.array(head.weights) + head.intercept, dtype=np.float64)


def sigmoid(logits: Floats) -> Floats:
    """Logistic function, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), dtype=np.float64)


def standardise(rows: Floats, mean: Floats, scale: Floats) -> Floats:
    """Zero mean and unit spread, clipped."""
    return np.asarray(np.clip((rows - mean) / scale, -CLIP, CLIP), dtype=np.float64)


def fit(
    rows: Floats, labels: Floats, *, penalty: float, sample_weights: Floats, groups: Floats
) -> Head:
    """Newton's method on the penalised log-likelihood; labels may be any share in 0..1.

    rows: [n, features]; groups: one-hot [n, g], a nuisance intercept per data source, fitted and
    then left out, so that the weights learn from differences inside a source. Raises
    ``numpy.linalg.LinAlgError`` only for rows that are not finite.
    """
    mean = np.average(rows, axis=0, weights=sample_weights)
    variance = np.average((rows - mean) ** 2, axis=0, weights=sample_weights)
    scale = np.maximum(np.sqrt(variance), 1e-3)
    features = rows.shape[1]
    design = np.hstack([standardise(rows, mean, scale), np.ones((len(rows), 1)), groups])
    penalties = np.concatenate([np.full(features, penalty), [1e-6], np.ones(groups.shape[1])])
    solution = np.zeros(design.shape[1])
    for _ in range(50):
        expected = sigmoid(design @ solution)
        gradient = design.T @ (sample_weights * (labels - expected)) - penalties * solution
        curvature = (design * (sample_weights * expected * (1 - expected))[:, None]).T @ design
        step = np.linalg.solve(curvature + np.diag(penalties), gradient)
        solution += step
        if np.abs(step).max() < 1e-8:
            break
    return Head(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(solution[:features].tolist()),
        intercept=float(solution[features]),
    )
