"""Rules of the kind detector: which words an instruction may have, and how its material looks.

Pure; one rule a kind. Knows the exam's wordings; does not know how a text is taken apart.
"""

import re
from collections.abc import Callable

import msgspec

from local_models.exam.kinds.extraction import ANY_DATE
from local_models.exam.kinds.numbers import UNIT_FACTORS as UNITS
from local_models.exam.tables import (
    CAPITALS,
    ELEMENTS,
    LANGUAGES,
    MISSPELLINGS,
    MONTHS,
    TRANSLATIONS,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ANYWHERE = _words(
    "a an the this that these it its in of from for to and or is are be as at by on with"
    " out into text message sentence following below above here given line phrase please"
    " only just reply answer respond return give me output write tell show print say read"
    " look find get copy extract pull pick nothing else no explanation alone single one"
    " exactly what which what's whats that's does do have has there contain contains"
    " contained containing mentioned mention mentions appears appear occurs stands can"
    " could you would i need want like now question result your my using use using simply"
    " word words name input task"
)
WORD = re.compile(r"[^\W\d_][\w'’-]*|\d[\d.,]*")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_MONTH, _SHORT = "|".join(MONTHS), "|".join(month[:3] for month in MONTHS)
_DATE = re.compile(rf"(?<!\w)(?:{ANY_DATE})(?!\w)")
_RECORD_LINE = re.compile(r"^([A-Z][A-Za-z ]{1,20}): (.{1,40})$")
_INTEGER = re.compile(r"(?<![\w.,-])\d{1,4}(?![\w.,]*\d)(?!\w)")
_FRESH = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|[.,]\d)")
_REFERENCE = re.compile(r"\b(?:INV-|T)?\d{4,10}\b(?!\.\d)")


class Rule(msgspec.Struct, frozen=True):
    """anywhere must be found in the text, trigger in the instruction.

    check sees the instruction, its words that are not expected, in order, and the material.
    """

    kind: str
    anywhere: "re.Pattern[str]"
    trigger: "re.Pattern[str]"
    words: frozenset[str]
    check: Callable[[str, tuple[str, ...], str], bool]


def _prose(material: str) -> bool:
    """A few words of plain English letters, without a question or an order to the model."""
    return (
        3 <= len(material.split()) <= 60
        and sum(ord(letter) > 0x24F for letter in material) <= 2
        and re.search(
            r"\b(?:you are|ignore|instead of answering|json|step by step|yyyy-mm-dd"
            r"|iso 8601|days (?:after|before))\b",
            material.casefold(),
        )
        is None
    )


_TWO_THINGS = re.compile(r"\band (?:the|its|who|what|which|where|why|how)\b|\bname\b")


def _copies(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    """One thing is to be copied out of prose, and nothing else is asked."""
    return not rest and _TWO_THINGS.search(instruction.casefold()) is None and _prose(material)


def _email(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return _copies(instruction, rest, material) and len(_ADDRESS.findall(material)) == 1


def _field(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    fields = _fields_of(material)
    folded = instruction.casefold()
    named = [field for field in fields if re.search(rf"\b{re.escape(field)}\b", folded)]
    return len(named) == 1 and {*rest} <= {*named[0].split()} and not _QUOTES_OTHER.search(folded)


_QUOTES_OTHER = re.compile(r"\b(?:all|each|not|except|other than)\b")


def _url(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return _copies(instruction, rest, material) and len(_LINK.findall(material)) == 1


_LINK = re.compile(r"https?://\S+|(?<![@\w./])www\.|(?<![@\w./])[\w-]+\.(?:com|org|net|io|dev)\b")


def _phone(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return (
        _copies(instruction, rest, material)
        and re.search(r"\d", instruction) is None
        and re.search(r"^[A-Z][A-Za-z ]{1,20}: .*\d", material, re.MULTILINE) is None
        and len(_TELEPHONE.findall(material)) == 1
    )


_TELEPHONE = re.compile(r"(?<![\w.@/-])[+(]?\d(?:[() .-]{0,2}\d){8,13}(?!\w|[.-]\d)")


def _amount(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    amounts = _MONEY.findall(material)
    written = len(amounts) == 1 and _ASKED_MONEY.fullmatch(amounts[0]) is not None
    other = _MONEY.sub(" ", material)
    return (
        written
        and re.search(r"[$€£¥%]|\d[.,]\d", other) is None
        and _copies(instruction, rest, material)
    )


_MONEY = re.compile(
    r"[$€£] ?\d[\d,]*(?:\.\d\d)?(?![\d.]*\d)"
    r"|(?<![\d.$€£])\d[\d,]*(?:\.\d\d)? (?:dollars|euros|pounds|EUR|USD|GBP)\b"
)
_ASKED_MONEY = re.compile(r"[$€]\d{2,3}\.\d\d|\d{2,3}\.\d\d (?:dollars|euros|EUR)")


def _fields_of(material: str) -> list[str]:
    """Names of the fields of a record, in lower case; none where it is none."""
    lines = [_RECORD_LINE.match(line) for line in material.split("\n")]
    if lines and lines[0] is None and material.lower().startswith("record"):
        lines = lines[1:]
    fields = [match.group(1).casefold() for match in lines if match is not None]
    whole = len(fields) == len(lines) and 3 <= len(fields) <= 8 and len({*fields}) == len(fields)
    return fields if whole else []


def _record(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    fields = _fields_of(material)
    return 3 <= len(fields) <= 5 and {*rest} <= {word for field in fields for word in field.split()}


def _list(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if rest or re.search(r"[\"']items[\"']", instruction) is None:
        return False
    bullets = [line.removeprefix("- ") for line in material.split("\n")]
    entries = bullets if len(bullets) > 1 else re.split(r", | and |; ", material)
    return 3 <= len(entries) <= 10 and all(
        re.fullmatch(r"[A-Za-z]{2,16}(?: [A-Za-z]{2,16})?", entry) is not None for entry in entries
    )


def _number(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    what = re.search(r"\b(order|invoice|ticket|tracking) number\b", instruction.casefold())
    return (
        what is not None
        and what.group() in material.casefold()
        and len(_REFERENCE.findall(material)) == 1
        and _copies(instruction, rest, material)
    )


def _date(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    dates = _DATE.findall(material)
    written = len(dates) == 1 and _ASKED_DATE.fullmatch(dates[0]) is not None
    return written and _copies(instruction, rest, material)


# A date in digits and slashes may mean another day; the exam asked for none.
_ASKED_DATE = re.compile(
    rf"\d\d? (?:{_MONTH}) \d{{4}}|(?:{_MONTH}|{_SHORT}) \d\d?, \d{{4}}|\d{{4}}-\d\d-\d\d"
)


_TICKET_LABELS = frozenset({"billing", "technical", "shipping", "account"})


def _ticket(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    material = re.sub(r"^(?:message|ticket|text): ", "", material, flags=re.IGNORECASE)
    return {*rest} == _TICKET_LABELS and len(rest) == 4 and _prose(material)


def _sentiment(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return sorted({*rest}) == ["negative", "positive"] and _prose(material) and "?" not in material


_FIVE = frozenset({"english", "spanish", "french", "german", "italian"})
_OF_THE_FIVE = re.compile(
    r"\b(?:the|and|with|my|is|are|has|have|to|el|la|los|las|que|mi|una|der|die|das|und|ich|wir|mit|ist|le|les|et|est|nous"
    r"|je|j'ai|il|di|che|una|sono|per|è|i|e|le|lo|au|en|ihr|sie|ein|eine|den|un|se|mi)\b"
)


def _language(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return (
        (not rest or {*rest} in (_FIVE, {"english"}))
        and _prose(material)
        and len(material) >= 15
        and _OF_THE_FIVE.search(material.casefold()) is not None
        and _DATE.search(material) is None
    )


_LONG_DATE = re.compile(
    r"(?<!\w)(?:\d{1,2}(?:st|nd|rd|th)? [A-Z][a-z]{2,8} \d{4}|[A-Z][a-z]{2,8} \d{1,2}(?:st|nd|rd|th)?,? \d{4})(?!\w)"
)


def _iso(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    whole = f"{instruction} {material}"
    dates = _LONG_DATE.findall(whole)
    if len(dates) != 1:
        return False
    other = whole.replace(dates[0], " ").replace("8601", " ")
    words = [word.casefold() for word in WORD.findall(other)]
    return all(word in ANYWHERE or word in _ISO_WORDS for word in words)


_ISO_WORDS = _words("convert date dates yyyy-mm-dd iso format form reformat rewrite change style")


def _case(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    return (
        not rest
        and len(_CASES_NAMED.findall(instruction.casefold())) == 1
        and 2 <= len(material.split()) <= 10
        and re.fullmatch(r"[A-Za-z '.-]+", material) is not None
    )


_CASES_NAMED = re.compile(r"upper ?-?case|lower ?-?case|title case|capital letters|small letters")


def _arithmetic(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    match = _SUM.search(instruction)
    if match is None or material:
        return False
    other = instruction[: match.start()] + " " + instruction[match.end() :]
    words = [word.casefold() for word in WORD.findall(other)]
    allowed = all(word in ANYWHERE or word in _SUM_WORDS for word in words)
    if not allowed or re.search(r"[-+*/^%(]\s*$|^\s*[-+*/^%)]", other.strip(" =?.")):
        return False
    a, sign, b = int(match.group(1)), match.group(2), int(match.group(3))
    if sign in ("*", "x", "×", "times", "multiplied by"):
        return a <= 99 and b <= 12
    if sign in ("/", "÷", "divided by"):
        return 0 < b <= 12 and a % b == 0 and a // b <= 60
    return a <= 999 and b <= 999 and (a >= b or sign in ("+", "plus"))


_SUM = re.compile(
    r"(?<![\w.,/*+-])(\d{1,3}) ?(\+|-|\*|/|x|×|÷|plus|minus|times|divided by|multiplied by) ?(\d{1,3})"
    r"(?![\d,./*]*\d|\s*[-+*/×÷^%]|\s*(?:plus|minus|times|percent|divided))"
)
_SUM_WORDS = _words(
    "calculate compute number how much work sum product difference quotient evaluate equals"
)


def _compare(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    numbers = _FRESH.findall(f"{instruction} {material}")
    words = [word for word in rest if not word[0].isdigit()]
    material_words = WORD.findall(re.sub(r"\d[\d.]*", "", material))
    return len(numbers) == 2 and not words and not material_words and numbers[0] != numbers[1]


def _capital(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if material and re.search(r"\w", material):
        return False
    return " ".join(rest) in _COUNTRIES


def _without_the(country: str) -> str:
    words = [word.casefold() for word in country.split()]
    return " ".join(word for word in words if word not in ANYWHERE)


_COUNTRIES = frozenset(map(_without_the, CAPITALS))


def _element(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if material and re.search(r"\w", material):
        return False
    if len(rest) == 1 and rest[0] in ELEMENTS:
        return "symbol" in instruction.casefold()
    # Symbols in their own letter case: "He", not "he".
    symbols = [
        word for word in re.findall(r"\b[A-Z][a-z]?\b", instruction) if word in ELEMENTS.values()
    ]
    if len(symbols) != 1 or symbols[0] == "I" or {*rest} - {symbols[0].casefold()}:
        return False
    return "element" in instruction.casefold()


def _translate(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if material and re.search(r"\w", material):
        return False
    languages = [word for word in rest if word.capitalize() in LANGUAGES]
    words = [word for word in rest if word.capitalize() not in LANGUAGES and word != "english"]
    if not words and re.search(r"\bone\b", instruction.casefold()):
        return False
    return len(languages) == 1 and len(words) == 1 and words[0] in TRANSLATIONS


_MISSPELT = frozenset(MISSPELLINGS.values())


def _spelling(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if material and re.search(r"\w", material):
        return False
    words = {*rest}
    if len(words) == 1:
        return bool(words & _MISSPELT)
    return len(words) == 2 and any(
        MISSPELLINGS.get(right) in words for right in words if right in MISSPELLINGS
    )


_UNIT_PAIRS = frozenset(frozenset((source, target)) for source, target, _, _ in UNITS)
_UNIT_WORDS = frozenset(unit for pair in _UNIT_PAIRS for unit in pair)


def _units(instruction: str, rest: tuple[str, ...], material: str) -> bool:
    if material and re.search(r"\w", material):
        return False
    numbers = [word for word in rest if word[0].isdigit()]
    units = [word for word in rest if word in _UNIT_WORDS]
    return len(numbers) == 1 and len(rest) == 3 and frozenset(units) in _UNIT_PAIRS


def _rule(
    kind: str,
    trigger: str,
    words: str,
    check: Callable[[str, tuple[str, ...], str], bool],
    anywhere: str | None = None,
) -> Rule:
    looked_for = re.compile(anywhere or trigger, re.MULTILINE)
    return Rule(kind, looked_for, re.compile(trigger), _words(words), check)


RULES = (
    _rule("extract_email", r"\be-?mail|\baddress\b", "e-mail email mail address", _email, anywhere="@"),
    _rule(
        "extract_field", r"\w", "value field record entry says", _field,
        anywhere=r"^[a-z][a-z ]{1,20}: .{1,40}\n[a-z][a-z ]{1,20}: .{1,40}$",
    ),
    _rule(
        "extract_url", r"\burl\b|\blink\b|\bweb(?: address|site)",
        "url link web address website hyperlink", _url, anywhere=r"https?://",
    ),
    _rule(
        "extract_phone", r"\bphone number|\btelephone number", "phone telephone number", _phone,
    ),
    _rule(
        "extract_amount", r"\bamount\b|\bprice\b|\bhow much money\b",
        "amount money price sum how much", _amount,
    ),
    _rule(
        "record_to_json", r"\bjson\b",
        "json object record convert turn rewrite write names name fields field lines keys key values value"
        " strings string every all keep flat entry make output", _record,
        anywhere=r"^[a-z][a-z ]{1,20}: .{1,40}\n[a-z][a-z ]{1,20}: .{1,40}$",
    ),
    _rule(
        "list_to_json", r"\bjson\b",
        "json list convert object key array strings form turn field put entries items same order whose"
        " strings entry", _list, anywhere=r"[\"']items[\"']",
    ),
    _rule(
        "extract_number", r"\b(?:order|invoice|ticket|tracking) number\b",
        "order invoice ticket tracking number", _number,
    ),
    _rule("extract_date", r"\bdate\b", "date written form", _date),
    _rule(
        "classify_ticket", r"\bbilling\b",
        "classify classified ticket tickets support category categories customer customer's fits fit best sort"
        " assign label labels right queue belongs belong route topic choose department choices options", _ticket,
    ),
    _rule(
        "sentiment", r"\bpositive\b",
        "review sentiment classify decide whether label opinion tone feedback comment customer judge"
        " author writer feeling determine if overall choose either", _sentiment,
    ),
    _rule(
        "language", r"\blanguage\b|\benglish\b",
        "language languages written identify detect recognise recognize determine its guess", _language,
    ),
    _rule("format_date", r"yyyy-mm-dd|\biso\b", "", _iso),
    _rule(
        "change_case", r"upper|lower|title case|capital letters|small letters",
        "convert upper lower title case uppercase lowercase upper-case lower-case capital small letters rewrite"
        " put change same every capitalised make turn transform all", _case,
    ),
    _rule("arithmetic", r"\d ?(?:[-+*/x×÷]|plus|minus|times|divided|multiplied) ?", "", _arithmetic),
    _rule(
        "compare_numbers", r"\b(?:larger|greater|bigger|smaller|lower)\b",
        "number numbers larger greater bigger smaller lower compare two these", _compare,
    ),
    _rule("capital", r"\bcapital\b", "capital city country country's", _capital),
    _rule(
        "element", r"\bsymbol\b|\belement\b",
        "chemical symbol element elements periodic table english stand stands abbreviation chemistry", _element,
    ),
    _rule(
        "translate_word", r"\b(?:spanish|french|german|italian)\b",
        "translate translation how called equivalent", _translate,
    ),
    _rule(
        "spelling", r"spel", "spelling spelled spelt spell correct correctly choose misspelled misspelt right fix"
        " how properly proper way these", _spelling,
    ),
    _rule(
        "convert_units", r"\d", "convert how many express much conversion number", _units,
        anywhere=r"\b(?:" + "|".join(sorted(_UNIT_WORDS)) + r")\b",
    ),
)  # fmt: skip
