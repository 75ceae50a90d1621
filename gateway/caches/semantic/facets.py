"""Typed facets of a question: numbers, units, names, negations, roles. Two questions whose facets
differ never share an answer, however near their embeddings are.

Knows English word lists and plain text. Does not know vectors or probabilities. A facet that is
read wrongly costs a hit, never a wrong answer: every comparison fails to a miss.
"""

import re
import unicodedata
from collections import Counter
from hashlib import blake2b
from itertools import pairwise
from typing import Final

import msgspec

from gateway.caches.semantic import lexicon as lx

# Word pieces are estimated from the text; what lies beyond this many is compared byte by byte.
WINDOW_PIECES: Final = 90

_OPENING: Final = re.compile(
    r"^(?:(?:hi|hello|hey|greetings|good (?:morning|afternoon|evening))(?: there| all| everyone)?"
    r"|(?:(?:a |just a |one )?(?:quick|simple) )?question|i have a (?:quick )?question|please|pls"
    r"|kindly|so|ok(?:ay)?|well"
    r"|i (?:want|need|(?:would|'d) (?:like|love)) to (?:know|understand)(?: about)?"
    r"|(?:(?:can|could|would|will) you |please )*(?:tell me|show me|explain(?: to me)?|describe"
    r"|help me understand|let me know)(?: about)?(?= (?:how|what|why|who|when|where|which|the|if))"
    r"|(?:can|could|would|will) you(?: please| kindly)?(?= [a-z])"
    r")\b[\s,!.:;-]*",
    re.IGNORECASE,
)
_CLOSING: Final = re.compile(
    r"[\s,.!?;-]*\b(?:(?:many )?thanks(?: a lot| in advance)?|thank you(?: (?:so|very) much)?"
    r"(?: in advance)?|please|thx|cheers)[\s.!?]*$",
    re.IGNORECASE,
)
_CONTRACTIONS: Final = (
    (re.compile(r"\bwhat(?:'s| is) the (?:best )?way (?:to|of)\b"), "how to"),
    (re.compile(r"\b(can|won|shan)'t\b"), r"\1 not"),
    (re.compile(r"\bcapital city\b"), "capital"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\bcannot\b"), "can not"),
    (re.compile(r"'(?:re|m)\b"), " are"),
    (re.compile(r"\b(what|who|where|when|how|that|there|it|he|she|why)'s\b"), r"\1 is"),
    (re.compile(r"'(?:s|ll|ve|d)\b"), ""),
)
_URL_OR_PATH: Final = re.compile(
    r"https?://\S+|\b[\w.+-]+@[\w-]+\.[\w.]+|(?<![\w/])(?:~|\.{1,2})?/[\w.-]+(?:/[\w.-]*)*"
    r"|\b[A-Za-z]:\\\S+|\b[\w-]+\.(?:com|org|net|io|dev|py|js|ts|java|json|yaml|yml|txt|csv|md)\b"
)
_CODE: Final = re.compile(
    r"\b\w+\(\)?|\b[A-Za-z]+_\w+|--[a-z][\w-]*|\b[a-z]+[A-Z]\w*|\b\w+::\w+|\b[A-Za-z]\w*(?:\.\w+)+"
    r"|\b(?=\w*\d)(?=\w*[A-Za-z])\w+|#\w+|\b\d+(?:\.\d+){2,}|[$@]\w+|[A-Za-z][+#]{1,2}"
)
_QUOTED: Final = re.compile(
    r'"([^"]{1,400})"|“([^”]{1,400})”|`([^`]{1,400})`|(?<!\w)\'([^\']+)\'(?!\w)'
)
_NUMBER: Final = re.compile(
    r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII
)
_TOKEN: Final = re.compile(
    r"-?\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th|k|m|bn)?\b|[^\W\d_]+(?:[+#]{1,2}(?!\w))?|[$€£¥₹%°]",
    re.UNICODE,
)
_CAPITAL: Final = re.compile(r"[^\W\d_]+", re.UNICODE)
_PIECE: Final = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")
_MATHEMATICS: Final = re.compile(r"\d\s*[-+*/×÷^=<>]\s*\d|[=<>≤≥≠]{1,2}")
_PREFIXES: Final = ("un", "dis", "in", "im", "ir", "il", "de", "non", "mis", "anti", "re", "over")


class Facets(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal, and the words the verifier compares."""

    normal: str  # courtesy and contractions gone, lower case, single spaces
    numbers: tuple[str, ...]  # in order of appearance
    units: tuple[str, ...]  # sorted
    verbatim: frozenset[str]  # URLs, paths, identifiers, formulas; lower case
    quoted: frozenset[str]
    entities: frozenset[str]  # lower-cased words that were capitalised inside a sentence
    negations: int
    restrictors: tuple[str, ...]
    sides: frozenset[tuple[int, int]]
    named: frozenset[str]
    asked: frozenset[str]
    possessives: frozenset[str]
    modals: frozenset[str]
    tenses: frozenset[str]
    roles: frozenset[tuple[str, str]]  # (connector, the content word after it)
    payload: str  # what stands after a colon or in a block, if it is text to work on
    tail: bytes  # digest of what lies beyond the encoder's window; empty when nothing does
    words: frozenset[str]
    content: tuple[str, ...]  # content words in order
    first: str


def extract(text: str) -> Facets:
    """Read one question. Cost: about 0.1 ms for 100 characters."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'").strip()
    bare = _without_courtesy(text)
    lower = _expanded(bare.lower())
    tokens = _TOKEN.findall(lower)
    numbers, words = _numbers(tokens)
    content = tuple(word for word in words if word not in lx.FUNCTION_WORDS)
    if words and words[-1] == "do":  # "what does it do": here the verb says something
        content = (*content, "do")
    verbatim = {match.lower() for match in _URL_OR_PATH.findall(bare)}
    verbatim.update(match.rstrip("()").lower() for match in _CODE.findall(bare))
    verbatim.update("".join(match.split()) for match in _MATHEMATICS.findall(bare))
    return Facets(
        normal=" ".join(re.findall(r"[^\W_]+|[^\w\s.,!?;:]", lower)),
        numbers=numbers,
        units=tuple(sorted(lx.UNITS[token] for token in tokens if token in lx.UNITS)),
        verbatim=frozenset(verbatim),
        quoted=frozenset(
            " ".join(part.lower().split())
            for match in _QUOTED.findall(bare)
            for part in match
            if part
        ),
        entities=_entities(bare),
        negations=sum(word in lx.NEGATIONS for word in words),
        restrictors=tuple(sorted(word for word in words if word in lx.RESTRICTORS)),
        sides=frozenset(side for word in words for side in lx.OPPOSITES.get(word, ())),
        named=_named(words),
        asked=_asked(words),
        possessives=frozenset(lx.POSSESSIVES[word] for word in words if word in lx.POSSESSIVES),
        modals=_modals(words),
        tenses=frozenset(lx.TENSES[word] for word in words if word in lx.TENSES),
        roles=_roles(words),
        payload=_payload(bare),
        tail=_tail(bare),
        words=frozenset(words),
        content=content,
        first=words[0] if words else "",
    )


def conflict(left: Facets, right: Facets) -> str | None:
    """Why the two must not share an answer; None when no facet speaks against it."""
    if left.tail != right.tail:
        return "text beyond the encoder's window differs"
    for name in ("numbers", "units", "verbatim", "quoted", "negations", "restrictors", "named"):
        if getattr(left, name) != getattr(right, name):
            return f"{name} differ"
    if left.payload != right.payload:
        return "payload differs"
    if not (left.entities <= right.words and right.entities <= left.words):
        return "entities differ"
    if left.asked != right.asked and (left.asked | right.asked) != {"what"}:
        return "another kind of question"
    if left.tenses != right.tenses:
        return "tenses differ"
    # "my" may be left unsaid, and so may a modal verb; saying something else is a conflict.
    if left.possessives != right.possessives and (left.possessives ^ right.possessives) != {"mine"}:
        return "possessives differ"
    if left.modals and right.modals and left.modals != right.modals:
        return "modals differ"
    if _on_other_side(left.sides, right.sides):
        return "opposites"
    if _negated_by_prefix(left, right):
        return "negated by prefix"
    if _swapped(left, right):
        return "direction or order differs"
    return None


def estimated_pieces(text: str) -> int:
    """An upper estimate of the encoder's word pieces: one per four letters begun, one per sign."""
    return sum((len(piece) + 3) // 4 if len(piece) > 7 else 1 for piece in _PIECE.findall(text))


def _without_courtesy(text: str) -> str:
    for _ in range(4):
        shorter = _CLOSING.sub("", _OPENING.sub("", text, count=1))
        if shorter == text or not shorter:
            break
        text = shorter
    return text


def _expanded(lower: str) -> str:
    for pattern, plain in _CONTRACTIONS:
        lower = pattern.sub(plain, lower)
    return lower


def _numbers(tokens: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Numbers in one spelling, and the remaining tokens: ``twenty five`` is 25, ``1,000`` 1000."""
    numbers: list[str] = []
    words: list[str] = []
    value: float | None = None
    for token in tokens:
        step = _value(token)
        if token in lx.MULTIPLIERS and value is not None:
            value *= lx.MULTIPLIERS[token]
        elif step is None:
            if value is not None:
                numbers.append(_spelt(value))
                value = None
            if token in lx.ORDINALS:
                numbers.append(f"#{lx.ORDINALS[token]}")
            elif token[:1].isdigit():
                numbers.append(token)
            words.append(token)
        elif value is not None and 20 <= value % 100 <= 90 and 0 < step < 10:
            value += step
        else:
            if value is not None:
                numbers.append(_spelt(value))
            value = step
    if value is not None:
        numbers.append(_spelt(value))
    return tuple(numbers), words


def _value(token: str) -> float | None:
    if token in lx.NUMBER_WORDS:
        return float(lx.NUMBER_WORDS[token])
    if token[:1].isdigit() or (token[:1] == "-" and token[1:2].isdigit()):
        plain = token.replace(",", "")
        factor = {"k": 1e3, "m": 1e6, "bn": 1e9}
        for suffix, times in factor.items():
            if plain.endswith(suffix):
                return float(plain[: -len(suffix)]) * times
        try:
            return float(plain)
        except ValueError:
            return None
    return None


def _spelt(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _entities(text: str) -> frozenset[str]:
    """Capitalised words that do not open a sentence, unless the whole text is in capitals."""
    if text.isupper():
        return frozenset()
    found = set()
    for match in _CAPITAL.finditer(text):
        word = match.group()
        before = text[: match.start()].rstrip(" \"'“‘(`")
        opens = not before or before[-1] in ".!?:\n"
        if word[0].isupper() and word != "I" and (not opens or (len(word) > 1 and word.isupper())):
            found.add(word.lower())
    return frozenset(found)


def _named(words: list[str]) -> frozenset[str]:
    found = {word for word in words if word in lx.NAMED}
    for before, word in pairwise(words):
        if word in lx.NAMED_AFTER_IN and before in ("in", "with", "to", "from", "using"):
            found.add(word)
    return frozenset(found)


def _asked(words: list[str]) -> frozenset[str]:
    """The kind of question: who, when, how, how many, what, yes or no. Empty for a command."""
    if words and words[0] in lx.ASKED_YES_NO:
        return frozenset({"yes or no"})
    for word, after in zip(words[:6], [*words[1:6], "", ""], strict=False):
        if word == "how" and after in lx.ASKED_HOW:
            return frozenset({"how " + after})
        if word in lx.ASKED:
            return frozenset({lx.ASKED[word]})
    return frozenset()


def _modals(words: list[str]) -> frozenset[str]:
    """Modal verbs, except where they are a manner of asking: "how can I", "can you"."""
    found = set()
    for index, word in enumerate(words):
        if word not in lx.MODALS:
            continue
        before = words[index - 1] if index else ""
        after = words[index + 1] if index + 1 < len(words) else ""
        if before != "how" and not (index == 0 and after == "you"):
            found.add(lx.MODALS[word])
    return frozenset(found)


def _roles(words: list[str]) -> frozenset[tuple[str, str]]:
    found = set()
    for index, word in enumerate(words):
        if word not in lx.CONNECTORS:
            continue
        for after in words[index + 1 : index + 5]:
            if after not in lx.FUNCTION_WORDS:
                found.add((word, after))
                break
    return frozenset(found)


def _payload(text: str) -> str:
    """Text handed over to be worked on: after a colon or a line break, four words or more."""
    for mark in ("```", "\n", ": "):
        _, found, rest = text.partition(mark)
        if found and len(rest.split()) >= 4:
            return " ".join(rest.lower().split()).rstrip(".!? ")
    return ""


def _tail(text: str) -> bytes:
    if estimated_pieces(text) <= WINDOW_PIECES:
        return b""
    spent = 0
    for match in _PIECE.finditer(text):
        length = len(match.group())
        spent += (length + 3) // 4 if length > 7 else 1
        if spent > WINDOW_PIECES:
            return blake2b(text[match.start() :].encode(), digest_size=16).digest()
    return b""


def _on_other_side(left: frozenset[tuple[int, int]], right: frozenset[tuple[int, int]]) -> bool:
    """Both speak of one line, and not from the same side."""
    lines = {line for line, _ in left} & {line for line, _ in right}
    return any(
        {side for line, side in left if line == common}
        != {side for line, side in right if line == common}
        for common in lines
    )


def _negated_by_prefix(left: Facets, right: Facets) -> bool:
    only_left, only_right = left.words - right.words, right.words - left.words
    for one, other in ((only_left, only_right), (only_right, only_left)):
        for word in one:
            if any(word == prefix + plain for prefix in _PREFIXES for plain in other):
                return True
    return False


def _swapped(left: Facets, right: Facets) -> bool:
    """A shared word plays another role, or the order changed by more than one moved clause."""
    shared = left.words & right.words
    for connector, word in left.roles:
        if word not in shared or (connector, word) in right.roles:
            continue
        rivals = {other for mark, other in right.roles if mark == connector}
        if any(other in shared and other != word for other in rivals):
            return True
    common = Counter(left.content) & Counter(right.content)
    once = {word for word, count in common.items() if count == 1}
    one = [word for word in left.content if word in once]
    other = [word for word in right.content if word in once]
    if one == other or len(one) != len(other):
        return one != other and len(one) != len(other)
    return not any(one[turn:] + one[:turn] == other for turn in range(1, len(one)))
