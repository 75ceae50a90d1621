"""Choose the next token from logits. Pure: the randomness comes from the request's own seed."""

from collections import Counter

import numpy as np
import numpy.typing as npt

from local_models.messages import InvalidPrompt, SamplingParams

Float = npt.NDArray[np.float32]

TEMPERATURE_MAX = 2.0
LOGPROBS_MAX = 20
STOPS_MAX = 64
STOP_CHARACTERS_MAX = 1_024
PENALTY_MAX = 2.0
BIAS_MAX = 100.0
BIASES_MAX = 1_024
_NUCLEUS_GUESSES = (256, 4096)
_RUN = 256
_TEMPERATURE_MIN = 1e-6


def check(params: SamplingParams) -> None:
    """Raise InvalidPrompt when a parameter is out of its range."""
    if params.max_tokens < 1:
        raise InvalidPrompt("max_tokens must be at least 1")
    if not 0 <= params.temperature <= TEMPERATURE_MAX:
        raise InvalidPrompt(f"temperature must be between 0 and {TEMPERATURE_MAX}")
    if not 0 <= params.top_p <= 1:
        raise InvalidPrompt("top_p must be between 0 and 1")
    if params.logprobs is not None and not 0 <= params.logprobs <= LOGPROBS_MAX:
        raise InvalidPrompt(f"logprobs must be between 0 and {LOGPROBS_MAX}")
    if len(params.stop) > STOPS_MAX:
        raise InvalidPrompt(f"at most {STOPS_MAX} stop strings")
    if not all(0 < len(stop) <= STOP_CHARACTERS_MAX for stop in params.stop):
        raise InvalidPrompt(f"a stop string has 1 to {STOP_CHARACTERS_MAX} characters")
    for name in ("presence_penalty", "frequency_penalty"):
        if not -PENALTY_MAX <= getattr(params, name) <= PENALTY_MAX:
            raise InvalidPrompt(f"{name} must be between -{PENALTY_MAX} and {PENALTY_MAX}")
    if len(params.logit_bias) > BIASES_MAX:
        raise InvalidPrompt(f"logit_bias has more than {BIASES_MAX} tokens")
    if not all(token >= 0 and -BIAS_MAX <= bias <= BIAS_MAX for token, bias in params.logit_bias):
        raise InvalidPrompt(f"logit_bias must be between -{BIAS_MAX} and {BIAS_MAX}")


class Sampler:
    """One request's way of choosing. The same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._temperature = params.temperature
        # A temperature that float32 rounds to 0 would divide 0 by 0.
        self._divisor = np.float32(max(params.temperature, _TEMPERATURE_MIN))
        self._top_p = params.top_p
        # Any integer is a seed; NumPy wants it without a sign.
        seed = None if params.seed is None else params.seed % 2**64
        self._random = np.random.default_rng(seed)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._penalizes = bool(params.presence_penalty or params.frequency_penalty)
        self._generated: Counter[int] = Counter()
        self._biased = np.array([token for token, _ in params.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], np.float32)

    def choose(self, logits: Float, allowed: npt.NDArray[np.bool_] | None = None) -> int:
        """Next token. logits: float32 [vocabulary]; allowed: bool [vocabulary], not all False."""
        token = self._choose(self._adjusted(logits, allowed))
        if self._penalizes:
            self._generated[token] += 1
        return token

    def _adjusted(self, logits: Float, allowed: npt.NDArray[np.bool_] | None) -> Float:
        """The logits after bias, penalties and mask; a copy where anything changes."""
        if len(self._biased) or self._generated:
            logits = logits.copy()
            logits[self._biased] += self._biases
            if self._generated:
                tokens = np.fromiter(self._generated.keys(), np.int64)
                times = np.fromiter(self._generated.values(), np.float32)
                logits[tokens] -= times * self._frequency + self._presence
        # Last: no bias brings back what a form forbids.
        return logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))

    def _choose(self, logits: Float) -> int:
        if self._temperature == 0 or self._top_p == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # To minus infinity, whose weight is 0: as it should be.
            weights = np.exp((logits - logits.max()) / self._divisor)
        share = self._random.random()
        if self._top_p == 1:
            return _draw(weights, share)
        candidates = _nucleus(weights, self._top_p)
        return int(candidates[_draw(weights[candidates], share)])


def _draw(weights: Float, share: float) -> int:
    """The place where the running sum of the weights passes this share of the whole.

    First among sums of runs, then within one: one running sum over 49,152 takes 157 us, not 17.
    """
    runs = np.add.reduceat(weights, np.arange(0, len(weights), _RUN), dtype=np.float64).cumsum()
    wanted = share * runs[-1]
    run = min(int(np.searchsorted(runs, wanted, side="right")), len(runs) - 1)
    before = runs[run - 1] if run else 0.0
    within = weights[run * _RUN : (run + 1) * _RUN].cumsum(dtype=np.float64)
    place = min(int(np.searchsorted(within, wanted - before, side="right")), len(within) - 1)
    return run * _RUN + place


def _nucleus(weights: Float, top_p: float) -> npt.NDArray[np.int64]:
    """The fewest most likely tokens whose shares reach top_p, most likely first."""
    wanted = top_p * weights.sum(dtype=np.float64)
    best = np.arange(len(weights))
    # Sorting all 49,152 takes as long as a decode step, and a few hundred nearly always suffice.
    for count in _NUCLEUS_GUESSES:
        if count < len(weights):
            guess = np.argpartition(weights, -count)[-count:]
            if weights[guess].sum(dtype=np.float64) >= wanted:
                best = guess
                break
    # By falling weight and then by token, so that ties are not left to the sort.
    best = best[np.lexsort((best, -weights[best]))]
    sums = weights[best].cumsum(dtype=np.float64)
    return best[: int(np.searchsorted(sums, wanted)) + 1]


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
