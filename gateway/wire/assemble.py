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
_CHUNK_CHARACTERS = 24  # of replayed text per event: a stored answer has no token boundaries


def assemble(endpoint: Endpoint, chunks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The document that the same request would have got without ``stream``."""
    document: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name not in ("choices", "object", "usage") and (
                value is not None or name not in document
            ):
                document.setdefault(name, value)
        if chunk.get("usage"):
            document["usage"] = chunk["usage"]
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = choices.setdefault(index, {"index": index, "finish_reason": None})
            if endpoint == "chat":
                _add_delta(choice.setdefault("message", {}), part.get("delta") or {})
            else:
                choice["text"] = choice.get("text", "") + (part.get("text") or "")
            _add_choice_fields(choice, part)
    for choice in choices.values():
        message = choice.get("message")
        if message is not None:
            message.setdefault("role", "assistant")
            message.setdefault("content", None)
            if "tool_calls" in message:
                message["tool_calls"] = list(message["tool_calls"].values())
    document["object"] = _OBJECT[endpoint][0]
    document["choices"] = [choices[index] for index in sorted(choices)]
    return document


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            message.setdefault(name, None)
        elif name == "tool_calls":
            calls = message.setdefault("tool_calls", {})
            for part in value:
                _add_tool_call(calls.setdefault(part.get("index", 0), {}), part)
        elif name in ("role", "id"):
            message[name] = value
        else:
            message[name] = _joined(message.get(name), value)


def _add_tool_call(call: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "index" or value is None:
            continue
        if isinstance(value, dict):
            inner = call.setdefault(name, {})
            for key, text in value.items():
                inner[key] = _joined(inner.get(key), text)
        else:
            call[name] = value


def _add_choice_fields(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name in ("delta", "text", "index"):
            continue
        if name == "logprobs" and isinstance(value, dict):
            logprobs = choice.get("logprobs") or {}
            for key, items in value.items():
                logprobs[key] = _joined(logprobs.get(key), items)
            choice["logprobs"] = logprobs
        elif value is not None or name not in choice:
            choice[name] = value


def _joined(old: Any, new: Any) -> Any:
    """Strings and lists are continued, objects merged, anything else replaced."""
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *new]
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _joined(old.get(key), value) for key, value in new.items()}}
    return old if new is None else new


def replay(
    endpoint: Endpoint,
    answer: dict[str, Any],
    *,
    include_usage: bool,
    answer_id: str,
    created: int,
) -> list[bytes]:
    """The events of a stored answer, ``[DONE]`` last."""
    common = {
        name: value for name, value in answer.items() if name not in ("choices", "usage", "object")
    }
    common |= {"id": answer_id, "object": _OBJECT[endpoint][1], "created": created}
    if include_usage:
        common["usage"] = None
    events: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        steps = _chat_steps(choice) if endpoint == "chat" else _text_steps(choice)
        events += [{**common, "choices": [step]} for step in steps]
    if include_usage:
        events.append({**common, "choices": [], "usage": answer.get("usage")})
    return [*(b"data: " + orjson.dumps(event) + b"\n\n" for event in events), _DONE]


def _chat_steps(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Role first, then each field in pieces, then the finish reason."""
    message = choice["message"]
    index = choice["index"]
    deltas: list[dict[str, Any]] = [{"role": message.get("role", "assistant"), "content": ""}]
    for name, value in message.items():
        if name in ("role", "tool_calls") or value in (None, "", []):
            continue
        if isinstance(value, str):
            deltas += [{name: piece} for piece in _pieces(value)]
        else:
            deltas.append({name: value})
    calls: list[dict[str, Any]] = message.get("tool_calls") or []
    for number, call in enumerate(calls):
        deltas.append({"tool_calls": [{"index": number, **call}]})
    steps = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    if choice.get("logprobs") is not None:
        steps[min(1, len(steps) - 1)]["logprobs"] = choice["logprobs"]
    steps.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")})
    return steps


def _text_steps(choice: dict[str, Any]) -> list[dict[str, Any]]:
    index = choice["index"]
    steps: list[dict[str, Any]] = [
        {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
        for piece in _pieces(choice.get("text") or "")
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
    """Every choice ended as it should: not by length, a filter or a cut."""
    choices = answer.get("choices")
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(
            isinstance(choice, dict) and choice.get("finish_reason") in _COMPLETE
            for choice in choices
        )
    )


def answer_text(answer: dict[str, Any]) -> str:
    """All generated text of a document, for counting its tokens."""
    texts: list[str] = []
    for choice in answer.get("choices") or ():
        if not isinstance(choice, dict):
            continue
        message = choice.get("message")
        if isinstance(message, dict):
            texts += [value for value in message.values() if isinstance(value, str)]
            for call in message.get("tool_calls") or ():
                texts.append(orjson.dumps(call).decode())
        elif isinstance(choice.get("text"), str):
            texts.append(choice["text"])
    return "\n".join(texts)
