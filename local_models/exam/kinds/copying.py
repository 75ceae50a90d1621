"""Kinds that copy more than an address: links, phone numbers, prices; records and lists to JSON."""

from collections.abc import Mapping
from random import Random

from local_models.exam.kinds.extraction import person, record_of
from local_models.exam.kinds.kind import Filling, Kind, matching
from local_models.exam.tables import CITIES, MEMBERS, NAMES, PRODUCTS
from local_models.exam.task import Constraint
from local_models.exam.verdicts import Exact, Json, Names

_SITES = (
    "www.example.com", "docs.northwind.org", "bluebird.io", "shop.lakeside.net", "www.pinewood.de",
    "orbit.co.uk", "help.acme-tools.com", "status.sunrise.fr",
)  # fmt: skip
_PATHS = (
    "", "/orders/{n}", "/help", "/news/{n}", "/reset?id={n}", "/en/contact", "/files/report-{n}.pdf",
    "/products/{n}/reviews", "/blog/welcome",
)  # fmt: skip
_LINKED = (
    "You find the form at {url} until Friday.", "{first} shared {url} with {n} colleagues.",
    "The manual of the {product} is here: {url}", "Please open {url} and enter the code {n}.",
    "Our new page {url} is online.", "More in {url}, chapter {n}.", "See {url} for details.",
    "I tried {url} but only see error {n}.",
)  # fmt: skip
_AROUND = (
    "", "Hello {first},", "We have moved to {city}.", "Thanks for your order of {n} items.",
    "The meeting starts at {n}:15.", "Write to {mail} if you need help.", "Have a nice day!",
    "Regards, {first} {last}",
)  # fmt: skip


def _surrounded(rng: Random, core: tuple[str, ...], *, mail: bool = True, **slots: str) -> str:
    first, last = person(rng)
    around = [part for part in _AROUND if mail or "{mail}" not in part]
    parts = (rng.choice(around), rng.choice(core), rng.choice(around))
    return " ".join(part for part in parts if part).format(
        first=first, last=last, city=rng.choice(CITIES), product=rng.choice(PRODUCTS),
        n=rng.randint(6, 22), mail=f"{first.lower()}@{rng.choice(('example.com', 'hansen.dk'))}",
        **slots,
    )  # fmt: skip


def _url(rng: Random) -> Filling:
    path = rng.choice(_PATHS).format(n=rng.randint(100, 9999))
    url = f"{rng.choice(('https', 'https', 'http'))}://{rng.choice(_SITES)}{path}"
    return Filling(
        slots={"text": _surrounded(rng, _LINKED, url=url)},
        truth=Exact(
            text=url, also=(f"{url}/",), similar=r"(?:https?://|www\.)\S*[\w/]", case_matters=False
        ),
        constraint=matching(r"https?://[A-Za-z0-9./?=_-]{4,80}", "url"),
    )


URL = Kind(
    name="extract_url",
    title="copy a link out of a text",
    max_tokens=48,
    fill=_url,
    wordings={
        "": (
            "Extract the URL from this text: {text}",
            "Which link does the following message contain? Reply with the link only.\n\n{text}",
            "{text}\n\nReturn only the URL.",
            "Find the web address in the text.\nText: {text}\nURL:",
            'Copy the link that appears in "{text}"',
            "Give me only the URL mentioned here:\n{text}",
            "Read the message and answer with the link in it, nothing else.\nMessage: {text}",
        )
    },
)

_CALLED = (
    "Please call me back at {phone}.", "My number is {phone}, ask for {first}.",
    "You reach the office under {phone} from {n} o'clock.", "Phone {phone} for the {product}.",
    "{first} {last}, {phone}, room {n}.", "The hotline {phone} is free of charge.",
    "Questions about the {n} boxes? Just dial {phone}.", "In {city} the number is {phone}.",
)  # fmt: skip


def _phone(rng: Random) -> Filling:
    area, office, line = rng.randint(201, 989), rng.randint(200, 999), rng.randint(1000, 9999)
    forms = (
        f"{area}-{office}-{line}", f"({area}) {office}-{line}", f"{area} {office} {line}",
        f"{area}.{office}.{line}", f"+1 {area} {office} {line}",
    )  # fmt: skip
    written = rng.choice(forms)
    also = (*forms[:4], f"{area}{office}{line}") if written in forms[:4] else forms
    return Filling(
        slots={"text": _surrounded(rng, _CALLED, phone=written)},
        truth=Exact(text=written, also=also, similar=r"[+(]?\d[\d() ./-]{6,}\d"),
        constraint=matching(r"[0-9+(][0-9() .-]{8,18}", "phone_number"),
    )


PHONE_NUMBER = Kind(
    name="extract_phone",
    title="copy a phone number out of a text",
    max_tokens=48,
    fill=_phone,
    wordings={
        "": (
            "Extract the phone number from this text: {text}",
            "What is the phone number in the following message?\n\n{text}",
            "{text}\n\nReply with the phone number only.",
            "Find the telephone number in the text and return nothing else.\n\n{text}",
            "Text: {text}\nPhone number:",
            'Copy the phone number that appears in "{text}"',
            "Give me only the telephone number mentioned here:\n{text}",
        )
    },
)

_PRICED = (
    "The {product} costs {amount}.", "{first} paid {amount} for {n} tickets.",
    "Your bill of {amount} is due in {n} days.", "We transferred {amount} to {last} on Monday.",
    "For {n} chairs they charge {amount} in all.", "The repair of the {product} was {amount}.",
    "Order {n} came to {amount}, delivery included.", "A refund of {amount} was sent to {first}.",
)  # fmt: skip


_EUROS, _DOLLARS = ("€", "eur", "euros"), ("$", "usd", "dollars")


def _amount(rng: Random) -> Filling:
    whole, cents = rng.randint(23, 999), rng.randint(10, 99)
    number = f"{whole}.{cents}"
    forms = (f"${number}", f"{number} dollars", f"€{number}", f"{number} EUR", f"{number} euros")
    written = rng.choice(forms)
    # A currency may be left out; another one is another amount.
    others = _EUROS if written.startswith("$") or written.endswith("dollars") else _DOLLARS
    return Filling(
        slots={"text": _surrounded(rng, _PRICED, amount=written)},
        truth=Names(accepted=(written, number), rivals=(*(str(n) for n in range(6, 23)), *others)),
        constraint=matching(r"[$€]?[0-9]{1,4}\.[0-9]{2}( (EUR|USD|dollars|euros))?", "amount"),
    )


AMOUNT = Kind(
    name="extract_amount",
    title="copy the amount of money out of a text with other numbers",
    max_tokens=40,
    fill=_amount,
    wordings={
        "": (
            "Extract the amount of money from this text: {text}",
            "Which amount of money is mentioned here? Reply with the amount only.\n\n{text}",
            "{text}\n\nReturn only the amount of money.",
            "Find the price in the text.\nText: {text}\nPrice:",
            'Copy the amount of money that appears in "{text}"',
            "Give me the price mentioned in the following message, nothing else.\n{text}",
            "Read the message and answer with the amount of money in it.\nMessage: {text}",
        )
    },
)


def _document(**properties: Mapping[str, object]) -> Constraint:
    return Constraint(
        type="json_schema",
        schema={
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
    )


def _record(rng: Random) -> Filling:
    record = record_of(rng, rng.randint(3, 5))
    return Filling(
        slots={
            "record": "\n".join(f"{field}: {value}" for field, value in record.items()),
            "keys": ", ".join(record),
        },
        truth=Json(wanted=record),
        constraint=_document(**{field: {"type": "string"} for field in record}),
    )


RECORD = Kind(
    name="record_to_json",
    title="write a short record as a JSON object",
    max_tokens=112,
    fill=_record,
    wordings={
        "": (
            "Convert this record to a JSON object:\n\n{record}",
            "{record}\n\nWrite the lines above as a JSON object with the keys {keys}. All values are strings.",
            "Return the following record as JSON, with the field names as keys and strings as values.\n{record}",
            "Turn this into JSON. Keep the names of the fields, and every value as text.\n\n{record}",
            "Record:\n{record}\n\nJSON object with string values:",
            "Rewrite the record as one flat JSON object of strings, nothing else.\n{record}",
        )
    },
)


def _items(rng: Random) -> Filling:
    items = rng.sample(
        MEMBERS[rng.choice(sorted(MEMBERS))]
        if rng.random() < 0.5
        else rng.choice((PRODUCTS, NAMES, CITIES)),
        rng.randint(3, 6),
    )
    text = rng.choice(
        (
            ", ".join(items),
            ", ".join(items[:-1]) + " and " + items[-1],
            "\n".join(f"- {item}" for item in items),
            "; ".join(items),
        )
    )
    return Filling(
        slots={"text": text},
        truth=Json(wanted={"items": items}),
        constraint=_document(items={"type": "array", "items": {"type": "string"}, "minItems": 1}),
    )


LIST = Kind(
    name="list_to_json",
    title="write a list as an array in a JSON object",
    max_tokens=80,
    fill=_items,
    wordings={
        "": (
            'Convert this list to a JSON object with one key "items", an array of strings:\n{text}',
            'Write the following list as JSON in the form {{"items": [...]}}.\n\n{text}',
            'List:\n{text}\n\nReturn only JSON: {{"items": ["...", "..."]}}',
            '{text}\n\nTurn the list above into a JSON object whose field "items" is an array.',
            'Put these entries into the array "items" of a JSON object, in the same order.\n{text}',
            'Return the list as JSON with the key "items", nothing else.\n{text}',
        )
    },
)

KINDS = (URL, PHONE_NUMBER, AMOUNT, RECORD, LIST)
