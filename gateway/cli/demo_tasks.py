"""What the demo asks the local model: tasks of the exam, chosen by a rule and not by their answers.

Of six kinds that Qwen2.5-Coder-0.5B's exam found it good at, the shortest of the first twenty tasks
that the exam's generator makes from another seed than the exam's own. Does not know HTTP.
"""

import json
from typing import Any

from local_models.catalogue import load_catalogue
from local_models.exam.forms import bare, engine_constraint
from local_models.exam.generate import tasks
from local_models.exam.results import BadResult, shipped
from local_models.exam.task import Task

# Not extract_amount: 1.5B writes dollars for euros.
KINDS = (
    "extract_email",
    "extract_number",
    "extract_date",
    "extract_field",
    "record_to_json",
    "sentiment",
)
SEED = 1
AMONG = 20
RULE = (
    f"of kinds that 0.5b's exam is good in, the shortest of the first {AMONG} each (seed {SEED}),"
    " whatever comes"
)


def chosen() -> list[Task]:
    """Return the tasks, one of each kind."""
    return [min(tasks(kind, AMONG, SEED), key=lambda task: len(task.prompt)) for kind in KINDS]


def form_of(task: Task) -> dict[str, Any]:
    """Return the field of a request that holds the output to the task's form, as the exam does.

    All of KINDS have a JSON Schema, which OpenAI's API knows, too.
    """
    constraint = engine_constraint(task.constraint)
    assert constraint.kind == "json", "KINDS are chosen so"
    schema = {
        "name": task.constraint.name or task.kind,
        "strict": True,
        "schema": json.loads(constraint.source),
    }
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def answer_of(task: Task, output: str) -> str:
    """Return the answer in an output: the value of its one JSON field, or the output itself."""
    return bare(task.constraint, output)


def counted(model: str, kind: str) -> str:
    """Say how often the shipped exam found a model right in a kind, held to the same form."""
    entry = load_catalogue().get(model)
    file = entry.files.get("model.gguf") if entry is not None else None
    try:
        result = shipped(file.sha256) if file is not None else None
    except BadResult:
        result = None
    count = result.kinds.get(kind, {}).get("constrained") if result is not None else None
    return f"{count.lenient} of {count.tasks}" if count is not None else "not asked"
