"""Calls of tools as chat models write them, and how they are read again.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

The form of Hermes and Qwen. A grammar keeps a model to it from the first mark on, so what is read
here has been written by it; a model that leaves the marks out is understood, too. Pure: a gateway
reads with it. Knows texts; does not know grammars, models or OpenAI.
"""

import json
import re
from collections.abc import Collection
from typing import Any

import msgspec

from local_models.json_schema import for_grammar, refuse_unsupported
from local_models.messages import InvalidPrompt
from local_models.stopping import overlap

BEGIN, END = "<tool_call>", "</tool_call>"
TOOLS_MAX = 128

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEAD = re.compile(r'\s*\{"name": "([^"]*)", "arguments": ')
_TAIL = "}\n" + END  # no text of JSON holds a line end, so this ends a call nowhere else
_BARE = ("{", "[{", "```json", "```\n{")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


class Tool(msgspec.Struct, frozen=True):
    """One function that may be called; parameters is a JSON Schema."""

    name: str
    parameters: dict[str, Any] = msgspec.field(
        default_factory=lambda: {"type": "object", "properties": {}, "additionalProperties": False}
    )


class Calling(msgspec.Struct, frozen=True):
    """What may be called. required: the answer is a call. parallel: and may be several."""

    tools: tuple[Tool, ...]
    required: bool = False
    parallel: bool = True


def check(calling: Calling) -> None:
    """Raise InvalidPrompt, naming the place, for what no grammar is made of."""
    if not 0 < len(calling.tools) <= TOOLS_MAX:
        raise InvalidPrompt(f"tools must have 1 to {TOOLS_MAX} functions")
    for tool in calling.tools:
        if not _NAME.fullmatch(tool.name):
            raise InvalidPrompt(
                f"the function's name {tool.name[:70]!r} must match {_NAME.pattern}"
            )
        try:
            refuse_unsupported(tool.parameters)
        except InvalidPrompt as error:
            raise InvalidPrompt(f"function {tool.name}: {error}") from error


def grammar(calling: Calling, style: dict[str, Any]) -> str:
    """The answer's grammar in llguidance's Lark. style: how JSON is written."""
    lines = []
    for number, tool in enumerate(calling.tools):
        head = json.dumps(f'{{"name": "{tool.name}", "arguments": ')
        schema = json.dumps({**for_grammar(tool.parameters), "x-guidance": style})
        lines += [f'call{number}: {head} args{number} "}}"', f"args{number}: %json {schema}"]
    more = f'("\\n{BEGIN}\\n" body "\\n{END}")*' if calling.parallel else ""
    lines += [f'rest: "\\n" body "\\n{END}" {more}', f"body: {_any_of('call', calling)}"]
    if calling.required:
        lines.insert(0, f'start: "{BEGIN}" rest')
    else:
        lines = [*_unmarked(calling, style), *lines]
    return "\n".join(lines) + "\n"


def _unmarked(calling: Calling, style: dict[str, Any]) -> list[str]:
    """Rules of an answer that need not call, and may forget the marks where it does.

    What begins as a call of a tool is one, and keeps to its parameters.
    """
    names = "|".join(tool.name for tool in calling.tools)
    unlike = f'~/(```(json)?\\s*)?\\{{\\s*"name"\\s*:\\s*"({names})"(.|\\n)*/'
    loose = {**style, "whitespace_flexible": True}
    start = f"start: TEXT | marked rest | {_any_of('bare', calling)} | {_any_of('fenced', calling)}"
    lines = [start, f"marked[lazy]: /(.|\\n)*{BEGIN}/ & {unlike}", f"TEXT: /(.|\\n)*/ & {unlike}"]
    for number, tool in enumerate(calling.tools):
        schema = json.dumps({**for_grammar(tool.parameters), "x-guidance": loose})
        # One lexeme from the first character on: a shorter one would lose to TEXT, which is longer.
        head = f'\\{{\\s*"name"\\s*:\\s*"{tool.name}"\\s*,\\s*"arguments"\\s*:\\s*'
        lines += [
            f"bare{number}: HEAD{number} loose{number} /\\s*\\}}/",
            f"fenced{number}: FENCE{number} loose{number} /\\s*\\}}\\s*```/",
            f"HEAD{number}: /{head}/",
            f"FENCE{number}: /```(json)?\\s*{head}/",
            f"loose{number}: %json {schema}",
        ]
    return lines


def _any_of(rule: str, calling: Calling) -> str:
    return " | ".join(f"{rule}{number}" for number in range(len(calling.tools)))


class Said(msgspec.Struct, frozen=True):
    """Text beside the calls."""

    text: str


class Called(msgspec.Struct, frozen=True):
    """A piece of one call: its name comes first and alone, then its arguments, as JSON."""

    number: int
    name: str = ""
    arguments: str = ""


class Reader:
    """Reads an answer piece by piece; the cut into pieces is immaterial."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._said = False
        self._within: str | None = None  # "head" or "arguments" of a call
        self.calls = 0

    def push(self, text: str) -> list[Said | Called]:
        """What has become certain."""
        self._held += text
        found: list[Said | Called] = []
        while (piece := self._next()) is not None:
            found += piece
        return found

    def flush(self) -> list[Said | Called]:
        """What is left at the answer's end; a call without marks is found here."""
        held, self._held = self._held, ""
        if self._within == "arguments":
            return [Called(self.calls - 1, arguments=held)] if held else []
        if self._within == "head":
            return []  # The limit cut a call before its name was whole.
        if not self._said and not self.calls:
            bare = _bare_calls(held, self._names)
            if bare:
                self.calls = len(bare)
                pieces: list[Said | Called] = []
                for number, (name, arguments) in enumerate(bare):
                    pieces += [Called(number, name), Called(number, arguments=arguments)]
                return pieces
        return self._say(held)

    def _next(self) -> list[Said | Called] | None:
        """One step; None where more text is needed."""
        if self._within == "head":
            head = _HEAD.match(self._held)
            if head is None:
                return None
            self._held = self._held[head.end() :]
            self._within = "arguments"
            self.calls += 1
            return [Called(self.calls - 1, name=head[1])]
        if self._within == "arguments":
            return self._arguments()
        begin = self._held.find(BEGIN)
        if begin >= 0:
            before, self._held = self._held[:begin], self._held[begin + len(BEGIN) :]
            self._within = "head"
            return self._say(before.rstrip())
        if not self._said and not self.calls and _may_be_bare(self._held.lstrip()):
            return None  # the end will tell
        certain = len(self._held) - overlap(self._held, BEGIN)
        # Blanks before a mark are no text of the answer.
        certain = len(self._held[:certain].rstrip())
        if not certain:
            return None
        text, self._held = self._held[:certain], self._held[certain:]
        return self._say(text)

    def _arguments(self) -> list[Said | Called] | None:
        end = self._held.find(_TAIL)
        if end >= 0:
            arguments, self._held = self._held[:end], self._held[end + len(_TAIL) :]
            self._within = None
        else:
            certain = len(self._held) - overlap(self._held, _TAIL)
            arguments, self._held = self._held[:certain], self._held[certain:]
            if not arguments:
                return None
        return [Called(self.calls - 1, arguments=arguments)] if arguments else []

    def _say(self, text: str) -> list[Said | Called]:
        if self.calls:  # what stands between calls or after them is no text of the answer
            text = text.strip()
        if not text or (not self._said and text.isspace()):
            return []
        self._said = True
        return [Said(text)]


def _may_be_bare(text: str) -> bool:
    """Whether this is how calls without marks begin."""
    return any(text[: len(begin)] == begin[: len(text)] for begin in _BARE)


def _bare_calls(text: str, names: Collection[str]) -> list[tuple[str, str]]:
    """(name, arguments) of an answer that is nothing but calls, perhaps in a fence."""
    fence = _FENCE.fullmatch(text.strip())
    try:
        document = json.loads(fence[1] if fence else text)
    except (ValueError, RecursionError):
        return []
    found = []
    for call in document if isinstance(document, list) else [document]:
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            return []
        if call["name"] not in names or not isinstance(call["arguments"], dict):
            return []
        found.append((call["name"], json.dumps(call["arguments"], ensure_ascii=False)))
    return found
