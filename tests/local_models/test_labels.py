"""Labels get the probabilities that the model gives them, alone and in a batch."""

import math

import msgspec
import numpy as np
import pytest

from local_models.calibration import calibrated
from local_models.engine import Engine
from local_models.messages import GenerationRequest, InvalidPrompt
from local_models.sampler import log_probabilities
from tests.local_models.generating import request, run

LABELS = ("positive", "negative", "not sure", "not sure at all", "no", "nothing")
TEXT = "The film was a joy from the first minute to the last."
ASK = f"Is the review positive or negative? Review: {TEXT}"


def scoring(request_id: str, text: str, labels: tuple[str, ...] = LABELS) -> GenerationRequest:
    """A request that asks for scores."""
    return msgspec.structs.replace(request(request_id, text), labels=labels)


def alone(engine: Engine, label: str) -> float:
    """A label's log-probability, the prompt read anew and the label's tokens one after another."""
    total, said = 0.0, engine._tokenizer.encode(label)
    prompt = engine._chat.encode([{"role": "user", "content": ASK}])
    logits = engine._session.prefill(0, prompt, 0)
    for place, token in enumerate(said):
        total += log_probabilities(logits, token, 0)[0]
        logits = engine._session.decode([token], [len(prompt) + place])[0]
    return total


def test_a_score_is_the_sum_of_the_label_s_log_probabilities(engine: Engine) -> None:
    """Compared with writing each label alone."""
    finished = run(engine, [scoring("r", ASK)])["r"].finished
    assert (finished.reason, finished.completion_tokens) == ("stop", 0)
    assert finished.compute_us > 0
    for label, score in zip(LABELS, finished.scores, strict=True):
        assert score == pytest.approx(alone(engine, label), abs=1e-4)


def test_scores_do_not_depend_on_who_shares_the_batch(engine: Engine) -> None:
    """Four requests together, one of them a story, get the scores and texts of each alone."""
    requests = [
        scoring("a", ASK),
        request("b", "Tell a story.", 12, temperature=0.9, seed=3),
        scoring("c", "Which fruit?", ("an apple", "an apricot", "a pear")),
        scoring("d", "Yes or no?", ("yes", "no")),
    ]
    together = run(engine, requests)
    for each in requests:
        one = run(engine, [each])[each.request_id]
        assert together[each.request_id].finished.scores == one.finished.scores
        assert together[each.request_id].text == one.text


def test_calibration_is_division_by_what_nothing_gets() -> None:
    """Zhao et al.: a label that the model prefers without any input loses that preference."""
    scores, free = [math.log(0.6), math.log(0.3)], [[math.log(0.8), math.log(0.1)]] * 3
    assert calibrated(scores, []) == pytest.approx([2 / 3, 1 / 3])
    expected = np.array([0.6 / 0.8, 0.3 / 0.1])
    assert calibrated(scores, free) == pytest.approx(list(expected / expected.sum()))
    assert calibrated(free[0], free) == pytest.approx([0.5, 0.5])
    assert sum(calibrated([-900.0, -1.0, -2.0], [[-1.0, -900.0, -1.0]])) == pytest.approx(1)


@pytest.mark.parametrize(
    "labels", [("one",), ("a", "a"), ("a", ""), tuple(map(str, range(256))), ("x" * 9_000, "y")]
)
def test_labels_that_cannot_be_scored_are_refused(engine: Engine, labels: tuple[str, ...]) -> None:
    """One, equal, empty, too many or too long labels end in a message about the label."""
    with pytest.raises(InvalidPrompt, match="label"):
        engine.submit(scoring("r", ASK, labels), lambda *_: None)
