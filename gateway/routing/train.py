"""Train the prior: ``python -m gateway.routing.train DATA [--out prior.json]``.

DATA is a folder of labelled prompts (``*.jsonl.gz`` with ``prompt`` and ``labels`` per model). Only
sources whose licence lets weights be shipped are read, and never a ``*_dev`` file. Prints what it
fitted; writes nothing but the one file.
"""

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.routing import anchors
from gateway.routing.calibration import platt, rescale
from gateway.routing.features import NAMES, excerpt, extract, words_of
from gateway.routing.heads import Floats, fit, logits_of, sigmoid
from gateway.routing.prior import SHIPPED, Head, Prior, Vocabulary
from gateway.routing.thresholds import CalibrationTable, Row

Mask: TypeAlias = npt.NDArray[np.bool_]


class Source(NamedTuple):
    """One file, the models that stand for small and large, and how much a row weighs."""

    file: str
    license: str
    small: tuple[str, ...]
    large: tuple[str, ...]
    weight: float


SOURCES = (
    Source(
        "mmlu_gold",
        "Apache-2.0 and MIT",
        ("mixtral-8x7b-instruct-v0.1",),
        ("gpt-4-1106-preview",),
        30.0,
    ),
    Source(
        "llmrouter9",
        "MIT",
        (
            "qwen2.5-7b-instruct",
            "llama-3.1-8b-instruct",
            "gemma-2-9b-it",
            "mistral-7b-instruct-v0.3",
        ),
        ("llama-3.1-nemotron-51b-instruct", "llama-3.3-nemotron-super-49b-v1"),
        1.0,
    ),
    Source(
        "mmlupro",
        "Apache-2.0",
        ("Mixtral-8x7B-Instruct-v0.1", "Mistral-7B-Instruct-v0.2", "Meta-Llama-3_1-8B-Instruct"),
        ("Meta-Llama-3_1-70B-Instruct", "gemini-1.5-pro-002"),
        1.0,
    ),
)

# Chosen on a list of own prompts: strong enough an anchor that chat is told from exams
# (25 of 27 easy prompts small, 26 of 26 hard ones large), for 0.01 of APGR on unseen exams.
PENALTY = 60.0
ANCHOR_WEIGHT = 400.0
FOLDS = 5

# From an 8x7B model to a 135M one, in logits: an exam question the former gets right with 0.7 the
# latter gets right with 0.24. An assumption, to be replaced by a deployment's own labels.
SMALL_OFFSET = 2.0

# What the author expects of both models on the anchors.
_EASY, _HARD = (1.0, 1.0), (0.05, 0.9)


class Rows(NamedTuple):
    """Training rows side by side: text, features, labels, weight and the source of each."""

    prompts: list[str]
    features: Floats
    small: Floats
    large: Floats
    weights: Floats
    groups: Floats  # one-hot [n, sources]; anchors have none
    is_anchor: Mask


def main() -> None:
    """Read, fit, calibrate, write, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(SHIPPED))
    options = parser.parse_args()
    rows = read(options.folder, SOURCES, with_anchors=True)
    prior = train(rows, trained_on=tuple(f"{s.file} ({s.license})" for s in SOURCES))
    document = msgspec.json.format(msgspec.json.encode(_rounded(prior)), indent=1)
    options.out.write_bytes(document + b"\n")
    print(f"{len(rows.prompts)} rows, {len(NAMES)} features, {len(document)} bytes: {options.out}")


def read(folder: Path, sources: tuple[Source, ...], *, with_anchors: bool) -> Rows:
    """All rows of the sources, then the anchors."""
    prompts: list[str] = []
    small: list[float] = []
    large: list[float] = []
    weights: list[float] = []
    tasks: list[str] = []
    for source in sources:
        for row in _labelled(folder / f"{source.file}.jsonl.gz", source):
            prompts.append(row["prompt"])
            small.append(_mean_label(row, source.small))
            large.append(_mean_label(row, source.large))
            weights.append(source.weight)
            tasks.append(source.file + ":" + (row["task"] if source.file != "mmlupro" else ""))
    anchors_from = len(prompts)
    if with_anchors:
        for texts, labels in ((anchors.easy(), _EASY), (anchors.hard(), _HARD)):
            prompts += texts
            small += [labels[0]] * len(texts)
            large += [labels[1]] * len(texts)
            weights += [ANCHOR_WEIGHT] * len(texts)
            tasks += [""] * len(texts)
    names = sorted(set(tasks) - {""})
    return Rows(
        prompts=prompts,
        features=np.array([extract(prompt) for prompt in prompts]),
        small=np.array(small),
        large=np.array(large),
        weights=np.array(weights),
        groups=np.array([[float(task == name) for name in names] for task in tasks]),
        is_anchor=np.arange(len(prompts)) >= anchors_from,
    )


def train(rows: Rows, *, trained_on: tuple[str, ...], penalty: float = PENALTY) -> Prior:
    """Fit both heads, calibrate them out of fold, and lay out the calibration table."""
    small, small_logits = _calibrated(rows, rows.small, penalty)
    large, large_logits = _calibrated(rows, rows.large, penalty)
    p_small, p_large = sigmoid(small_logits - SMALL_OFFSET), sigmoid(large_logits)
    counts = Counter(
        word for prompt in rows.prompts for word in set(words_of(excerpt(prompt)).spelt)
    )
    anchor_words = {
        word
        for prompt, is_anchor in zip(rows.prompts, rows.is_anchor, strict=True)
        if is_anchor
        for word in words_of(prompt).spelt
    }
    known = sorted(anchor_words | {word for word, count in counts.items() if count >= 3})
    return Prior(
        feature_names=NAMES,
        small=small,
        large=large,
        small_offset=SMALL_OFFSET,
        table=tabulate(p_small, p_large),
        vocabulary=Vocabulary.of(known).encoded(),
        trained_on=(*trained_on, "prompts written for Tollhouse (anchors.py)"),
    )


def tabulate(p_small: Floats, p_large: Floats, points: int = 120) -> CalibrationTable:
    """Cumulative means by gap, at about ``points`` places, closer together at small gaps."""
    gaps = p_large - p_small
    order = np.argsort(gaps, kind="stable")
    small = np.cumsum(p_small[order]) / np.arange(1, len(order) + 1)
    large = np.cumsum(p_large[order]) / np.arange(1, len(order) + 1)
    places = np.unique((np.linspace(0.05, 1.0, points) ** 2 * len(order)).astype(int).clip(1))
    return CalibrationTable(
        rows=tuple(
            Row(
                gap=round(float(gaps[order[place - 1]]), 4),
                rows=int(place),
                small=round(float(small[place - 1]), 4),
                large=round(float(large[place - 1]), 4),
            )
            for place in places
        )
    )


def _calibrated(rows: Rows, labels: Floats, penalty: float) -> tuple[Head, Floats]:
    """The head on all rows, and every row's logit from a head that did not see it."""
    folds = np.arange(len(labels)) % FOLDS
    logits = np.zeros(len(labels))
    for fold in range(FOLDS):
        seen = folds != fold
        head = _fit(rows, labels, seen, penalty)
        logits[~seen] = logits_of(head, rows.features[~seen])
    slope, intercept = platt(logits, labels, rows.weights)
    head = _fit(rows, labels, np.ones(len(labels), dtype=bool), penalty)
    return rescale(head, slope, intercept), slope * logits + intercept


def _fit(rows: Rows, labels: Floats, chosen: Mask, penalty: float) -> Head:
    return fit(
        rows.features[chosen],
        labels[chosen],
        penalty=penalty,
        sample_weights=rows.weights[chosen],
        groups=rows.groups[chosen],
    )


def _labelled(path: Path, source: Source) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        row
        for row in rows
        if not row.get("contaminated")
        and set(source.small) & row["labels"].keys()
        and set(source.large) & row["labels"].keys()
    ]


def _mean_label(row: dict[str, Any], models: tuple[str, ...]) -> float:
    found = [row["labels"][model] for model in models if model in row["labels"]]
    return float(sum(found) / len(found))


def _rounded(prior: Prior) -> Prior:
    """Five significant digits: the file stays small and a diff readable."""

    def short(values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(f"{value:.5g}") for value in values)

    def head(full: Head) -> Head:
        return Head(
            mean=short(full.mean),
            scale=short(full.scale),
            weights=short(full.weights),
            intercept=float(f"{full.intercept:.5g}"),
        )

    return msgspec.structs.replace(prior, small=head(prior.small), large=head(prior.large))


if __name__ == "__main__":
    main()
