"""Kinds whose answer stands in the text: copy an address, a field, a number, a date; fill JSON."""

from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from local_models.exam.kinds.kind import Filling, Kind, matching
from local_models.exam.tables import CITIES, MONTHS, NAMES, PRODUCTS, SURNAMES
from local_models.exam.task import Constraint
from local_models.exam.verdicts import Exact, Json, Names

_DOMAINS = (
    "example.com", "northwind.org", "acme-tools.net", "bluebird.io", "hansen.dk", "lakeside.edu",
    "orbit.co.uk", "pinewood.de", "sunrise.fr", "tinyshop.shop",
)  # fmt: skip
_BEFORE = (
    "Thanks for your call this morning.", "The parcel arrived on Tuesday.", "I am away until Monday.",
    "Our new office is on the second floor.", "Please find the report attached.",
    "The meeting has been moved to room {n}.", "We have {n} seats left for the workshop.",
    "The printer on floor {n} is broken again.",
)  # fmt: skip
_MAILS = (
    "You can reach me at {mail}.", "Please send the invoice to {mail} before Friday.",
    "For questions write to {mail} or call {phone}.", "My address is {mail}, in case you need it.",
    "Contact {first} {last} ({mail}) for the details.", "Replies go to {mail}; nobody reads this box.",
    "{first} has a new address: {mail}.", "Forward the tickets to {mail}, please.",
)  # fmt: skip
_AFTER = (
    "Best regards, {first}", "See you next week.", "The door code is {n}.", "Thank you!",
    "Have a good weekend.", "Our website is www.{site}.", "",
)  # fmt: skip


def _phone(rng: Random) -> str:
    return f"{rng.randint(200, 989)}-{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"


def person(rng: Random) -> tuple[str, str]:
    """A first and a last name."""
    return rng.choice(NAMES), rng.choice(SURNAMES)


def _email(rng: Random) -> Filling:
    first, last = person(rng)
    user = rng.choice(
        (
            f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}", f"{last}{rng.randint(1, 99)}",
            f"{rng.choice(('info', 'sales', 'support', 'billing', 'orders'))}", f"{first}-{last}",
        )
    ).lower()  # fmt: skip
    mail = f"{user}@{rng.choice(_DOMAINS)}"
    parts = [rng.choice(_BEFORE), rng.choice(_MAILS), rng.choice(_AFTER)]
    if rng.random() < 0.3:
        parts.insert(0, rng.choice(_BEFORE))
    text = " ".join(part for part in parts if part).format(
        n=rng.randint(2, 98), mail=mail, phone=_phone(rng), first=first, last=last,
        site=rng.choice(_DOMAINS),
    )  # fmt: skip
    return Filling(
        slots={"text": text},
        truth=Exact(text=mail, similar=r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", case_matters=False),
        constraint=matching(
            r"[a-z0-9._+-]{1,40}@[a-z0-9-]{1,30}(\.[a-z]{2,8}){1,2}", "email_address"
        ),
    )


EMAIL = Kind(
    name="extract_email",
    title="copy an e-mail address out of a text",
    max_tokens=40,
    fill=_email,
    wordings={
        "": (
            "Extract the e-mail address from this text: {text}",
            "What is the email address in the following message?\n\n{text}",
            "{text}\n\nReply with the e-mail address only.",
            "Find the email address in this text and answer with the address alone.\n\n{text}",
            "Text: {text}\nEmail address:",
            'Copy the e-mail address that appears in "{text}"',
            "Give me only the email address mentioned here:\n{text}",
            "Read the message and return the e-mail address it contains.\nMessage: {text}",
        )
    },
)

_Make = Callable[[Random], str]

_FIELDS: dict[str, _Make] = {
    "Name": lambda rng: " ".join(person(rng)),
    "City": lambda rng: rng.choice(CITIES),
    "Order": lambda rng: f"{rng.choice('ABCDEFG')}{rng.randint(1000, 9999)}",
    "Product": lambda rng: rng.choice(PRODUCTS),
    "Quantity": lambda rng: str(rng.randint(2, 48)),
    "Status": lambda rng: rng.choice(("shipped", "pending", "cancelled", "delivered", "returned")),
    "Department": lambda rng: rng.choice(("Sales", "Support", "Finance", "Legal", "Research")),
    "Phone number": _phone,
    "Price": lambda rng: f"{rng.randint(5, 900)}.{rng.randint(10, 99)} EUR",
    "Date": lambda rng: _any_date(rng).isoformat(),
    "Colour": lambda rng: rng.choice(("red", "green", "black", "white", "grey", "brown")),
}


def _any_date(rng: Random) -> date:
    return date(2015, 1, 1) + timedelta(days=rng.randrange(5_500))


def record_of(rng: Random, count: int) -> dict[str, str]:
    """Fields and their values, in any order."""
    return {field: _FIELDS[field](rng) for field in rng.sample(sorted(_FIELDS), count)}


def _field(rng: Random) -> Filling:
    record = record_of(rng, rng.randint(4, 6))
    asked = rng.choice(list(record))
    others = tuple(value for field, value in record.items() if field != asked)
    return Filling(
        slots={
            "record": "\n".join(f"{field}: {value}" for field, value in record.items()),
            "field": asked,
            "lower": asked.lower(),
        },
        # A price is a price without its currency, too.
        truth=Names(accepted=(record[asked], record[asked].removesuffix(" EUR")), rivals=others),
        constraint=matching(r"[A-Za-z0-9][A-Za-z0-9 .-]{0,39}", asked.lower().replace(" ", "_")),
    )


FIELD = Kind(
    name="extract_field",
    title="give one field of a short record",
    max_tokens=32,
    fill=_field,
    wordings={
        "": (
            "{record}\n\nWhat is the {lower}? Answer with the value only.",
            'Give the value of the field "{field}":\n\n{record}',
            "Record:\n{record}\n\nReturn only the value of {field}.",
            "From the record below, extract the {lower}.\n\n{record}",
            "Read this record and reply with the {lower} alone.\n{record}",
            "{record}\n---\nWhich value does {field} have?",
            "What does the following entry say for {field}? Value only.\n\n{record}",
        )
    },
)

_NUMBERED: dict[str, tuple[str, _Make]] = {
    "order number": ("order number", lambda rng: str(rng.randint(10_000, 999_999))),
    "invoice number": ("invoice number", lambda rng: f"INV-{rng.randint(1000, 9999)}"),
    "ticket number": ("ticket number", lambda rng: f"T{rng.randint(10_000, 99_999)}"),
    "tracking number": ("tracking number", lambda rng: f"{rng.randint(10**9, 10**10 - 1)}"),
}
_REFERENCES = (
    "My {what} is {ref} and I paid {amount} dollars for {count} items.",
    "I ordered {count} items on the {day}th; the {what} is {ref}, the total was {amount} dollars.",
    "Regarding {what} {ref}: only {count} of the boxes arrived.",
    "Please check {what} {ref}. I was charged {amount} dollars twice.",
    "{first} asks about {what} {ref}, which was due {count} days ago.",
    "We still wait for {count} parts ({what}: {ref}). The bill says {amount} dollars.",
    "Hello, this is {first} from room {count}. The {what} {ref} shows the wrong price of {amount}.",
)  # fmt: skip


def _number(rng: Random) -> Filling:
    what, make = _NUMBERED[rng.choice(sorted(_NUMBERED))]
    reference = make(rng)
    amount = f"{rng.randint(10, 990)}.{rng.randint(10, 99)}"
    count = rng.randint(2, 59)
    text = rng.choice(_REFERENCES).format(
        what=what, ref=reference, amount=amount, count=count, day=rng.randint(4, 19),
        first=rng.choice(NAMES),
    )  # fmt: skip
    return Filling(
        slots={"text": text, "what": what},
        truth=Exact(
            text=reference,
            similar=r"\b(?:INV-?|T)?\d[\d.]*\b",
            also=(reference.removeprefix("INV-"), reference.removeprefix("T")),
            case_matters=False,
        ),
        constraint=matching(r"(INV-|T)?[0-9]{4,10}", "number"),
    )


NUMBER = Kind(
    name="extract_number",
    title="copy a reference number out of a sentence with other numbers",
    max_tokens=40,
    fill=_number,
    wordings={
        "": (
            "What is the {what} in this message? Answer with the number only.\n\n{text}",
            "Extract the {what}: {text}",
            "{text}\n\nReturn only the {what}.",
            "Find the {what} in the text and reply with nothing else.\nText: {text}",
            'Copy the {what} from "{text}"',
            "Message: {text}\n{what}:",
            "Which {what} does this message mention? Only the number, please.\n{text}",
        )
    },
)

_DATED = (
    "The contract was signed on {date} in {city}.", "Your appointment is on {date} at {n}:30.",
    "{first} joined the team on {date}, as employee {n}.", "The warranty ends on {date}.",
    "On {date} we opened a shop in {city} with {n} shelves.", "Please pay by {date}; the fee is {n} euros.",
    "The {product} was bought on {date} for {n} dollars.", "The train to {city} leaves on {date} from platform {n}.",
)  # fmt: skip


def date_forms(day: date) -> tuple[str, ...]:
    """Ways to write a day that nobody can misread."""
    month = MONTHS[day.month - 1]
    return (
        f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", day.isoformat(),
        f"{month[:3]} {day.day}, {day.year}", f"{day.day:02} {month} {day.year}",
        f"{day.day} {month[:3]} {day.year}", f"{month} {day.day} {day.year}",
        f"{day.day}{ordinal(day.day)} {month} {day.year}", f"{month} {day.day}{ordinal(day.day)}, {day.year}",
        f"{month} {day.day:02}, {day.year}", f"{day.day}{ordinal(day.day)} of {month} {day.year}",
    )  # fmt: skip


def ordinal(number: int) -> str:
    """st, nd, rd or th."""
    if 10 <= number % 100 <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


ANY_DATE = r"\d{4}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{2,4}|(?:\d\d?(?:st|nd|rd|th)? (?:of )?)?[A-Z][a-z]{2,8} \d\d?(?:st|nd|rd|th)?,? \d{4}|\d\d?(?:st|nd|rd|th)? (?:of )?[A-Z][a-z]{2,8},? \d{4}"


def _date(rng: Random) -> Filling:
    forms = date_forms(_any_date(rng))
    written = rng.choice(forms[:4])
    text = rng.choice(_DATED).format(
        date=written, city=rng.choice(CITIES), n=rng.randint(7, 18), first=rng.choice(NAMES),
        product=rng.choice(PRODUCTS),
    )  # fmt: skip
    return Filling(
        slots={"text": text},
        truth=Exact(text=written, also=forms, similar=ANY_DATE),
        copied=Exact(text=written, similar=ANY_DATE),
        constraint=matching(
            r"([0-9]{1,2} [A-Z][a-z]{2,8} [0-9]{4}|[A-Z][a-z]{2,8} [0-9]{1,2}, [0-9]{4}"
            r"|[0-9]{4}-[0-9]{2}-[0-9]{2})",
            "date",
        ),
    )


DATE = Kind(
    name="extract_date",
    title="copy the date out of a sentence",
    max_tokens=40,
    fill=_date,
    verbatim=(2, 4),
    wordings={
        "": (
            "Extract the date from this sentence: {text}",
            "Which date is mentioned here? Reply with the date only.\n\n{text}",
            "{text}\n\nReturn only the date, as it is written.",
            "Find the date in the text.\nText: {text}\nDate:",
            'Copy the date that appears in "{text}"',
            "Give me the date mentioned in the following text, nothing else.\n{text}",
            "What date does this sentence contain? Date only.\n{text}",
        )
    },
)


def _json(rng: Random) -> Filling:
    first, last = person(rng)
    city, product, count = rng.choice(CITIES), rng.choice(PRODUCTS), rng.randint(2, 90)
    form = rng.randrange(3)
    if form == 0:
        wanted = {"name": f"{first} {last}", "age": count, "city": city}
        text = rng.choice(
            (
                f"{first} {last} is {count} years old and lives in {city}.",
                f"In {city} I met {first} {last}, who is {count}.",
                f"{first} {last}, {count}, from {city}, won the prize.",
                f"The new tenant is {first} {last}, aged {count}, who moved here from {city}.",
            )
        )
    elif form == 1:
        wanted = {"product": product, "quantity": count, "customer": first}
        text = rng.choice(
            (
                f"{first} ordered {count} units of the {product}.",
                f"Please send {first} {count} pieces of {product}.",
                f"We sold {count} of the {product} to {first} yesterday.",
                f"It was {first} who bought the {product}, {count} pieces in all.",
            )
        )
    else:
        wanted = {"company": f"{last} GmbH", "city": city, "employees": count * 10}
        text = rng.choice(
            (
                f"{last} GmbH has {count * 10} employees and sits in {city}.",
                f"The head office of {last} GmbH is in {city}; {count * 10} people work there.",
                f"With {count * 10} employees, {last} GmbH is a large employer in {city}.",
            )
        )
    kinds = {
        key: "integer" if isinstance(value, int) else "string" for key, value in wanted.items()
    }
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in kinds.items()},
        "required": list(wanted),
        "additionalProperties": False,
    }
    typed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
    empty = "{" + ", ".join(
        f'"{key}": {"0" if kind == "integer" else chr(34) * 2}' for key, kind in kinds.items()
    ) + "}"  # fmt: skip
    return Filling(
        slots={"text": text, "keys": ", ".join(wanted), "typed": typed, "empty": empty},
        truth=Json(wanted=wanted),
        constraint=Constraint(type="json_schema", schema=schema),
    )


JSON = Kind(
    name="fill_json",
    title="fill a JSON object from a sentence",
    max_tokens=72,
    fill=_json,
    wordings={
        "": (
            "Extract {keys} as a JSON object from this sentence: {text}",
            "Fill this JSON from the text.\nText: {text}\nJSON: {empty}",
            "{text}\n\nReturn a JSON object with the keys {typed}.",
            "Convert to JSON with exactly these keys: {keys}.\n\n{text}",
            'Read "{text}" and answer only with JSON: {empty}',
            "Return only JSON with {typed} for the following text.\n{text}",
            "Turn the sentence into a JSON object with the fields {keys}. No explanation.\n\n{text}",
        )
    },
)

KINDS = (EMAIL, FIELD, NUMBER, DATE, JSON)
