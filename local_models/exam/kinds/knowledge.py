"""Kinds that ask for a fact or a word: capitals, elements, translations, spelling, yes or no."""

from random import Random

from local_models.exam.kinds.kind import Filling, Kind, matching, one_of
from local_models.exam.tables import (
    CAPITAL_SPELLINGS,
    CAPITALS,
    ELEMENT_SPELLINGS,
    ELEMENTS,
    LANGUAGES,
    LARGEST_CITIES,
    MEMBERS,
    MISSPELLINGS,
    TRANSLATIONS,
)
from local_models.exam.verdicts import Names, YesNo

_EVERY_CAPITAL = tuple(CAPITALS.values())
_WORD = r"[A-Za-zÀ-ÿœß' -]{2,24}"


def _capital(rng: Random) -> Filling:
    country = rng.choice(sorted(CAPITALS))
    capital = CAPITALS[country]
    rivals = {*_EVERY_CAPITAL} - {capital}
    if country in LARGEST_CITIES:
        rivals.add(LARGEST_CITIES[country])
    return Filling(
        slots={"country": country},
        truth=Names(
            accepted=(capital, *CAPITAL_SPELLINGS.get(capital, ())),
            rivals=tuple(sorted(rival for rival in rivals if rival not in country)),
        ),
        constraint=matching(r"[A-Z][A-Za-zÀ-ÿ'. -]{2,24}", "capital"),
    )


CAPITAL = Kind(
    name="capital",
    title="the capital of a country",
    max_tokens=32,
    fill=_capital,
    wordings={
        "": (
            "What is the capital of {country}?",
            "Name the capital city of {country}. Answer with the city only.",
            "Country: {country}\nCapital:",
            "Which city is the capital of {country}? One name, no sentence.",
            "Tell me the capital of {country}.",
            "The capital of {country} is",
            "capital of {country}?",
        )
    },
)


def _element(rng: Random) -> Filling:
    name = rng.choice(sorted(ELEMENTS))
    symbol = ELEMENTS[name]
    if rng.random() < 0.5:
        others = tuple(value for value in ELEMENTS.values() if value != symbol and len(value) == 2)
        return Filling(
            family="symbol",
            slots={"name": name},
            truth=Names(accepted=(symbol,), rivals=others, exact_case=True),
            constraint=matching(r"[A-Z][a-z]?", "symbol"),
        )
    others = tuple(other for other in ELEMENTS if other != name)
    return Filling(
        family="name",
        slots={"symbol": symbol},
        truth=Names(accepted=(name, *ELEMENT_SPELLINGS.get(name, ())), rivals=others),
        constraint=matching(r"[A-Z]?[a-z]{2,13}", "element"),
    )


ELEMENT = Kind(
    name="element",
    title="symbol of a chemical element, or the element of a symbol",
    max_tokens=32,
    fill=_element,
    wordings={
        "symbol": (
            "What is the chemical symbol for {name}?",
            "Give the symbol of the element {name}. Only the symbol.",
            "Element: {name}\nSymbol:",
            "Which symbol does {name} have in the periodic table? Reply with the symbol only.",
            "Chemical symbol of {name}?",
            "Write the periodic table symbol for {name}, nothing else.",
        ),
        "name": (
            "Which chemical element has the symbol {symbol}?",
            "Name the element with the symbol {symbol}. Only the name.",
            "Symbol: {symbol}\nElement:",
            "What element does {symbol} stand for in the periodic table? Reply with its name only.",
            "Which element is {symbol}?",
            "Write the English name of the chemical element {symbol}, nothing else.",
        ),
    },
)


def _translate(rng: Random) -> Filling:
    english = rng.choice(sorted(TRANSLATIONS))
    language = rng.choice(LANGUAGES)
    accepted = TRANSLATIONS[english][LANGUAGES.index(language)]
    others = {
        word
        for words in TRANSLATIONS[english]
        for word in words
        if word.casefold() not in {right.casefold() for right in accepted}
    }
    articles = {
        "Spanish": "el la un una", "French": "le la l' un une", "German": "der die das ein eine",
        "Italian": "il la lo un una",
    }[language].split()  # fmt: skip
    with_article = tuple(f"{article} {word}" for word in accepted for article in articles)
    return Filling(
        slots={"word": english, "language": language},
        truth=Names(accepted=(*accepted, *with_article), rivals=tuple(sorted(others))),
        constraint=matching(_WORD, "translation"),
    )


TRANSLATE = Kind(
    name="translate_word",
    title="a common English word in Spanish, French, German or Italian",
    max_tokens=24,
    fill=_translate,
    wordings={
        "": (
            'Translate "{word}" into {language}.',
            "What is the {language} word for {word}? Answer with one word.",
            "Translate to {language}: {word}",
            "English: {word}\n{language}:",
            'How do you say "{word}" in {language}? Only the word.',
            "Give me the {language} translation of the word {word}.",
        )
    },
)


def _spelling(rng: Random) -> Filling:
    right = rng.choice(sorted(MISSPELLINGS))
    wrong = MISSPELLINGS[right]
    if rng.random() < 0.5:
        pair = [right, wrong]
        rng.shuffle(pair)
        return Filling(
            family="choose",
            slots={"a": pair[0], "b": pair[1]},
            truth=Names(accepted=(right,), rivals=(wrong,)),
            constraint=one_of(*pair, name="correct_spelling"),
        )
    return Filling(
        family="correct",
        slots={"wrong": wrong},
        truth=Corrected(accepted=(right,), misspelt=wrong),
        constraint=matching(r"[A-Za-z]{3,16}", "correct_spelling"),
    )


class Corrected(Names, frozen=True, kw_only=True):
    """The right spelling; the wrong one may be named before it, as what it corrects."""

    misspelt: str

    def lenient(self, answer: str) -> bool:
        """Right where the right spelling is the last of the two, or nothing else is there."""
        text = answer.casefold()
        right = max(text.rfind(word) for word in self.accepted)
        return Names(accepted=self.accepted).lenient(answer) and (
            text.rfind(self.misspelt) < right or "not " in text or "instead of" in text
        )


SPELLING = Kind(
    name="spelling",
    title="the right spelling of a word that is often misspelt",
    max_tokens=24,
    fill=_spelling,
    wordings={
        "choose": (
            "Which spelling is correct: {a} or {b}?",
            "Choose the correctly spelled word: {a}, {b}. Answer with the word only.",
            "Spelling: {a} or {b}? Reply with the right one only.",
            "One of these is misspelled: {a}, {b}. Write the correct one.",
            'Is it "{a}" or "{b}"? Give the correct spelling.',
            "Pick the word that is spelled correctly: {a} / {b}",
        ),
        "correct": (
            'Correct the spelling of "{wrong}".',
            "What is the correct spelling of {wrong}? Answer with the word only.",
            "Misspelled: {wrong}\nCorrect:",
            "Fix the spelling: {wrong}",
            'The word "{wrong}" is misspelled. Write it correctly, nothing else.',
            "Spell this word correctly: {wrong}",
        ),
    },
)


def _yes_no(rng: Random) -> Filling:
    yes = rng.random() < 0.5
    form = rng.randrange(3)
    if form == 0:
        country = rng.choice(sorted(CAPITALS))
        city = CAPITALS[country]
        if not yes:
            others = [LARGEST_CITIES[country]] if country in LARGEST_CITIES else []
            city = rng.choice(others or sorted({*_EVERY_CAPITAL} - {city}))
        subject, claim = city, f"the capital of {country}"
    elif form == 1:
        group = rng.choice(sorted(MEMBERS))
        source = group if yes else rng.choice(sorted({*MEMBERS} - {group}))
        member = rng.choice(MEMBERS[source])
        # Mercury and Mars stand in no second group; "orange" is a colour, and no group here.
        article = "" if member[0].isupper() or source == "metal" else _article(member) + " "
        subject, claim = f"{article}{member}", f"{_article(group)} {group}"
    else:
        number = rng.randint(10, 99)
        even = (number % 2 == 0) is yes
        subject, claim = str(number), f"an {'even' if even else 'odd'} number"
    return Filling(
        slots={
            "subject": subject,
            "claim": claim,
            "sentence": f"{subject[0].upper()}{subject[1:]} is {claim}",
        },
        truth=YesNo(yes=yes),
        constraint=one_of("yes", "no", name="answer"),
    )


def _article(noun: str) -> str:
    return "an" if noun[0].lower() in "aeiou" else "a"


YES_NO = Kind(
    name="yes_no",
    title="whether a plain fact is so",
    max_tokens=32,
    chance=0.5,
    fill=_yes_no,
    wordings={
        "": (
            "Is {subject} {claim}? Answer yes or no.",
            "Yes or no: is {subject} {claim}?",
            "Question: is {subject} {claim}?\nAnswer (yes/no):",
            "{sentence}. Is that correct? Reply with yes or no only.",
            "Answer with one word, yes or no. Is {subject} {claim}?",
            'Is the statement "{sentence}" true? Yes or no?',
        )
    },
)

KINDS = (CAPITAL, ELEMENT, TRANSLATE, SPELLING, YES_NO)
