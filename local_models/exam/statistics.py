"""How sure a count of right answers makes one: exact one-sided bounds.

Clopper and Pearson 1934: the smallest share of right answers under which as many as were counted
would still be seen with probability ``alpha``. For several kinds at once, alpha is divided by
their number (Bonferroni): all bounds hold together with the stated confidence.
"""

from math import exp, lgamma, log, log1p

CONFIDENCE = 0.95
"""Of all bounds of an exam together."""


def lower_bound(right: int, tasks: int, alpha: float) -> float:
    """Lower bound of the share of right answers, exact, at confidence 1 - alpha.

    Raises ValueError for impossible counts.
    """
    if not 0 <= right <= tasks or not 0.0 < alpha < 1.0:
        raise ValueError(f"{right} of {tasks} at alpha {alpha} is no count")
    if right == 0:
        return 0.0
    low, high = 0.0, right / tasks
    for _ in range(60):
        middle = (low + high) / 2
        if _at_least(right, tasks, middle) > alpha:
            high = middle
        else:
            low = middle
    return low


def _at_least(right: int, tasks: int, share: float) -> float:
    """Probability of ``right`` or more right answers among ``tasks``."""
    if share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    first = lgamma(tasks + 1) - lgamma(right + 1) - lgamma(tasks - right + 1)
    term = exp(first + right * log(share) + (tasks - right) * log1p(-share))
    total, odds = term, share / (1.0 - share)
    # Below the counted share terms only fall, so one that is lost to zero loses nothing.
    for count in range(right, tasks):
        term *= odds * (tasks - count) / (count + 1)
        total += term
    return total


def corrected(alpha: float, comparisons: int) -> float:
    """Bonferroni: the alpha of each of several bounds that shall hold together."""
    return alpha / max(1, comparisons)
