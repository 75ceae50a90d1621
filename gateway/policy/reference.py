"""What the language offers, derived from the schema: JSON Schema for editors, tables for people.

The shipped files are compared with these functions by tests, so that they cannot drift.
"""

from collections.abc import Iterator
from typing import Any

from gateway.config import Settings, override_names
from gateway.policy.schema import KINDS, ModelsDocument, RoutingDocument, TenantsDocument

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The patterns of values.py, as the tables name them.
_KINDS = {"[kMG]?$": "count", "(ms|s|m|h|d)$": "duration", "%?$": "share", "{1,12})?$": "money",
          "{0,127}$": "name", "[}]": "reference"}  # fmt: skip
_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "boolean"}
_SECONDS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))

JsonSchema = dict[str, Any]


def policy_schema() -> JsonSchema:
    """One schema for every kind of policy document."""
    definitions: JsonSchema = {}
    branches: list[JsonSchema] = []
    for kind, model in KINDS.items():
        document = model.model_json_schema()
        definitions |= document.pop("$defs", {})
        definitions[kind] = document
        branches.append(
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
        )
    return {
        "$schema": _DIALECT,
        "title": "Tollhouse policy",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {"kind": {"enum": list(KINDS)}},
        "allOf": branches,
        "$defs": dict(sorted(definitions.items())),
    }


def settings_schema() -> JsonSchema:
    """The schema of tollhouse.yaml."""
    return {"$schema": _DIALECT, **Settings.model_json_schema(), "title": "tollhouse.yaml"}


def option_tables() -> str:
    """Markdown: every key of the three kinds and of tollhouse.yaml."""
    parts = []
    for kind, model in (
        ("Models", ModelsDocument),
        ("Routing", RoutingDocument),
        ("Tenants", TenantsDocument),
    ):
        lines = ["| key | takes | default | |", "|---|---|---|---|"]
        lines += [_row(*option) for option in options(model.model_json_schema())]
        parts.append(f"### kind: {kind}\n\n" + "\n".join(lines))
    lines = ["| key | takes | default | variable | |", "|---|---|---|---|---|"]
    variables = {".".join(where): name for name, where in override_names().items()}
    for key, prop, required in options(Settings.model_json_schema()):
        cells = _row(key, prop, required).split(" | ")
        cells.insert(3, f"`{variables[key]}`")
        lines.append(" | ".join(cells))
    parts.append("### tollhouse.yaml\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def options(schema: JsonSchema) -> Iterator[tuple[str, JsonSchema, bool]]:
    """(dotted key, its property, whether it must be written) of every leaf, in order."""
    yield from _options(schema, schema.get("$defs", {}), "")


def _options(
    schema: JsonSchema, definitions: JsonSchema, prefix: str
) -> Iterator[tuple[str, JsonSchema, bool]]:
    for name, prop in schema.get("properties", {}).items():
        key, required = prefix + name, name in schema.get("required", ())
        if key in ("apiVersion", "kind"):
            continue
        section, suffix = _section(prop)
        if section is None or prop.get("description") == "As in a route.":
            yield key, prop, required
            continue
        if any("enum" in kind for kind in prop.get("anyOf", ())):
            yield key, prop, required
        yield from _options(definitions[section], definitions, f"{key}{suffix}.")


def _section(prop: JsonSchema) -> tuple[str | None, str]:
    """The section that a property leads to, and ``[]`` where there are many."""
    for kind in (prop, *prop.get("anyOf", ())):
        if "$ref" in kind:
            return kind["$ref"].rpartition("/")[2], ""
        if "$ref" in (items := kind.get("items", {})):
            return items["$ref"].rpartition("/")[2], "[]"
    return None, ""


def _row(key: str, prop: JsonSchema, required: bool) -> str:
    default = "required" if required else _default(prop)
    return f"| `{key}` | {_takes(prop)} | {default} | {prop.get('description', '')} |"


def _takes(prop: JsonSchema) -> str:
    if prop.get("description") == "As in a route.":
        return "section"
    if "anyOf" in prop:
        kinds = [kind for kind in prop["anyOf"] if kind.get("type") != "null"]
        words = (_takes(kind) for kind in kinds if "$ref" not in kind)
        return " or ".join(dict.fromkeys(word for word in words if word))
    if "const" in prop:
        return f"`{prop['const']}`"
    if "enum" in prop:
        # As people write it; beside it stands what tools may make of it.
        return ", ".join(f"`{value}`" for value in prop["enum"] if isinstance(value, str))
    for ending, word in _KINDS.items():
        if str(prop.get("pattern", "")).endswith(ending):
            return word
    kind = prop["type"]
    if kind == "array":
        return f"list of {_takes(prop['items'])}"
    if kind == "object":
        return "tags" if "patternProperties" in prop else "mapping"
    return _TYPES[str(kind)] + _range(prop)


def _range(prop: JsonSchema) -> str:
    above, low, high = (prop.get(k) for k in ("exclusiveMinimum", "minimum", "maximum"))
    if above is not None:
        return f", above {above:g}, at most {high:g}"
    if low is None:
        return ""
    return f", {low} to {high}" if high is not None else f", {low} or more"


def _default(prop: JsonSchema) -> str:
    default, kind = prop.get("default"), _takes(prop)
    if default is None:
        return "off" if "`off`" in kind else ""
    if default in ([], {}, "") or "default:" in prop.get("description", ""):
        return ""  # none, or one that the description explains
    if kind == "duration":
        return next(f"`{default / size:g}{u}`" for u, size in _SECONDS if default % size == 0)
    if kind == "share":
        return f"`{default * 100:g}%`"
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
