"""Bounds against exact fractions and published figures."""

from fractions import Fraction
from math import comb

import pytest

from local_models.exam.statistics import corrected, lower_bound


@pytest.mark.parametrize(("right", "tasks"), [(1, 1), (5, 10), (40, 40), (190, 200), (199, 200)])
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_the_bound_is_where_the_counts_tail_equals_alpha(
    right: int, tasks: int, alpha: float
) -> None:
    """Summed in exact fractions, the tail at the bound is alpha within 1e-9."""
    share = Fraction(lower_bound(right, tasks, alpha))
    tail = sum(
        comb(tasks, count) * share**count * (1 - share) ** (tasks - count)
        for count in range(right, tasks + 1)
    )
    assert abs(float(tail) - alpha) < 1e-9


def test_known_values() -> None:
    """Clopper and Pearson's one-sided 95 % bounds, as tables give them."""
    assert lower_bound(10, 10, 0.05) == pytest.approx(0.7411, abs=1e-4)
    assert lower_bound(9, 10, 0.05) == pytest.approx(0.6058, abs=1e-4)
    assert lower_bound(0, 10, 0.05) == 0.0


def test_a_correction_for_more_kinds_lowers_every_bound() -> None:
    """Bonferroni: the same counts prove less when more is asked at once."""
    assert corrected(0.05, 27) == pytest.approx(0.05 / 27)
    assert lower_bound(200, 200, corrected(0.05, 27)) < lower_bound(200, 200, 0.05)


def test_impossible_counts_are_refused() -> None:
    """More right answers than tasks, and no confidence at all."""
    for right, tasks, alpha in ((3, 2, 0.05), (-1, 2, 0.05), (1, 2, 0.0), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="is no count"):
            lower_bound(right, tasks, alpha)
