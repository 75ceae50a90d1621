"""Conditions: simple matchers as closures, ``when:`` as CEL (cel.dev).

CEL compiles ``foo + 1`` without knowing ``foo``, so identifiers are checked here against what a
condition may look at, and each condition is tried on a sample of the right types at load.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any


from gateway.policy.snapshot import RequestFacts

Condition = Callable[[RequestFacts], bool]

# What a condition sees, with a value of the type it will have.
SAMPLE: dict[str, dict[str, Any]] = {
    "request": {
        "model": "auto",
        "endpoint": "chat",
        "tags": {"feature": "support"},
        "input_tokens": 100,
        "has_tools": False,
        "has_images": False,
        "stream": False,
        "temperature": 1.0,
        "key": "key_1",
    },
    "tenant": {"id": "acme"},
}
_TEXTS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_REFERENCE = re.compile(r"(?<![\w.])([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*)(\s*\()?")
_WORDS = frozenset({"true", "false", "null", "in", "has", "size", "matches", "string", "int",
                    "double", "bool", "type", "duration", "timestamp"})  # fmt: skip
_LENGTH_MAX = 2_000


def compile_condition(text: str) -> Condition:
    """A CEL condition as a function. Raises ValueError with what is wrong in words."""
    if len(text) > _LENGTH_MAX:
        raise ValueError(f"a condition has at most {_LENGTH_MAX} characters")
    _check_references(text)
    # Imported where it is needed: the package brings a terminal user interface along (0.4 s).
    import cel

    try:
        program = cel.compile(text)
        result = program.execute(cel.Context(_variables(SAMPLE["request"], "acme")))
    except Exception as error:  # the library raises what its parser raises
        raise ValueError(f"not a valid condition: {_one_line(error)}") from None
    if not isinstance(result, bool):
        raise ValueError(f"a condition is true or false, and this is a {type(result).__name__}")

    def holds(facts: RequestFacts) -> bool:
        request = {
            "model": facts.model,
            "endpoint": facts.endpoint,
            "tags": dict(facts.tags),
            "input_tokens": facts.input_tokens,
            "has_tools": facts.has_tools,
            "has_images": facts.has_images,
            "stream": facts.stream,
            "temperature": facts.temperature,
            "key": facts.key,
        }
        try:
            return program.execute(cel.Context(_variables(request, facts.tenant))) is True
        except Exception:  # such as a tag that this request lacks: then it does not hold
            return False

    return holds


def compile_match(
    tenants: list[str] | None, tags: Mapping[str, str], when: str | None
) -> Condition:
    """All parts of a ``match`` but the model names, as one function. Raises ValueError."""
    conditions: list[Condition] = []
    if tenants is not None:
        conditions.append(_tenant_condition(tenants))
    conditions += [_tag_condition(name, value) for name, value in tags.items()]
    if when is not None:
        conditions.append(compile_condition(when))
    if not conditions:
        return _always
    if len(conditions) == 1:
        return conditions[0]
    return lambda facts: all(condition(facts) for condition in conditions)


def _always(facts: RequestFacts) -> bool:
    return True


def _tenant_condition(patterns: list[str]) -> Condition:
    exact = frozenset(p for p in patterns if "*" not in p)
    globs = [re.compile(fnmatch.translate(p)) for p in patterns if "*" in p]
    if not globs:
        return lambda facts: facts.tenant in exact
    return lambda facts: facts.tenant in exact or any(g.match(facts.tenant) for g in globs)


def _tag_condition(name: str, value: str) -> Condition:
    if value == "*":
        return lambda facts: name in facts.tags
    return lambda facts: facts.tags.get(name) == value


def _variables(request: Mapping[str, Any], tenant: str) -> dict[str, Any]:
    return {"request": dict(request), "tenant": {"id": tenant}}


def _check_references(text: str) -> None:
    """Every name must be one that a condition may look at."""
    for match in _REFERENCE.finditer(_TEXTS.sub('""', text)):
        root, rest, call = match.groups()
        if root in _WORDS or call:
            continue
        if root not in SAMPLE:
            raise ValueError(f"unknown name '{root}'; a condition knows request and tenant")
        fields = rest.split(".")[1:]
        if fields and fields[0] not in SAMPLE[root]:
            raise ValueError(f"unknown name '{root}.{fields[0]}'; {root} has "
                             + ", ".join(SAMPLE[root]))  # fmt: skip


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
