"""The pieces of one streamed message, put together as clients do it.

OpenAI's chunks leave no doubt. Others leave ``index`` out, write null, or 0 for every call, repeat
a name or send it in pieces. Where clients would differ, ``Doubtful`` is raised. No socket.
"""

from typing import Any

import orjson

TEXTS = frozenset({"content", "refusal", "reasoning_content", "reasoning"})  # come in pieces


class Doubtful(Exception):
    """Two clients might put these pieces together in two ways."""


def text_of(value: Any) -> str:
    """A piece of text. Raises Doubtful for anything else."""
    if not isinstance(value, str):
        raise Doubtful
    return value


class DeltaMessage:
    """A message of which the pieces come one by one."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}  # joined once: adding up would copy all each time
        self._calls: _ToolCalls | None = None
        self._function: _Function | None = None

    def add(self, delta: dict[str, Any]) -> None:
        """Raises Doubtful."""
        for name, value in delta.items():
            if value in (None, "", []):  # says nothing, but that the field exists
                if self._fields.get(name) is None:
                    self._fields[name] = value
            elif name in TEXTS:
                self._texts.setdefault(name, []).append(text_of(value))
                self._fields[name] = ""
            elif name == "tool_calls":
                self._calls = self._calls or _ToolCalls()
                self._calls.add(value)
            elif name == "function_call":
                self._function = self._function or _Function("arguments")
                self._function.add(value)
            elif name in ("role", "id") or not self._fields.get(name):
                self._fields[name] = value
            else:
                raise Doubtful  # does it continue the first, or replace it?

    def document(self) -> dict[str, Any]:
        """The message of a whole answer."""
        message = {"role": "assistant", "content": None, **self._fields}
        message["role"] = message["role"] or "assistant"
        for name, pieces in self._texts.items():
            message[name] = "".join(pieces)
        if self._calls is not None:
            message["tool_calls"] = self._calls.document()
        if self._function is not None:
            message["function_call"] = self._function.document()
        return message


class _ToolCalls:
    """The calls of one message. A new id at a used index is a new call."""

    def __init__(self) -> None:
        self._calls: list[_ToolCall] = []
        self._at: dict[int, _ToolCall] = {}  # by index, the latest

    def add(self, parts: Any) -> None:
        if not isinstance(parts, list):
            raise Doubtful
        for part in parts:
            if not isinstance(part, dict):
                raise Doubtful
            self._call_of(part).add(part)

    def document(self) -> list[dict[str, Any]]:
        return [call.document() for call in sorted(self._calls, key=lambda call: call.index)]

    def _call_of(self, part: dict[str, Any]) -> "_ToolCall":
        index, call_id = part.get("index"), part.get("id")
        if index is None:
            return self._without_index(part, call_id)
        if type(index) is not int or (self._calls and not self._at):
            raise Doubtful  # no index, or some parts have one and some have none
        call = self._at.get(index)
        if call is not None and call_id and call.id and call_id != call.id:
            if not _names_function(part):
                raise Doubtful  # a new call without a name, or an id that changes with each piece
            call = None
        if call is None:
            call = self._at[index] = self._new(index)
        return call

    def _without_index(self, part: dict[str, Any], call_id: Any) -> "_ToolCall":
        if self._at:
            raise Doubtful
        if call_id:
            known = [call for call in self._calls if call.id == call_id]
            return known[0] if known else self._new(len(self._calls))
        if not _names_function(part):
            if not self._calls:
                raise Doubtful
            return self._calls[-1]
        if self._calls and not self._calls[-1].can_be_read:
            raise Doubtful  # a new call, or the name of the last one once more
        return self._new(len(self._calls))

    def _new(self, index: int) -> "_ToolCall":
        self._calls.append(_ToolCall(index))
        return self._calls[-1]


class _ToolCall:
    def __init__(self, index: int) -> None:
        self.index = index
        self.id: Any = None
        self._fields: dict[str, Any] = {}
        self._functions: dict[str, _Function] = {}

    def add(self, part: dict[str, Any]) -> None:
        for name, value in part.items():
            if name == "index" or value in (None, ""):
                continue
            if name in ("function", "custom"):
                if name not in self._functions:
                    self._functions[name] = _Function("input" if name == "custom" else "arguments")
                self._functions[name].add(value)
            elif self._fields.setdefault(name, value) != value:
                raise Doubtful
        self.id = self._fields.get("id")

    @property
    def can_be_read(self) -> bool:
        """Its arguments are whole."""
        return all(function.can_be_read for function in self._functions.values())

    def document(self) -> dict[str, Any]:
        functions = {name: function.document() for name, function in self._functions.items()}
        return {**self._fields, **functions}


class _Function:
    """A name and what the model writes for it, which comes in pieces. text: that field's name."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._name = ""
        self._pieces: list[str] = []
        self._fields: dict[str, Any] = {}

    def add(self, part: Any) -> None:
        if not isinstance(part, dict):
            raise Doubtful
        for name, value in part.items():
            if name == "name":
                self._add_name(value)
            elif name == self._text:
                if value is not None:
                    self._pieces.append(text_of(value))
            elif value is not None and self._fields.setdefault(name, value) != value:
                raise Doubtful

    def _add_name(self, value: Any) -> None:
        if not value:
            return
        if self._name and (value == self._name or any(self._pieces)):
            raise Doubtful  # the whole name once more, or another call's
        self._name += text_of(value)

    @property
    def can_be_read(self) -> bool:
        try:
            orjson.loads("".join(self._pieces))
        except orjson.JSONDecodeError:
            return False
        return True

    def document(self) -> dict[str, Any]:
        return {"name": self._name, self._text: "".join(self._pieces), **self._fields}


def _names_function(part: dict[str, Any]) -> bool:
    function = part.get("function") or part.get("custom")
    return isinstance(function, dict) and bool(function.get("name"))
