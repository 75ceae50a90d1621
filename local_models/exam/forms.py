"""A task's constraint in the engine's words."""

import json
from typing import Any

from local_models.exam.task import Constraint
from local_models.messages import Constraint as EngineConstraint


def engine_constraint(constraint: Constraint) -> EngineConstraint:
    """What the engine is told. A tool call is a JSON document: one of the tools, its arguments."""
    match constraint.type:
        case "choice":
            return EngineConstraint("choice", json.dumps(constraint.choices))
        case "regex":
            if not constraint.name:
                return EngineConstraint("regex", constraint.regex)
            return EngineConstraint("json", json.dumps(_field(constraint)))
        case "json_schema":
            return EngineConstraint("json", json.dumps(constraint.schema))
        case "tool":
            return EngineConstraint("json", json.dumps(_calls(constraint.tools)))


def bare(constraint: Constraint, output: str) -> str:
    """The answer in a constrained output: what its one field holds, else the output itself.

    An output that was cut short is left as it is, and judged so.
    """
    if not constraint.name:
        return output
    try:
        return str(json.loads(output)[constraint.name])
    except (ValueError, KeyError, TypeError):
        return output


def _field(constraint: Constraint) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {constraint.name: {"type": "string", "pattern": f"^(?:{constraint.regex})$"}},
        "required": [constraint.name],
        "additionalProperties": False,
    }


def _calls(tools: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["function"]["name"]},
                    "arguments": tool["function"]["parameters"],
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
    }
