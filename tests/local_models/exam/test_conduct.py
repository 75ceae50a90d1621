"""Holding an exam: every task once, interrupted or not, and counts of what was answered."""

from collections.abc import Callable
from pathlib import Path

import pytest

from local_models.exam.conduct import Course, Interrupted, conduct, read_progress
from local_models.exam.generate import tasks
from local_models.exam.results import count
from local_models.messages import Delta, Finished, FinishReason, GenerationRequest, LocalModelError

KINDS = ("sentiment", "fill_json", "call_tool")
COURSE = Course(kinds=KINDS, count=6, seed=4)


class Parrot:
    """An engine that knows the right answers, and gives them when it is asked in a form."""

    def __init__(self, fails: str = "") -> None:
        self.asked: list[GenerationRequest] = []
        self.fails = fails

    def submit(
        self, request: GenerationRequest, deliver: Callable[[str, Delta | Finished], None]
    ) -> None:
        """Answer at once, in two pieces."""
        self.asked.append(request)
        kind, form, number = request.request_id.split("/")
        ideal = tasks(kind, COURSE.count, COURSE.seed)[int(number)].truth.ideal()
        text = ideal if form == "constrained" else f"Surely: {ideal}"
        for part in (text[:3], text[3:]):
            deliver(request.request_id, Delta(part, 1))
        reason: FinishReason = "error" if request.request_id == self.fails else "stop"
        deliver(request.request_id, Finished(reason, 5, 2, 10, "out of luck" if self.fails else ""))


def test_every_task_is_asked_once_in_each_form(tmp_path: Path) -> None:
    """Constrained requests carry a constraint, free ones none; both are counted apart."""
    parrot = Parrot()
    judged = conduct(parrot, COURSE, tmp_path / "progress", in_flight=4)
    assert len(judged) == len(parrot.asked) == 3 * 2 * 6
    for request in parrot.asked:
        assert (request.constraint is not None) is ("/constrained/" in request.request_id)
        tools = request.request_id.startswith("call_tool/constrained/")
        assert (request.tools is not None) is tools, "told as a client tells them, not in prose"
    counts = count(judged)
    assert list(counts) == ["fill_json", "sentiment", "call_tool"]
    for forms in counts.values():
        assert (forms["constrained"].lenient, forms["constrained"].strict) == (6, 6)
        assert (forms["free"].tasks, forms["free"].lenient, forms["free"].strict) == (6, 6, 0)
        assert sum(asked for asked, _ in forms["free"].wordings) == 6


def test_an_interrupted_exam_goes_on_where_it_was(tmp_path: Path) -> None:
    """No task is asked twice, and the counts are those of an exam without a pause."""
    progress, first = tmp_path / "progress", Parrot()
    with pytest.raises(Interrupted, match="of 36 answers; the same command goes on"):
        conduct(first, COURSE, progress, in_flight=2, paused=lambda: len(first.asked) > 9)
    done = read_progress(progress)
    assert 0 < len(done) < 36
    second = Parrot()
    judged = conduct(second, COURSE, progress, in_flight=2)
    assert len(done) + len(second.asked) == 36
    assert count(judged) == count(conduct(Parrot(), COURSE, tmp_path / "other", in_flight=8))


def test_a_cut_line_of_the_progress_file_is_asked_again(tmp_path: Path) -> None:
    """A crash while writing loses one verdict, not the exam."""
    progress = tmp_path / "progress"
    conduct(Parrot(), COURSE, progress, in_flight=2)
    whole = progress.read_bytes()
    progress.write_bytes(whole[:-20] + b"\n")
    again = Parrot()
    assert len(conduct(again, COURSE, progress, in_flight=2)) == 36
    assert len(again.asked) == 1


def test_a_failing_engine_ends_the_exam_and_says_at_which_task(tmp_path: Path) -> None:
    """What was judged before is kept."""
    with pytest.raises(LocalModelError, match=r"sentiment/free/3 failed: out of luck"):
        conduct(Parrot("sentiment/free/3"), COURSE, tmp_path / "progress", in_flight=1)
    assert len(read_progress(tmp_path / "progress")) == 18
