"""Fitting, calibration, thresholds and metrics against answers known beforehand."""

import msgspec
import numpy as np
import pytest

from gateway.routing.calibration import platt, rescale
from gateway.routing.heads import fit, logits_of, sigmoid
from gateway.routing.metrics import apgr, bootstrap, cpt, expected_calibration_error, recovered
from gateway.routing.prior import REMEMBERED_WORDS_MAX, Vocabulary, load_shipped
from gateway.routing.thresholds import NEVER_SMALL, CalibrationTable, Row
from gateway.routing.train import tabulate

RNG = np.random.default_rng(3)


def test_a_head_finds_the_weights_that_made_the_labels() -> None:
    """10,000 rows drawn from a known logistic model; the nuisance groups absorb their shifts."""
    rows = RNG.standard_normal((10_000, 3))
    shifted = np.arange(10_000) % 2
    labels = (RNG.random(10_000) < sigmoid(rows @ [1.0, -2.0, 0.0] + 1.5 * shifted)).astype(float)
    groups = np.column_stack([1.0 - shifted, shifted]).astype(float)
    head = fit(rows, labels, penalty=0.1, sample_weights=np.ones(10_000), groups=groups)
    assert np.array(head.weights) / head.scale == pytest.approx([1.0, -2.0, 0.0], abs=0.12)


def test_platt_scaling_undoes_overconfidence() -> None:
    """Logits three times too steep and shifted by one are mapped back, with error below 0.02."""
    truth = RNG.standard_normal(20_000)
    labels = (RNG.random(20_000) < sigmoid(truth)).astype(float)
    slope, intercept = platt(3.0 * truth + 1.0, labels, np.ones(20_000))
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert intercept == pytest.approx(-1 / 3, abs=0.05)
    before = expected_calibration_error(sigmoid(3.0 * truth + 1.0), labels)
    after = expected_calibration_error(sigmoid(slope * (3.0 * truth + 1.0) + intercept), labels)
    assert after < 0.02 < before


def test_a_rescaled_head_gives_rescaled_logits() -> None:
    """Calibration is folded into the weights, so it costs nothing at a request."""
    rows = RNG.standard_normal((50, 2))
    head = fit(
        rows,
        (rows[:, 0] > 0).astype(float),
        penalty=1.0,
        sample_weights=np.ones(50),
        groups=np.zeros((50, 0)),
    )
    again = rescale(head, 0.5, -1.0)
    assert logits_of(again, rows) == pytest.approx(0.5 * logits_of(head, rows) - 1.0)


def test_metrics_of_rankings_known_beforehand() -> None:
    """Four rows, the large model better on one: perfect, reversed and half-way rankings."""
    small, large = np.array([0.0, 1.0, 1.0, 1.0]), np.ones(4)
    best, worst = np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0, 3.0])
    assert cpt(best, small, large, 1.0) == 25.0
    assert cpt(worst, small, large, 0.5) == 100.0
    assert apgr(best, small, large) == pytest.approx(0.875)
    assert apgr(worst, small, large) == pytest.approx(0.125)
    shares, found = recovered(best, small, large)
    assert (shares[0], found[0], shares[-1], found[-1]) == (0.0, 0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="same mean"):
        apgr(best, large, large)


def test_a_random_ranking_scores_a_half_within_its_interval() -> None:
    """A router that guesses must not look good: 0.5 lies inside an interval narrower than 0.2."""
    small = (RNG.random(2_000) < 0.5).astype(float)
    large = np.maximum(small, (RNG.random(2_000) < 0.6).astype(float))
    low, high = bootstrap(apgr, RNG.random(2_000), small, large, rng=RNG, rounds=200)
    assert low < 0.5 < high
    assert high - low < 0.2


def test_a_threshold_keeps_its_promise_on_new_rows() -> None:
    """Chosen on 5,000 rows, checked on 5,000 others: what goes small has 0.9 of large's quality."""

    def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p_small = RNG.random(5_000)
        p_large = np.full(5_000, 0.95)
        return p_small, p_large, (RNG.random(5_000) < p_small).astype(float)

    p_small, p_large, _ = draw()
    threshold = tabulate(p_small, p_large).quality_threshold(0.9, 0.9)
    p_small, p_large, right = draw()
    sent = p_large - p_small <= threshold
    assert 0.1 < sent.mean() < 0.5
    assert right[sent].mean() >= 0.9 * 0.95 - 0.02


def test_a_small_table_promises_nothing() -> None:
    """Ten perfect rows against a large model with one miss are no proof of parity."""
    table = CalibrationTable(rows=(Row(gap=0.0, rows=10, small=0.9, large=0.9),))
    assert table.quality_threshold(0.95, 0.9) == NEVER_SMALL
    many = CalibrationTable(rows=(Row(gap=0.0, rows=10_000, small=0.9, large=0.9),))
    assert many.quality_threshold(0.95, 0.9) == 0.0


def test_a_vocabulary_survives_its_spelling() -> None:
    """Encoded and read again, it knows its words, counts repeats, and no text gives zero."""
    words = ["apple", "pear"]
    vocabulary = Vocabulary.decoded(Vocabulary.of(words).encoded())
    assert vocabulary.known_share(words) == 1.0
    assert vocabulary.known_share(["zyzzyva"]) == 0.0
    assert vocabulary.known_share(["apple", "pear", "pear", "zyzzyva"]) == 0.75
    assert vocabulary.known_share([]) == 0.0


def test_a_vocabulary_answers_the_same_however_many_words_it_remembers() -> None:
    """A full memory of strangers must not change the share of known words in a prompt."""
    vocabulary = Vocabulary.of(["apple"])
    strangers = [f"word {number}" for number in range(REMEMBERED_WORDS_MAX + 10)]
    first = vocabulary.known_share(strangers)
    assert vocabulary.known_share(["apple"]) == 1.0
    assert vocabulary.known_share(strangers) == first < 0.001


def test_a_prior_whose_heads_scale_features_differently_is_refused() -> None:
    """Both are computed in one walk, which supposes one scale."""
    prior = load_shipped()
    other = msgspec.structs.replace(prior.large, mean=tuple(x + 1 for x in prior.large.mean))
    with pytest.raises(ValueError, match="different scales"):
        msgspec.structs.replace(prior, large=other).check()
