"""Random JSON Schemas: those that applications write, and combinations that nobody would."""

import random
from typing import Any

_PATTERNS = (
    "^[a-z]+$", "abc", "^A", "[0-9]{3}-[0-9]{4}$", "^(foo|bar)$", r"^\d{4}-\d{2}$", r"\w+@\w+",
    r"^[^\s]*$", ".", "^.{2,5}$",
)  # fmt: skip
_FORMATS = (
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid",
)  # fmt: skip
_NAMES = ("name", "age", "id", "tags", "x", "address", "is ok", "é", "a.b", "$x")
_VALUES: tuple[Any, ...] = (1, 2.5, "a", "b c", '"q"', None, True, {"k": 1}, [1, 2], "é\n")
_DEFINED = {
    "list": {
        "type": "object",
        "properties": {
            "v": {"type": "integer"},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]},
        },
        "required": ["v"],
    },
    "letter": {"type": "string", "enum": ["p", "q"]},
}
_SIMPLE = ("string", "integer", "number", "boolean", "null", "enum", "const")
_NESTED = ("array", "object", "anyOf", "oneOf", "allOf", "ref", "types", "any")


def random_schema(rng: random.Random) -> dict[str, Any]:
    """One schema with its definitions; some ask for what a grammar cannot keep."""
    return {**_schema(rng, 0), "$defs": _DEFINED}


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice(_SIMPLE + (_NESTED if depth < 3 else ()))
    schema = _of_kind(rng, kind, depth)
    if rng.random() < 0.1:
        schema["description"] = "some words"
    if rng.random() < 0.05:
        schema["minLength"] = 2
    return schema


def _of_kind(rng: random.Random, kind: str, depth: int) -> dict[str, Any]:
    match kind:
        case "string":
            return _string(rng)
        case "integer" | "number":
            return _number(rng, kind)
        case "array":
            return _array(rng, depth)
        case "object":
            return _object(rng, depth)
        case "enum":
            return {"enum": rng.sample(_VALUES, rng.randint(1, 5))}
        case "const":
            return {"const": rng.choice(_VALUES)}
        case "anyOf" | "oneOf" | "allOf":
            return {kind: [_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
        case "ref":
            return {"$ref": f"#/$defs/{rng.choice(list(_DEFINED))}"}
        case "types":
            return {"type": rng.sample(["string", "integer", "null", "array", "object"], 2)}
        case "any":
            return {}
        case _:
            return {"type": kind}


def _string(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    share = rng.random()
    if share < 0.15:
        schema["pattern"] = rng.choice(_PATTERNS)
    elif share < 0.35:
        schema["format"] = rng.choice(_FORMATS)
    elif share < 0.6:
        schema["minLength"] = rng.randint(0, 5)
    elif share < 0.8:
        schema["maxLength"] = rng.randint(1, 20)
    return schema


def _number(rng: random.Random, kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    least = rng.randint(-50, 50)
    for keyword, value, share in (
        ("minimum", least + rng.choice((0, 0.5)), 0.3),
        ("maximum", least + rng.randint(0, 100), 0.3),
        ("exclusiveMinimum", least, 0.15),
        ("exclusiveMaximum", least + rng.randint(1, 100), 0.15),
        ("multipleOf", rng.choice((1, 2, 5, 10, 0.5)), 0.15),
    ):
        if rng.random() < share:
            schema[keyword] = value
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.9:
        schema["items"] = _schema(rng, depth + 1)
    if rng.random() < 0.2:
        schema["prefixItems"] = [_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.3:
        schema["minItems"] = rng.randint(0, 3)
    if rng.random() < 0.3:
        schema["maxItems"] = rng.randint(3, 6)
    if rng.random() < 0.05:
        schema["uniqueItems"] = True
    return schema


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_NAMES, rng.randint(0, 5))
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {name: _schema(rng, depth + 1) for name in names}
    if rng.random() < 0.7:
        schema["required"] = rng.sample(names, rng.randint(0, len(names)))
        if rng.random() < 0.1:
            schema["required"].append("undeclared")
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.choice((False, False, _schema(rng, depth + 1)))
    if rng.random() < 0.1:
        schema["patternProperties"] = {rng.choice(("^x", "_id$", "[0-9]")): _schema(rng, depth + 1)}
    if rng.random() < 0.1:
        schema["minProperties"] = rng.randint(0, 3)
    if rng.random() < 0.1:
        schema["maxProperties"] = rng.randint(1, 4)
    return schema
