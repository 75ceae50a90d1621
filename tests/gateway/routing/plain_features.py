"""The same features and scores the plain way: one pattern or one loop each, whatever it costs.

What ``gateway.routing`` computes in a few passes is compared with this. The word groups and the
names are shared; how anything is counted is not.
"""

import re
from math import log1p

import numpy as np

from gateway.routing.features import _GROUPS, _QUESTION_WORDS, _WORK_VERBS, NAMES
from gateway.routing.heads import logits_of, sigmoid
from gateway.routing.prior import Prior

TRANSLATE = r"\b(?:in|into|to) (?:spanish|french|german|italian|portuguese)\b"


def features(whole: str) -> list[float]:
    """The features in the order of ``NAMES``."""
    text = whole if len(whole) <= 4_000 else whole[:3_000] + "\n" + whole[-1_000:]
    found = {**shapes(text, len(whole)), **groups(text)}
    return [found[name] for name in NAMES]


def words(text: str) -> list[str]:
    """Words and figures in the order of the text."""
    return re.findall(r"[a-z][a-z'’]*|\d[\d,.]*", text.lower())


def matches(pattern: str, text: str) -> float:
    """How often a pattern is found, as log1p."""
    return log1p(len(re.findall(pattern, text, re.MULTILINE)))


def characters(text: str, wanted: str) -> int:
    """How many of a text's characters are among those wanted."""
    return sum(character in wanted for character in text)


def groups(text: str) -> dict[str, float]:
    """The word groups: how often each is met, and the share of some."""
    found = words(text)
    group_of: dict[str, str] = {}
    for name, members in _GROUPS.items():
        for member in members.split():
            group_of.setdefault(member, name)
    counts = {name: sum(group_of.get(word) == name for word in found) for name in _GROUPS}
    return {f"has_{name}": log1p(count) for name, count in counts.items()} | {
        f"rate_{name}": count / max(len(found), 1) for name, count in counts.items()
    }


def shapes(text: str, length: int) -> dict[str, float]:
    """What the text is made of; ``length`` is the whole prompt's."""
    found = words(text)
    total, size = len(found), max(len(text), 1)
    first = found[0] if found else ""
    raw = text.encode("utf-8", "replace")
    beyond = sum(byte > 127 for byte in raw) if not text.isascii() else 0
    digits = sum(chr(byte) in "0123456789" for byte in raw)
    plain = sum(byte < 128 and (chr(byte).isalnum() or byte in b" \n") for byte in raw)
    numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", text) if digits else []
    end = text[-40:].rstrip()
    lines = "\n" in text
    return {
        "characters": log1p(length),
        "words": log1p(total * length / size),
        "lines": log1p(characters(text, "\n")),
        "sentences": log1p(len(re.findall(r"[.!?](?:\s|$)", text))),
        "word_length": sum(map(len, found)) / max(total, 1),
        "distinct_share": len(set(found)) / max(total, 1),
        "long_words": sum(len(word) > 9 for word in found) / max(total, 1),
        "digits_share": digits / max(len(raw), 1),
        "numbers": log1p(len(numbers)),
        "large_numbers": log1p(sum(len(number) > 3 for number in numbers)),
        "decimals": log1p(sum("." in number for number in numbers)),
        "upper_share": sum(65 <= byte <= 90 for byte in raw) / max(len(raw), 1),
        "capitalised": matches(r"(?<=[a-z,;] )[A-Z][a-z]+", text),
        "non_ascii_share": beyond / max(len(raw), 1),
        "symbols_share": (len(raw) - plain - beyond) / max(len(raw), 1),
        "question_marks": log1p(characters(text, "?")),
        "commas": log1p(characters(text, ",")),
        "colons": log1p(characters(text, ":")),
        "semicolons": log1p(characters(text, ";")),
        "quotes": log1p(characters(text, '"“')),
        "brackets": log1p(characters(text, "([")),
        "braces": log1p(characters(text, "{")),
        "percent_or_money": log1p(characters(text, "%$€")),
        "newline_share": characters(text, "\n") / size,
        "code_fence": float("```" in text),
        "calls": matches(r"\b[A-Za-z_]\w*\(", text),
        "identifiers": matches(r"\b(?:[a-z]+_[a-z_]+|[a-z]+[A-Z]\w+)", text),
        "tex": matches(r"\\[a-zA-Z]+|\$[^$\n]{1,80}\$", text),
        "equations": matches(r"[\w)\]]\s*[=<>≤≥^]\s*[-\w(\[\\]", text),
        "arithmetic": matches(r"\d\s*[-+*/×÷%^]\s*\d", text) if numbers else 0.0,
        "choices": matches(r"^\s*\(?[A-J][.):]\s", text) if lines else 0.0,
        "list_lines": matches(r"^\s*(?:[-*•]|\d{1,2}[.)])\s", text) if lines else 0.0,
        "ends_with_question": float(end.endswith("?")),
        "ends_with_answer": float(end.endswith("Answer:")),
        "starts_with_question_word": float(first in _QUESTION_WORDS),
        "starts_with_verb_of_work": float(first in _WORK_VERBS),
        "names_a_common_language": float(re.search(TRANSLATE, text.lower()) is not None),
        "under_8_words": float(total < 8),
        "under_20_words": float(total < 20),
        "over_60_words": float(total > 60),
        "over_200_words": float(total > 200),
    }


def probabilities(prior: Prior, prompt: str) -> tuple[float, float]:
    """What each head of the prior says, by way of matrices; small first."""
    rows = np.array([features(prompt)])
    small, large = logits_of(prior.small, rows), logits_of(prior.large, rows)
    return float(sigmoid(small - prior.small_offset)[0]), float(sigmoid(large)[0])
