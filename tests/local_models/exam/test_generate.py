"""The exam's tasks: many, different, the same everywhere, and each with an answer that is right."""

import json
import re
from random import Random

import jsonschema  # type: ignore[import-untyped]
import pytest

from local_models.exam.generate import TASKS, UnknownKind, tasks
from local_models.exam.kinds import KINDS
from local_models.exam.task import Verdict
from local_models.exam.verdicts import Exact, Names


def test_there_are_at_least_twenty_kinds_in_at_least_five_wordings() -> None:
    """A wording is not the kind."""
    assert len(KINDS) >= 20
    for kind in KINDS.values():
        assert kind.wordings
        for family in kind.wordings.values():
            assert len(set(family)) >= 5
        assert len({len(family) for family in kind.wordings.values()}) == 1, kind.name


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_two_hundred_distinct_tasks_in_every_wording(name: str) -> None:
    """None asks the same as another, and most wordings come often."""
    made = tasks(name, TASKS)
    assert len({task.prompt for task in made}) == TASKS == 200
    wordings = len(next(iter(KINDS[name].wordings.values())))
    assert {task.wording for task in made} == set(range(wordings))
    assert max(len(task.prompt) for task in made) < 500


@pytest.mark.parametrize("name", KINDS)
def test_a_kinds_tasks_follow_from_its_seed(name: str) -> None:
    """The same seed gives the same tasks, a longer list begins with the shorter one."""
    assert tasks(name, 12, seed=3) == tasks(name, 20, seed=3)[:12]
    assert tasks(name, 12, seed=3) != tasks(name, 12, seed=4)


@pytest.mark.parametrize("name", KINDS)
def test_the_ideal_answer_is_right_and_another_tasks_is_wrong(name: str) -> None:
    """By both verdicts; and what is right elsewhere is no answer here, but by chance."""
    made = tasks(name, 24, seed=5)
    right = Verdict(True, True)
    for task, other in zip(made, made[1:] + made[:1], strict=True):
        assert task.judge(task.truth.ideal()) == right, task.prompt
        if other.truth.ideal().casefold() != task.truth.ideal().casefold():
            assert not task.judge(other.truth.ideal()).strict, task.prompt
        assert not task.judge("I do not know.").lenient
        assert not task.judge(task.prompt).strict


@pytest.mark.parametrize("name", KINDS)
def test_the_ideal_answer_keeps_the_constraint(name: str) -> None:
    """A constraint never makes the right answer impossible."""
    for task in tasks(name, 40, seed=6):
        constraint, ideal = task.constraint, task.truth.ideal()
        if constraint.type == "choice":
            assert ideal in constraint.choices
        elif constraint.type == "regex":
            assert re.fullmatch(constraint.regex, ideal), (constraint.regex, ideal)
        elif constraint.type == "json_schema":
            jsonschema.validate(json.loads(ideal), constraint.schema)
        else:
            call = json.loads(ideal)
            tools = {tool["function"]["name"]: tool["function"] for tool in constraint.tools}
            jsonschema.validate(call["arguments"], tools[call["name"]]["parameters"])


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """One sentence that helps."""
    with pytest.raises(UnknownKind, match="known are extract_email, "):
        tasks("poetry")


def test_an_answer_chosen_blindly_is_rarely_right() -> None:
    """Where there are choices, chance is what one in so many is."""
    rng = Random(1)
    for kind in KINDS.values():
        if not kind.chance:
            continue
        made = tasks(kind.name, 200)
        hits = sum(task.judge(rng.choice(task.constraint.choices)).lenient for task in made)
        assert abs(hits / len(made) - kind.chance) < 0.12, kind.name


@pytest.mark.parametrize(
    ("written", "right", "wrong"),
    [
        ("€", ["{}", "€{}", "{} EUR", "{} euros"], ["${}", "{} dollars", "{} USD"]),
        ("$", ["{}", "${}", "{} dollars"], ["€{}", "{} EUR", "{} euros"]),
    ],
)
def test_an_amount_in_another_currency_is_another_amount(
    written: str, right: list[str], wrong: list[str]
) -> None:
    """A copied number that gets a wrong sign would be booked wrongly by the reader."""
    for task in tasks("extract_amount", 200):
        assert isinstance(task.truth, Names)
        said, number = task.truth.accepted
        if not said.startswith(written):
            continue
        assert all(task.truth.lenient(form.format(number)) for form in right)
        assert not any(task.truth.lenient(form.format(number)) for form in wrong)


def test_a_date_that_is_to_be_copied_is_right_only_as_it_is_written() -> None:
    """Two wordings ask for the text itself: the same day in another form is no copy of it."""
    kind, copied = KINDS["extract_date"], 0
    for task in tasks("extract_date", 200):
        assert isinstance(task.truth, Exact)
        assert task.truth.lenient(task.truth.text)
        if task.wording in kind.verbatim:
            copied += 1
            assert "as it is written" in task.prompt or "Copy the date" in task.prompt
            assert task.truth.also == ()
        else:
            assert len(task.truth.also) > 1
    assert copied > 30
