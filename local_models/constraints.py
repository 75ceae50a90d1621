"""Which forms of an answer can be kept at all, told before a model is asked.

Pure and cheap: a router may ask it, too. Knows no grammar library and no model.
"""

import json
from typing import Any

import msgspec

from local_models.json_schema import SCHEMA_BYTES_MAX, refuse_unsupported
from local_models.messages import Constraint, InvalidPrompt
from local_models.tool_calls import Calling
from local_models.tool_calls import check as check_calling

REGEX_CHARACTERS_MAX = 4_000
CHOICES_MAX = 1_000
CHOICE_CHARACTERS_MAX = 2_000


def check(constraint: Constraint) -> None:
    """Raise InvalidPrompt, naming the place, for what no grammar is made of. Cheap and pure."""
    source = constraint.source
    match constraint.kind:
        case "json":
            if len(source) > SCHEMA_BYTES_MAX:
                raise InvalidPrompt(f"the schema is over {SCHEMA_BYTES_MAX} bytes")
            refuse_unsupported(decoded(source))
        case "calls":
            if len(source) > SCHEMA_BYTES_MAX:
                raise InvalidPrompt(f"the tools are over {SCHEMA_BYTES_MAX} bytes")
            check_calling(calling_of(source))
        case "regex":
            if len(source) > REGEX_CHARACTERS_MAX:
                raise InvalidPrompt(f"the regex is over {REGEX_CHARACTERS_MAX} characters")
        case "choice":
            choices = decoded(source)
            whole = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
            if not whole or not 0 < len(choices) <= CHOICES_MAX:
                raise InvalidPrompt(f"choice must be a list of 1 to {CHOICES_MAX} texts")
            if max(map(len, choices)) > CHOICE_CHARACTERS_MAX:
                raise InvalidPrompt(f"a choice is over {CHOICE_CHARACTERS_MAX} characters")


def calling_of(source: str) -> Calling:
    """A constraint's source of kind "calls". Raises InvalidPrompt."""
    try:
        return msgspec.json.decode(source, type=Calling)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidPrompt(f"tools: {error}") from error


def decoded(source: str) -> Any:
    """A constraint's source as a value. Raises InvalidPrompt."""
    try:
        return json.loads(source, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidPrompt("the schema is not JSON, or too deep") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
