"""Forms of right answers, each with a lenient and a strict verdict.

Lenient: a patient reader would accept the answer: he reads past politeness, markdown and an
explanation, and believes the conclusion. He does not accept a lucky word: "not positive" is not
"positive", 142 is not 42, and an answer that names two labels names none. Knows text alone.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from local_models.exam.sandbox import run_function
from local_models.exam.task import Truth

_MARKER = re.compile(
    r"\b(?:(?:final |correct |right |best )?(?:answer|sentiment|category|label|result|language"
    r"|conclusion|translation|spelling|output)(?: here)?(?: (?:is|would be|should be))?\s*:"
    r"|(?:answer|sentiment|category|label|result|language|conclusion|translation|spelling)"
    r" (?:is|would be))\s*"
)
_NEGATED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|without|rather than|instead of|other than|opposite of"
    r"|except|hardly|cannot be|false that)|n't|n’t)(?:\s+(?!but\b|only\b)[\w']+){0,3}\s*$"
)
_HEDGED_AFTER = re.compile(r"\s*(?:or|/)\s+\w")
_HEDGED_BEFORE = re.compile(r"\w\s+or\s+$|\w/$")
_NUMBER = re.compile(r"(?<![\w.])[-−–+]?\d+(?:[ ,]\d{3})*(?:\.\d+)?(?![\w]*\d)")
_CONCLUDED = re.compile(r"(?:=|≈|\bequals|\bis|\bare|\bhas|\bhave|\banswer\W+)\s*(?:about |\$)?$")
_FENCE = re.compile(r"```[\w+-]*\n?(.*?)(?:```|$)", re.DOTALL)
_DASHES = str.maketrans("‐‑‒–—−’‘“”", "------''\"\"")


def plain(text: str) -> str:
    """Text without markdown's marks, with plain quotes and dashes, in one form of Unicode."""
    text = unicodedata.normalize("NFC", text).translate(_DASHES)
    return re.sub(r"\*\*|__|[`*]|^#+\s*|^>\s*", "", text, flags=re.MULTILINE).strip()


def folded(text: str) -> str:
    """``plain`` in lower case, white space as single blanks."""
    return " ".join(plain(text).casefold().split())


def _bare(text: str) -> str:
    return text.strip().strip("\"'").strip()


def without_accents(text: str) -> str:
    """Letters without their marks: a reader accepts Bogota for Bogotá."""
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def asserted(text: str, names: Iterable[str]) -> bool:
    """Whether folded text states one of the folded names as a whole word, not negated."""
    return any(_states(text, name) for name in names)


def _states(text: str, name: str) -> bool:
    # A digit's neighbours may also be a point or a sign: 8 does not stand in 9.8 nor in -8.
    left = r"(?<!\d\.)(?<![-−])" if name[:1].isdigit() else r"(?<!\w-)"
    for match in re.finditer(rf"(?<![\w@]){left}{re.escape(name)}(?![\w@]|\.\d)", text):
        before, after = text[: match.start()], text[match.end() :]
        if after.startswith("-") and after[1:2].isalnum():
            continue
        if _NEGATED.search(before) is None:
            return True
    return False


def _hedged(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands beside an "or": two answers are none."""
    for name in names:
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            if _HEDGED_AFTER.match(text, match.end()) or _HEDGED_BEFORE.search(
                text[: match.start()]
            ):
                return True
    return False


class Names(Truth, frozen=True, kw_only=True):
    """One of ``accepted`` as a word; none of ``rivals`` stated beside it.

    exact_case: an answer in other letter case is wrong even leniently.
    """

    accepted: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    exact_case: bool = False
    accents: bool = False  # False: an answer without its accents is accepted leniently

    def lenient(self, answer: str) -> bool:
        """Read the conclusion first, then the whole."""
        fold = self._fold
        accepted = tuple(map(fold, self.accepted))
        rivals = tuple(rival for rival in map(fold, self.rivals) if rival not in accepted)
        # A rival inside an accepted name ("Guinea" in "Papua New Guinea") is no rival there.
        whole = fold(answer)
        for part in dict.fromkeys((_conclusion(whole), whole)):
            if _hedged(part, accepted):
                return False
            right = asserted(part, accepted)
            wrong = asserted(_without(part, accepted), rivals)
            if right or wrong:
                return right and not wrong
        return False

    def strict(self, answer: str) -> bool:
        """The name alone."""
        if self.exact_case:
            return answer in self.accepted
        return answer.casefold() in {name.casefold() for name in self.accepted}

    def ideal(self) -> str:
        """The first accepted name."""
        return self.accepted[0]

    def _fold(self, text: str) -> str:
        text = " ".join(plain(text).split()) if self.exact_case else folded(text)
        return text if self.accents else without_accents(text)


def _conclusion(text: str) -> str:
    """What follows the last "answer:" of a folded text; the whole without one."""
    ends = [match.end() for match in _MARKER.finditer(text.casefold())]
    return (text[ends[-1] :].strip() if ends else "") or text


def _without(text: str, names: Iterable[str]) -> str:
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
    return text


class YesNo(Truth, frozen=True, kw_only=True):
    """Yes or no; true and false, correct and incorrect mean the same."""

    yes: bool

    def lenient(self, answer: str) -> bool:
        """What the answer opens with, or the one of both that it concludes."""
        text = _conclusion(folded(answer))
        if re.match(r"\W*(?:yes|true|correct)\W+(?:and|or|but also)\W+(?:no|false)\b", text):
            return False
        says = [
            word in ("yes", "true", "correct")
            for word in re.findall(r"\b(yes|no|true|false|correct|incorrect)\b", text)
        ]
        if not says or (asserted(text, ("yes", "true", "correct")) is False and says[0]):
            return False
        opens = re.match(r"\W*(yes|no|true|false|correct|incorrect)\b", text)
        if opens is None and len(set(says)) == 2:
            return False
        return says[0] is self.yes

    def strict(self, answer: str) -> bool:
        """One word."""
        return answer.casefold() == self.ideal()

    def ideal(self) -> str:
        """In lower case."""
        return "yes" if self.yes else "no"


class Number(Truth, frozen=True, kw_only=True):
    """A number, within ``tolerance``; units and words beside it are read past.

    given: numbers of the question, which a lenient reader does not take for the answer when they
    come first ("5 km are 5,000 m").
    """

    value: str
    tolerance: str = "0"
    units: tuple[str, ...] = ()

    def lenient(self, answer: str) -> bool:
        """The number that is concluded, opens the answer or ends it; those may not differ."""
        text = _conclusion(folded(answer))
        found = [(match, _decimal(match.group())) for match in _NUMBER.finditer(text)]
        numbers = [(match, number) for match, number in found if number is not None]
        if not numbers:
            return False
        if any(_HEDGED_AFTER.match(text, match.end()) for match, _ in numbers):
            return False
        opening = numbers[0][1] if not re.search(r"\w", text[: numbers[0][0].start()]) else None
        concluded = [
            number for match, number in numbers if _CONCLUDED.search(text[: match.start()])
        ]
        last = concluded[-1] if concluded else numbers[-1][1]
        if len(numbers) == 1 or not (opening is not None and self._near(opening)):
            return self._near(last)
        return not concluded or self._near(last) or self._near(numbers[-1][1])

    def strict(self, answer: str) -> bool:
        """The number alone, or with the unit that was asked for."""
        bare = answer
        for unit in self.units:
            if bare.casefold().endswith(unit.casefold()):
                bare = bare[: -len(unit)].rstrip()
                break
        if not re.fullmatch(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?", bare):
            return False
        number = _decimal(bare)
        return number is not None and self._near(number)

    def ideal(self) -> str:
        """Digits."""
        return self.value

    def _near(self, number: Decimal) -> bool:
        return abs(number - Decimal(self.value)) <= Decimal(self.tolerance)


_LARGER = r"(?:larger|greater|bigger|higher|more)"
_SMALLER = r"(?:smaller|less|lower|fewer)"


class Compared(Truth, frozen=True, kw_only=True):
    """One of two numbers, ``value`` and not ``other``. larger: asked for the larger one."""

    value: str
    other: str
    larger: bool

    def lenient(self, answer: str) -> bool:
        """A comparison that says so ("9.8 > 9.11"), or the number alone."""
        text = folded(answer)
        number = r"(-?\d+(?:,\d{3})*(?:\.\d+)?)"
        claims = set()
        for left, sign, right in re.findall(
            rf"{number}[^\d<>]{{0,24}}?({_LARGER} than|{_SMALLER} than|[<>])[^\d-]{{0,24}}{number}",
            text,
        ):
            greater = sign == ">" or re.match(_LARGER, sign) is not None
            named = left if greater is self.larger else right
            if {_decimal(left), _decimal(right)} == {Decimal(self.value), Decimal(self.other)}:
                claims.add(_decimal(named))
        if claims and not re.search(r"\bnot\b|n't", text):
            return claims == {Decimal(self.value)}
        ungrouped = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
        return Names(accepted=(self.value,), rivals=(self.other,)).lenient(ungrouped)

    def strict(self, answer: str) -> bool:
        """The number as it was given."""
        return answer == self.value

    def ideal(self) -> str:
        """The number as it was given."""
        return self.value


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[ ,+]", "", text.translate(_DASHES)))
    except InvalidOperation:
        return None


class Exact(Truth, frozen=True, kw_only=True):
    """One text of a given form, letter by letter.

    similar: a pattern of what else could be taken for the answer; anything else of it beside the
    right one is a contradiction. given: such things from the question, which may be repeated.
    """

    text: str
    similar: str = ""
    given: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other ways to write it that a reader accepts
    case_matters: bool = True

    def lenient(self, answer: str) -> bool:
        """The text stands there, and nothing of its form that contradicts it."""
        fold = plain if self.case_matters else folded
        shown = " ".join(fold(answer).split())
        accepted = {" ".join(fold(text).split()) for text in (self.text, *self.also)}
        if self.similar:
            flags = 0 if self.case_matters else re.IGNORECASE
            pattern = rf"(?<!\w)(?:{self.similar})(?!\w)"
            found = {match.group().strip(" .") for match in re.finditer(pattern, shown, flags)}
            rest = found - {fold(text) for text in self.given} - accepted
            return bool(found & accepted) and not rest
        return any(_stands_in(shown, text) for text in accepted)

    def strict(self, answer: str) -> bool:
        """Nothing but the text."""
        if self.case_matters:
            return answer == self.text
        return answer.casefold() == self.text.casefold()

    def ideal(self) -> str:
        """The text."""
        return self.text


def _stands_in(shown: str, text: str) -> bool:
    """Whether a text is the answer, or a line of it, or what follows its only colon or quote."""
    if _bare(shown) == text or _bare(shown).rstrip(".") == text.rstrip("."):
        return True
    pattern = rf"(?:^|: ?|[\"'] ?|\bis ){re.escape(text.rstrip('.'))}(?=[\"'.!]|$| [\"'(])"
    return re.search(pattern, shown) is not None


class Sequence(Truth, frozen=True, kw_only=True):
    """Items in order."""

    items: tuple[str, ...]
    separator: str = ", "

    def lenient(self, answer: str) -> bool:
        """The items in this order, each once, after whatever introduces them."""
        text = folded(re.sub(r"^\s*\d{1,2}[.)]\s+", "", answer, flags=re.MULTILINE))
        wanted = [item.casefold() for item in self.items]
        pattern = "|".join(
            rf"(?<![\w.]){re.escape(item)}(?![\w]|\.\d)"
            for item in sorted(set(wanted), key=len, reverse=True)
        )
        found = re.findall(pattern, text)
        if found == wanted:
            return all(number in wanted for number in _list_numbers(text, wanted))
        # The question repeated, and then the answer.
        half = found[len(found) - len(wanted) :]
        return len(found) == 2 * len(wanted) and half == wanted and _conclusion_is_last(text)

    def strict(self, answer: str) -> bool:
        """The items alone with the separator, blanks aside."""
        return [item.strip() for item in answer.split(self.separator.strip())] == list(self.items)

    def ideal(self) -> str:
        """Joined."""
        return self.separator.join(self.items)


def _list_numbers(text: str, wanted: list[str]) -> list[str]:
    """Every number of the text, where numbers were to be ordered."""
    if not wanted[0][:1].isdigit() and not wanted[0].startswith("-"):
        return []
    return re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text)


def _conclusion_is_last(text: str) -> bool:
    return re.search(r"->|→|=>|: |\bis\b|\bare\b", text) is not None


def _fenced(answer: str) -> str:
    """What stands in the first code fence, else the whole."""
    match = _FENCE.search(answer)
    return match.group(1).strip() if match is not None else answer.strip()


def first_object(answer: str) -> Any:
    """The only JSON object of an answer; None where there is none, or more than one."""
    text, decoder, found = _fenced(answer), json.JSONDecoder(), []
    at = text.find("{")
    while at != -1:
        try:
            document, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        found.append(document)
        at = text.find("{", end)
    return found[0] if len(found) == 1 else None


def _same(given: Any, wanted: Any, loose: bool) -> bool:
    if isinstance(wanted, dict):
        return (
            isinstance(given, dict)
            and given.keys() == wanted.keys()
            and all(_same(given[key], value, loose) for key, value in wanted.items())
        )
    if isinstance(wanted, list):
        return (
            isinstance(given, list)
            and len(given) == len(wanted)
            and all(_same(*pair, loose) for pair in zip(given, wanted, strict=True))
        )
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted
    if isinstance(wanted, int | float):
        if loose and isinstance(given, str):
            number = _decimal(given.strip().lstrip("$€"))
            return number is not None and number == Decimal(str(wanted))
        return isinstance(given, int | float) and given == wanted
    if isinstance(wanted, str):
        if not isinstance(given, str):
            return False
        return _bare(folded(given)) == folded(wanted) if loose else given == wanted
    return bool(given == wanted)


class Json(Truth, frozen=True, kw_only=True):
    """One JSON object with exactly these keys and values."""

    wanted: dict[str, Any]

    def lenient(self, answer: str) -> bool:
        """Found in prose or a fence; letter case and numbers in quotes are forgiven."""
        return _same(first_object(answer), self.wanted, loose=True)

    def strict(self, answer: str) -> bool:
        """The whole answer is the document, with the types that were asked for."""
        try:
            return _same(json.loads(answer), self.wanted, loose=False)
        except (ValueError, RecursionError):
            return False

    def ideal(self) -> str:
        """Compact."""
        return json.dumps(self.wanted, ensure_ascii=False)


class Call(Truth, frozen=True, kw_only=True):
    """A call of one tool with exactly these arguments, as a JSON object of name and arguments."""

    name: str
    arguments: dict[str, Any]

    def lenient(self, answer: str) -> bool:
        """Tags, fences and letter case of texts are forgiven; another tool is not."""
        document = first_object(answer)
        return self._is_call(document, loose=True)

    def strict(self, answer: str) -> bool:
        """The whole answer is the call."""
        try:
            return self._is_call(json.loads(answer), loose=False)
        except (ValueError, RecursionError):
            return False

    def ideal(self) -> str:
        """Compact."""
        return json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)

    def _is_call(self, document: Any, loose: bool) -> bool:
        return (
            isinstance(document, dict)
            and document.get("name") == self.name
            and _same(document.get("arguments"), self.arguments, loose)
            and (loose or document.keys() == {"name", "arguments"})
        )


class Code(Truth, frozen=True, kw_only=True):
    """A Python function that gives ``results`` for ``cases``; run in a sandbox, see there.

    solution: one that is right, for tests.
    """

    function: str
    cases: tuple[tuple[Any, ...], ...]
    results: tuple[Any, ...]
    solution: str

    def lenient(self, answer: str) -> bool:
        """The code in the first fence, or the whole."""
        return self._passes(_fenced(answer))

    def strict(self, answer: str) -> bool:
        """The whole answer is code."""
        return "```" not in answer and self._passes(answer)

    def ideal(self) -> str:
        """A solution."""
        return self.solution

    def _passes(self, code: str) -> bool:
        if f"def {self.function}" not in code:
            return False
        given = run_function(code, self.function, self.cases)
        return given is not None and given == json.loads(json.dumps(self.results))


class Wording(Truth, frozen=True, kw_only=True):
    """A text under conditions: what must and must not be in it, how long it is.

    required: groups of ways to say one thing; each group must be met. forbidden: words that may
    not stand there. example: a text that meets all.
    """

    required: tuple[tuple[str, ...], ...]
    forbidden: tuple[str, ...] = ()
    words_max: int = 1_000
    words_min: int = 1
    sentences_max: int = 100
    example: str = ""

    def lenient(self, answer: str) -> bool:
        """The conditions hold for the last paragraph or quote, with a tenth more words allowed."""
        bodies = [answer, *re.findall(r"\"([^\"]{8,})\"", plain(answer))]
        if "\n" in answer.strip():
            bodies += [part for part in re.split(r"\n+", answer) if len(part.split()) > 3]
        elif ":" in answer:
            bodies.append(answer.split(":", 1)[1])
        return any(
            self._meets(body, self.words_max + max(2, self.words_max // 10)) for body in bodies
        )

    def strict(self, answer: str) -> bool:
        """The conditions hold for the whole answer."""
        return (
            "\n" not in answer
            and self._meets(answer, self.words_max)
            and len(re.findall(r"[.!?](?:\s|$)", answer)) <= self.sentences_max
            and not answer.startswith(('"', "'"))
        )

    def ideal(self) -> str:
        """The example."""
        return self.example

    def _meets(self, text: str, words_max: int) -> bool:
        text = without_accents(folded(text))
        return (
            self.words_min <= len(text.split()) <= words_max
            and all(
                any(_is_in(text, without_accents(way.casefold())) for way in group)
                for group in self.required
            )
            and not any(_is_in(text, word.casefold()) for word in self.forbidden)
        )


def _is_in(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?![\w])(?!\.\d)", text) is not None
