"""Verdicts in both directions: right answers in many forms, and wrong ones that look right."""

from typing import Any

import pytest

from local_models.exam.task import Truth
from local_models.exam.verdicts import (
    Call,
    Compared,
    Exact,
    Json,
    Names,
    Number,
    Sequence,
    Wording,
    YesNo,
)
from tests.local_models.exam.judging import judge

POSITIVE = Names(accepted=("positive",), rivals=("positive", "negative", "neutral"))
CANBERRA = Names(accepted=("Canberra",), rivals=("Sydney", "Wellington"))
BOGOTA = Names(accepted=("Bogotá",), rivals=("Lima",))
GOLD = Names(accepted=("Au",), rivals=("Ag", "Al"), exact_case=True)
MAIL = Exact(text="a.b@example.com", similar=r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", case_matters=False)
ISO = Exact(
    text="2024-03-05", similar=r"\d{4}-\d\d-\d\d|\d\d?/\d\d?/\d{4}", given=("5 March 2024",)
)
UPPER = Exact(text="NEW DESK FOR ANNA")
FORTY_TWO = Number(value="42", units=(" minutes", " min"))
HALF = Number(value="0.5")
LARGER = Compared(value="9.8", other="9.11", larger=True)
SORTED = Sequence(items=("3", "20", "100"))
RECORD = Json(wanted={"name": "Anna Ito", "age": 31})
TIMER = Call(name="set_timer", arguments={"minutes": 5})
SUMMARY = Wording(
    required=(("Oslo",), ("35",)), words_max=10, words_min=4, sentences_max=1
)  # fmt: skip
REPLACED = Wording(required=(("desk",), ("Anna",)), forbidden=("lamp",), words_min=4, words_max=4)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (POSITIVE, "positive"),
        (POSITIVE, "Positive."),
        (POSITIVE, "The sentiment of this review is **positive**."),
        (POSITIVE, "This is not negative but positive."),
        (POSITIVE, "Positive or negative? The sentiment is: positive"),
        (POSITIVE, "Sentiment: Positive\n\nThe customer loved it."),
        (CANBERRA, "The capital of Australia is Canberra, not Sydney."),
        (CANBERRA, "canberra"),
        (BOGOTA, "Bogota"),
        (GOLD, "The symbol is `Au`."),
        (MAIL, "Sure! The e-mail address is A.B@example.com."),
        (MAIL, "<a.b@example.com>"),
        (ISO, "5 March 2024 is 2024-03-05."),
        (UPPER, '"NEW DESK FOR ANNA"'),
        (UPPER, "Here it is: NEW DESK FOR ANNA"),
        (UPPER, "The text in upper case is:\n\n**NEW DESK FOR ANNA**"),
        (FORTY_TWO, "42"),
        (FORTY_TWO, "17 + 25 = 42"),
        (FORTY_TWO, "42 minutes are in 0.7 hours."),
        (FORTY_TWO, "There are 12 and 30, so the answer is 42."),
        (FORTY_TWO, "**42**"),
        (Number(value="1200"), "1,200 meters"),
        (HALF, "0.50"),
        (LARGER, "9.8"),
        (LARGER, "9.8 is larger than 9.11."),
        (LARGER, "9.11 is smaller than 9.8"),
        (LARGER, "9.8 > 9.11"),
        (LARGER, "The larger number is 9.8."),
        (SORTED, "3, 20, 100"),
        (SORTED, "1. 3\n2. 20\n3. 100"),
        (SORTED, "Sorted in ascending order: 3, 20, 100."),
        (RECORD, '```json\n{"name": "Anna Ito", "age": 31}\n```'),
        (RECORD, 'Here: {"name": "anna ito", "age": "31"}'),
        (TIMER, '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 5}}\n</tool_call>'),
        (YesNo(yes=True), "Yes, Paris is the capital of France."),
        (YesNo(yes=True), "The statement is true."),
        (YesNo(yes=False), "No, it is not correct."),
        (YesNo(yes=False), "That is incorrect."),
        (SUMMARY, "Summary: A firm in Oslo hires 35 people."),
        (REPLACED, "The desk pleased Anna."),
    ],
)  # fmt: skip
def test_a_right_answer_is_accepted_in_many_forms(truth: Truth, answer: str) -> None:
    """A patient reader reads past politeness, markdown, units and an explanation."""
    assert judge(truth, answer).lenient


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (POSITIVE, "not positive"),
        (POSITIVE, "The review isn't positive."),
        (POSITIVE, "neither positive nor negative"),
        (POSITIVE, "positive or negative"),
        (POSITIVE, "positive/negative"),
        (POSITIVE, "negative"),
        (POSITIVE, "It is positive and negative."),
        (POSITIVE, "seropositive"),
        (POSITIVE, "non-positive"),
        (POSITIVE, "It is anything rather than positive."),
        (POSITIVE, "The sentiment is negative, although some would call it positive."),
        (POSITIVE, ""),
        (CANBERRA, "Sydney"),
        (CANBERRA, "The capital of Australia is Sydney, not Canberra."),
        (CANBERRA, "Canberra or Melbourne"),
        (CANBERRA, "Canberras"),
        (GOLD, "au"),
        (GOLD, "Gold"),
        (MAIL, "xa.b@example.com"),
        (MAIL, "a.b@example.com.au"),
        (MAIL, "a.b@example.com and c@example.com"),
        (MAIL, "a.b at example.com"),
        (ISO, "2024-05-03"),
        (ISO, "2024-03-05 or 2024-05-03"),
        (ISO, "12024-03-055"),
        (UPPER, "New desk for Anna"),
        (UPPER, "NEW DESK FOR ANNABEL"),
        (UPPER, "A NEW DESK FOR ANNA"),
        (FORTY_TWO, "142"),
        (FORTY_TWO, "42.5"),
        (FORTY_TWO, "-42"),
        (FORTY_TWO, "41 or 42"),
        (FORTY_TWO, "42. No: 17 + 25 = 41"),
        (FORTY_TWO, "17 + 42 = 59"),
        (FORTY_TWO, "It is not a number."),
        (HALF, "5"),
        (LARGER, "9.11"),
        (LARGER, "9.11 is larger than 9.8"),
        (LARGER, "9.8 < 9.11"),
        (LARGER, "9.85"),
        (LARGER, "8"),
        (LARGER, "Both 9.8 and 9.11."),
        (SORTED, "100, 20, 3"),
        (SORTED, "3, 20"),
        (SORTED, "3, 20, 100, 7"),
        (SORTED, "3, 20, 1000"),
        (RECORD, '{"name": "Anna Ito"}'),
        (RECORD, '{"name": "Anna Ito", "age": 31, "city": "Oslo"}'),
        (RECORD, '{"name": "Anna Ito", "age": 32}'),
        (RECORD, '{"name": "Anna Ito", "age": true}'),
        (RECORD, '{"name": "Anna Ito", "age": 31} {"name": "Ben", "age": 2}'),
        (RECORD, "name: Anna Ito, age: 31"),
        (RECORD, "[" * 3_000),
        (TIMER, '{"name": "set_alarm", "arguments": {"minutes": 5}}'),
        (TIMER, '{"name": "set_timer", "arguments": {"minutes": 6}}'),
        (TIMER, '{"name": "set_timer", "minutes": 5}'),
        (YesNo(yes=True), "No."),
        (YesNo(yes=True), "Yes and no."),
        (YesNo(yes=True), "Not true."),
        (YesNo(yes=True), "Eyes"),
        (YesNo(yes=True), "I know."),
        (YesNo(yes=False), "None"),
        (YesNo(yes=False), "Yes."),
        (SUMMARY, "A firm in Oslo hires 135 people."),
        (SUMMARY, "Oslo 35"),
        (SUMMARY, "A firm in Oslo hires 35 people, " + "and more " * 9 + "still."),
        (REPLACED, "The lamp pleased Anna."),
        (REPLACED, "The desk and lamp."),
        (REPLACED, "The desk pleased Annabel."),
    ],
)  # fmt: skip
def test_a_wrong_answer_with_the_right_words_is_refused(truth: Truth, answer: str) -> None:
    """Negations, hedges, neighbours of numbers, and parts of longer words name nothing."""
    assert not judge(truth, answer).lenient


@pytest.mark.parametrize(
    ("truth", "answer", "strict"),
    [
        (POSITIVE, "Positive", True),
        (POSITIVE, "Positive.", False),
        (MAIL, " a.b@example.com\n", True),
        (MAIL, "E-mail: a.b@example.com", False),
        (FORTY_TWO, "42", True),
        (FORTY_TWO, "42 minutes", True),
        (FORTY_TWO, "42 apples", False),
        (FORTY_TWO, "**42**", False),
        (ISO, "2024-03-05", True),
        (ISO, "2024-03-05.", False),
        (RECORD, '{"age": 31, "name": "Anna Ito"}', True),
        (RECORD, '{"age": "31", "name": "Anna Ito"}', False),
        (RECORD, '```json\n{"name": "Anna Ito", "age": 31}\n```', False),
        (YesNo(yes=True), "Yes", True),
        (YesNo(yes=True), "Yes.", False),
        (SORTED, "3,20,100", True),
        (SORTED, "3, 20, 100.", False),
        (LARGER, "9.8", True),
        (LARGER, "9.80", False),
        (TIMER, '{"name": "set_timer", "arguments": {"minutes": 5}}', True),
        (SUMMARY, "A firm in Oslo hires 35 people.", True),
        (SUMMARY, "Summary:\nA firm in Oslo hires 35 people.", False),
    ],
)
def test_strict_is_the_answer_alone_as_asked(truth: Truth, answer: str, strict: bool) -> None:
    """What a program could use without reading: white space at the ends is all it forgives."""
    assert judge(truth, answer).strict is strict


@pytest.mark.parametrize(
    "hostile", ["{" * 3_999, "1" * 3_999, "not " * 999, "```" * 1_300, "\x00\ud800", "1" * 5_000]
)
def test_no_answer_breaks_a_verdict(hostile: str) -> None:
    """A model may say anything of any length; the verdict is "wrong", soon."""
    every: list[Any] = [POSITIVE, MAIL, UPPER, FORTY_TWO, LARGER, SORTED, RECORD, TIMER, SUMMARY]
    for truth in every:
        assert not judge(truth, hostile).lenient
