"""A stream's chunks to the whole answer, and a whole answer to a stream's chunks.

So that one stored answer serves both. Knows the OpenAI documents; no socket.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.wire.openai import Endpoint

_DONE = b"data: [DONE]\n\n"
_COMPLETE = frozenset({"stop", "tool_calls", "function_call"})
_OBJECT: dict[Endpoint, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completions": ("text_completion", "text_completion"),
    "embeddings": ("list", "list"),
}
_OF_ONE_CHUNK = frozenset({"choices", "object", "usage", "obfuscation"})
_CHUNK_CHARACTERS = 24  # of replayed text per event: a stored answer has no token boundaries


def assemble(endpoint: Endpoint, chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The document that the same request would have got without ``stream``.

    Takes whatever JSON a provider sends: what has another shape than OpenAI's is left out.
    """
    document: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name not in _OF_ONE_CHUNK and document.get(name) is None:
                document[name] = value
        if chunk.get("usage"):
            document["usage"] = chunk["usage"]
        for part in _objects(chunk.get("choices")):
            index = _index(part)
            choice = choices.setdefault(index, {"index": index, "finish_reason": None})
            if endpoint == "chat":
                _add_delta(choice.setdefault("message", {}), _object(part.get("delta")))
            else:
                choice["text"] = choice.get("text", "") + _text(part.get("text"))
            _add_choice_fields(choice, part)
    for choice in choices.values():
        message = choice.get("message")
        if message is not None:
            message.setdefault("role", "assistant")
            message.setdefault("content", None)
            if "tool_calls" in message:
                message["tool_calls"] = _in_order(message["tool_calls"])
    document["object"] = _OBJECT[endpoint][0]
    document["choices"] = _in_order(choices)
    return document


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for part in _objects(value):
                calls = message.setdefault("tool_calls", {})
                _add_tool_call(calls.setdefault(_index(part), {}), part)
        elif value is None:
            message.setdefault(name, None)
        elif name in ("role", "id"):
            message[name] = value
        else:
            message[name] = _joined(message.get(name), value)


def _add_tool_call(call: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "index" or value is None:
            continue
        call[name] = _joined(call.get(name), value) if isinstance(value, dict) else value


def _add_choice_fields(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name in ("delta", "message", "text", "index"):
            continue
        if name == "logprobs":
            choice["logprobs"] = _joined(choice.get("logprobs"), value)
        elif value is not None or name not in choice:
            choice[name] = value


def _joined(old: Any, new: Any) -> Any:
    """Strings and lists are continued, objects merged, anything else replaced."""
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        old.extend(new)  # in place: copying would take quadratic time over a stream
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _joined(old.get(key), value) for key, value in new.items()}}
    return old if new is None else new


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _index(part: dict[str, Any]) -> int:
    index = part.get("index")
    return index if isinstance(index, int) else 0


def _in_order(parts: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [parts[index] for index in sorted(parts)]


def replay(
    endpoint: Endpoint,
    answer: dict[str, Any],
    *,
    include_usage: bool,
    answer_id: str | None = None,
    created: int = 0,
) -> list[bytes]:
    """The events of a whole answer, ``[DONE]`` last; under another id where one is given."""
    common = {
        name: value for name, value in answer.items() if name not in ("choices", "usage", "object")
    }
    common["object"] = _OBJECT[endpoint][1]
    if answer_id is not None:
        common |= {"id": answer_id, "created": created}
    if include_usage:
        common["usage"] = None
    events: list[dict[str, Any]] = []
    for number, choice in enumerate(answer["choices"]):
        index = choice.get("index", number)
        steps = _chat_steps(choice, index) if endpoint == "chat" else _text_steps(choice, index)
        events += [{**common, "choices": [step]} for step in steps]
    if include_usage:
        events.append({**common, "choices": [], "usage": answer.get("usage")})
    return [*(b"data: " + orjson.dumps(event) + b"\n\n" for event in events), _DONE]


def _chat_steps(choice: dict[str, Any], index: Any) -> list[dict[str, Any]]:
    """Role first, then each field in pieces, then the finish reason."""
    message = _object(choice.get("message"))
    deltas: list[dict[str, Any]] = [{"role": message.get("role", "assistant"), "content": ""}]
    for name, value in message.items():
        if name in ("role", "tool_calls") or value in (None, "", []):
            continue
        if isinstance(value, str):
            deltas += [{name: piece} for piece in _pieces(value)]
        else:
            deltas.append({name: value})
    for number, call in enumerate(_objects(message.get("tool_calls"))):
        deltas.append({"tool_calls": [{"index": number, **call}]})
    steps = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    if choice.get("logprobs") is not None:
        steps[min(1, len(steps) - 1)]["logprobs"] = choice["logprobs"]
    steps.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")})
    return steps


def _text_steps(choice: dict[str, Any], index: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
        for piece in _pieces(_text(choice.get("text")))
    ]
    if steps and choice.get("logprobs") is not None:
        steps[0]["logprobs"] = choice["logprobs"]
    steps.append(
        {"index": index, "text": "", "logprobs": None, "finish_reason": choice.get("finish_reason")}
    )
    return steps


def _pieces(text: str) -> list[str]:
    return [text[i : i + _CHUNK_CHARACTERS] for i in range(0, len(text), _CHUNK_CHARACTERS)]


def complete(answer: dict[str, Any]) -> bool:
    """Whether an answer may be stored, and so be replayed.

    Every choice ended as it should, not by length, a filter or a cut, and has OpenAI's shape.
    """
    choices = answer.get("choices")
    return isinstance(choices, list) and bool(choices) and all(map(_complete_choice, choices))


def _complete_choice(choice: Any) -> bool:
    if not isinstance(choice, dict) or type(choice.get("index")) is not int:
        return False
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _COMPLETE:
        return False
    message = choice.get("message")
    if "text" in choice:
        return message is None and isinstance(choice["text"], str)
    return isinstance(message, dict) and _calls_well_formed(message.get("tool_calls"))


def _calls_well_formed(calls: Any) -> bool:
    return calls is None or (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    )


def answer_text(answer: dict[str, Any]) -> str:
    """All generated text of a document, for counting its tokens."""
    texts: list[str] = []
    for choice in _objects(answer.get("choices")):
        message = choice.get("message")
        if isinstance(message, dict):
            texts += [value for value in message.values() if isinstance(value, str)]
            texts += [orjson.dumps(call).decode() for call in _objects(message.get("tool_calls"))]
        elif isinstance(choice.get("text"), str):
            texts.append(choice["text"])
    return "\n".join(texts)
