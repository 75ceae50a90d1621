"""How often a local model decides rightly, as ``/v1/decisions`` asks it: a few examples, no exam.

    python -m tests.bench.bench_decisions [MODEL...]

Prints right answers with contextual calibration and without.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.wire.decisions import questions_of, read_decision
from local_models.calibration import calibrated
from local_models.catalogue import ensure
from local_models.engine import Engine
from tests.local_models.generating import request, run

REVIEWS = {
    "positive": (
        "I loved every minute.", "Wonderful acting!", "The best book of the year.",
        "Great service, friendly people.", "Works perfectly.", "I would buy it again.",
    ),
    "negative": (
        "A waste of time.", "Dull and far too long.", "I want my money back.",
        "It broke after one day.", "The food was cold and stale.", "Never again.",
    ),
}  # fmt: skip
TICKETS = {
    "billing": (
        "I was charged twice this month.", "My invoice has the wrong address.",
        "Please refund the payment.", "My card was declined.",
    ),
    "shipping": (
        "Where is my parcel?", "The package arrived at the wrong house.",
        "The courier did not ring.", "When will my order arrive?",
    ),
    "technical": (
        "The app crashes when I open it.", "I see an error message after the update.",
        "The login page does not load.", "The program freezes all the time.",
    ),
}  # fmt: skip
STATEMENTS = {  # what holds of the first text, and not of the second
    "The writer asks for a refund.": ("I want my money back.", "Thank you, all is well."),
    "The writer is angry.": ("This is outrageous, I am furious!", "What a lovely day, thank you."),
    "The text names a country.": ("We flew to Portugal.", "We stayed at home."),
    "The text is about food.": ("The soup was too salty.", "The train was late."),
    "The text asks a question.": ("Where is the station?", "The station is closed."),
    "The text mentions an animal.": ("My dog is asleep.", "My car is red."),
    "The review is positive.": ("Great service, friendly people.", "It broke after one day."),
}


def tasks() -> Iterator[tuple[str, dict[str, Any], str, int]]:
    """(kind, question, input, place of the right label)."""
    for kind, ask, texts in (
        ("reviews", "Is this review positive or negative?", REVIEWS),
        ("tickets", "Which team should answer?", TICKETS),
    ):
        choices = [{"value": label} for label in texts]
        question = {"type": "choice", "instructions": ask, "choices": choices}
        for place, label in enumerate(texts):
            for text in texts[label]:
                yield kind, question, text, place
    for statement, pair in STATEMENTS.items():
        for place, text in enumerate(pair):
            yield "statements", {"type": "predicate", "instructions": statement}, text, place


def decide(engine: Engine, question: dict[str, Any], text: str) -> tuple[list[float], list[float]]:
    """Probabilities with calibration, and without."""
    body = {"model": "m", "input": text, "questions": [question]}
    (asked,) = questions_of(read_decision(body))
    scoring = [
        msgspec.structs.replace(request(str(number), prompt), labels=asked.labels)
        for number, prompt in enumerate(asked.prompts)
    ]
    outcomes = run(engine, scoring)
    scores = [outcomes[each.request_id].finished.scores for each in scoring]
    return calibrated(scores[0], scores[1:]), calibrated(scores[0], [])


def main() -> None:
    """Print a line for each model and kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2-135m-instruct"])
    for model in parser.parse_args().models:
        engine = Engine.load(ensure(model), context_tokens=1024)
        counts: dict[str, list[int]] = {}
        for kind, question, text, right in tasks():
            count = counts.setdefault(kind, [0, 0, 0])
            count[0] += 1
            for column, shares in enumerate(decide(engine, question, text), 1):
                count[column] += shares.index(max(shares)) == right
        engine.close()
        for kind, (asked, with_it, without) in counts.items():
            print(f"{model} {kind}: {with_it} of {asked} right, {without} without calibration")


if __name__ == "__main__":
    main()
