"""Tokens are drawn from the distribution the parameters describe, and reproducibly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.messages import InvalidPrompt, SamplingParams
from local_models.sampler import Sampler, check, log_probabilities

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
DRAWS = 4000


def _shares(temperature: float, top_p: float) -> list[float]:
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p, seed=7)
    sampler = Sampler(params)
    drawn = [sampler.choose(LOGITS) for _ in range(DRAWS)]
    return [drawn.count(token) / DRAWS for token in range(4)]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.25, 0.15, 0.1]),
        (0.5, 1.0, [0.7246, 0.1812, 0.0652, 0.0290]),
        (1.0, 0.8, [0.5556, 0.2778, 0.1667, 0.0]),
        (1.0, 0.75, [2 / 3, 1 / 3, 0.0, 0.0]),
        (1.0, 0.01, [1.0, 0.0, 0.0, 0.0]),
        (0.0, 1.0, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_shares_are_those_of_the_tempered_nucleus(
    temperature: float, top_p: float, expected: list[float]
) -> None:
    """Worked out by hand: p ** (1 / temperature), cut where the sum reaches top_p, normalised.

    Four standard deviations of 4,000 draws are 0.032.
    """
    assert _shares(temperature, top_p) == pytest.approx(expected, abs=0.032)


def test_a_nucleus_wider_than_the_first_guess_is_not_cut_short() -> None:
    """Of 2,000 equal tokens 1,800 are in the nucleus, and more than 1,200 are drawn."""
    logits = np.zeros(2000, np.float32)
    sampler = Sampler(SamplingParams(max_tokens=1, top_p=0.9, seed=3))
    drawn = {sampler.choose(logits) for _ in range(3000)}
    assert 1200 < len(drawn) <= 1800


@given(seed=st.integers())
def test_every_integer_is_a_seed_and_gives_the_same_tokens_again(seed: int) -> None:
    """Negative and huge seeds are no error, for a client may choose any integer."""
    params = SamplingParams(max_tokens=1, temperature=1.5, top_p=0.95, seed=seed)
    first, second = (Sampler(params) for _ in range(2))
    assert [first.choose(LOGITS) for _ in range(8)] == [second.choose(LOGITS) for _ in range(8)]


@pytest.mark.parametrize("temperature", [0.0, 1e-60, 0.01, 2.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_extreme_logits_do_not_overflow(temperature: float, top_p: float) -> None:
    """The best token wins and no NaN appears, even at a temperature of 1e-60."""
    logits = np.array([3e38, -3e38, 0.0], np.float32)
    params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p)
    assert Sampler(params).choose(logits) == 0


def test_a_large_vocabulary_is_drawn_from_evenly() -> None:
    """Over the borders of the sampler's runs: each quarter of 1,030 equal tokens gets its share."""
    sampler = Sampler(SamplingParams(max_tokens=1, seed=5))
    drawn = np.array([sampler.choose(np.zeros(1030, np.float32)) for _ in range(DRAWS)])
    shares = np.histogram(drawn, bins=[0, 257, 515, 772, 1030])[0] / DRAWS
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.028)


def test_log_probabilities_are_the_models_own() -> None:
    """A constant added to all logits changes no log probability that a client reads."""
    chosen, best = log_probabilities(LOGITS + 5, 2, 2)
    assert chosen == pytest.approx(np.log(0.15), abs=1e-6)
    assert [token for token, _ in best] == [0, 1]
    assert [value for _, value in best] == pytest.approx(np.log([0.5, 0.25]), abs=1e-6)
    assert log_probabilities(LOGITS, 0, 0)[1] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"top_p": -0.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": ((5, 100.5),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((5, 1.0),) * 1_025},
        {"top_p": 1.1},
        {"logprobs": 21},
        {"logprobs": -1},
        {"stop": ("",)},
        {"stop": tuple("a" * (n + 1) for n in range(65))},
        {"stop": ("x" * 1_025,)},
    ],
)
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    """A NaN, a top_p of 1.1 or a 65th stop string must fail before it reaches the shared engine."""
    with pytest.raises(InvalidPrompt):
        check(SamplingParams(**({"max_tokens": 1} | wrong)))  # type: ignore[arg-type]


def test_penalties_are_openai_s_formula() -> None:
    """logit - count * frequency_penalty - presence_penalty, for what was generated before."""
    logits = np.array([2.0, 1.9, 1.0, 0.0], np.float32)
    sampler = Sampler(
        SamplingParams(max_tokens=9, temperature=0, presence_penalty=0.3, frequency_penalty=0.5)
    )
    counts = np.zeros(4)
    for _ in range(12):
        expected = int((logits - 0.5 * counts - 0.3 * (counts > 0)).argmax())
        assert sampler.choose(logits) == expected
        counts[expected] += 1
    assert logits.tolist() == np.array([2.0, 1.9, 1.0, 0.0], np.float32).tolist()


def test_no_bias_brings_back_what_a_form_forbids() -> None:
    """A bias of 100 for a forbidden token would else break the promised schema."""
    allowed = np.array([False, True, True])
    for temperature in (0, 1):
        sampler = Sampler(
            SamplingParams(max_tokens=9, temperature=temperature, logit_bias=((0, 100.0),), seed=1)
        )
        chosen = {sampler.choose(np.zeros(3, np.float32), allowed) for _ in range(50)}
        assert 0 not in chosen


def test_a_nucleus_of_nothing_is_the_best_token() -> None:
    """A top_p of 0 leaves one token to choose from and not none, even at a high temperature."""
    sampler = Sampler(SamplingParams(max_tokens=1, temperature=1.5, top_p=0))
    assert sampler.choose(np.array([0.1, 0.3, 0.2], np.float32)) == 1
