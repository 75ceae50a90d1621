"""Text in, decision out: two calibrated heads, their gap, and a threshold for the target."""

import math
from itertools import compress
from operator import mul
from typing import TYPE_CHECKING

import msgspec

from gateway.policy.snapshot import QualityTarget
from gateway.policy.targets import Decision, unmeasured_reason
from gateway.routing.features import NAMES, excerpt, extract, words_of
from gateway.routing.prior import CLIP, Prior, Vocabulary, load_shipped
from gateway.routing.thresholds import ALWAYS_SMALL, NEVER_SMALL, LiveGaps, threshold_for

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Below these a prompt is foreign to the prior, and foreign is not easy.
KNOWN_SHARE_MIN = 0.5
NON_ASCII_SHARE_MAX = 0.2
_NON_ASCII = NAMES.index("non_ascii_share")


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What the heads say of one prompt; both are probabilities of a good answer."""

    p_small: float
    p_large: float
    evidence: bool  # False: nothing in the text to judge by; goes to the large model
    uncertain: bool  # the embedding might change the decision

    @property
    def gap(self) -> float:
        """What the large model is expected to add."""
        return self.p_large - self.p_small


class _Heads:
    """Both heads in one walk over the features that are not zero: most are, in most prompts.

    Plain floats: on vectors so short, each step of NumPy's costs more than all of this.
    """

    def __init__(self, prior: Prior) -> None:
        small, large = prior.small, prior.large
        scaled = zip(small.mean, small.scale, strict=True)
        at_zero = [max(-CLIP, min(-mean / scale, CLIP)) for mean, scale in scaled]
        self._small = small.intercept + sum(map(mul, small.weights, at_zero))
        self._large = large.intercept + sum(map(mul, large.weights, at_zero))
        weights = zip(small.weights, large.weights, strict=True)
        self._terms = tuple(zip(small.mean, small.scale, at_zero, weights, strict=True))

    def logits(self, features: list[float]) -> tuple[float, float]:
        """What small and large score on one prompt, before any offset."""
        small, large = self._small, self._large
        present = zip(filter(None, features), compress(self._terms, features), strict=True)
        for feature, (mean, scale, at_zero, (to_small, to_large)) in present:
            standard = (feature - mean) / scale
            if standard > CLIP:
                standard = CLIP
            elif standard < -CLIP:
                standard = -CLIP
            small += to_small * (standard - at_zero)
            large += to_large * (standard - at_zero)
        return small, large


class Router:
    """Scores prompts with a prior and decides by target. Safe to call from any thread."""

    def __init__(self, prior: Prior, *, small_offset: float | None = None) -> None:
        self._prior = prior
        self._offset = prior.small_offset if small_offset is None else small_offset
        self._heads = _Heads(prior)
        self._vocabulary = Vocabulary.decoded(prior.vocabulary)
        self._live = LiveGaps()
        self._thresholds: dict[tuple[float, float], float] = {}

    @classmethod
    def shipped(cls, *, small_offset: float | None = None) -> "Router":
        """The prior in the package; ``small_offset`` 0 gives the pair it was fitted on."""
        return cls(load_shipped(), small_offset=small_offset)

    def score(self, text: str, *, uncertain_around: QualityTarget) -> Score:
        """Score by text alone, in some 40 µs for 500 characters.

        ``uncertain_around`` is the target whose decision an embedding could still turn. The shipped
        prior has no head on embeddings, so none of its scores is uncertain.
        """
        words = words_of(excerpt(text))
        features = extract(text, words)
        small, large = self._heads.logits(features)
        evidence = (
            self._vocabulary.known_share(words.spelt) >= KNOWN_SHARE_MIN
            and features[_NON_ASCII] <= NON_ASCII_SHARE_MAX
        )
        score = Score(
            p_small=_sigmoid(small - self._offset),
            p_large=_sigmoid(large),
            evidence=evidence,
            uncertain=False,
        )
        self._live.add(score.gap if score.evidence else 1.0)
        return score

    def refine(self, score: Score, text: str, vector: "npt.NDArray[np.float32]") -> Score:
        """Score again with the embedding: ``vector`` is float32 [dimensions], unit length.

        The shipped prior learnt nothing from embeddings, so the score stays as it is.
        """
        return score

    def decide(self, score: Score, target: QualityTarget) -> Decision:
        """Apply the target. Without evidence the large model answers, whatever the target."""
        gap = score.gap
        if not score.evidence:
            return Decision(
                small=False,
                difficulty=gap,
                threshold=NEVER_SMALL,
                reason="no evidence in the text: large",
            )
        threshold = self._threshold(target)
        if threshold <= NEVER_SMALL:
            reason = "the target lets nothing go small"
        elif threshold >= ALWAYS_SMALL:
            reason = "the target sends all to small"
        elif gap <= threshold:
            reason = f"prior, not measured: gap {gap:.2f} <= {threshold:.2f}, easy"
        else:
            reason = f"prior, not measured: gap {gap:.2f} > {threshold:.2f}, hard"
            if target.until_then == "exam":
                reason += ", and no exam proves this"
        easy = gap <= threshold
        if easy and target.unmeasured:
            # What the prior expects of a small model was never compared with this one's answers.
            return Decision(
                small=False,
                difficulty=gap,
                threshold=threshold,
                reason=unmeasured_reason(target),
                easy=True,
            )
        return Decision(small=easy, difficulty=gap, threshold=threshold, reason=reason)

    def _threshold(self, target: QualityTarget) -> float:
        if target.quality is None:
            return threshold_for(target, self._prior.table, self._live)
        key = (target.quality, target.confidence)
        found = self._thresholds.get(key)
        if found is None:
            found = threshold_for(target, self._prior.table, self._live)
            if len(self._thresholds) < 1_024:
                self._thresholds[key] = found
        return found


def _sigmoid(logit: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * logit))
