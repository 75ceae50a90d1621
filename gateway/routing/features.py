"""Some eighty numbers about a prompt, from its text alone, in some 25 µs for 500 characters.

What a reader sees at a glance: how long it is, what it is made of, what it asks for, how many
steps it names. One pass over the words against one lexicon, a few counts of characters, a handful
of anchored patterns. Knows no model and no answer. Long prompts are judged by their first and last
part, since the task is nearly always stated there.
"""

import re
import string
from math import log1p
from typing import Final, NamedTuple


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


HEAD_CHARACTERS: Final = 3_000
TAIL_CHARACTERS: Final = 1_000

_WORD: Final = re.compile(r"[a-z][a-z'’]*+|\d[\d,.]*+")
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")
_SENTENCE_END: Final = re.compile(r"[.!?](?:\s|$)")
_TRANSLATE: Final = re.compile(r"\b(?:in|into|to) (?:spanish|french|german|italian|portuguese)\b")
_TEX: Final = re.compile(r"\\[a-zA-Z]+|\$[^$\n]{1,80}\$")
_SNAKE: Final = re.compile(r"\b[a-z]++(?:_[a-z_]+|[A-Z]\w+)")
_ARITHMETIC: Final = re.compile(r"\d\s*[-+*/×÷%^]\s*\d")
# A pattern is tried wherever its first character stands, so each begins with the rarest it has.
_CAPITALISED: Final = re.compile(r" (?<=[a-z,;] )(?=[A-Z][a-z])")
_CHOICE_LINE: Final = re.compile(r"\n[^\S\n]*\(?[A-J][.):](?=\s)")
_LIST_LINE: Final = re.compile(r"\n[^\S\n]*(?:[-*•]|\d{1,2}[.)])(?=\s)")
_CALL_BACKWARDS: Final = re.compile(r"\(\w*[A-Za-z_](?!\w)")
_CAMEL: Final = re.compile(rb"A(?<=aA)")
_COMPARISON: Final = re.compile(r"[=<>≤≥^]")
_SIGN: Final = re.compile(r"[-+*/×÷%^]")

# Word groups. A word may stand in one group only; the first that names it wins.
_GROUPS: Final[dict[str, str]] = {
    "greeting": "hi hello hey thanks thank bye goodbye morning evening welcome cheers please sorry",
    "small_talk": "joke favorite favourite fun funny nice cool name friend friendly feel bored tip",
    "who_where_when": "who where when whose whom",
    "what_which": "what which what's",
    "how": "how",
    "why": "why",
    "yes_no": "is are was were do does did can could should would will has have",
    "lookup": "capital color colour meaning mean means synonym antonym opposite plural spell stand"
    " stands abbreviation acronym define definition largest smallest tallest longest currency"
    " continent planet ocean author wrote painted invented discovered born country city",
    "short_task": "rewrite rephrase reword shorten correct fix grammar spelling polite politely"
    " formal translate say list suggest caption subject title slogan headline rhyme uppercase"
    " lowercase",
    "write": "write compose draft create generate essay story poem email letter blog post speech"
    " haiku tweet",
    "summarise": "summarize summarise summary tldr outline extract bullet bullets",
    "explain": "explain describe tell discuss elaborate overview introduction",
    "analyse": "analyze analyse analysis evaluate assess compare contrast critique argue justify"
    " implications strategy strategies tradeoffs trade-offs comprehensive detailed thorough"
    " rigorous in-depth framework recommend optimise optimize design architecture",
    "prove": "prove proof show derive derivation theorem lemma corollary verify demonstrate"
    " conjecture induction contradiction iff necessary sufficient",
    "mathematics": "equation integral derivative matrix vector polynomial function functions limit"
    " probability sum product triangle circle angle area perimeter volume solve compute calculate"
    " evaluate integer integers prime modulo remainder divisor factor factors root roots ring field"
    " group subgroup isomorphic eigenvalue kernel dimension graph continuous differentiable"
    " convergence series sequence average mean median variance permutation permutations"
    " combinations expected random logarithm sine cosine tangent radius diameter",
    "word_problem": "each every per total altogether remaining left twice thrice half third quarter"
    " double more less fewer than times many much cost costs price sold buys bought spends spend"
    " earns earn hour hours minutes week weeks days dozen gallons pounds feet miles percent",
    "physics": "velocity acceleration force mass energy momentum charge voltage current resistance"
    " circuit magnetic electric photon electron wavelength frequency pressure temperature entropy"
    " enthalpy pendulum friction gravity torque kinetic thermal heat kg newton joule quantum",
    "chemistry": "molecule atom atoms ion acid base reaction molar mole moles titration oxidation"
    " equilibrium catalyst bond bonds hydrogen carbon oxygen solution solvent ph compound organic"
    " isotope electronegativity hybridization",
    "biology": "cell cells protein proteins dna rna gene genes enzyme enzymes organism species"
    " mutation membrane chromosome mitosis meiosis tissue bacteria virus evolution allele",
    "medicine": "patient patients diagnosis symptom symptoms treatment disease syndrome dose dosage"
    " drug drugs blood chronic acute clinical therapy infection mg tumor renal cardiac pain surgery"
    " medication history presents examination",
    "law": "plaintiff defendant court statute contract negligence liability tort jurisdiction"
    " clause damages trial evidence property easement statutory constitutional amendment felony"
    " breach lawsuit landlord tenant legal law lawyer attorney agreement",
    "economics": "demand supply inflation elasticity equilibrium monopoly gdp interest tax taxes"
    " investment stock bond capital revenue profit marginal utility asset assets equity cash flow"
    " accounting depreciation portfolio valuation budget",
    "philosophy": "moral ethics ethical argument premise premises conclusion valid invalid"
    " utilitarian kant hume plato aristotle fallacy predicate proposition conditional antecedent",
    "history": "war century empire treaty revolution president king queen dynasty colony president"
    " election independence",
    "code": "python java javascript typescript rust golang sql html css bash code program script"
    " algorithm function class method array string list dictionary loop recursion recursive"
    " compile compiler debug bug exception api json regex database query thread async mutex"
    " kubernetes docker linux implement implementation refactor unit complexity runtime pointer"
    " stack queue tree hash binary sort sorted concurrency distributed cache server client",
    "steps": "step steps first second then next finally after before until stages plan phases",
    "condition": "if unless whether assume suppose given assuming let where such provided except",
    "constraint": "exactly least most must only without within between maximum minimum no not never"
    " avoid include including",
    "negation": "isn't aren't don't doesn't didn't cannot can't won't neither nor false incorrect",
    "quantity": "some any all none several few two three four five six seven eight nine ten hundred"
    " thousand million",
    "following": "following above below statement statements option options choices best describes"
    " correct true answer question passage according",
    "function_word": "the a an of to in on for with and or but from by as at into about",
    "first_person": "i i'm my me we our us mine",
    "second_person": "you your yours",
    "reasoning": "because therefore thus hence since reason reasoning conclude implies imply"
    " consequence think logically deduce infer puzzle riddle",
    "kind": "simple simply quick quickly short brief briefly one easy basic word sentence",
    "grown": "multi advanced graduate research thesis phd production scalable enterprise"
    " regulatory compliance migration longitudinal econometric stochastic bayesian",
}

_GROUP_NAMES: Final = tuple(_GROUPS)
_LEXICON: Final[dict[str, int]] = {}
for _index, _words in enumerate(_GROUPS.values()):
    for _word in _words.split():
        _LEXICON.setdefault(_word, _index)

_SHAPES: Final = (
    "characters",
    "words",
    "lines",
    "sentences",
    "word_length",
    "distinct_share",
    "long_words",
    "digits_share",
    "numbers",
    "large_numbers",
    "decimals",
    "upper_share",
    "capitalised",
    "non_ascii_share",
    "symbols_share",
    "question_marks",
    "commas",
    "colons",
    "semicolons",
    "quotes",
    "brackets",
    "braces",
    "percent_or_money",
    "newline_share",
    "code_fence",
    "calls",
    "identifiers",
    "tex",
    "equations",
    "arithmetic",
    "choices",
    "list_lines",
    "ends_with_question",
    "ends_with_answer",
    "starts_with_question_word",
    "starts_with_verb_of_work",
    "names_a_common_language",
    "under_8_words",
    "under_20_words",
    "over_60_words",
    "over_200_words",
)

_RATES: Final = tuple(f"rate_{name}" for name in ("mathematics", "code", "function_word", "law"))

NAMES: Final[tuple[str, ...]] = (*_SHAPES, *(f"has_{name}" for name in _GROUP_NAMES), *_RATES)
_RATE_INDICES: Final = tuple(_GROUP_NAMES.index(name.removeprefix("rate_")) for name in _RATES)

_LETTERS_DIGITS_SPACES: Final = (string.ascii_letters + string.digits + " \n").encode()
_QUESTION_WORDS: Final = _set("who what where when which whose whom how why is are")
_WORK_VERBS: Final = _set(
    "prove derive implement design analyze analyse evaluate solve compute calculate develop"
    " construct optimize optimise compare debug refactor"
)
_LANGUAGES: Final = ("spanish", "french", "german", "italian", "portuguese")
_WHITESPACE: Final = "\t\n\v\f\r\x1c\x1d\x1e\x1f "


def _kind(byte: int) -> str:
    """A byte of UTF-8 as its kind: ``a A 0 .``, a space, ``~`` beyond ASCII, ``#`` for the rest."""
    character = chr(byte)
    if byte > 127:
        return "~"
    if character.isalnum():
        return "0" if character.isdigit() else "a" if character.islower() else "A"
    return "." if character in ".!?" else " " if character in _WHITESPACE else "#"


_KINDS: Final = "".join(map(_kind, range(256))).encode()


def _only(characters: str) -> bytes:
    """A table that lowers these characters and makes a space of every other byte."""
    return bytes(ord(chr(byte).lower()) if chr(byte) in characters else 32 for byte in range(256))


_ONLY_WORDS: Final = _only(string.ascii_letters + "'")
_ONLY_FIGURES: Final = _only(string.digits + ",.")


def excerpt(text: str) -> str:
    """The part of a long prompt that is judged: its beginning and its end."""
    if len(text) <= HEAD_CHARACTERS + TAIL_CHARACTERS:
        return text
    return text[:HEAD_CHARACTERS] + "\n" + text[-TAIL_CHARACTERS:]


class Words(NamedTuple):
    """What is read in a text, in lower case: words as spelt and figures, each in order."""

    spelt: list[str]
    figures: list[str]


def words_of(text: str) -> Words:
    """Words and figures of the text as judged."""
    if not text.isascii():
        found = _WORD.findall(text.lower())
        return Words(
            [word for word in found if not word[0].isdigit()],
            [word for word in found if word[0].isdigit()],
        )
    # The same, four times as fast: all else becomes space, and what may not come first is dropped.
    raw = text.encode()
    spelt = raw.translate(_ONLY_WORDS).decode().split()
    if "'" in text:
        spelt = [*filter(None, (word.lstrip("'") for word in spelt))]
    figures = raw.translate(_ONLY_FIGURES).decode().split()
    return Words(spelt, [*filter(None, (figure.lstrip(",.") for figure in figures))])


def extract(text: str, words: Words | None = None) -> list[float]:
    """The features of one prompt, in the order of ``NAMES``; counts are log1p, shares 0..1.

    ``words`` saves a second pass where the caller has ``words_of(excerpt(text))`` already. The
    length features see the whole text.
    """
    length = len(text)
    text = excerpt(text)
    found = words_of(text) if words is None else words
    counts = [0] * len(_GROUP_NAMES)
    for index in map(_LEXICON.get, found.spelt):
        if index is not None:
            counts[index] += 1
    total = len(found.spelt) + len(found.figures) or 1
    rates = [counts[index] / total for index in _RATE_INDICES]
    return [*_shapes(text, length, found), *map(log1p, counts), *rates]


def _shapes(text: str, length: int, words: Words) -> list[float]:
    """What the text is made of, in the order of ``_SHAPES``; ``length`` is the whole prompt's."""
    size = len(text) or 1
    spelt, figures = words
    total = len(spelt) + len(figures)
    divisor = total or 1
    lower = text.lower()
    opening = _WORD.search(lower)
    first = opening.group() if opening else ""
    is_ascii = text.isascii()
    # Translating the bytes costs 0.4 µs where a Python loop costs 20, and all that is rare in prose
    # is counted in the few characters that are neither letter nor digit nor space.
    raw = text.encode("utf-8", "replace")
    kinds = raw.translate(_KINDS)
    bytes_total = len(raw) or 1
    not_ascii = 0 if is_ascii else kinds.count(b"~")
    signs = raw.translate(None, _LETTERS_DIGITS_SPACES)
    marks = signs.decode() if is_ascii else text
    count = marks.count
    digits = kinds.count(b"0")
    numbers = _NUMBER.findall(" ".join(figures)) if digits else []
    end = text[-40:].rstrip()
    newlines = text.count("\n")
    parentheses = count("(")
    return [
        log1p(length),
        log1p(total * length / size),
        log1p(newlines),
        log1p(_sentences(text, kinds)),
        len("".join(spelt) + "".join(figures)) / divisor,
        (len(set(spelt)) + len(set(figures))) / divisor,
        len([1 for part in words for word in part if len(word) > 9]) / divisor,
        digits / bytes_total,
        log1p(len(numbers)),
        log1p(sum(len(number) > 3 for number in numbers)),
        log1p(sum("." in number for number in numbers)),
        kinds.count(b"A") / bytes_total,
        log1p(len(_CAPITALISED.findall(text))),
        not_ascii / bytes_total,
        (len(signs) - not_ascii) / bytes_total,
        log1p(count("?")),
        log1p(count(",")),
        log1p(count(":")),
        log1p(count(";")),
        log1p(count('"') + count("“")),
        log1p(parentheses + count("[")),
        log1p(count("{")),
        log1p(count("%") + count("$") + count("€")),
        newlines / size,
        float("`" in marks and "```" in text),
        log1p(len(_CALL_BACKWARDS.findall(text[::-1]))) if parentheses else 0.0,
        log1p(len(_SNAKE.findall(text))) if "_" in marks or _CAMEL.search(kinds) else 0.0,
        log1p(len(_TEX.findall(text))) if "\\" in marks or "$" in marks else 0.0,
        log1p(_equations(text)) if _COMPARISON.search(marks) else 0.0,
        log1p(len(_ARITHMETIC.findall(text))) if numbers and _SIGN.search(marks) else 0.0,
        log1p(len(_CHOICE_LINE.findall("\n" + text))) if newlines else 0.0,
        log1p(len(_LIST_LINE.findall("\n" + text))) if newlines else 0.0,
        float(end.endswith("?")),
        float(end.endswith("Answer:")),
        float(first in _QUESTION_WORDS),
        float(first in _WORK_VERBS),
        float(_names_a_common_language(lower)),
        float(total < 8),
        float(total < 20),
        float(total > 60),
        float(total > 200),
    ]


def _sentences(text: str, kinds: bytes) -> int:
    """Full stops, exclamation and question marks before whitespace or the end."""
    if text.isascii():
        return kinds.count(b". ") + kinds.endswith(b".")
    return len(_SENTENCE_END.findall(text))


def _equations(text: str) -> int:
    """Signs of comparison between two operands; one operand's only character serves one sign."""
    before, *parts = map(str.strip, _COMPARISON.split(text))
    found, taken = 0, False
    for after in parts:
        taken = (
            not (taken and len(before) == 1)
            and (before[-1:].isalnum() or before.endswith(("_", ")", "]")))
            and (after[:1].isalnum() or after.startswith(("-", "_", "(", "[", "\\")))
        )
        found += taken
        before = after
    return found


def _names_a_common_language(lower: str) -> bool:
    named = any(map(lower.__contains__, _LANGUAGES))
    return named and _TRANSLATE.search(lower) is not None
