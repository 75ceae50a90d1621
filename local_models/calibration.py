"""Scores of labels as probabilities, less what the model prefers whatever is asked.

A small model prefers some labels, so the shares are divided by those that it gives where the input
says nothing. Source: Zhao et al. 2021, "Calibrate Before Use". Pure, and without NumPy: a gateway
computes it.
"""

from collections.abc import Sequence
from math import exp

_SHARE_MIN = 1e-12  # a label that is never said would divide by nothing


def calibrated(scores: Sequence[float], content_free: Sequence[Sequence[float]]) -> list[float]:
    """Probabilities, in the labels' order.

    scores: logarithms of how likely each label is. content_free: the same for inputs without
    content; without any, the probabilities are the model's own shares.
    """
    shares = _shares(scores)
    if content_free:
        without = [_shares(free) for free in content_free]
        means = [sum(column) / len(without) for column in zip(*without, strict=True)]
        shares = [share / mean for share, mean in zip(shares, means, strict=True)]
    total = sum(shares)
    return [share / total for share in shares]


def _shares(scores: Sequence[float]) -> list[float]:
    largest = max(scores)
    weights = [exp(score - largest) for score in scores]
    total = sum(weights)
    return [max(weight / total, _SHARE_MIN) for weight in weights]
