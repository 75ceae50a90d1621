"""Is this still an answer? Loops, counting for ever, another script, broken characters.

A detector reads the tokens and the text of one answer as they come, and says what is wrong with it
in one word, or nothing. It must be nearly always silent: an answer that is ended early is gone.
README.md has how often it is wrong on real texts. Knows tokens and texts; does not know models.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

import numpy as np

Nonsense = Literal["loop", "endless", "script", "broken"]

PERIOD_MAX = 128
"""Tokens of the longest piece whose repetition is noticed."""

LOOP_TOKENS = 400
"""A loop has at least so many tokens."""

LOOP_REPEATS = 8
"""... and at least so many repeats, or as many as the prompt has numbers for."""

ENDLESS_TOKENS = 768
"""Likewise where only numbers differ between the repeats."""

ENDLESS_REPEATS = 32

ENDLESS_PERIOD_MIN = 6
"""Tokens of the shortest such piece: a list of numbers is a list."""

ASKED_REPEATS_MAX = 1_000
"""A number of the prompt above it, such as a year, asks for no repeats."""

BROKEN_CHARACTERS = 8
SCRIPT_LETTERS = 200
SCRIPT_SHARE = 0.9

_NUMBER = re.compile(r"(?<![\w.])\d{1,4}(?![\w.]\d)")
# Whoever names a language or a script may want it, and so may who asks for a translation.
_ASKS_FOR_ANOTHER = re.compile(
    r"translat|language|script|alphabet|übersetz|sprache|tradu|langue|idioma|перев|язык|翻译|翻訳|語|语"
    r"|\b(arabic|armenian|bengali|bulgarian|cantonese|chinese|farsi|georgian|greek|gujarati|hebrew"
    r"|hindi|japanese|kanji|kannada|katakana|hiragana|khmer|korean|hangul|lao|malayalam|mandarin"
    r"|marathi|nepali|pashto|persian|pinyin|punjabi|russian|sanskrit|serbian|tamil|telugu|thai"
    r"|tibetan|ukrainian|urdu|macedonian|mongolian|latin|romaji|emoji|unicode|english)\b",
    re.IGNORECASE,
)


class Detector:
    """Watches one answer. prompt: what was asked, all of it."""

    def __init__(self, prompt: str) -> None:
        asked = _asked_repeats(prompt)
        self._loop = _Loop(LOOP_TOKENS, max(LOOP_REPEATS, asked))
        self._endless = _Loop(ENDLESS_TOKENS, max(ENDLESS_REPEATS, asked), ENDLESS_PERIOD_MIN)
        self._number = False
        self._broken = -1 if "\N{REPLACEMENT CHARACTER}" in prompt else 0
        self._expected = None if _ASKS_FOR_ANOTHER.search(prompt) else set(_scripts(prompt))
        self._letters: Counter[str] = Counter()

    def push(self, token: int, text: str) -> Nonsense | None:
        """The next token and the text that it completed; what is wrong with the answer so far."""
        if self._loop.push(token):
            return "loop"
        was_number, self._number = self._number, text.strip(" ,.").isdecimal()
        # A number is one thing, whatever it is and however many tokens it has.
        if not (self._number and was_number) and self._endless.push(-2 if self._number else token):
            return "endless"
        if not text.isascii() and self._is_broken(text):
            return "broken"
        if self._expected and text:
            return self._judge_script(text)
        return None

    def _is_broken(self, text: str) -> bool:
        if self._broken < 0:
            return False
        self._broken += text.count("\N{REPLACEMENT CHARACTER}")
        return self._broken >= BROKEN_CHARACTERS

    def _judge_script(self, text: str) -> Nonsense | None:
        self._letters.update(_scripts(text))
        if (letters := self._letters.total()) < SCRIPT_LETTERS:
            return None
        assert self._expected is not None, "judged only where something is expected"
        strange = sum(n for script, n in self._letters.items() if script not in self._expected)
        self._letters.clear()
        return "script" if strange >= SCRIPT_SHARE * letters else None


class _Loop:
    """Notices that the last tokens repeat one piece."""

    def __init__(self, tokens: int, repeats: int, period_min: int = 1) -> None:
        """tokens, repeats: of a loop, at least; period_min: tokens of its piece, at least."""
        self._runs = np.zeros(PERIOD_MAX, np.int64)
        self._past = np.full(PERIOD_MAX, -1, np.int64)
        self._enough = np.maximum(tokens, np.arange(1, PERIOD_MAX + 1) * repeats)
        self._shorter = period_min - 1

    def push(self, token: int) -> bool:
        """Whether there is a loop, of any period."""
        # Of each period, the tokens in a row that equal the one a period before.
        self._runs += 1
        self._runs *= self._past == token
        self._past[1:] = self._past[:-1]
        self._past[0] = token
        looping = self._runs >= self._enough
        # What repeats after two tokens repeats after six, too.
        return bool(looping.any()) and not looping[: self._shorter].any()


def _asked_repeats(prompt: str) -> int:
    """How often the prompt may want something: its largest number, or the product of two."""
    numbers = sorted(int(found) for found in _NUMBER.findall(prompt[-10_000:]))
    asked = [number for number in numbers if number <= ASKED_REPEATS_MAX][-2:]
    return min(int(np.prod(asked)), ASKED_REPEATS_MAX) if asked else 0


def _scripts(text: str) -> Counter[str]:
    """How many letters of which script."""
    return Counter(script for character in text if (script := _script(character)))


@lru_cache(maxsize=4_096)
def _script(character: str) -> str:
    """By the character's name; the scripts of Chinese and Japanese are one. Empty: no letter."""
    if not character.isalpha():
        return ""
    first = unicodedata.name(character, "").partition(" ")[0]
    if first in ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH"):
        return "CJK"
    return first
