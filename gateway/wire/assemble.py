"""A stream's chunks to the whole answer, and a whole answer to a stream's chunks.

So that one stored answer serves both. Knows the OpenAI documents; no socket.
"""

from collections.abc import Iterable
from typing import Any

import orjson

from gateway.wire.deltas import TEXTS, DeltaMessage, Doubtful, text_of
from gateway.wire.openai import Endpoint
from gateway.wire.usage_reading import merged
from gateway.wire.verbatim import encode

_DONE = b"data: [DONE]\n\n"
_COMPLETE = frozenset({"stop", "tool_calls", "function_call"})
_OBJECT: dict[Endpoint, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completions": ("text_completion", "text_completion"),
    "embeddings": ("list", "list"),
}
_OF_ONE_CHUNK = frozenset({"choices", "object", "usage", "obfuscation"})
# What was found by a search, drawn, or read elsewhere.
_FOUND = frozenset({"citations", "search_results", "images", "related_questions"})
_FOUND_BY_MESSAGE = _FOUND | frozenset(
    ("annotations", "audio", "context", "executed_tools", "grounding_metadata")
)  # fmt: skip
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "content_filter", "safety"})
_CALLING = frozenset({"tool_calls", "function_call"})
_CHUNK_CHARACTERS = 24  # of replayed text per event: a stored answer has no token boundaries


def assemble(endpoint: Endpoint, chunks: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The document that the same request would have got without ``stream``.

    None where two clients may put it together in two ways, or none can.
    """
    document: dict[str, Any] = {}
    choices: dict[int, _Choice] = {}
    try:
        for chunk in chunks:
            for name, value in chunk.items():
                if name not in _OF_ONE_CHUNK and not document.get(name):
                    document[name] = value
            if usage := chunk.get("usage"):
                known = document.get("usage")
                if isinstance(known, dict) and isinstance(usage, dict):
                    usage = merged(known, usage)  # as it is booked
                document["usage"] = usage
            parts = chunk.get("choices") or []
            if not isinstance(parts, list):
                return None
            for part in parts:
                index = _index(part, alone=len(parts) == 1)
                if index not in choices:
                    choices[index] = _Choice(endpoint, index)
                choices[index].add(part)
    except Doubtful:
        return None
    document["object"] = _OBJECT[endpoint][0]
    document["choices"] = [choices[index].document() for index in sorted(choices)]
    return document


class _Choice:
    """One choice of a stream, as far as it has come."""

    def __init__(self, endpoint: Endpoint, index: int) -> None:
        self._fields: dict[str, Any] = {"index": index, "finish_reason": None}
        self._text: list[str] = []
        self._message = DeltaMessage() if endpoint == "chat" else None

    def add(self, part: dict[str, Any]) -> None:
        """Raises Doubtful."""
        message, other = self._message, "delta"
        if message is not None:
            other = "text"
            delta = part.get("delta")
            if isinstance(delta, dict):
                message.add(delta)
            elif delta:
                raise Doubtful
        elif part.get("text"):
            self._text.append(text_of(part["text"]))
        if part.get("message") or part.get(other):
            raise Doubtful  # half a whole answer: nobody knows whether it repeats or continues
        for name, value in part.items():
            if name in ("delta", "message", "text", "index"):
                continue
            if name == "logprobs":
                self._fields["logprobs"] = _more_logprobs(self._fields.get("logprobs"), value)
            elif value or name not in self._fields:
                self._fields[name] = value

    def document(self) -> dict[str, Any]:
        """The choice of a whole answer."""
        if self._message is None:
            return {**self._fields, "text": "".join(self._text)}
        return {**self._fields, "message": self._message.document()}


def _index(part: Any, *, alone: bool) -> int:
    """Of the choice that a part belongs to. alone: the chunk has no other part."""
    if not isinstance(part, dict):
        raise Doubtful
    index = part.get("index")
    if index is None and alone:
        return 0
    if not isinstance(index, int) or isinstance(index, bool):
        raise Doubtful
    return index


def _more_logprobs(old: Any, new: Any) -> Any:
    """Lists of log-probabilities, continued."""
    if not new:
        return old if old is not None else new
    if not isinstance(new, dict):
        raise Doubtful
    joined: dict[str, Any] = dict(old) if old else {}
    for name, value in new.items():
        if value is not None and not isinstance(value, list):
            raise Doubtful
        if value is None:
            joined.setdefault(name, None)
        elif joined.get(name) is None:
            joined[name] = list(value)
        else:
            joined[name].extend(value)  # in place: copying would take quadratic time
    return joined


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


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
    return [*(b"data: " + encode(event) + b"\n\n" for event in events), _DONE]


def _chat_steps(choice: dict[str, Any], index: Any) -> list[dict[str, Any]]:
    """Role first, then each field in pieces, then the finish reason."""
    message = _object(choice.get("message"))
    first = None if message.get("content") is None else ""
    deltas: list[dict[str, Any]] = [{"role": message.get("role", "assistant"), "content": first}]
    for name, value in message.items():
        if name in ("role", "tool_calls") or value in (None, "", []):
            continue
        if isinstance(value, str) and name in TEXTS:
            deltas += [{name: piece} for piece in _pieces(value)]
        else:
            deltas.append({name: value})
    for number, call in enumerate(_objects(message.get("tool_calls"))):
        deltas.append({"tool_calls": [{"index": number, **call}]})
    steps = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    if choice.get("logprobs") is not None:
        steps[min(1, len(steps) - 1)]["logprobs"] = choice["logprobs"]
    steps.append({"index": index, "delta": {}, **_ending(choice)})
    return steps


def _text_steps(choice: dict[str, Any], index: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
        for piece in _pieces(_text(choice.get("text")))
    ]
    if steps and choice.get("logprobs") is not None:
        steps[0]["logprobs"] = choice["logprobs"]
    steps.append({"index": index, "text": "", "logprobs": None, **_ending(choice)})
    return steps


def _ending(choice: dict[str, Any]) -> dict[str, Any]:
    """The finish reason, and what else a provider says of a whole choice."""
    named = ("index", "message", "text", "logprobs")
    said = {name: value for name, value in choice.items() if name not in named}
    return {"finish_reason": None, **said}


def _pieces(text: str) -> list[str]:
    return [text[i : i + _CHUNK_CHARACTERS] for i in range(0, len(text), _CHUNK_CHARACTERS)]


def complete(answer: dict[str, Any]) -> bool:
    """Whether an answer may be stored, and so be replayed: it is as good tomorrow.

    Every choice ended as it should, not by length, a filter or a cut, says something, and has
    OpenAI's shape. What was found in the web, or is spoken, is not stored.
    """
    choices = answer.get("choices")
    if answer.get("error") or (not _FOUND.isdisjoint(answer) and _says_any(answer, _FOUND)):
        return False
    return isinstance(choices, list) and bool(choices) and all(map(_complete_choice, choices))


def _says_any(document: dict[str, Any], names: frozenset[str]) -> bool:
    """Whether one of these fields is there, and not empty."""
    return any(document.get(name) for name in names)


def _complete_choice(choice: Any) -> bool:
    if not isinstance(choice, dict) or type(choice.get("index")) is not int:
        return False
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or reason not in _COMPLETE or choice.get("error"):
        return False
    if str(choice.get("native_finish_reason")).lower() in _CUT:
        return False  # OpenRouter's: the provider's own word, where the other is "stop"
    message = choice.get("message")
    if "text" in choice:
        return message is None and isinstance(choice["text"], str) and bool(choice["text"])
    return isinstance(message, dict) and _complete_message(message, reason)


def _complete_message(message: dict[str, Any], reason: str) -> bool:
    if not _FOUND_BY_MESSAGE.isdisjoint(message) and _says_any(message, _FOUND_BY_MESSAGE):
        return False
    calls, called = message.get("tool_calls"), message.get("function_call")
    if reason in _CALLING and not (calls or called):
        return False
    if calls and not (isinstance(calls, list) and all(map(_complete_call, calls))):
        return False
    if called and not _can_be_called(called):
        return False
    return bool(calls or called or message.get("content") or message.get("refusal"))


def _complete_call(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    if "custom" in call:
        custom = call["custom"]
        named = isinstance(custom, dict) and bool(custom.get("name"))
        return named and isinstance(custom.get("input"), str)
    return _can_be_called(call.get("function"))


def _can_be_called(function: Any) -> bool:
    """Whether a function has a name, and arguments that can be read."""
    if not isinstance(function, dict):
        return False
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return False
    given = function.get("arguments")
    if not isinstance(given, str):
        return given is None or isinstance(given, dict)
    try:
        return not given or isinstance(orjson.loads(given), dict)
    except orjson.JSONDecodeError:
        return False


def answer_text(answer: dict[str, Any]) -> str:
    """All generated text of a document, for counting its tokens."""
    texts: list[str] = []
    for choice in _objects(answer.get("choices")):
        message = choice.get("message")
        if isinstance(message, dict):
            texts += [value for value in message.values() if isinstance(value, str)]
            texts += [encode(call).decode() for call in _objects(message.get("tool_calls"))]
        elif isinstance(choice.get("text"), str):
            texts.append(choice["text"])
    return "\n".join(texts)
