"""Run a chat template from a model file: a small part of Jinja, in bounded steps and characters.

A template is a program from a download. What it may do is listed here, and nothing else: read the
conversation, choose, loop, join text. Every turn of a loop and every call is a step, every text
has a largest size; a template that needs more is refused. Knows Jinja; does not know tokens.
"""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from local_models.messages import InvalidModel, InvalidPrompt

TEMPLATE_CHARACTERS_MAX = 65_536
OUTPUT_CHARACTERS_MAX = 4 << 20
STEPS_MAX = 50_000
"""Turns of loops and calls in one rendering: a conversation of 1,000 turns takes some thousands."""

RANGE_MAX = 1_000

_STATEMENTS = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.Name,
    nodes.NSRef,
    nodes.Const,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.Keyword,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Add,
    nodes.Sub,
    nodes.Mod,
    nodes.Neg,
    nodes.Not,
    nodes.And,
    nodes.Or,
    nodes.Compare,
    nodes.Operand,
)
_METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "split", "startswith", "endswith", "upper", "lower", "title"}
    | {"get", "items", "keys", "values"}
)
_LOOP = frozenset({"first", "last", "index", "index0", "length", "previtem", "nextitem"})
_FUNCTIONS = frozenset({"raise_exception", "namespace", "range"})
_TESTS: tuple[str, ...] = (
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
)
_TESTS += ("boolean", "true", "false", "eq", "equalto", "ne", "in", "odd", "even")


class _Spent(Exception):
    """The rendering took more steps or characters than it may."""


class _Refused(Exception):
    """The template itself refuses the conversation."""


class SandboxedTemplate:
    """A template that can be rendered, by one thread at a time. Raises InvalidModel when parsed."""

    def __init__(self, source: str) -> None:
        if len(source) > TEMPLATE_CHARACTERS_MAX:
            raise InvalidModel(
                f"the model's chat template has {len(source)} characters; at most"
                f" {TEMPLATE_CHARACTERS_MAX} are read"
            )
        self._environment = _environment()
        try:
            tree = self._environment.parse(source)
            _refuse_what_is_not_listed(tree)
            _count_turns(tree)
            self._template = self._environment.from_string(tree)
        except (TemplateError, SyntaxError, RecursionError, ValueError, MemoryError) as error:
            # A number of 5,000 digits is a ValueError of Python's, too many brackets an error of
            # its parser's memory.
            reason = " ".join(str(error).split())[:200]
            raise InvalidModel(f"the model's chat template cannot be used: {reason}") from error

    def render(self, **values: Any) -> str:
        """The template's text. Raises InvalidPrompt where the template refuses, or needs too much.

        values: plain JSON values, already checked for their depth.
        """
        steps = characters = 0

        def step() -> str:
            nonlocal steps
            steps += 1
            if steps > STEPS_MAX:
                raise _Spent(f"more than {STEPS_MAX} steps")
            return ""

        pieces = []
        try:
            for piece in self._template.generate(**values, _step=step):
                characters += len(piece)
                if characters > OUTPUT_CHARACTERS_MAX:
                    raise _Spent(f"more than {OUTPUT_CHARACTERS_MAX} characters")
                pieces.append(piece)
        except _Refused as refusal:
            raise InvalidPrompt(f"the model's chat template refuses: {refusal}") from None
        except _Spent as spent:
            raise InvalidPrompt(f"the model's chat template takes {spent}") from None
        except Exception as error:
            # A template may fail in any way Python can: missing fields, wrong types.
            raise InvalidPrompt(
                f"the model's chat template cannot render this conversation: {error}"
            ) from error
        return "".join(pieces)


def _environment() -> "_Environment":
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    environment.filters = {
        "tojson": _to_json,
        "trim": _on_text(str.strip),
        "upper": _on_text(str.upper),
        "lower": _on_text(str.lower),
        "string": _shown,
        "length": len,
        "count": len,
        "first": lambda values: values[0],
        "last": lambda values: values[-1],
        "items": lambda values: list(values.items()),
        "default": _default,
        "join": _join,
    }
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    environment.globals = {
        "raise_exception": _raise_exception,
        "namespace": environment.globals["namespace"],
        "range": _range,
    }
    return environment


class _Environment(ImmutableSandboxedEnvironment):
    """Names with an underscore are closed, and sums have a largest size."""

    intercepted_binops = frozenset({"+", "%"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, LoopContext):
            return attr in _LOOP
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return attr in _METHODS and isinstance(obj, str | dict)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"it reads {attribute} of a {type(obj).__name__}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and not (type(left) is int and type(right) is int):
            raise _Spent("a remainder of what is no number")
        if isinstance(left, str | list) and len(left) + len(right) > OUTPUT_CHARACTERS_MAX:
            raise _Spent(f"more than {OUTPUT_CHARACTERS_MAX} characters")
        return super().call_binop(context, operator, left, right)


def _refuse_what_is_not_listed(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        what = type(node).__name__.lower()
        if not isinstance(node, _STATEMENTS):
            raise TemplateError(f"it uses {what}, which is not supported")
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise TemplateError(f"it uses the filter {node.name}, which is not supported")
        if isinstance(node, nodes.Test) and node.name not in _TESTS:
            raise TemplateError(f"it uses the test {node.name}, which is not supported")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateError("it uses a recursive loop, which is not supported")
        if isinstance(node, nodes.Call) and not _may_be_called(node.node):
            raise TemplateError("it calls what is not supported")
        loaded = isinstance(node, nodes.Tuple) and node.ctx == "load"
        if loaded or isinstance(node, nodes.List | nodes.Dict):
            # [x, x] in [x, x]: forty of them are a text of a terabyte.
            _only_constants(node)


def _may_be_called(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr in _METHODS
    return isinstance(node, nodes.Name) and node.name in _FUNCTIONS


def _only_constants(node: nodes.Node) -> None:
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Pair):
            _only_constants(child)
        elif not isinstance(child, nodes.Const):
            raise TemplateError("it builds lists of what is no constant, which is not supported")


def _count_turns(tree: nodes.Template) -> None:
    """Begin the body of every loop with a step."""
    for loop in list(tree.find_all(nodes.For)):
        call = nodes.Call(nodes.Name("_step", "load"), [], [], None, None)
        loop.body.insert(0, nodes.Output([call]).set_lineno(loop.lineno))


def _shown(value: Any) -> str:
    """What a template may print: text, numbers and nothing."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    if type(value).__name__ == "Undefined":
        return ""
    raise TypeError(f"it prints a {type(value).__name__}")


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as the models' authors write it: characters as they are, keys in their order."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent if indent is None else min(indent, 8)
    )
    if len(text) > OUTPUT_CHARACTERS_MAX:
        raise _Spent(f"more than {OUTPUT_CHARACTERS_MAX} characters")
    return text


def _on_text(change: Callable[[str], str]) -> Callable[[Any], str]:
    return lambda value: change(_shown(value))


def _default(value: Any, instead: Any = "", also_false: bool = False) -> Any:
    missing = type(value).__name__ == "Undefined" or (also_false and not value)
    return instead if missing else value


def _join(values: list[Any], between: str = "") -> str:
    pieces = [_shown(value) for value in values]
    if sum(map(len, pieces)) + len(between) * len(pieces) > OUTPUT_CHARACTERS_MAX:
        raise _Spent(f"more than {OUTPUT_CHARACTERS_MAX} characters")
    return between.join(pieces)


def _range(*bounds: int) -> range:
    turns = range(*bounds)
    if len(turns) > RANGE_MAX:
        raise _Spent(f"a range of more than {RANGE_MAX}")
    return turns


def _raise_exception(message: Any) -> None:
    raise _Refused(str(message)[:200])


_FILTERS = frozenset(_environment().filters)
