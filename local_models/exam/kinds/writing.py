"""Kinds that produce something to be checked by its effect: code, a tool call, a text with conditions."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from local_models.exam.kinds.kind import Filling, Kind, matching
from local_models.exam.tables import CITIES, NAMES, PRODUCTS, SURNAMES
from local_models.exam.task import Constraint
from local_models.exam.verdicts import Call, Code, Wording

_LISTS: tuple[tuple[Any, ...], ...] = (
    ([3, -1, 7, 7, 12],),
    ([],),
    ([5],),
    ([0, 2, 40, 9, -6, 11],),
)
_TEXTS: tuple[tuple[Any, ...], ...] = (("Hello World",), ("",), ("a",), ("banana split",))
_NUMBERS: tuple[tuple[Any, ...], ...] = ((0,), (7,), (-4,), (30,), (101,))

# What it does, with {k}; body of a solution; arguments; cases; range of k.
_Spec = tuple[str, str, str, tuple[tuple[Any, ...], ...], tuple[int, int]]
_FUNCTIONS: dict[str, _Spec] = {
    "multiply": ("returns n multiplied by {k}", "n * {k}", "n", _NUMBERS, (2, 99)),
    "add": ("returns n plus {k}", "n + {k}", "n", _NUMBERS, (2, 99)),
    "is_divisible": ("returns True if n is divisible by {k}, else False", "n % {k} == 0", "n", _NUMBERS, (2, 12)),
    "remainder": ("returns the remainder of n divided by {k}", "n % {k}", "n", ((0,), (7,), (30,), (101,)), (2, 12)),
    "greater_than": ("returns a list of the numbers in values that are greater than {k}", "[v for v in values if v > {k}]", "values", _LISTS, (1, 12)),
    "count_above": ("returns how many numbers in values are greater than {k}", "sum(1 for v in values if v > {k})", "values", _LISTS, (1, 12)),
    "scaled": ("returns a list with every number in values multiplied by {k}", "[v * {k} for v in values]", "values", _LISTS, (2, 20)),
    "first_items": ("returns the first {k} items of values", "values[:{k}]", "values", _LISTS, (2, 4)),
    "last_items": ("returns the last {k} items of values", "values[-{k}:]", "values", _LISTS, (2, 4)),
    "total": ("returns the sum of the numbers in values plus {k}", "sum(values) + {k}", "values", _LISTS, (1, 50)),
    "repeat": ("returns text repeated {k} times", "text * {k}", "text", _TEXTS, (2, 9)),
    "starts": ("returns the first {k} characters of text", "text[:{k}]", "text", _TEXTS, (2, 7)),
    "is_longer": ("returns True if text has more than {k} characters, else False", "len(text) > {k}", "text", _TEXTS, (1, 12)),
    "reverse": ("returns text reversed", "text[::-1]", "text", _TEXTS, (0, 0)),
    "shout": ("returns text in upper case", "text.upper()", "text", _TEXTS, (0, 0)),
    "word_count": ("returns the number of words in text", "len(text.split())", "text", _TEXTS, (0, 0)),
    "square": ("returns n squared", "n * n", "n", _NUMBERS, (0, 0)),
    "absolute": ("returns the absolute value of n", "abs(n)", "n", _NUMBERS, (0, 0)),
    "is_even": ("returns True if n is even, else False", "n % 2 == 0", "n", _NUMBERS, (0, 0)),
    "evens": ("returns a list of the even numbers in values", "[v for v in values if v % 2 == 0]", "values", _LISTS, (0, 0)),
    "without_first": ("returns values without its first item", "values[1:]", "values", _LISTS, (0, 0)),
    "sorted_down": ("returns values sorted from largest to smallest", "sorted(values, reverse=True)", "values", _LISTS, (0, 0)),
}  # fmt: skip
_PREFIXES = ("", "get_", "my_", "compute_", "do_")


def _code(rng: Random) -> Filling:
    name = rng.choice(sorted(_FUNCTIONS))
    does, body, argument, cases, (low, high) = _FUNCTIONS[name]
    k = rng.randint(low, high)
    function = rng.choice(_PREFIXES) + name
    solution = f"def {function}({argument}):\n    return {body.format(k=k)}"
    value: Callable[..., Any] = eval(f"lambda {argument}: {body.format(k=k)}")  # noqa: S307 our own
    return Filling(
        slots={"function": function, "argument": argument, "does": does.format(k=k)},
        truth=Code(
            function=function,
            cases=cases,
            results=tuple(value(*case) for case in cases),
            solution=solution,
        ),
        constraint=matching(
            rf"def {function}\([a-z_]{{1,12}}(: [a-z\[\]]{{1,12}})?\)( -> [a-z\[\]]{{1,12}})?:\n"
            r"(    [^\n`]+\n)*    [^\n`]+"
        ),
    )


CODE = Kind(
    name="write_code",
    title="a short Python function, run on cases in a sandbox",
    max_tokens=110,
    fill=_code,
    wordings={
        "": (
            "Write a Python function {function}({argument}) that {does}. Only code.",
            "Python: define {function}({argument}), which {does}. No explanation, no examples.",
            "Implement this function in Python and return only the code.\n\n{function}({argument}): {does}",
            "Complete the Python function. It {does}.\n\ndef {function}({argument}):",
            "I need a Python function named {function} with the parameter {argument} that {does}. Code only.",
            "Write the code of {function}({argument}) in Python. The function {does}.",
        )
    },
)


def _tool(name: str, what: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": what,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


_TOOLS = (
    _tool("get_weather", "Weather of a city", city="string"),
    _tool("set_timer", "Start a timer", minutes="integer"),
    _tool("send_message", "Send a text to a person", recipient="string", text="string"),
    _tool("book_table", "Reserve a table", restaurant="string", guests="integer"),
    _tool("convert_currency", "Convert an amount of money", amount="integer", source="string", target="string"),
    _tool("set_temperature", "Set a room's temperature", room="string", degrees="integer"),
    _tool("create_order", "Order a product", product="string", quantity="integer"),
)  # fmt: skip


def _call(rng: Random) -> Filling:
    name, city, product, n = (
        rng.choice(NAMES),
        rng.choice(CITIES),
        rng.choice(PRODUCTS),
        rng.randint(2, 30),
    )
    room = rng.choice(("kitchen", "bedroom", "office", "bathroom"))
    place = rng.choice(("Luigi's", "Blue Dragon", "Green Table", "Chez Marie"))
    source, target = rng.sample(("USD", "EUR", "GBP", "JPY"), 2)
    said = rng.choice(("I am late", "see you tomorrow", "call me back", "happy birthday"))
    asked, tool, arguments = rng.choice(
        (
            (f"What is the weather in {city}?", 0, {"city": city}),
            (f"How is the weather in {city} today?", 0, {"city": city}),
            (f"Set a timer for {n} minutes.", 1, {"minutes": n}),
            (f"Wake me in {n} minutes with a timer.", 1, {"minutes": n}),
            (f'Send {name} the message "{said}".', 2, {"recipient": name, "text": said}),
            (f'Text "{said}" to {name}.', 2, {"recipient": name, "text": said}),
            (f"Book a table for {n} at {place}.", 3, {"restaurant": place, "guests": n}),
            (f"Convert {n * 10} {source} to {target}.", 4, {"amount": n * 10, "source": source, "target": target}),
            (f"Set the {room} to {n} degrees.", 5, {"room": room, "degrees": n}),
            (f"Order {n} pieces of the product {product}.", 6, {"product": product, "quantity": n}),
        )
    )  # fmt: skip
    wanted = _TOOLS[tool]
    tools = [
        wanted,
        *rng.sample([other for other in _TOOLS if other is not wanted], rng.randint(1, 2)),
    ]
    rng.shuffle(tools)
    signatures = "\n".join(
        f"{each['function']['name']}("
        + ", ".join(
            f"{key}: {value['type']}"
            for key, value in each["function"]["parameters"]["properties"].items()
        )
        + f") - {each['function']['description']}"
        for each in tools
    )
    return Filling(
        slots={"signatures": signatures, "asked": asked},
        truth=Call(name=wanted["function"]["name"], arguments=arguments),
        constraint=Constraint(type="tool", tools=tuple(tools), prompt=asked),
    )


_EXAMPLE = json.dumps({"name": "...", "arguments": {"...": "..."}})
_ESCAPED = _EXAMPLE.replace("{", "{{").replace("}", "}}")

TOOL = Kind(
    name="call_tool",
    title="choose one of two or three tools and its arguments",
    max_tokens=72,
    fill=_call,
    wordings={
        "": (
            f"You can call these tools:\n{{signatures}}\n\nAnswer with one call as JSON: {_ESCAPED}\n\n{{asked}}",
            f"Tools:\n{{signatures}}\n\nRequest: {{asked}}\nReply only with the JSON of the right call, {_ESCAPED}.",
            f"{{asked}}\n\nUse one of these functions:\n{{signatures}}\nWrite the call as {_ESCAPED}.",
            f"Choose a function and its arguments for the request and reply in JSON like {_ESCAPED}.\n"
            "{signatures}\nRequest: {asked}",
            f"Available functions:\n{{signatures}}\n\nUser: {{asked}}\nFunction call ({_ESCAPED}):",
            f"Answer the request by a function call, nothing else. Form: {_ESCAPED}\n{{signatures}}\n\n{{asked}}",
        )
    },
)


def _summary(rng: Random) -> Filling:
    first, last = rng.choice(NAMES), rng.choice(SURNAMES)
    city, product, n = rng.choice(CITIES), rng.choice(PRODUCTS), rng.randint(12, 95)
    # Facts that a summary must keep: who, how many, where.
    text, required, example = rng.choice(
        (
            (
                f"{last} Ltd will open a new factory in {city} next spring. The company plans to hire {n} workers there."
                " The mayor welcomed the plan and promised a new bus line. Some neighbours fear noise.",
                ((f"{last}",), (city,), (str(n),)),
                f"{last} Ltd will open a factory in {city} with {n} workers.",
            ),
            (
                f"{first} {last} won the city marathon in {city} on Sunday. It was a cold and windy day, and {n} runners gave up."
                " The winner thanked the helpers along the road.",
                ((last, first), (city,), ("marathon", "race")),
                f"{first} {last} won the marathon in {city}.",
            ),
            (
                f"The library of {city} has bought {n} new computers. Visitors may use them free of charge for one hour a day."
                f" The head of the library, {first} {last}, said that many people had asked for it.",
                ((city,), (str(n),), ("computers", "computer")),
                f"The library of {city} bought {n} computers that visitors may use free of charge.",
            ),
            (
                f"A fire broke out in a warehouse in {city} last night. {n} firefighters worked for six hours."
                f" Nobody was hurt, but the whole stock of the {product} was lost.",
                ((city,), ("fire",), ("warehouse",)),
                f"A warehouse fire in {city} kept {n} firefighters busy, and nobody was hurt.",
            ),
        )
    )  # fmt: skip
    words = rng.choice((20, 25, 30))
    return Filling(
        slots={"text": text, "words": words},
        truth=Wording(
            required=required, words_max=words, words_min=4, sentences_max=1, example=example
        ),
        constraint=matching(r"[A-Z][A-Za-z0-9 ,'-]{15,160}\.", "summary"),
    )


SUMMARY = Kind(
    name="summarise",
    title="one sentence of at most so many words with the three main facts",
    max_tokens=64,
    fill=_summary,
    wordings={
        "": (
            "Summarize this text in one sentence of at most {words} words:\n\n{text}",
            "{text}\n\nSummarise the text above in a single sentence (maximum {words} words).",
            "Give a one-sentence summary, {words} words or fewer, with who, what and where.\n{text}",
            "Text: {text}\nOne-sentence summary (at most {words} words):",
            "Write one sentence of no more than {words} words that sums up the main facts of this news item.\n\n{text}",
            "In one sentence (up to {words} words), what does this text report?\n{text}",
        )
    },
)

_SENTENCES = (
    "The {adjective} {thing} arrived in {city} on time", "{name} bought a {adjective} {thing} in {city}",
    "{name} thinks that the {thing} is very {adjective}", "Our {thing} in {city} was very {adjective} this year",
    "The {thing} that {name} chose is {adjective}", "Nobody in {city} liked the {adjective} {thing}",
)  # fmt: skip
_ADJECTIVES = ("small", "heavy", "cheap", "modern", "bright", "strange", "simple", "noisy")


def _rewrite(rng: Random) -> Filling:
    thing, other = rng.sample(PRODUCTS, 2)
    adjective, fresh = rng.sample(_ADJECTIVES, 2)
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    template = rng.choice(_SENTENCES)
    sentence = template.format(adjective=adjective, thing=thing, name=name, city=city) + "."
    old, new = rng.choice(((adjective, fresh), (thing, other)))
    rewritten = sentence.replace(old, new)
    kept = [word.strip(".") for word in rewritten.split()]
    return Filling(
        slots={"sentence": sentence, "old": old, "new": new},
        truth=Wording(
            required=tuple((word,) for word in kept),
            forbidden=(old,),
            words_min=len(kept),
            words_max=len(kept),
            sentences_max=1,
            example=rewritten,
        ),
        constraint=matching(r"[A-Z][A-Za-z ]{10,100}\.", "sentence"),
    )


REWRITE = Kind(
    name="rewrite",
    title="the same sentence with one word replaced",
    max_tokens=40,
    fill=_rewrite,
    wordings={
        "": (
            'Rewrite this sentence with "{new}" instead of "{old}": {sentence}',
            'Replace "{old}" by "{new}" and change nothing else.\n\n{sentence}',
            "{sentence}\n\nReplace {old} with {new} in the sentence above. Only the new sentence.",
            "Sentence: {sentence}\nThe same sentence with {new} in place of {old}:",
            'In the sentence "{sentence}", change "{old}" to "{new}". Reply with the result only.',
            "Repeat the sentence, but say {new} where it says {old}: {sentence}",
        )
    },
)

KINDS = (CODE, TOOL, SUMMARY, REWRITE)
