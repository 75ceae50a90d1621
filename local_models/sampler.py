"""Choose the next token from logits. Pure: the randomness comes from the request's own seed."""

import numpy as np
import numpy.typing as npt

from local_models.messages import InvalidPrompt, SamplingParams

Float = npt.NDArray[np.float32]

TEMPERATURE_MAX = 2.0
LOGPROBS_MAX = 20
STOPS_MAX = 4
STOP_CHARACTERS_MAX = 256
_NUCLEUS_FIRST_GUESS = 256


def check(params: SamplingParams) -> None:
    """Raise InvalidPrompt when a parameter is out of its range."""
    if params.max_tokens < 1:
        raise InvalidPrompt("max_tokens must be at least 1")
    if not 0 <= params.temperature <= TEMPERATURE_MAX:
        raise InvalidPrompt(f"temperature must be between 0 and {TEMPERATURE_MAX}")
    if not 0 < params.top_p <= 1:
        raise InvalidPrompt("top_p must be above 0 and at most 1")
    if params.logprobs is not None and not 0 <= params.logprobs <= LOGPROBS_MAX:
        raise InvalidPrompt(f"logprobs must be between 0 and {LOGPROBS_MAX}")
    if len(params.stop) > STOPS_MAX:
        raise InvalidPrompt(f"at most {STOPS_MAX} stop strings")
    if not all(0 < len(stop) <= STOP_CHARACTERS_MAX for stop in params.stop):
        raise InvalidPrompt(f"a stop string has 1 to {STOP_CHARACTERS_MAX} characters")


class Sampler:
    """One request's way of choosing. The same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._temperature = params.temperature
        self._top_p = params.top_p
        # Any integer is a seed; NumPy wants it without a sign.
        seed = None if params.seed is None else params.seed % 2**64
        self._random = np.random.default_rng(seed)

    def choose(self, logits: Float) -> int:
        """Next token. logits: float32 [vocabulary]."""
        if self._temperature == 0:
            return int(logits.argmax())
        # In double precision: the difference of two float32 may overflow.
        shifted = logits.astype(np.float64) - logits.max()
        weights = np.exp(shifted / self._temperature)
        if self._top_p < 1:
            candidates = _nucleus(weights, self._top_p)
            weights = weights[candidates]
        else:
            candidates = None
        sums = weights.cumsum()
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        place = min(place, len(sums) - 1)
        return place if candidates is None else int(candidates[place])


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """The fewest most likely tokens whose shares reach top_p, most likely first."""
    wanted = top_p * weights.sum()
    count = min(_NUCLEUS_FIRST_GUESS, len(weights))
    # Sorting 49,152 weights takes 3 ms, as long as a decode step: try the top few first.
    best = np.argpartition(weights, -count)[-count:]
    if weights[best].sum() < wanted:
        best = np.arange(len(weights))
    # Stable, by falling weight and then by token, so that ties are not left to the sort.
    best = best[np.lexsort((best, -weights[best]))]
    return best[: int(np.searchsorted(weights[best].cumsum(), wanted)) + 1]


def log_probabilities(
    logits: Float, token: int, alternatives: int
) -> tuple[float, list[tuple[int, float]]]:
    """Natural logarithms under the model's own distribution (temperature 1).

    Returns the token's, and (token, logarithm) of the most likely ones, best first.
    """
    shifted = logits.astype(np.float64) - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    if not alternatives:
        return float(shifted[token]), []
    best = np.argpartition(shifted, -alternatives)[-alternatives:]
    ranked = sorted(((int(place), float(shifted[place])) for place in best), key=lambda b: -b[1])
    return float(shifted[token]), ranked
