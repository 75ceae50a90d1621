"""A task around a truth, to be judged."""

from local_models.exam.task import Constraint, Task, Truth, Verdict


def judge(truth: Truth, answer: str) -> Verdict:
    """The verdict on an answer to a task with this truth."""
    constraint = Constraint(type="regex", regex=".*")
    task = Task(
        kind="any", wording=0, prompt="?", truth=truth, constraint=constraint, max_tokens=16
    )
    return task.judge(answer)
