"""Kinds that write the same thing in another form: dates, phone numbers, letter case."""

from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from local_models.exam.kinds.extraction import ANY_DATE, date_forms, ordinal
from local_models.exam.kinds.kind import Filling, Kind, matching
from local_models.exam.tables import CITIES, MONTHS, NAMES, PRODUCTS, SURNAMES
from local_models.exam.verdicts import Exact


def _iso(rng: Random) -> Filling:
    day = date(1950, 1, 1) + timedelta(days=rng.randrange(29_000))
    month = MONTHS[day.month - 1]
    written = rng.choice(
        (
            f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}",
            f"{day.day}{ordinal(day.day)} {month} {day.year}", f"{day.day} {month[:3]} {day.year}",
            f"{month} {day.day}{ordinal(day.day)}, {day.year}",
        )
    )  # fmt: skip
    return Filling(
        slots={"date": written},
        truth=Exact(text=day.isoformat(), similar=ANY_DATE, given=date_forms(day)),
        constraint=matching(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "date"),
    )


ISO = Kind(
    name="format_date",
    title="write a date as YYYY-MM-DD",
    max_tokens=64,
    fill=_iso,
    wordings={
        "": (
            "Convert this date to ISO format (YYYY-MM-DD): {date}",
            "Write {date} as YYYY-MM-DD.",
            "Date: {date}\nISO 8601:",
            "What is {date} in the format YYYY-MM-DD? Reply with the date only.",
            "Reformat the date {date} to YYYY-MM-DD.",
            "{date}\n\nGive this date in ISO 8601 format, nothing else.",
            'Rewrite "{date}" in the form YYYY-MM-DD.',
        )
    },
)


def _telephone(rng: Random) -> Filling:
    digits = f"{rng.randint(201, 989)}{rng.randint(200, 999)}{rng.randint(0, 9999):04}"
    area, office, line = digits[:3], digits[3:6], digits[6:]
    written = rng.choice(
        (digits, f"{area}.{office}.{line}", f"{area} {office} {line}", f"{area}/{office}{line}")
    )
    form, example, regex = rng.choice(
        (
            (f"({area}) {office}-{line}", "(555) 123-4567", r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}"),
            (f"{area}-{office}-{line}", "555-123-4567", r"[0-9]{3}-[0-9]{3}-[0-9]{4}"),
            (f"+1 {area} {office} {line}", "+1 555 123 4567", r"\+1 [0-9]{3} [0-9]{3} [0-9]{4}"),
        )
    )
    return Filling(
        slots={"phone": written, "example": example},
        truth=Exact(text=form, similar=r"[+(]?\d[\d() ./-]{8,}\d", given=(written, example)),
        constraint=matching(regex, "phone"),
    )


PHONE = Kind(
    name="format_phone",
    title="write a phone number in the form of an example",
    max_tokens=64,
    fill=_telephone,
    wordings={
        "": (
            "Write the phone number {phone} in the format {example}.",
            "Format this phone number like {example}: {phone}",
            "Phone number: {phone}\nTarget format: {example}\nAnswer with the formatted number only.",
            "Rewrite {phone} so that it looks like {example}. Reply with the number only.",
            "{phone}\n\nPut this telephone number into the form {example}.",
            "Convert the telephone number {phone} to the style {example}, nothing else.",
        )
    },
)

_PHRASES = (
    "{first} {last} from {city}", "the {product} is in {city}", "please call {first} about the {product}",
    "annual report of {last} and sons", "meeting with {first} and {last}", "new {product} for {first}",
    "welcome to {city}", "a letter from {first} {last}", "how to clean your {product}",
    "{city} in the rain", "quarterly sales in {city}", "the return of {first} {last}",
)  # fmt: skip
_CASES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "title case": lambda text: " ".join(word.capitalize() for word in text.split()),
}
_SAID = {
    "upper case": ("upper case", "uppercase", "capital letters"),
    "lower case": ("lower case", "lowercase", "small letters"),
    "title case": ("title case", "title case (every word capitalised)"),
}
_SMALL = {"the", "in", "is", "of", "and", "to", "for", "a", "with", "about", "from", "how", "your"}


def _case(rng: Random) -> Filling:
    text = rng.choice(_PHRASES).format(
        first=rng.choice(NAMES), last=rng.choice(SURNAMES), city=rng.choice(CITIES),
        product=rng.choice(PRODUCTS),
    )  # fmt: skip
    case = rng.choice(sorted(_CASES))
    if case == "lower case":
        text = rng.choice((text.upper(), _CASES["title case"](text)))
    wanted = _CASES[case](text)
    words = wanted.split()
    headline = [
        word.lower() if index and word.lower() in _SMALL else word
        for index, word in enumerate(words)
    ]
    also = (" ".join(headline),) if case == "title case" else ()
    letters = {"upper case": "A-Z", "lower case": "a-z", "title case": "A-Za-z"}[case]
    return Filling(
        slots={"text": text, "case": rng.choice(_SAID[case])},
        truth=Exact(text=wanted, also=also),
        constraint=matching(rf"[{letters}][{letters} ]{{3,59}}", "text"),
    )


CASE = Kind(
    name="change_case",
    title="write a phrase in upper, lower or title case",
    max_tokens=48,
    fill=_case,
    wordings={
        "": (
            "Convert to {case}: {text}",
            'Write "{text}" in {case}.',
            "Rewrite this phrase in {case} and reply with the phrase only.\n\n{text}",
            "{text}\n\nPut the line above into {case}.",
            "Change the following text to {case}: {text}",
            "Text: {text}\nThe same text in {case}:",
            'Give me "{text}" in {case}, nothing else.',
        )
    },
)

KINDS = (ISO, PHONE, CASE)
