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
            return EngineConstraint("regex", constraint.regex)
        case "json_schema":
            return EngineConstraint("json", json.dumps(constraint.schema))
        case "tool":
            return EngineConstraint("json", json.dumps(_calls(constraint.tools)))


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
