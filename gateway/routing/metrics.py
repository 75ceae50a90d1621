"""How good a ranking by difficulty is: APGR, CPT, calibration error, with bootstrap intervals.

Source of the definitions: Ong et al., "RouteLLM", ICLR 2025. PGR is the share of the quality gap
between the two models that a router recovers; APGR its area over the share of large calls; CPT(x)
the smallest share of large calls with PGR >= x.
"""

from collections.abc import Callable

import numpy as np

from gateway.routing.heads import Floats


def recovered(ranking: Floats, small: Floats, large: Floats) -> tuple[Floats, Floats]:
    """Shares of large calls [n + 1] and PGR at each, when the highest-ranked go large first.

    small, large: quality of each model on each row. Raises ``ValueError`` where both models are
    equally good: there is no gap to recover.
    """
    gap = float(large.mean() - small.mean())
    if gap == 0.0:
        raise ValueError("the two models have the same mean quality")
    order = np.argsort(-ranking, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((large - small)[order])])
    shares = np.arange(len(ranking) + 1) / len(ranking)
    return shares, gains / len(ranking) / gap


def apgr(ranking: Floats, small: Floats, large: Floats) -> float:
    """Area under PGR over the share of large calls; 0.5 for a random ranking."""
    shares, shares_recovered = recovered(ranking, small, large)
    return float(np.trapezoid(shares_recovered, shares))


def cpt(ranking: Floats, small: Floats, large: Floats, recovered_share: float) -> float:
    """Smallest share of large calls, in percent, that recovers ``recovered_share`` of the gap."""
    shares, found = recovered(ranking, small, large)
    # Shares are ratios of counts: 110 of 220 must not fall below a half by rounding.
    return float(shares[int(np.argmax(found >= recovered_share - 1e-12))] * 100)


def expected_calibration_error(probabilities: Floats, labels: Floats, bins: int = 10) -> float:
    """Mean |predicted - observed| over equally filled bins."""
    parts = np.array_split(np.argsort(probabilities, kind="stable"), bins)
    errors = [abs(probabilities[p].mean() - labels[p].mean()) * len(p) for p in parts if len(p)]
    return float(sum(errors) / len(probabilities))


def bootstrap(
    measure: Callable[[Floats, Floats, Floats], float],
    ranking: Floats,
    small: Floats,
    large: Floats,
    *,
    rng: np.random.Generator,
    rounds: int = 500,
) -> tuple[float, float]:
    """The central 95 % of ``measure`` over rows drawn with replacement."""
    values = []
    for _ in range(rounds):
        drawn = rng.integers(0, len(ranking), len(ranking))
        if small[drawn].mean() != large[drawn].mean():
            values.append(measure(ranking[drawn], small[drawn], large[drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
