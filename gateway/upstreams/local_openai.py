"""OpenAI's JSON on one side, the model process's messages on the other.

Sans-I/O: bodies become requests, messages become bytes. Refuses, with the field's name, whatever
the local model cannot honour; passes over what cannot change an answer (user, metadata, store).
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from gateway.errors import UpstreamStatus
from gateway.wire.usage import Usage
from local_models.messages import (
    Delta,
    Finished,
    GenerationRequest,
    SamplingParams,
    TokenLogprob,
)

DONE = b"data: [DONE]\n\n"
INPUTS_MAX = 2048
STOPS_MAX = 4
CHAT_LOGPROBS_MAX = 20
COMPLETION_LOGPROBS_MAX = 5

Body = dict[str, Any]

# Fields that the local model does not have: absent, or one of the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A chat or text completion that the local model can answer."""

    request: GenerationRequest
    chat: bool
    model: str
    include_usage: bool
    created: int  # Unix seconds


class EmbeddingsCall(msgspec.Struct, frozen=True, kw_only=True):
    """An embeddings request."""

    texts: tuple[str, ...]
    base64: bool
    dimensions: int
    model: str


def refuse(field: str, why: str, code: str = "unsupported_value") -> UpstreamStatus:
    """The 400 that names a field."""
    error = UpstreamStatus(
        f"The local model cannot serve this request: {field} {why}.",
        status=400,
        type="invalid_request_error",
        code=code,
        param=field,
    )
    error.unsent = True
    return error


def read_body(body: bytes) -> Body:
    """The JSON object. Raises UpstreamStatus 400."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise refuse("body", "is not JSON", "invalid_json") from error
    if not isinstance(document, dict):
        raise refuse("body", "is not a JSON object", "invalid_json")
    return document


def read_call(
    body: Body, *, chat: bool, request_id: str, model: str, context_tokens: int, deadline: float
) -> Call:
    """A generation from a /chat/completions or /completions body. Raises UpstreamStatus 400.

    Without a limit in the body the answer may fill ``context_tokens``.
    """
    return Call(
        request=GenerationRequest(
            request_id=request_id,
            params=_params(body, chat, context_tokens),
            messages=_messages(body) if chat else None,
            prompt=None if chat else _prompt(body),
            deadline_seconds=deadline,
        ),
        chat=chat,
        model=model,
        include_usage=_include_usage(body),
        created=int(time.time()),
    )


def refusal(body: Body, *, chat: bool) -> str | None:
    """Why the local model cannot serve a body; None if it can.

    For a router, which asks before it chooses: the same checks as ``read_call`` makes.
    """
    try:
        _params(body, chat, 1)
        _include_usage(body)
        if chat:
            _messages(body)
        else:
            _prompt(body)
    except UpstreamStatus as error:
        return error.message
    return None


def _params(body: Body, chat: bool, context_tokens: int) -> SamplingParams:
    for field in _UNSUPPORTED.keys() & body.keys():
        value = body[field]
        if value is not None and value not in _UNSUPPORTED[field]:
            raise refuse(field, "is not supported")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return SamplingParams(
        max_tokens=int(_number(body, limit, 1, 2**31, context_tokens, whole=True)),
        temperature=_number(body, "temperature", 0, 2, 1),
        top_p=_number(body, "top_p", 0, 1, 1),
        seed=_seed(body),
        stop=_stops(body),
        logprobs=_chat_logprobs(body) if chat else _completion_logprobs(body),
    )


def _include_usage(body: Body) -> bool:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise refuse("stream_options", "must be an object", "invalid_value")
    return bool(options.get("include_usage"))


def _messages(body: Body) -> tuple[dict[str, str], ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse("messages", "must be a list with at least one message", "invalid_value")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: Any, field: str) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise refuse(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    for extra in ("tool_calls", "function_call", "audio"):
        if message.get(extra):
            raise refuse(f"{field}.{extra}", "is not supported")
    return {"role": _ROLES[message["role"]], "content": _text(message.get("content"), field)}


def _text(content: Any, field: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refuse(f"{field}.content", "must be text")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            raise refuse(f"{field}.content", "may have parts of type text only")
        if not isinstance(part.get("text"), str):
            raise refuse(f"{field}.content", "has a part without text", "invalid_value")
    return "".join(part["text"] for part in content)


def _prompt(body: Body) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise refuse("prompt", "must be one string")
    return prompt


def _number(
    body: Body, field: str, least: float, most: float, default: float, *, whole: bool = False
) -> float:
    value = body.get(field)
    if value is None:
        return default
    right_type = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not right_type or not least <= value <= most:
        raise refuse(field, f"must be a number from {least} to {most}", "invalid_value")
    return float(value)


def _seed(body: Body) -> int | None:
    seed = body.get("seed")
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool)):
        return seed
    raise refuse("seed", "must be an integer", "invalid_value")


def _stops(body: Body) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise refuse("stop", "must be a string or a list of strings", "invalid_value")
    if len(stops) > STOPS_MAX:
        raise refuse("stop", f"has more than {STOPS_MAX} strings", "invalid_value")
    return tuple(stops)


def _chat_logprobs(body: Body) -> int | None:
    if not body.get("logprobs"):
        return None
    return int(_number(body, "top_logprobs", 0, CHAT_LOGPROBS_MAX, 0, whole=True))


def _completion_logprobs(body: Body) -> int | None:
    if body.get("logprobs") is None:
        return None
    return int(_number(body, "logprobs", 0, COMPLETION_LOGPROBS_MAX, 0, whole=True))


def document(call: Call, text: str, logprobs: Sequence[TokenLogprob], finished: Finished) -> bytes:
    """The whole answer of a call that does not stream."""
    choice: Body = {"index": 0}
    if call.chat:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    choice["logprobs"] = _logprobs(call, logprobs, 0)
    choice["finish_reason"] = finished.reason
    answer = _head(call, "chat.completion" if call.chat else "text_completion")
    return orjson.dumps({**answer, "choices": [choice], "usage": usage(finished)})


class Stream:
    """The events of one streamed answer, in order: ``opening``, ``delta``..., ``closing``."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._characters = 0
        self._document = _head(call, "chat.completion.chunk" if call.chat else "text_completion")

    def opening(self) -> bytes:
        """The role chunk of a chat; a text completion has none."""
        role = {"role": "assistant", "content": "", "refusal": None}
        return self._event(role, None, None) if self._call.chat else b""

    def delta(self, delta: Delta) -> bytes:
        """One chunk; nothing where the delta has nothing to show."""
        if not delta.text and not delta.logprobs:
            return b""
        logprobs = _logprobs(self._call, delta.logprobs, self._characters)
        self._characters += len(delta.text)
        shown: Body = {"content": delta.text} if self._call.chat else {"text": delta.text}
        return self._event(shown, logprobs, None)

    def closing(self, finished: Finished) -> bytes:
        """The chunk with the reason, the usage chunk where it was asked for, and the end mark."""
        events = self._event({} if self._call.chat else {"text": ""}, None, finished.reason)
        if self._call.include_usage:
            events += _sse({**self._document, "choices": [], "usage": usage(finished)})
        return events + DONE

    def _event(self, shown: Body, logprobs: Body | None, reason: str | None) -> bytes:
        choice: Body = {"index": 0, "logprobs": logprobs, "finish_reason": reason}
        choice.update({"delta": shown} if self._call.chat else shown)
        event = {**self._document, "choices": [choice]}
        if self._call.include_usage:
            event["usage"] = None
        return _sse(event)


def usage(finished: Finished) -> Body:
    """The usage object. Processor time is the operator's business, and goes into a header."""
    counts = Usage(
        prompt_tokens=finished.prompt_tokens, completion_tokens=finished.completion_tokens
    )
    return counts.document()


def _head(call: Call, kind: str) -> Body:
    prefix = "chatcmpl-" if call.chat else "cmpl-"
    return {
        "id": prefix + call.request.request_id.partition("/")[0],  # whichever attempt it was
        "object": kind,
        "created": call.created,
        "model": call.model,
        "system_fingerprint": None,
    }


def _sse(event: Body) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _logprobs(call: Call, tokens: Sequence[TokenLogprob], offset: int) -> Body | None:
    """offset: characters of the answer before these tokens, which the older format states."""
    if call.request.params.logprobs is None:
        return None
    if call.chat:
        return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }


def _chat_logprob(token: TokenLogprob) -> Body:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.bytes_),
        "top_logprobs": [
            {"token": other, "logprob": logprob, "bytes": list(other.encode())}
            for other, logprob in token.top
        ],
    }


def read_embeddings(body: Body, *, model: str, width: int) -> EmbeddingsCall:
    """width: numbers in a vector of this model. Raises UpstreamStatus 400."""
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or len(texts) > INPUTS_MAX:
        raise refuse("input", f"must be a string or a list of 1 to {INPUTS_MAX}", "invalid_value")
    for text in texts:
        if not isinstance(text, str):
            raise refuse("input", "must be text; token numbers belong to another tokenizer")
        if not text:
            raise refuse("input", "has an empty string", "invalid_value")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise refuse("encoding_format", "must be float or base64", "invalid_value")
    dimensions = _number(body, "dimensions", 1, width, width, whole=True)
    return EmbeddingsCall(
        texts=tuple(texts),
        base64=encoding == "base64",
        dimensions=int(dimensions),
        model=model,
    )
