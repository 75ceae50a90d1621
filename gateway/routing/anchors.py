"""Prompts written for Tollhouse that say what "plainly easy" and "plainly hard" look like.

Public routing data is exams; people also say hello. These prompts anchor the shipped prior at both
ends. Their labels are their author's judgement of a small chat model, not measurements.
"""

from itertools import product
from typing import Final


def _each(words: str) -> list[str]:
    return words.split()


_PLACES: Final = _each("Spain Canada Egypt Norway Brazil Thailand Peru Greece Kenya Poland")
_TONGUES: Final = _each("French Spanish German Italian Portuguese")
_PHRASES: Final = ("good morning", "thank you", "see you soon", "where is the station", "water")
_WORDS: Final = _each("happy cold brave quiet rapid ancient large tired honest bright")
_SLIPS: Final = (
    "He go to school by bus.",
    "I has two cat at home.",
    "we was late because of the rain",
    "Their are many book on the table.",
)
_NOTES: Final = (
    "Send me the file.",
    "You are late again.",
    "I can't come to the meeting.",
    "Fix this soon.",
)
_TOPICS: Final = _each("dogs spring coffee friendship rain football music school gardens birthdays")
_ANIMALS: Final = _each("spider horse bird octopus ant dog")

_EASY_FORMS: Final = (
    ("Which city is the capital of {0}?", _PLACES),
    ("capital of {0}", _PLACES),
    ("What currency is used in {0}?", _PLACES),
    ("On which continent is {0}?", _PLACES),
    ("What language do people speak in {0}?", _PLACES),
    ("Tell me one fun fact about {0}.", _PLACES),
    ("What is a synonym for {0}?", _WORDS),
    ("What is the opposite of {0}?", _WORDS),
    ("Use the word {0} in a short sentence.", _WORDS),
    ("What does {0} mean?", _WORDS),
    ("How do you spell {0}?", _WORDS),
    ("Correct the grammar: {0}", _SLIPS),
    ("Fix the spelling and grammar of this sentence: {0}", _SLIPS),
    ("Rewrite this politely: {0}", _NOTES),
    ("Make this sound more friendly: {0}", _NOTES),
    ("Shorten this: {0}", _NOTES),
    ("Write a short poem about {0}.", _TOPICS),
    ("Write one sentence about {0}.", _TOPICS),
    ("Give me a title for a blog post about {0}.", _TOPICS),
    ("Tell me a joke about {0}.", _TOPICS),
    ("Tell me a fun fact about {0}.", _TOPICS),
    ("Write a short greeting card about {0}.", _TOPICS),
    ("Write a short message to a friend about {0}.", _TOPICS),
    ("Give me three words about {0}.", _TOPICS),
    ("Name three {0}.", ("vegetables", "colours", "trees", "sports", "birds", "flowers")),
    ("List three things about {0}.", _TOPICS),
    ("How many legs does a {0} have?", _ANIMALS),
    ("What does a {0} eat?", _ANIMALS),
    ("What colour is a {0}?", ("banana", "lemon", "tomato", "clear sky", "leaf")),
    ("How many {0} are there?", ("days in a week", "months in a year", "minutes in an hour")),
)
_EASY_LINES: Final = (
    "Hi!",
    "Hey, how is it going?",
    "Hello, how are you today?",
    "Hi there, nice to meet you.",
    "Thank you so much!",
    "Thanks, bye",
    "Good morning to you!",
    "Good night!",
    "Hello again!",
    "Bye!",
    "Nice to see you!",
    "You are welcome!",
    "Good evening!",
    "What can you do?",
    "Who are you?",
    "Are you a robot?",
    "Please tell me a joke.",
    "I am bored, tell me something funny.",
    "What is your favourite colour?",
    "What is water made of?",
    "How many planets are there in the solar system?",
    "Which planet is known as the red planet?",
    "Who wrote Hamlet?",
    "Who painted the Sistine Chapel ceiling?",
    "Who was the first president of the United States?",
    "What is the biggest ocean on Earth?",
    "What is the tallest mountain in the world?",
    "Is the sun a star?",
    "Do cats like milk?",
    "What is the plural of child?",
    "What is the past tense of run?",
    "What does USA stand for?",
    "Name a fruit that is yellow.",
    "Name a primary colour.",
    "Name three farm animals.",
    "Say hi to my friend Anna.",
    "Write a short birthday wish for my sister.",
    "Write a thank you note to my teacher.",
    "Suggest a name for my kitten.",
    "Give me a simple breakfast idea.",
    "What do bees make?",
    "What is 3 plus 4?",
)
_FIELDS: Final = (
    "a distributed payments ledger",
    "a multi-region event store",
    "a real-time bidding system",
    "an offline-first mobile application",
)
_CLAIMS: Final = (
    "the square root of 3 is irrational",
    "every finite integral domain is a field",
    "the sum of the first n odd numbers is n squared",
    "a continuous function on a closed interval is bounded",
    "every tree with n vertices has n - 1 edges",
    "the harmonic series diverges",
)
_TASKS: Final = (
    "an LRU cache with O(1) operations and unit tests",
    "a thread-safe bounded queue without busy waiting",
    "Dijkstra's algorithm with a binary heap",
    "a parser for arithmetic expressions with precedence",
    "a rate limiter with a sliding window",
    "a lock-free ring buffer",
)
_LANGUAGES: Final = ("Python", "Rust", "Go", "TypeScript")
_AREAS: Final = ("employment", "data protection", "copyright", "landlord and tenant", "antitrust")
_HARD_FORMS: Final = (
    ("Prove that {0}.", _CLAIMS),
    ("Give a rigorous proof that {0}, and say where each assumption is used.", _CLAIMS),
    ("Design {0}. Discuss consistency, failure modes and the trade-offs of your choices.", _FIELDS),
    ("Write a detailed architecture and migration plan for {0}, step by step.", _FIELDS),
    (
        "Analyse the risks for a company under {0} law when it operates in three countries, and"
        " recommend a strategy with arguments for and against.",
        _AREAS,
    ),
    (
        "Draft a clause under {0} law that limits liability, then explain how a court may read it.",
        _AREAS,
    ),
)
_HARD_LINES: Final = (
    "Find all real solutions of x^4 - 5x^2 + 4 = 0 and explain each step.",
    "Evaluate the integral of x^2 e^(-x) from 0 to infinity, step by step.",
    "Solve the differential equation y'' + 4y = sin(2x) with y(0) = 1 and y'(0) = 0.",
    "A train leaves at 9:40 at 80 km/h, a second one leaves 25 minutes later at 110 km/h on the"
    " same track. When and where does the second one catch up, and how far apart are they"
    " at 11:00?",
    "Five friends sit in a row. Anna is not next to Ben, Carl sits left of Dora, and Emil is at one"
    " end. In how many ways can they sit?",
    "A shop sells pens at $1.20 and books at $7.50. Maya buys 4 pens, twice as many books as pens,"
    " gets 15% off everything and pays with a $100 bill. How much change does she get?",
    "Tom has 3 times as many marbles as Jim. After Tom gives away 24 he has 6 fewer than Jim. How"
    " many marbles did they have together at first?",
    "What is the expected number of coin flips until three heads appear in a row? Derive it.",
    "Compute the eigenvalues and eigenvectors of [[2, 1, 0], [1, 3, 1], [0, 1, 2]].",
    "A 64-year-old patient with chronic kidney disease and atrial fibrillation takes warfarin and"
    " presents with dark stools and a haemoglobin of 8.1. Discuss the differential diagnosis, the"
    " immediate management and the long-term anticoagulation plan.",
    "Compare first-line treatments of type 2 diabetes in patients with heart failure, with dosage,"
    " contraindications and the quality of the evidence.",
    "Explain why this code deadlocks and fix it:\n```python\nwith a:\n    with b:\n        work()\n"
    "with b:\n    with a:\n        work()\n```",
    "Refactor this function to run in O(n log n) and prove its complexity:\ndef pairs(xs):\n"
    "    return [(x, y) for x in xs for y in xs if x < y]",
    "Write a SQL query that returns the top three customers per region by revenue over the last"
    " four quarters, with ties, and explain the indexes it needs.",
    "Critically evaluate Kant's categorical imperative against rule utilitarianism for the case of"
    " autonomous vehicles, and defend a position.",
    "Derive the Black-Scholes equation from a hedged portfolio and state every assumption.",
    "Build a discounted cash flow valuation for a company with 12% revenue growth falling to 3%"
    " over ten years, a WACC of 9% and margins of 18%, and discuss the sensitivity.",
    "Translate the following contract section into plain English, list every obligation of each"
    " party and flag the clauses that conflict with each other.",
    "Using only the statements above, which of the following conclusions must be true? Justify"
    " why each of the others fails.",
    "Write a 1500 word essay that compares the causes of the French and the Russian revolution,"
    " with a thesis, counter-arguments and sources.",
)


def easy() -> list[str]:
    """Prompts a small chat model answers well: greetings, plain facts, short rewrites."""
    formed = [form.format(word) for form, words in _EASY_FORMS for word in words]
    spoken = [
        f"{ask} {phrase} in {tongue}{end}"
        for (ask, end), phrase, tongue in product(
            (("How do I say", "?"), ("Say", "."), ("Please translate", ".")), _PHRASES, _TONGUES
        )
    ]
    return [*_EASY_LINES, *formed, *spoken]


def hard() -> list[str]:
    """Prompts a small chat model fails: proofs, many steps, code, long professional questions."""
    formed = [form.format(word) for form, words in _HARD_FORMS for word in words]
    coded = [
        f"{ask} {task} in {language}."
        for ask, task, language in product(("Implement", "Write"), _TASKS, _LANGUAGES)
    ]
    return [*_HARD_LINES, *formed, *coded]
