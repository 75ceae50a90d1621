"""What the demo asks the local model: tasks of the exam, chosen by a rule and not by their answers.

Of six kinds that applications want, the shortest of the first twenty tasks that the exam's
generator makes from another seed than the exam's own. Knows the exam; does not know HTTP.
"""

import json
from typing import Any

from local_models.catalogue import load_catalogue
from local_models.exam.forms import bare, engine_constraint
from local_models.exam.generate import tasks
from local_models.exam.results import BadResult, shipped
from local_models.exam.task import Task

KINDS = (
    "extract_email",
    "extract_field",
    "extract_number",
    "extract_date",
    "classify_ticket",
    "sentiment",
)
SEED = 1
AMONG = 20
RULE = f"the shortest of each kind's first {AMONG} in the exam (seed {SEED}), whatever comes"


def chosen() -> list[Task]:
    """Return the tasks, one of each kind."""
    return [min(tasks(kind, AMONG, SEED), key=lambda task: len(task.prompt)) for kind in KINDS]


def form_of(task: Task) -> dict[str, Any]:
    """Return the field of a request that holds the output to the task's form, as the exam does.

    A JSON Schema where the exam has one. Of a choice OpenAI's API has no word; vLLM's is taken.
    """
    constraint = engine_constraint(task.constraint)
    source = json.loads(constraint.source)
    if constraint.kind == "choice":
        return {"extra_body": {"structured_outputs": {"choice": source}}}
    schema = {"name": task.constraint.name, "strict": True, "schema": source}
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
