"""The kind detector: right on other wordings, silent on what only looks alike."""

import time
from itertools import islice

import pytest

from local_models.exam.detect import CHARACTERS_MAX, DETECTABLE, detect, detect_text
from local_models.exam.generate import stream, tasks
from local_models.exam.kinds import KINDS
from tests.local_models.exam.other_wordings import FOREIGN, OTHER_WORDINGS


@pytest.mark.parametrize("kind", sorted(DETECTABLE))
def test_other_wordings_of_a_kind_are_its_own_or_none(kind: str) -> None:
    """Six and more wordings each that no rule was written for: never another kind."""
    assert all(len(family) >= 6 for family in OTHER_WORDINGS[kind].values())
    made = islice(stream(KINDS[kind], 17, OTHER_WORDINGS[kind]), 150)
    found = [detect_text(task.prompt) for task in made]
    assert {*found} <= {kind, None}
    assert found.count(kind) >= 0.6 * len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exams_own_tasks_are_found_or_none(kind: str) -> None:
    """A kind without a narrow form is never found."""
    found = {detect_text(task.prompt) for task in tasks(kind, 120, 18)}
    assert found <= ({kind, None} if kind in DETECTABLE else {None})


@pytest.mark.parametrize("prompt", FOREIGN)
def test_what_only_looks_like_a_kind_is_none(prompt: str) -> None:
    """The capital gains tax is no capital."""
    assert detect_text(prompt) is None


def test_only_a_users_message_that_stands_alone_is_looked_at() -> None:
    """A system message or a history may change what is asked for."""
    user = {"role": "user", "content": "What is the capital of France?"}
    assert detect([user]) == "capital"
    assert detect([{"role": "system", "content": "Answer in verse."}, user]) is None
    assert detect([user, {"role": "assistant", "content": "Paris"}, user]) is None
    assert detect([{"role": "user", "content": [{"type": "text", "text": "…"}]}]) is None
    assert detect([{"role": "assistant", "content": user["content"]}]) is None
    assert detect([]) is None


@pytest.mark.parametrize(
    "text",
    ['"' * 700, "Email: " * 100, "1 + " * 200, "a: b\n" * 150, "date " * 150 + "@", "\x00" * 700],
)
def test_hostile_text_costs_little(text: str) -> None:
    """No pattern backtracks for long: a millisecond of processor time or two."""
    began = time.thread_time()
    for _ in range(5):
        assert detect_text(text) is None
    assert time.thread_time() - began < 0.1
    assert detect_text("What is the capital of France?" + " " * CHARACTERS_MAX) is None
