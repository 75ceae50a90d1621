"""Kinds that count, compute, compare and order."""

from datetime import date, timedelta
from decimal import Decimal
from random import Random

from local_models.exam.kinds.kind import Filling, Kind, matching, one_of
from local_models.exam.tables import MEMBERS, NAMES, WEEKDAYS
from local_models.exam.verdicts import Compared, Exact, Names, Number, Sequence

INTEGER = r"-?[0-9]{1,7}"


def _arithmetic(rng: Random) -> Filling:
    sign = rng.choice("+-*/")
    if sign in "+-":
        a, b = rng.randint(10, 999), rng.randint(2, 999)
        if sign == "-" and b > a:
            a, b = b, a
        value = a + b if sign == "+" else a - b
    elif sign == "*":
        a, b = rng.randint(2, 99), rng.randint(2, 12)
        value = a * b
    else:
        b, value = rng.randint(2, 12), rng.randint(2, 60)
        a = b * value
    words = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    return Filling(
        slots={"a": a, "b": b, "sign": sign, "words": words},
        truth=Number(value=str(value)),
        constraint=matching(INTEGER, "result"),
    )


ARITHMETIC = Kind(
    name="arithmetic",
    title="one operation on two whole numbers",
    max_tokens=64,
    fill=_arithmetic,
    wordings={
        "": (
            "What is {a} {sign} {b}?",
            "Calculate {a} {sign} {b}. Answer with the number only.",
            "{a} {sign} {b} =",
            "What is {a} {words} {b}? Reply with just the number.",
            "Compute: {a} {sign} {b}",
            "How much is {a} {words} {b}?",
            "Work out {a} {sign} {b} and give only the result.",
        )
    },
)


def _decimal(rng: Random) -> str:
    return f"{rng.randint(0, 99)}.{rng.randint(1, 999)}"


def _compare(rng: Random) -> Filling:
    make = rng.choice(
        (_decimal, lambda rng: str(rng.randint(100, 99_999)), lambda rng: str(rng.randint(-50, 99)))
    )
    a = make(rng)
    b = a
    while Decimal(a) == Decimal(b):
        b = make(rng)
        if make is _decimal and rng.random() < 0.5:
            b = f"{a.split('.')[0]}.{rng.randint(1, 999)}"
    larger = rng.random() < 0.5
    key = (max if larger else min)((a, b), key=Decimal)
    other = b if key == a else a
    which = rng.choice(("larger", "greater", "bigger") if larger else ("smaller", "lower"))
    return Filling(
        slots={"a": a, "b": b, "which": which},
        truth=Compared(value=key, other=other, larger=larger),
        constraint=one_of(a, b, name=which),
    )


COMPARE = Kind(
    name="compare_numbers",
    title="say which of two numbers is larger or smaller",
    max_tokens=96,
    chance=0.5,
    fill=_compare,
    wordings={
        "": (
            "Which number is {which}: {a} or {b}?",
            "Which is {which}, {a} or {b}? Answer with the number only.",
            "Compare {a} and {b}. Reply with the {which} one.",
            "Numbers: {a}, {b}\nWrite the {which} number and nothing else.",
            "Of {a} and {b}, which one is {which}? Just the number.",
            "Give me the {which} of these two numbers: {a} and {b}",
        )
    },
)

_WORDS = tuple(
    "apple bridge candle dragon engine forest garden hammer island jacket kettle ladder mirror"
    " needle orange pencil queen rocket saddle tunnel umbrella violin window yellow zebra".split()
)


def _sort(rng: Random) -> Filling:
    count = rng.randint(3, 6)
    if rng.random() < 0.5:
        numbers = rng.sample(range(1, 200), count)
        down = rng.random() < 0.4
        items = [str(number) for number in numbers]
        ordered = [str(number) for number in sorted(numbers, reverse=down)]
        order = (
            rng.choice(("descending order", "order from largest to smallest"))
            if down
            else rng.choice(("ascending order", "order from smallest to largest"))
        )
        what, regex = "numbers", r"[0-9]{1,3}(, [0-9]{1,3}){2,5}"
    else:
        items = rng.sample(_WORDS, count)
        ordered, order = sorted(items), "alphabetical order"
        what, regex = "words", r"[a-z]{3,9}(, [a-z]{3,9}){2,5}"
    return Filling(
        slots={"items": ", ".join(items), "order": order, "what": what},
        truth=Sequence(items=tuple(ordered)),
        constraint=matching(regex, "sorted"),
    )


SORT = Kind(
    name="sort_items",
    title="put three to six numbers or words in order",
    max_tokens=96,
    fill=_sort,
    wordings={
        "": (
            "Sort these {what} in {order}: {items}",
            "Put the following {what} in {order}, separated by commas.\n{items}",
            "{items}\n\nList these {what} in {order}. Only the list.",
            "Arrange in {order}: {items}",
            "{what}: {items}\nIn {order}:",
            "Write the {what} {items} in {order}, comma-separated, nothing else.",
        )
    },
)

# from, to, factor, short forms; only factors that need no rounding
UNIT_FACTORS = (
    ("kilometers", "meters", "1000", "m"), ("meters", "centimeters", "100", "cm"),
    ("centimeters", "millimeters", "10", "mm"), ("kilograms", "grams", "1000", "g"),
    ("liters", "milliliters", "1000", "ml"), ("hours", "minutes", "60", "min"),
    ("minutes", "seconds", "60", "s"), ("days", "hours", "24", "h"), ("weeks", "days", "7", "days"),
    ("feet", "inches", "12", "in"), ("yards", "feet", "3", "ft"), ("pounds", "ounces", "16", "oz"),
    ("meters", "kilometers", "0.001", "km"), ("grams", "kilograms", "0.001", "kg"),
    ("centimeters", "meters", "0.01", "m"), ("tons", "kilograms", "1000", "kg"),
    ("years", "months", "12", "months"), ("dozens", "pieces", "12", "pieces"),
)  # fmt: skip


def _units(rng: Random) -> Filling:
    source, target, factor, short = rng.choice(UNIT_FACTORS)
    if factor.startswith("0"):
        value = Decimal(rng.randint(1, 90) * (100 if factor == "0.001" else 10))
    elif factor in ("10", "100", "1000"):
        value = rng.choice((Decimal(rng.randint(2, 99)), Decimal(rng.randint(11, 99)) / 10))
    else:
        value = Decimal(rng.randint(2, 20))
    result = (value * Decimal(factor)).normalize()
    return Filling(
        slots={"value": f"{value}", "source": source, "target": target},
        truth=Number(value=f"{result:f}", units=(f" {target}", f" {short}", short)),
        constraint=matching(r"[0-9]{1,7}(\.[0-9]{1,3})?", "value"),
    )


UNITS = Kind(
    name="convert_units",
    title="convert a length, weight, volume or time, without rounding",
    max_tokens=96,
    fill=_units,
    wordings={
        "": (
            "Convert {value} {source} to {target}.",
            "How many {target} are {value} {source}? Answer with the number only.",
            "{value} {source} = ? {target}",
            "Express {value} {source} in {target}. Only the number.",
            "What is {value} {source} in {target}?",
            "How many {target} are there in {value} {source}? Reply with just a number.",
        )
    },
)


def _days(rng: Random) -> Filling:
    if rng.random() < 0.5:
        start, step = rng.choice(WEEKDAYS), rng.randint(2, 10)
        after = rng.random() < 0.6
        index = (WEEKDAYS.index(start) + (step if after else -step)) % 7
        return Filling(
            family="weekday",
            slots={"start": start, "step": step, "way": "after" if after else "before"},
            truth=Names(
                accepted=(WEEKDAYS[index],),
                rivals=tuple(day for day in WEEKDAYS if day not in (start, WEEKDAYS[index])),
            ),
            constraint=one_of(*WEEKDAYS, name="weekday"),
        )
    first, step = date(2020, 1, 1) + timedelta(days=rng.randrange(2_500)), rng.randint(2, 30)
    after = rng.random() < 0.6
    last = first + timedelta(days=step if after else -step)
    return Filling(
        family="date",
        slots={"start": first.isoformat(), "step": step, "way": "after" if after else "before"},
        truth=Exact(text=last.isoformat(), similar=r"\d{4}-\d\d-\d\d", given=(first.isoformat(),)),
        constraint=matching(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", "date"),
    )


DAYS = Kind(
    name="date_steps",
    title="the weekday or date some days before or after another",
    max_tokens=96,
    fill=_days,
    wordings={
        "weekday": (
            "Which day of the week is {step} days {way} {start}?",
            "What weekday comes {step} days {way} {start}? Answer with the day only.",
            "Day: {start}\n{step} days {way} that it is:",
            "Name the day of the week that is {step} days {way} {start}. One word.",
            "Count {step} days {way} {start}. Which weekday is it?",
            "If an event is {step} days {way} {start}, on which day of the week is it? Only the day.",
        ),
        "date": (
            "What date is {step} days {way} {start}?",
            "Which date comes {step} days {way} {start}? Answer as YYYY-MM-DD only.",
            "Date: {start}\n{step} days {way} that it is (YYYY-MM-DD):",
            "Give the date that is {step} days {way} {start}, as YYYY-MM-DD.",
            "Count {step} days {way} {start}. Which date is it (YYYY-MM-DD)?",
            "If an event is {step} days {way} {start}, what is its date? Only YYYY-MM-DD.",
        ),
    },
)


def _count(rng: Random) -> Filling:
    group = rng.choice(sorted(MEMBERS))
    items = rng.sample(MEMBERS[group], rng.randint(3, min(8, len(MEMBERS[group]))))
    return Filling(
        slots={"items": ", ".join(items)},
        truth=Number(value=str(len(items)), units=(" items", " words")),
        constraint=matching(r"[0-9]{1,2}", "count"),
    )


COUNT = Kind(
    name="count_items",
    title="count the items of a short list",
    max_tokens=40,
    fill=_count,
    wordings={
        "": (
            "How many items are in this list? {items}",
            "Count the items: {items}. Answer with the number only.",
            "List: {items}\nNumber of items:",
            "{items}\n\nHow many items are listed above? Just the number.",
            "How many entries does the list {items} have? Only a number, please.",
            "Give the number of items in the following list.\n{items}",
        )
    },
)

_THINGS = ("apples", "books", "pencils", "coins", "stamps", "marbles", "cards", "eggs", "tickets")


def _story(rng: Random) -> Filling:
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(_THINGS)
    a, b, c = rng.randint(5, 40), rng.randint(2, 20), rng.randint(2, 9)
    d = rng.randint(1, min(20, a + b - 1))
    story, value = rng.choice(
        (
            (f"{name} has {a} {thing}, buys {b} more and gives {d} to {other}. How many {thing} does {name} have now?", a + b - d),
            (f"{name} buys {c} boxes with {b} {thing} each and already had {a}. How many {thing} does {name} have in all?", c * b + a),
            (f"A box of {thing} costs {b} dollars. {name} buys {c} boxes and pays with {c * b + a} dollars. How many dollars does {name} get back?", a),
            (f"{name} has {c * b} {thing} and shares them equally among {c} friends. Each friend then gives 1 to {other}. How many {thing} does each friend keep?", b - 1),
            (f"{name} has {a} {thing}. {other} has {b} more than {name}. How many {thing} do they have together?", 2 * a + b),
            (f"{name} reads {b} pages a day for {c} days and then {a} more pages. How many pages did {name} read?", b * c + a),
            (f"There are {a + b} {thing} in a basket. {name} takes {b} and {other} puts in {c}. How many {thing} are in the basket?", a + c),
            (f"{name} is {a} years old. {other} is {c} years older. How old will {other} be in {b} years?", a + b + c),
        )
    )  # fmt: skip
    return Filling(
        slots={"story": story},
        truth=Number(
            value=str(value), units=(f" {thing}", " dollars", " pages", " years", " years old")
        ),
        constraint=matching(r"[0-9]{1,4}", "result"),
    )


STORY = Kind(
    name="two_step",
    title="a story with two steps of arithmetic",
    max_tokens=160,
    fill=_story,
    wordings={
        "": (
            "{story}",
            "{story} Answer with the number only.",
            "Problem: {story}\nAnswer:",
            "Solve this and give the final number.\n\n{story}",
            "{story}\nThink briefly, then write the answer as a number.",
            "Read the problem and reply with just the number.\n{story}",
        )
    },
)

KINDS = (ARITHMETIC, COMPARE, SORT, UNITS, DAYS, COUNT, STORY)
