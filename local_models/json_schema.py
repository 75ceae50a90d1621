"""Which JSON Schemas can be kept, told before a model is asked.

A pure check by names: a keyword that the grammar cannot enforce is refused by its path, never
passed over. Knows no grammar and no model, so that a router may ask it.
"""

from typing import Any

from local_models.messages import InvalidPrompt

SCHEMA_BYTES_MAX = 128 << 10
"""Of a schema's JSON text."""

SCHEMA_DEPTH_MAX = 32
SCHEMA_NODES_MAX = 4_000
"""Schemas within a schema."""

ENUM_VALUES_MAX = 2_000
REPEATS_MAX = 10_000
"""Of minLength, maxLength, minItems and maxItems."""

_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
# Enforced by the grammar. The tests hold each against an independent validator.
_ONE = ("items", "additionalProperties")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_PLAIN = ("type", "enum", "const", "pattern", "format", "required", "multipleOf", "$ref")
# Of no effect on what is valid.
ANNOTATIONS = frozenset({
    "$comment", "$schema", "contentEncoding", "contentMediaType", "default", "deprecated",
    "description", "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
})  # fmt: skip
FORMATS = frozenset({
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
})  # fmt: skip


def refuse_unsupported(schema: Any) -> None:
    """Raise InvalidPrompt, with the place, for a schema that the grammar would not enforce."""
    _Walk().schema(schema, "schema", 0)


class _Walk:
    """One walk over a schema; counts what it has seen."""

    def __init__(self) -> None:
        self._nodes = 0

    def schema(self, schema: Any, place: str, depth: int) -> None:
        """Check one schema and those within it."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidPrompt(f"{place} must be an object, true or false")
        self._nodes += 1
        if depth > SCHEMA_DEPTH_MAX:
            raise InvalidPrompt(f"{place} is over {SCHEMA_DEPTH_MAX} levels deep")
        if self._nodes > SCHEMA_NODES_MAX:
            raise InvalidPrompt(f"the schema holds more than {SCHEMA_NODES_MAX} schemas")
        for keyword, value in schema.items():
            self._keyword(keyword, value, f"{place}.{keyword}", depth)
        _refuse_unsure(schema, place)

    def _keyword(self, keyword: str, value: Any, place: str, depth: int) -> None:
        if keyword in _ONE:
            self.schema(value, place, depth + 1)
        elif keyword in _LISTS:
            for number, part in enumerate(_checked(value, list, place, "a list")):
                self.schema(part, f"{place}[{number}]", depth + 1)
        elif keyword in _MAPS:
            for name, part in _checked(value, dict, place, "an object").items():
                self.schema(part, f"{place}.{name}", depth + 1)
        elif keyword in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidPrompt(f"{place} must be an integer of 0 or more")
            if value > REPEATS_MAX:
                raise InvalidPrompt(f"{place} is over {REPEATS_MAX}")
        elif keyword in _NUMBERS:
            _number(value, place)
        elif keyword in _PLAIN:
            _plain(keyword, value, place)
        elif keyword not in ANNOTATIONS:
            raise InvalidPrompt(f"{place} is not supported")


def _plain(keyword: str, value: Any, place: str) -> None:
    match keyword:
        case "type":
            for kind in value if isinstance(value, list) else [value]:
                if kind not in _TYPES:
                    raise InvalidPrompt(f"{place} must be one of {', '.join(_TYPES)}")
        case "enum":
            _checked(value, list, place, "a list")
            if not 0 < len(value) <= ENUM_VALUES_MAX:
                raise InvalidPrompt(f"{place} must have 1 to {ENUM_VALUES_MAX} values")
        case "required":
            if not all(isinstance(name, str) for name in _checked(value, list, place, "a list")):
                raise InvalidPrompt(f"{place} must be a list of names")
        case "format":
            if value not in FORMATS:
                raise InvalidPrompt(f"{place} {value!r} is not supported")
        case "multipleOf":
            # Of a fraction, validators disagree: 0.3 is no multiple of 0.1 in binary.
            if _number(value, place) <= 0 or value != int(value):
                raise InvalidPrompt(f"{place} is supported for positive integers only")
        case "pattern":
            _checked(value, str, place, "a text")
        case "$ref":
            if not _checked(value, str, place, "a text").startswith("#"):
                raise InvalidPrompt(f"{place} is supported within the schema only: '#/$defs/name'")


def _refuse_unsure(schema: dict[str, Any], place: str) -> None:
    """Refuse the pairs of keywords of which a grammar would keep one alone."""
    least = schema.get("minProperties", 0)
    if least > len(set(schema.get("required", ()))):
        # A grammar counts a repeated key twice.
        raise InvalidPrompt(
            f"{place}.minProperties is not supported above the number of required properties"
        )


def _checked(value: Any, kind: type, place: str, words: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidPrompt(f"{place} must be {words}")
    return value


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidPrompt(f"{place} must be a number")
    return value
