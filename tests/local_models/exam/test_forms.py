"""Forms of output: what the engine is told, what comes back, and which requests are asked so."""

import json
from typing import Any

import pytest

from local_models.exam.forms import asked_so, bare, engine_constraint
from local_models.exam.generate import tasks
from local_models.exam.kinds import KINDS
from local_models.tool_calls import BEGIN, END


@pytest.mark.parametrize("kind", KINDS)
def test_the_exams_own_form_is_one_in_which_it_asked(kind: str) -> None:
    """Of each kind whose form a JSON Schema tells; tools and code are no such forms."""
    sources = [
        json.loads(engine_constraint(task.constraint).source)
        for task in tasks(kind, 8)
        if task.constraint.name or task.constraint.type == "json_schema"
    ]
    assert all(asked_so(kind, source) for source in sources)
    assert bool(sources) is (kind not in ("write_code", "call_tool"))


def _one(name: str, field: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: field}, "required": [name], **more}


_DATE = {
    "type": "string",
    "pattern": f"^(?:{tasks('extract_date', 1)[0].constraint.regex})$",
}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("sentiment", None),
        ("sentiment", {"type": "object"}),
        ("sentiment", {"type": "object", "properties": {}, "required": []}),
        ("sentiment", _one("sentiment", {"type": "string"})),
        ("sentiment", _one("sentiment", {"type": "string", "enum": ["good", "bad"]})),
        ("sentiment", _one("sentiment", {"enum": ["positive", "negative", "neutral"]})),
        ("sentiment", {**_one("sentiment", {"type": "string", "enum": []}), "required": []}),
        ("extract_email", _one("email", {"type": "string"})),
        (
            "extract_date",
            _one("date", {"type": "string", "pattern": "^[0-9]{2}/[0-9]{2}/[0-9]{4}$"}),
        ),
        ("extract_date", _one("date", {"type": "string", "pattern": "^(yes|no)$"})),
        ("extract_date", _one("date", {**_DATE, "minLength": 20})),
        ("extract_email", _one("email", {"type": "array", "items": {"type": "string"}})),
        ("list_to_json", _one("items", {"type": "string"})),
        ("record_to_json", _one("age", {"type": "integer"})),
        ("record_to_json", _one("City", {"type": "string", "pattern": "^[A-Z]{2}$"})),
        ("record_to_json", _one("City", {"type": "string", "enum": ["Rome"]})),
    ],
)
def test_another_schema_is_another_question(kind: str, schema: object) -> None:
    """The exam did not ask for reasons beside the label, nor for other labels or patterns."""
    assert not asked_so(kind, schema)


def test_names_and_descriptions_of_fields_do_not_make_another_question() -> None:
    """The same pattern under another name, with a title, is what the exam asked."""
    assert asked_so("extract_date", _one("when", {**_DATE, "title": "Day", "description": "Of it"}))
    grouped = {"type": "string", "pattern": f"^({tasks('extract_date', 1)[0].constraint.regex})$"}
    assert asked_so("extract_date", _one("date", grouped))
    assert asked_so("record_to_json", _one("City", {"type": "string", "title": "City"}))


def test_a_call_is_read_as_the_gateway_reads_it() -> None:
    """Without its marks; two calls, or none, are left as they are, and judged so."""
    task = tasks("call_tool", 1)[0]
    call = task.truth.ideal()
    marked = f"{BEGIN}\n{call}\n{END}"
    assert task.judge(bare(task.constraint, marked)).strict
    for output in (f"{marked}\n{marked}", "I cannot."):
        assert bare(task.constraint, output) == output


def test_a_field_is_its_value_and_a_cut_document_stays() -> None:
    """An answer that ran out of tokens is no answer."""
    constraint = tasks("extract_email", 1)[0].constraint
    assert bare(constraint, '{"email_address": "a@b.de"}') == "a@b.de"
    assert bare(constraint, '{"email_address": "a@b') == '{"email_address": "a@b'
