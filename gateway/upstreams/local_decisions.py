"""Decisions by the local model: each question's labels scored, as OpenAI's answers.

Knows what a body asks and how its answer reads; does not know who asks.
"""

from collections.abc import Sequence

import orjson

from gateway.errors import InvalidRequest
from gateway.upstreams.local_labels import Scored
from gateway.upstreams.refusals import Body, refuse
from gateway.wire.decisions import (
    Asked,
    Choice,
    Decision,
    Predicate,
    Question,
    questions_of,
    read_decision,
)


def read_call(body: Body) -> tuple[Decision, list[Asked]]:
    """A body and what it asks, as ``wire.decisions`` reads it. Raises UpstreamStatus 400."""
    try:
        decision = read_decision(body)
        return decision, questions_of(decision)
    except InvalidRequest as error:
        raise refuse(error.param or "body", "is not as it should be", "invalid_value") from error


def document(model: str, decision: Decision, scores: Sequence[Scored]) -> bytes:
    """The answer, in the questions' order."""
    tokens = sum(each.tokens for each in scores)
    cached = sum(each.cached_tokens for each in scores)
    return orjson.dumps(
        {
            "model": model,
            "answers": [
                _answer(question, each.probabilities)
                for question, each in zip(decision.questions, scores, strict=True)
            ],
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens,
            },
        }
    )


def _answer(question: Question, probabilities: Sequence[float]) -> Body:
    """One answer. Confidence is the largest probability; a level's value is its place, from 0."""
    answer: Body = {"type": "predicate", "name": question.name}
    if isinstance(question, Predicate):
        return {**answer, "probability": probabilities[0]}
    answer["confidence"] = max(probabilities)
    if isinstance(question, Choice):
        values = [option.value for option in question.choices]
        pairs = zip(values, probabilities, strict=True)
        answer["probabilities"] = [{"value": value, "probability": p} for value, p in pairs]
        best = max(range(len(values)), key=lambda place: probabilities[place])
        return {**answer, "type": "choice", "choice": values[best]}
    levels = enumerate(zip(question.levels, probabilities, strict=True))
    answer["probabilities"] = [
        {"value": place, "label": level.label, "probability": p} for place, (level, p) in levels
    ]
    score = sum(place * p for place, p in enumerate(probabilities))
    return {**answer, "type": "score", "score": score}
