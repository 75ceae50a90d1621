"""Make a head's number mean what it says: Platt scaling on rows the head was not fitted on."""

import msgspec
import numpy as np

from gateway.routing.heads import Floats, sigmoid
from gateway.routing.prior import Head


def platt(logits: Floats, labels: Floats, sample_weights: Floats) -> tuple[float, float]:
    """Slope and intercept that fit ``sigmoid(slope * logit + intercept)`` to the labels.

    The slope is held in 0.2..5: a head that ranks nothing must not be turned upside down.
    Source: Platt 1999, with soft labels instead of his target smoothing.
    """
    design = np.column_stack([logits, np.ones(len(logits))])
    # From a flat start Newton's steps do not overshoot; from slope 1 an overconfident head would.
    solution = np.zeros(2)
    for _ in range(50):
        expected = sigmoid(design @ solution)
        gradient = design.T @ (sample_weights * (labels - expected))
        weighted = design * (sample_weights * expected * (1 - expected))[:, None]
        step = np.linalg.solve(weighted.T @ design + 1e-9 * np.eye(2), gradient)
        solution += step
        if np.abs(step).max() < 1e-9:
            break
    return float(np.clip(solution[0], 0.2, 5.0)), float(solution[1])


def rescale(head: Head, slope: float, intercept: float) -> Head:
    """The head whose logits are ``slope * old + intercept``."""
    return msgspec.structs.replace(
        head,
        weights=tuple(weight * slope for weight in head.weights),
        intercept=head.intercept * slope + intercept,
    )
