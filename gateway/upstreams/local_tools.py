"""OpenAI's tools: in requests, in a conversation's history, and in answers.

Sans-I/O. Knows OpenAI's JSON; how a model writes calls is the business of ``local_models``.
"""

from typing import Any

import msgspec

from gateway.upstreams.refusals import Body, refuse
from local_models.messages import Constraint
from local_models.tool_calls import Called, Calling, Reader, Said, Tool

_CHOICES = ("none", "auto", "required")


def read_tools(body: Body) -> tuple[Body, ...] | None:
    """The functions that the model is told of; None where it may call none.

    Raises UpstreamStatus 400.
    """
    tools = body.get("tools") or []
    if not isinstance(tools, list):
        raise refuse("tools", "must be a list", "invalid_value")
    for place, tool in enumerate(tools):
        field = f"tools[{place}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise refuse(f"{field}.type", "must be function")
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refuse(f"{field}.function", "must have a name", "invalid_value")
    choice = _choice(body.get("tool_choice"), [tool["function"]["name"] for tool in tools])
    return tuple(tools) if tools and choice != "none" else None


def read_calling(body: Body) -> Constraint | None:
    """The form of an answer that may call; None where it may not. Raises UpstreamStatus 400."""
    tools = read_tools(body)
    if tools is None:
        return None
    functions = [tool["function"] for tool in tools]
    names = [function["name"] for function in functions]
    choice = _choice(body.get("tool_choice"), names)
    named = choice not in _CHOICES
    parallel = body.get("parallel_tool_calls")
    calling = Calling(
        tools=tuple(
            _tool(function, f"tools[{place}].function")
            for place, function in enumerate(functions)
            if not named or function["name"] == choice
        ),
        required=choice != "auto",
        parallel=parallel is not False and not named,
    )
    return Constraint("calls", msgspec.json.encode(calling).decode())


def _tool(function: Body, field: str) -> Tool:
    parameters = function.get("parameters")
    if parameters is None:
        return Tool(function["name"])
    if not isinstance(parameters, dict):
        raise refuse(f"{field}.parameters", "must be an object", "invalid_value")
    # Arguments are an object, said or not.
    return Tool(function["name"], {"type": "object", **parameters})


def _choice(choice: Any, names: list[str]) -> str:
    """none, auto, required, or the name of the one function that is to be called."""
    if choice is None:
        return "auto"
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if choice.get("type") != "function" or name not in names:
            raise refuse("tool_choice", "must name a function of tools", "invalid_value")
        return str(name)
    if choice not in _CHOICES:
        raise refuse("tool_choice", f"must be one of {', '.join(_CHOICES)}, or name a function")
    if choice == "required" and not names:
        raise refuse("tool_choice", "is required, and there are no tools", "invalid_value")
    return str(choice)


def read_calls(calls: Any, field: str) -> list[Body]:
    """An assistant's calls in the history. Raises UpstreamStatus 400."""
    if not calls:
        return []
    if not isinstance(calls, list):
        raise refuse(f"{field}.tool_calls", "must be a list", "invalid_value")
    for place, call in enumerate(calls):
        where = f"{field}.tool_calls[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise refuse(where, "must be a call of a function")
        if not all(isinstance(function.get(name), str) for name in ("name", "arguments")):
            raise refuse(f"{where}.function", "must have name and arguments", "invalid_value")
    return calls


class CallReader:
    """One choice's text as content and calls, in the pieces of a stream."""

    def __init__(self, names: frozenset[str], id_prefix: str) -> None:
        self._reader = Reader(names) if names else None
        self._prefix = id_prefix

    @property
    def called(self) -> bool:
        """There was a call."""
        return self._reader is not None and self._reader.calls > 0

    def push(self, text: str) -> list[Body]:
        """Deltas for the text that has become certain."""
        if self._reader is None:
            return [{"content": text}] if text else []
        return [self._delta(piece) for piece in self._reader.push(text)]

    def flush(self) -> list[Body]:
        """Deltas for what was held back until the end."""
        if self._reader is None:
            return []
        return [self._delta(piece) for piece in self._reader.flush()]

    def _delta(self, piece: Said | Called) -> Body:
        if isinstance(piece, Said):
            return {"content": piece.text}
        if not piece.name:
            part = {"index": piece.number, "function": {"arguments": piece.arguments}}
            return {"tool_calls": [part]}
        function = {"name": piece.name, "arguments": ""}
        call = {"index": piece.number, "id": f"{self._prefix}_{piece.number}", "type": "function"}
        return {"tool_calls": [{**call, "function": function}]}


def whole_message(deltas: list[Body]) -> Body:
    """The message that these deltas make, without its role."""
    content: str | None = None
    calls: list[Body] = []
    for delta in deltas:
        if "content" in delta:
            content = (content or "") + delta["content"]
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                function = dict(part["function"])
                calls.append({"id": part["id"], "type": "function", "function": function})
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    if not calls:
        return {"content": content or ""}
    return {"content": content, "tool_calls": calls}
