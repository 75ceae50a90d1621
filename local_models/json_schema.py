"""Which JSON Schemas can be kept, told before a model is asked.

A pure check by names: a keyword that the grammar cannot enforce is refused by its path, never
passed over. Knows no grammar and no model, so that a router may ask it.
"""

import math
from typing import Any

from local_models import patterns
from local_models.messages import InvalidPrompt

SCHEMA_BYTES_MAX = 128 << 10
"""Of a schema's JSON text."""

SCHEMA_DEPTH_MAX = 32
SCHEMA_NODES_MAX = 4_000
"""Schemas within a schema."""

ENUM_VALUES_MAX = 2_000
REPEATS_MAX = 10_000
"""Of minLength, maxLength, minItems and maxItems."""

MULTIPLE_MAX = 10_000
"""Of multipleOf: the grammar has a state for each remainder, and a million of them take 18 s."""

PROPERTIES_MAX = 900
"""Of one object: the grammar's row holds four items for each that may be left out."""

EXACT_MAX = 1 << 53
"""Largest integer that is exact as a double, which the grammar takes numbers for."""

_PLACE_CHARACTERS_MAX = 300
_SMALLEST = 1e-9  # Numbers nearer to 0 are not written where 0 itself is left out.

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

_YEAR = r"(\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)"
_FOURTH = "(0[48]|[2468][048]|[13579][26])"
_DATE = "|".join((
    rf"{_YEAR}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])",
    rf"{_YEAR}-(0[13-9]|1[0-2])-(29|30)",
    rf"{_YEAR}-(0[13578]|1[02])-31",
    rf"(\d{{2}}{_FOURTH}|{_FOURTH}00)-02-29",
))  # fmt: skip
# The grammar knows no leap years, and begins with the year 0.
_DATES = {"date": {"pattern": f"^({_DATE})$"}, "date-time": {"pattern": f"^({_DATE})[Tt]"}}


def refuse_unsupported(schema: Any) -> None:
    """Raise InvalidPrompt, with the place, for a schema that the grammar would not enforce."""
    try:
        _Walk().schema(schema, "schema", 0)
    except InvalidPrompt as refusal:
        # A key of the schema may be half a character, or all of its bytes.
        words = str(refusal).encode(errors="replace").decode()
        raise InvalidPrompt(words[-_PLACE_CHARACTERS_MAX:]) from None


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
            if keyword == "properties" and len(value) > PROPERTIES_MAX:
                raise InvalidPrompt(f"{place} has over {PROPERTIES_MAX} names")
        elif keyword in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InvalidPrompt(f"{place} must be an integer of 0 or more")
            if value > REPEATS_MAX:
                raise InvalidPrompt(f"{place} is over {REPEATS_MAX}")
        elif keyword in _NUMBERS:
            _bound(keyword, value, place)
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
            _exact(value, place, 0)
        case "const":
            _exact(value, place, 0)
        case "required":
            if not all(isinstance(name, str) for name in _checked(value, list, place, "a list")):
                raise InvalidPrompt(f"{place} must be a list of names")
        case "format":
            if not isinstance(value, str) or value not in FORMATS:
                raise InvalidPrompt(f"{place} {value!r} is not supported")
        case "multipleOf":
            # Of a fraction, validators disagree: 0.3 is no multiple of 0.1 in binary.
            if not 0 < _number(value, place) <= MULTIPLE_MAX or value != int(value):
                raise InvalidPrompt(
                    f"{place} is supported for positive integers only, up to {MULTIPLE_MAX}"
                )
        case "pattern":
            patterns.refuse_unsure(_checked(value, str, place, "a text"), place)
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
    for pattern in schema.get("patternProperties", ()):
        where = f"{place}.patternProperties.{pattern}"
        patterns.refuse_unsure(pattern, where)
        # A key that the grammar takes for another one would have a value by another schema.
        closed = schema.get("additionalProperties") is False
        if not pattern or patterns.names_characters(pattern, complements=closed):
            raise InvalidPrompt(f"{where} is not supported: not all validators match the same keys")


def for_grammar(schema: Any) -> Any:
    """A checked schema as the grammar reads it right: no wider than the one that was asked for."""
    if isinstance(schema, list):
        return [for_grammar(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for keyword, value in schema.items():
        if keyword in _ONE or keyword in _LISTS:
            value = for_grammar(value)
        elif keyword in _MAPS:
            value = {name: for_grammar(part) for name, part in value.items()}
        elif keyword == "pattern":
            value = patterns.narrowed(value)
        found[keyword] = value
    if isinstance(found.get("format"), str) and "pattern" not in found:
        found |= _DATES.get(found["format"], {})
    _without_zero(found)
    return found


def _without_zero(schema: dict[str, Any]) -> None:
    """Bounds that leave out 0: beside another bound below 1 the grammar would let it pass."""
    for exclusive, bound, sign in (
        ("exclusiveMinimum", "minimum", 1),
        ("exclusiveMaximum", "maximum", -1),
    ):
        if schema.get(exclusive) == 0:
            del schema[exclusive]
            also = schema.get(bound)
            schema[bound] = sign * (_SMALLEST if also is None else max(sign * also, _SMALLEST))


def _checked(value: Any, kind: type, place: str, words: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidPrompt(f"{place} must be {words}")
    return value


def _bound(keyword: str, value: Any, place: str) -> None:
    """A bound that the grammar keeps to the last digit, or InvalidPrompt."""
    number = _number(value, place)
    exact = abs(number) < EXACT_MAX or (isinstance(value, int) and _in_64_bits(value))
    if keyword.startswith("exclusive"):
        exact = abs(number) < EXACT_MAX
    if not exact:
        raise InvalidPrompt(f"{place} is over {EXACT_MAX}, where numbers are not exact any more")


def _in_64_bits(value: int) -> bool:
    """Whether it is the largest or smallest 64-bit integer, or one that a double holds exactly."""
    return -(1 << 63) <= value < 1 << 63 and (value == int(float(value)) or value == (1 << 63) - 1)


def _exact(value: Any, place: str, depth: int) -> None:
    """Refuse a value with numbers that the grammar would write as others."""
    if depth > SCHEMA_DEPTH_MAX:
        raise InvalidPrompt(f"{place} is over {SCHEMA_DEPTH_MAX} levels deep")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _exact(part, place, depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= EXACT_MAX:
        raise InvalidPrompt(f"{place} has a number over {EXACT_MAX}, which would not be exact")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise InvalidPrompt(f"{place} must be a number")
    return value
