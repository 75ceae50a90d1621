"""Conditions: simple matchers as closures, ``when:`` as CEL (cel.dev).

CEL compiles ``foo + 1`` without knowing ``foo``, so names are checked here against what a condition
may look at, and each condition is tried at load on samples of the right types. At run time a
condition that fails, because a request lacks a tag that it asks for, does not hold.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from gateway.policy.condition_costs import LOOP, TEXTS, refuse_dear
from gateway.policy.schema import MatchSection
from gateway.policy.snapshot import Condition, Match, RequestFacts
from gateway.yaml_documents import suggest

# What a condition may look at, with values of the type it will have: two, so that neither side of
# an && or || hides from the trial.
REQUEST: Mapping[str, tuple[Any, Any]] = {
    "model": ("auto", "large"),
    "endpoint": ("chat", "embeddings"),
    "tags": ({}, {}),
    "input_tokens": (1, 1_000_000),
    "has_tools": (False, True),
    "has_images": (False, True),
    "stream": (False, True),
    "temperature": (0.0, 2.0),
    "key": ("key_1", "key_2"),
}
TENANT: Mapping[str, tuple[Any, Any]] = {"id": ("acme", "globex")}
_ROOTS: Mapping[str, Mapping[str, tuple[Any, Any]]] = {"request": REQUEST, "tenant": TENANT}

_LENGTH_MAX = 2_000
_FIELD = re.compile(r"(?<![\w.])(request|tenant)\b(?:\s*\.\s*(\w+))?")
_TAG = re.compile(r"(?<![\w.])request\.tags(?:\.(\w+)|\[\s*['\"]([^'\"]*)['\"]\s*\])")
# Words of other languages, and CEL's own.
_FOREIGN = {r"\band\b": "&&", r"\bor\b": "||", r"\bnot\b": "!", r"(?<![=!<>])=(?!=)": "==",
            r"<>": "!=", r"(?<!&)&(?!&)": "&&", r"(?<![|])[|](?![|])": "||"}  # fmt: skip
# What CEL's parser says, and what it means.
_GRAMMAR = {r"missing ('.+?') at '<EOF>'": "{} is missing at its end",
            r"missing ('.+?') at": "{} is missing",
            r"'<EOF>'()": "something is missing at its end",
            r"(?:mismatched|extraneous) input ('.+?') expecting": "{} is not expected there",
            r"no viable alternative at input ('.+?')( |$)": "{} is not expected there"}  # fmt: skip
# All that the library raises for an expression; a panic of its parser needs longer texts.
_FAILURES = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


def compile_match(
    tenants: Sequence[str] | None,
    tags: Mapping[str, str],
    when: str | None,
    models: Sequence[str] | None = None,
) -> Match:
    """All parts of a ``match`` but the model names. Raises ValueError for a bad ``when``."""
    fixed: list[tuple[str, Condition]] = []
    if tenants is not None:
        fixed.append((f"tenant: {', '.join(tenants)}", _tenant_condition(tenants)))
    fixed += [(f"tags: {n}={value}", _tag_condition(n, value)) for n, value in tags.items()]
    return Match(
        models=tuple(sorted(models or ())),
        fixed=tuple(fixed),
        when=None if when is None else (f"when: {when}", compile_condition(when)),
    )


def compile_condition(text: str) -> Condition:
    """A CEL condition as a function, about 5 µs per call. Raises ValueError in words."""
    if len(text) > _LENGTH_MAX:
        raise ValueError(f"a condition has at most {_LENGTH_MAX} characters")
    # Imported where it is needed: the package brings a terminal user interface along (0.4 s).
    import cel

    try:
        program = cel.compile(text)
    except ValueError as error:
        raise ValueError(f"not a valid condition: {_reason(error)}{_hint(text)}") from None
    fields = _fields(text, program.variables())
    refuse_dear(text)
    _try_out(program, text)
    request = [(name, attrgetter(name)) for name in REQUEST if name in fields["request"]]
    with_tenant = bool(fields["tenant"])

    def holds(facts: RequestFacts) -> bool:
        variables: dict[str, Any] = {"request": {name: get(facts) for name, get in request}}
        if with_tenant:
            variables["tenant"] = {"id": facts.tenant}
        try:
            return program.execute(cel.Context(variables)) is True
        except _FAILURES:
            return False

    return holds


def _fields(text: str, variables: Sequence[str]) -> Mapping[str, set[str]]:
    """The fields that a condition uses, of each root. Raises ValueError for an unknown name."""
    bare = TEXTS.sub('""', text)
    bound = {variable for _, variable in LOOP.findall(bare)}
    for variable in variables:
        if variable not in _ROOTS and variable not in bound:
            raise ValueError(
                f"unknown name '{variable}': a condition knows request and tenant"
                f"{suggest(variable, _ROOTS)}"
            )
    used: dict[str, set[str]] = {root: set() for root in _ROOTS}
    for root, name in _FIELD.findall(bare):
        known = _ROOTS[root]
        if name and name not in known:
            hint = suggest(name, known) or f"; {root} has {', '.join(known)}"
            raise ValueError(f"unknown name '{root}.{name}'{hint}")
        used[root] |= {name} if name else set(known)
    return used


def _try_out(program: Any, text: str) -> None:
    """Run a condition on both samples. Raises ValueError where it fails or is no condition."""
    import cel

    tags = {name or quoted: "text" for name, quoted in _TAG.findall(text)}
    for number in (0, 1):
        sample: dict[str, Any] = {
            root: {name: values[number] for name, values in known.items()}
            for root, known in _ROOTS.items()
        }
        sample["request"]["tags"] = tags
        try:
            result = program.execute(cel.Context(sample))
        except _FAILURES as error:
            reason = _reason(error)
            if "overload" in reason.lower():
                reason = "both sides of an operator need one type: texts in quotes, numbers without"
            raise ValueError(f"the condition fails on a sample: {reason}") from None
        if not isinstance(result, bool):
            kind = type(result).__name__
            raise ValueError(f"a condition is true or false, and this one is of type {kind}")


def _tenant_condition(patterns: Sequence[str]) -> Condition:
    exact = frozenset(p for p in patterns if "*" not in p)
    globs = [glob(p) for p in patterns if "*" in p]
    if not globs:
        return lambda facts: facts.tenant in exact
    return lambda facts: facts.tenant in exact or any(g.match(facts.tenant) for g in globs)


@lru_cache(maxsize=1_024)
def glob(pattern: str) -> re.Pattern[str]:
    """``*`` stands for any text, everything else for itself."""
    literal = pattern.replace("[", "[[]").replace("?", "[?]")
    return re.compile(fnmatch.translate(literal))


def covers(earlier: MatchSection, later: MatchSection) -> bool:
    """Whether every request that ``later`` takes is taken by ``earlier``. May miss, never errs."""
    if earlier.when is not None and earlier.when != later.when:
        return False
    for wide, narrow in ((earlier.model, later.model), (earlier.tenant, later.tenant)):
        if wide is None:
            continue
        globs = [glob(pattern) for pattern in wide if "*" in pattern]
        # A glob as a text is matched by the globs that cover it.
        for name in narrow or ("*",):
            if name not in wide and not any(g.match(name) for g in globs):
                return False
    return all(
        name in later.tags and value in ("*", later.tags[name])
        for name, value in earlier.tags.items()
    )


def _tag_condition(name: str, value: str) -> Condition:
    if value == "*":
        return lambda facts: name in facts.tags
    return lambda facts: facts.tags.get(name) == value


def _hint(text: str) -> str:
    """What to write instead, where somebody has written another language's words."""
    bare = TEXTS.sub(lambda match: " " * len(match[0]), text)
    for pattern, meant in _FOREIGN.items():
        found = re.search(pattern, bare)
        if found is not None:
            return f"; at column {found.start() + 1} write {meant} instead of '{found[0].strip()}'"
    return ""


def _reason(error: Exception) -> str:
    """The library's own words: its first sentence, without the source and grammar it repeats."""
    words = " ".join(str(error).split())
    words = words.rpartition("Syntax error: ")[2] or words
    for pattern, plainly in _GRAMMAR.items():
        found = re.search(pattern, words)
        if found is not None:
            return plainly.format(found[1])
    return re.split(r"(?<=\w)[.] | \| ", words)[0][:200]
