"""A task's constraint in the engine's words, as the gateway would send it.

A form is what a request to the gateway can carry: ``response_format`` with a schema, a regex, or
``tools`` of which one must be called.
"""

import json
from functools import cache
from typing import Any

import msgspec

from local_models.exam.generate import tasks
from local_models.exam.task import Constraint
from local_models.messages import Constraint as EngineConstraint
from local_models.tool_calls import Called, Calling, Reader, Tool


def engine_constraint(constraint: Constraint) -> EngineConstraint:
    """What the engine is told about the form of the answer."""
    match constraint.type:
        case "choice":
            if not constraint.name:
                return EngineConstraint("choice", json.dumps(constraint.choices))
            return _field(constraint.name, {"type": "string", "enum": list(constraint.choices)})
        case "regex":
            if not constraint.name:
                return EngineConstraint("regex", constraint.regex)
            pattern = f"^(?:{constraint.regex})$"
            return _field(constraint.name, {"type": "string", "pattern": pattern})
        case "json_schema":
            return EngineConstraint("json", json.dumps(constraint.schema))
        case "tool":
            tools = tuple(
                Tool(tool["function"]["name"], tool["function"]["parameters"])
                for tool in constraint.tools
            )
            calling = Calling(tools, required=True, parallel=False)
            return EngineConstraint("calls", msgspec.json.encode(calling).decode())


def bare(constraint: Constraint, output: str) -> str:
    """The answer in a constrained output: what its one field holds, a call without its marks,
    else the output itself.

    An output that was cut short is left as it is, and judged so.
    """
    if constraint.type == "tool":
        return _call(constraint, output)
    if not constraint.name:
        return output
    try:
        return str(json.loads(output)[constraint.name])
    except (ValueError, KeyError, TypeError):
        return output


def _call(constraint: Constraint, output: str) -> str:
    """The only call, as the gateway reads it, as a JSON object of name and arguments."""
    reader = Reader({tool["function"]["name"] for tool in constraint.tools})
    pieces = [*reader.push(output), *reader.flush()]
    called = [piece for piece in pieces if isinstance(piece, Called)]
    if reader.calls != 1:
        return output
    name = "".join(piece.name for piece in called)
    arguments = "".join(piece.arguments for piece in called)
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def _field(name: str, schema: dict[str, Any]) -> EngineConstraint:
    document = {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }
    return EngineConstraint("json", json.dumps(document))


_SAMPLE = 16
"""Tasks of a kind that show its forms, and whether its choices are always the same."""


def asked_so(kind: str, schema: object) -> bool:
    """Whether a request's JSON Schema is of the form in which the exam asked this kind.

    One string field with the exam's own pattern, or with as many values as there are choices (where
    the kind's are always the same, with those); or a document of fields that are described alike.
    Another pattern is another question: of "September 10, 2023", DD/MM/YYYY made 0.5B "20/09/2023".
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or not isinstance(properties, dict) or not properties:
        return False
    required = schema.get("required")
    if not isinstance(required, list) or [*properties] != required:
        return False
    samples = _samples(kind)
    if samples[0].type == "json_schema":
        return any(_fields(each.schema) == _fields(schema) for each in samples)
    field = _described(next(iter(properties.values())))
    if len(properties) != 1 or not isinstance(field, dict) or field.get("type") != "string":
        return False
    if field.keys() == {"type", "pattern"}:
        return field["pattern"] in _patterns(kind)
    if field.keys() != {"type", "enum"}:
        return False
    values = field["enum"]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return False
    offered = {tuple(sorted(each.choices)) for each in samples if each.type == "choice"}
    if len(offered) == 1:
        return sorted(values) == [*offered.pop()]
    return len(values) in map(len, offered)


@cache
def _samples(kind: str) -> tuple[Constraint, ...]:
    return tuple(task.constraint for task in tasks(kind, _SAMPLE))


@cache
def _patterns(kind: str) -> frozenset[str]:
    """The exam's, as it writes them, and as people do."""
    own = {each.regex for each in _samples(kind) if each.type == "regex"}
    return frozenset(way.format(each) for each in own for way in ("^(?:{})$", "^({})$", "^{}$"))


_SAID = ("title", "description")
"""Words on a field that forbid no answer, and that no local model reads."""


def _described(field: object) -> dict[str, Any]:
    return {k: v for k, v in field.items() if k not in _SAID} if isinstance(field, dict) else {}


def _fields(schema: dict[str, Any] | None) -> set[str]:
    """How the fields of a document are described, whatever their names."""
    properties = (schema or {}).get("properties", {})
    return {json.dumps(_described(field), sort_keys=True) for field in properties.values()}
