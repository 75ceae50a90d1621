"""Text in, decision out: two calibrated heads, their gap, and a threshold for the target."""

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.policy.snapshot import QualityTarget


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What the heads say of one prompt; both are probabilities of a good answer."""

    p_small: float
    p_large: float
    evidence: bool  # False: nothing in the text to judge by; goes to the large model
    uncertain: bool  # the embedding might change the decision


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Small or large, and the sentence that explains it to an admin."""

    small: bool
    difficulty: float  # the gap p_large - p_small
    threshold: float
    reason: str


class Router:
    """The shipped prior, or what a deployment has learnt."""

    @classmethod
    def shipped(cls) -> "Router":
        """The prior in the package."""
        return cls()

    def score(self, text: str, *, uncertain_around: QualityTarget) -> Score:
        """Score by text alone."""
        return Score(p_small=0.0, p_large=1.0, evidence=False, uncertain=False)

    def refine(self, score: Score, text: str, vector: npt.NDArray[np.float32]) -> Score:
        """Score again with the embedding: ``vector`` is float32 [dimensions], unit length."""
        return score

    def decide(self, score: Score, target: QualityTarget) -> Decision:
        """Apply the target."""
        return Decision(small=False, difficulty=1.0, threshold=0.0, reason="no evidence: large")
