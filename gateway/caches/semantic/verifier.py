"""Does the stored answer serve this question too? A logistic judge on cheap features of the pair.

Knows two sets of facets and a cosine. Sees only pairs whose facets agree; its probability is
calibrated on those. The weights lie in ``verifier.json``; they were trained on generated pairs.
"""

import math
from functools import cache
from importlib import resources

import msgspec

from gateway.caches.semantic.facets import Facets
from gateway.caches.semantic.lexicon import SYNONYMS, UNITS

NAMES = (
    "cosine",
    "distance_root",
    "cosine_times_overlap",
    "overlap",
    "only_left",
    "only_right",
    "exchanged",
    "nothing_left_over",
    "one_side_left_over",
    "longest_left_over",
    "typos",
    "synonyms",
    "trigrams",
    "length_ratio",
    "same_text",
    "function_overlap",
    "asked_one_sided",
    "modal_one_sided",
    "tense_one_sided",
    "possessive_one_sided",
    "opposite_one_sided",
    "shared_content",
    "has_numbers",
    "has_entities",
    "same_first_word",
    "same_last_content",
    "same_order",
)

_NOTHING_LEFT_OVER = NAMES.index("nothing_left_over")


class Verifier(msgspec.Struct, frozen=True, kw_only=True):
    """sigmoid(weights · (features - mean) / scale + intercept)."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    threshold: float  # probability from which a hit may be served at ``max_wrong`` 1 %
    trained_on: tuple[str, ...] = ()

    def probability(self, left: Facets, right: Facets, cosine: float) -> float:
        """That one answer serves both; calibrated on pairs whose facets agree.

        A content word that only one side says is beyond this judge, however near the vectors: "for
        students" and "grammar" for "skills" cost more errors than the re-wordings they would win.
        """
        found = features(left, right, cosine)
        if not found[_NOTHING_LEFT_OVER]:
            return 0.0
        logit = self.intercept
        for value, mean, scale, weight in zip(
            found, self.mean, self.scale, self.weights, strict=True
        ):
            logit += weight * (value - mean) / scale
        return 0.5 * (1.0 + math.tanh(0.5 * logit))

    def threshold_for(self, max_wrong: float) -> float:
        """The lowest probability to serve, for a promised share of wrong answers among hits.

        Fixed until labels of the deployment's own traffic exist: the shipped threshold holds half
        of 1 % on pairs the verifier never saw. A looser promise does not lower it; a tighter one
        raises it in proportion of the odds.
        """
        if max_wrong >= 0.01:
            return self.threshold
        if max_wrong <= 0.0:
            return 1.0
        odds = self.threshold / (1.0 - self.threshold) * 0.01 / max_wrong
        return odds / (1.0 + odds)


@cache
def shipped() -> Verifier:
    """The verifier in the package. Raises ``ValueError`` when it belongs to other features."""
    document = resources.files("gateway.caches.semantic").joinpath("verifier.json").read_bytes()
    verifier = msgspec.json.decode(document, type=Verifier)
    if verifier.names != NAMES:
        raise ValueError("verifier.json was trained on other features; train it again")
    return verifier


def features(left: Facets, right: Facets, cosine: float) -> tuple[float, ...]:
    """The pair in numbers, in the order of ``NAMES``; symmetric in left and right but for two."""
    one = {_plain(word) for word in left.content}
    other = {_plain(word) for word in right.content}
    synonyms = len(set(left.content) ^ set(right.content)) - len(one ^ other)
    only_left, only_right = one - other, other - one
    typos = 0
    for word in sorted(only_left):
        near = next(
            (rival for rival in sorted(only_right) if _inflected_or_typo(word, rival)), None
        )
        if near is not None:
            only_left, only_right = only_left - {word}, only_right - {near}
            typos += 1
    shared = len(one & other) + typos
    overlap = shared / max(1, shared + len(only_left) + len(only_right))
    left_over = only_left | only_right
    exchanged = min(len(only_left), len(only_right))
    function_left, function_right = left.words - set(left.content), right.words - set(right.content)
    return (
        cosine,
        math.sqrt(max(0.0, 1.0 - cosine)),
        cosine * overlap,
        overlap,
        float(min(len(only_left), 5)),
        float(min(len(only_right), 5)),
        float(min(exchanged, 4)),
        float(not left_over),
        float(bool(left_over) and exchanged == 0),
        max(map(len, left_over), default=0) / 10,
        float(min(typos, 3)),
        float(min(synonyms, 4)),
        _dice(left.normal, right.normal),
        abs(math.log((len(left.normal) + 1) / (len(right.normal) + 1))),
        float(left.normal == right.normal),
        len(function_left & function_right) / max(1, len(function_left | function_right)),
        float(bool(left.asked) != bool(right.asked)),
        float(bool(left.modals) != bool(right.modals)),
        float(bool(left.tenses) != bool(right.tenses)),
        float(bool(left.possessives) != bool(right.possessives)),
        float(len({line for line, _ in left.sides} ^ {line for line, _ in right.sides})),
        float(min(shared, 6)),
        float(bool(left.numbers)),
        float(bool(left.entities or right.entities)),
        float(left.first == right.first),
        float(left.content[-1:] == right.content[-1:]),
        float(left.content == right.content),
    )


def _plain(word: str) -> str:
    return UNITS.get(word) or SYNONYMS.get(word, word)


def _inflected_or_typo(word: str, other: str) -> bool:
    """The same word in another form, or with two letters exchanged, lost or doubled.

    Only for words of five letters or more with a common beginning: "Iran" is no typo of "Iraq".
    """
    if min(len(word), len(other)) < 4 or word[0] != other[0]:
        return False
    short, long = sorted((word, other), key=len)
    stem = short.rstrip("es") if len(short) > 4 else short
    if long.startswith(stem) and long[len(stem) :] in ("s", "es", "ed", "d", "ing", "er", "e", ""):
        return True
    if len(short) < 5:
        return False
    return sorted(word) == sorted(other) or (
        len(long) - len(short) == 1
        and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))
    )


def _dice(left: str, right: str) -> float:
    one = {left[i : i + 3] for i in range(len(left) - 2)}
    other = {right[i : i + 3] for i in range(len(right) - 2)}
    return 2 * len(one & other) / max(1, len(one) + len(other))
