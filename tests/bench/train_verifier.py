"""Train the semantic cache's verifier on generated pairs: ``python tests/bench/train_verifier.py``.

Every pair is made from word lists written here, so the weights may be shipped. The embedding model
is the catalogue's default. Prints how the verifier does on generated pairs it did not see.
"""

import argparse
import random
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.caches.semantic import facets, verifier
from gateway.routing.calibration import platt, rescale
from gateway.routing.heads import fit, logits_of, sigmoid
from gateway.routing.prior import Head

# Families of things: inside a family a question about one is not a question about another.
FAMILIES = (
    ("bread", "cookies", "a cheesecake", "pancakes", "pizza", "lasagna"),
    ("my password", "my email address", "my billing address", "my phone number", "my username"),
    ("an invoice", "a receipt", "a refund", "a statement", "a quote", "a contract"),
    ("a bicycle", "a motorcycle", "a truck", "a boat", "a scooter", "a tractor"),
    ("guitar", "piano", "violin", "drums", "flute", "cello"),
    ("tomatoes", "potatoes", "carrots", "onions", "strawberries", "mint"),
    ("yoga", "running", "swimming", "cycling", "climbing", "rowing"),
    ("a headache", "a sore throat", "back pain", "a fever", "insomnia", "an allergy"),
    ("photosynthesis", "evolution", "gravity", "osmosis", "magnetism", "erosion"),
    ("inflation", "recession", "unemployment", "globalization", "deflation", "taxation"),
    ("a wooden floor", "a brick wall", "a roof", "a ceiling", "a fence", "a driveway"),
    ("a router", "a printer", "a scanner", "a monitor", "a keyboard", "a webcam"),
    ("a subscription", "an order", "a reservation", "an appointment", "a membership"),
    ("coffee", "tea", "wine", "beer", "cocoa", "lemonade"),
    ("chess", "poker", "tennis", "golf", "cricket", "badminton"),
    ("a startup", "a podcast", "a charity", "a restaurant", "a blog", "a farm"),
    ("quantum computing", "machine learning", "cryptography", "robotics", "virtual reality"),
    ("lions", "whales", "eagles", "bees", "sharks", "elephants"),
)
# Verbs of one family are different wishes; words beside a slash are the same wish.
DEEDS = (
    ("clean", "repair/fix", "sell", "insure", "paint", "store"),
    ("change", "check", "hide", "verify", "share", "confirm"),
    ("grow", "cook", "freeze", "peel", "wash", "ship"),
    ("cancel", "renew", "move", "extend", "track", "print"),
    ("teach", "learn/study", "practise", "enjoy", "photograph", "draw"),
    ("prevent", "treat", "diagnose", "endure", "describe", "measure"),
)
ASPECTS = (
    ("history", "future", "origin", "importance"),
    ("price", "taste", "colour", "weight"),
    ("main causes", "main effects", "main types", "main examples"),
    ("basics", "rules", "dangers", "secrets"),
)
QUALIFIERS = (
    "for students",
    "for a large family",
    "in winter",
    "in Canada",
    "without a licence",
    "at home",
    "on a small budget",
    "for pregnant women",
    "in an emergency",
    "with vinegar",
    "as a beginner",
    "overnight",
    "and get compensation",
    "professionally",
    "for two people",
)
ADJECTIVES = (
    "old",
    "wet",
    "electric",
    "Italian",
    "medical",
    "wooden",
    "used",
    "foreign",
    "digital",
    "stolen",
    "rare",
    "organic",
)
PLAIN_FORMS = (
    "What is {1}?",
    "Where is {1}?",
    "Can I live with {1}?",
    "Do you like {1}?",
    "What happened with {1}?",
    "What does {1} do?",
    "How does {1} feel?",
    "Who invented {1}?",
    "Is {1} worth it?",
)
DEED_FORMS = (
    "How do I {0} {1}?",
    "How can I {0} {1}?",
    "How to {0} {1}",
    "how do you {0} {1}",
    "What is the way to {0} {1}?",
    "What's the way to {0} {1}?",
    "Tell me how to {0} {1}.",
    "Can you tell me how to {0} {1}?",
    "Could you please explain how to {0} {1}?",
    "I would like to know how to {0} {1}",
    "I need to know how to {0} {1}",
    "Please explain how I can {0} {1}.",
    "hi, how do i {0} {1}",
    "Show me how to {0} {1}, thanks",
)
ASPECT_FORMS = (
    "What is the {0} of {1}?",
    "What's the {0} of {1}?",
    "what is the {0} of {1}",
    "Tell me the {0} of {1}.",
    "Tell me about the {0} of {1}",
    "Explain the {0} of {1}.",
    "Please describe the {0} of {1}",
    "Can you explain the {0} of {1}?",
    "I want to know the {0} of {1}",
)


def generate(rng: random.Random, pairs: int) -> list[tuple[str, str, float, int]]:
    """(left, right, label, family): half are positive. A family stays on one side of a split."""
    found = []
    for _ in range(pairs):
        family = rng.randrange(len(FAMILIES))
        things = rng.sample(FAMILIES[family], 2)
        deeds = rng.random() < 0.7
        forms = DEED_FORMS if deeds else ASPECT_FORMS
        actions = rng.sample(rng.choice(DEEDS if deeds else ASPECTS), 2)
        left = _ask(rng, forms, actions[0], things[0], "")
        kind = rng.randrange(11)
        qualifier = rng.choice(QUALIFIERS)
        if kind < 5:
            extra = f" {qualifier}" if rng.random() < 0.3 else ""
            left = _ask(rng, forms, actions[0], things[0], extra)
            right = _ask(rng, forms, actions[0], things[0], extra)
            if rng.random() < 0.35:
                right = _misspell(rng, right)
            label = 1.0
        elif kind == 5:
            right, label = _ask(rng, forms, actions[0], things[1], ""), 0.0
        elif kind == 6:
            right, label = _ask(rng, forms, actions[1], things[0], ""), 0.0
        elif kind == 7:
            right, label = _ask(rng, forms, actions[0], things[0], f" {qualifier}"), 0.0
        elif kind == 8:
            described = f"{rng.choice(ADJECTIVES)} {things[0].removeprefix('a ')}"
            right, label = _ask(rng, forms, actions[0], described, ""), 0.0
        elif kind == 9:
            one_form, other_form = rng.sample(PLAIN_FORMS, 2)
            left = one_form.format("", things[0])
            right, label = other_form.format("", things[0]), 0.0
            if rng.random() < 0.4:
                right = _ask(rng, forms, actions[0], things[0], "")
        else:
            one, other = rng.sample(QUALIFIERS, 2)
            left = _ask(rng, forms, actions[0], things[0], f" {one}")
            right, label = _ask(rng, forms, actions[0], things[0], f" {other}"), 0.0
        if rng.random() < 0.5:
            left, right = right, left
        found.append((left, right, label, family))
    return found


def _ask(rng: random.Random, forms: tuple[str, ...], action: str, thing: str, extra: str) -> str:
    form = rng.choice(forms)
    text = form.format(rng.choice(action.split("/")), thing + extra)
    return text if rng.random() < 0.85 else text.lower().rstrip("?.")


def _misspell(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    long_ones = [index for index, word in enumerate(words) if len(word) > 5 and word.isalpha()]
    if not long_ones:
        return text
    index = rng.choice(long_ones)
    word, at = words[index], rng.randrange(1, len(words[index]) - 2)
    if rng.random() < 0.5:
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    else:
        words[index] = word[:at] + word[at + 1 :]
    return " ".join(words)


def compatible(
    pairs: list[tuple[str, str, float, int]], embed: "Embed"
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Features, labels and families of the pairs whose facets agree; the others are never asked."""
    texts = sorted({text for left, right, _, _ in pairs for text in (left, right)})
    vectors = dict(zip(texts, embed(texts), strict=True))
    read = {text: facets.extract(text) for text in texts}
    rows, labels, families = [], [], []
    for left, right, label, family in pairs:
        if facets.conflict(read[left], read[right]) is None:
            cosine = float(vectors[left] @ vectors[right])
            rows.append(verifier.features(read[left], read[right], cosine))
            labels.append(label)
            families.append(family)
    return np.array(rows), np.array(labels), np.array(families)


class Embed:
    """Texts to unit vectors, by the catalogue's embedding model."""

    def __init__(self, folder: Path) -> None:
        from local_models.embedder import Embedder

        self._embedder = Embedder.load(folder)

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        parts = [self._embedder.embed(texts[i : i + 32])[0] for i in range(0, len(texts), 32)]
        return np.vstack(parts).astype(np.float32)


def train(
    rows: npt.NDArray[np.float64], labels: npt.NDArray[np.float64], families: npt.NDArray[np.int64]
) -> tuple[Head, npt.NDArray[np.float64]]:
    """The head on all rows, and calibrated probabilities of every row out of its family's fold."""
    weights, nobody = np.ones(len(labels)), np.zeros((len(labels), 0))
    logits = np.zeros(len(labels))
    folds = families % 6
    for fold in range(6):
        seen = folds != fold
        head = fit(
            rows[seen],
            labels[seen],
            penalty=3.0,
            sample_weights=weights[seen],
            groups=nobody[seen],
        )
        logits[~seen] = logits_of(head, rows[~seen])
    slope, intercept = platt(logits, labels, weights)
    head = fit(rows, labels, penalty=3.0, sample_weights=weights, groups=nobody)
    return rescale(head, slope, intercept), sigmoid(slope * logits + intercept)


def threshold(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.float64], wrong_share: float
) -> float:
    """The lowest probability from which on the wrong share among hits stays at ``wrong_share``."""
    order = np.argsort(-probabilities, kind="stable")
    wrong = np.cumsum(1.0 - labels[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(wrong <= wrong_share)
    return float(probabilities[order[good[-1]]]) if len(good) else 1.0


def main() -> None:
    """Generate, fit, write, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the embedding model")
    parser.add_argument("--pairs", type=int, default=6_000)
    parser.add_argument(
        "--out", type=Path, default=Path(verifier.__file__).with_name("verifier.json")
    )
    options = parser.parse_args()
    pairs = generate(random.Random(7), options.pairs)
    rows, labels, families = compatible(pairs, Embed(options.model))
    head, unseen = train(rows, labels, families)
    # The judge itself says 0 to pairs with a word left over; generated pairs are cleaner than
    # people's, so the threshold does not go below 0.9.
    unseen *= rows[:, verifier.NAMES.index("nothing_left_over")]
    cut = max(0.9, threshold(unseen, labels, 0.005))
    served = unseen >= cut
    print(
        f"{len(pairs)} pairs, {len(labels)} with equal facets ({int(labels.sum())} positive); "
        f"threshold {cut:.3f}: recall {served[labels == 1].mean():.3f}, "
        f"wrong {1 - labels[served].mean():.4f} of hits (families unseen)"
    )
    document = verifier.Verifier(
        names=verifier.NAMES,
        mean=_short(head.mean),
        scale=_short(head.scale),
        weights=_short(head.weights),
        intercept=float(f"{head.intercept:.5g}"),
        threshold=round(cut, 4),
        trained_on=("generated pairs (tests/bench/train_verifier.py)",),
    )
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def _short(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)


if __name__ == "__main__":
    main()
