"""OpenAI's request bodies as the model process's requests.

Sans-I/O. Refuses, with the field's name, whatever the local model cannot honour; passes over what
cannot change an answer (user, metadata, store). ``local_answers`` is the way back.
"""

import time
from typing import Any

import msgspec
import orjson

from gateway.errors import UpstreamStatus
from gateway.upstreams.local_tools import read_calling, read_calls, read_tools
from gateway.upstreams.refusals import Body, refuse
from local_models.constraints import check as check_constraint
from local_models.messages import (
    Constraint,
    GenerationRequest,
    InvalidPrompt,
    SamplingParams,
)

INPUTS_MAX = 2048
STOPS_MAX = 64
STOP_CHARACTERS_MAX = 1_024
BIASES_MAX = 1_024
CHOICES_MAX = 8
"""Answers to one request (n); each takes a slot of the model process."""

CHAT_LOGPROBS_MAX = 20
COMPLETION_LOGPROBS_MAX = 5

# Fields that the local model does not have: absent, or one of the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES |= {"tool": "tool"}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A chat or text completion that the local model can answer.

    requests: one for each answer that ``n`` asks for. tools: names that an answer may call.
    """

    requests: tuple[GenerationRequest, ...]
    tools: frozenset[str] = frozenset()
    chat: bool
    model: str
    include_usage: bool
    created: int  # Unix seconds

    @property
    def request(self) -> GenerationRequest:
        """The first answer's; the others differ in their seeds."""
        return self.requests[0]


class EmbeddingsCall(msgspec.Struct, frozen=True, kw_only=True):
    """An embeddings request."""

    texts: tuple[str, ...]
    base64: bool
    dimensions: int
    model: str


def read_body(body: bytes) -> Body:
    """The JSON object. Raises UpstreamStatus 400."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # orjson's words: half a surrogate pair and 1e999 are JSON that no text or double can hold.
        raise refuse("body", f"cannot be read: {error}", "invalid_json") from error
    if not isinstance(document, dict):
        raise refuse("body", "is not a JSON object", "invalid_json")
    return document


def read_call(
    body: Body,
    *,
    chat: bool,
    request_id: str,
    model: str,
    context_tokens: int,
    deadline: float,
    ends_nonsense: bool = False,
    scope: str = "",
) -> Call:
    """A generation from a /chat/completions or /completions body. Raises UpstreamStatus 400.

    Without a limit in the body the answer may fill ``context_tokens``.
    """
    first = GenerationRequest(
        request_id=request_id,
        params=_params(body, chat, context_tokens),
        messages=_messages(body) if chat else None,
        prompt=None if chat else _prompt(body),
        deadline_seconds=deadline,
        constraint=_constraint(body),
        tools=read_tools(body) if chat else None,
        ends_nonsense=ends_nonsense,
        scope=scope,
    )
    return Call(
        requests=_answers(first, _whole(body, "n", 1, CHOICES_MAX, 1)),
        tools=frozenset(tool["function"]["name"] for tool in first.tools or ()),
        chat=chat,
        model=model,
        include_usage=_include_usage(body),
        created=int(time.time()),
    )


def refusal(body: Body, *, chat: bool) -> str | None:
    """Why the local model cannot serve a body; None if it can.

    For a router, which asks before it chooses: the same checks as ``read_call`` makes.
    """
    if body.get("logit_bias"):
        return "logit_bias names tokens of one model, and which one is not said"
    try:
        _params(body, chat, 1)
        _constraint(body)
        _whole(body, "n", 1, CHOICES_MAX, 1)
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
        max_tokens=_whole(body, limit, 1, 2**31, context_tokens),
        temperature=_number(body, "temperature", 0, 2, 1),
        top_p=_number(body, "top_p", 0, 1, 1),
        seed=_seed(body),
        stop=_stops(body),
        logprobs=_chat_logprobs(body) if chat else _completion_logprobs(body),
        presence_penalty=_number(body, "presence_penalty", -2, 2, 0),
        frequency_penalty=_number(body, "frequency_penalty", -2, 2, 0),
        logit_bias=_logit_bias(body),
    )


def _answers(first: GenerationRequest, count: int) -> tuple[GenerationRequest, ...]:
    """One request for each answer. Given one seed, the n-th answer's is that seed plus n.

    After the largest seed, which has 64 bits, comes 0.
    """
    if count == 1:
        return (first,)
    group, params = first.request_id, first.params
    found = []
    for number in range(count):
        seed = None if params.seed is None else (params.seed + number) % 2**64
        found.append(
            msgspec.structs.replace(
                first,
                request_id=f"{group}.{number}",
                group=group,
                params=msgspec.structs.replace(params, seed=seed),
            )
        )
    return tuple(found)


def _constraint(body: Body) -> Constraint | None:
    """The form that the answer must have. Raises UpstreamStatus 400 for one that cannot be kept."""
    found = [
        (field, constraint)
        for field, constraint in (
            ("response_format", _response_format(body.get("response_format"))),
            ("structured_outputs", _structured_outputs(body.get("structured_outputs"))),
            ("tools", read_calling(body)),
        )
        if constraint is not None
    ]
    if not found:
        return None
    if len(found) > 1:
        raise refuse(found[-1][0], f"cannot be combined with {found[0][0]}")
    field, constraint = found[0]
    try:
        check_constraint(constraint)
    except InvalidPrompt as error:
        raise refuse(field, f"cannot be kept: {error}") from error
    return constraint


def _response_format(form: Any) -> Constraint | None:
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json", '{"type": "object"}')
    if kind != "json_schema":
        raise refuse("response_format.type", "must be text, json_object or json_schema")
    described = form.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise refuse("response_format.json_schema.schema", "must be an object", "invalid_value")
    return Constraint("json", _text_of(schema))


def _structured_outputs(form: Any) -> Constraint | None:
    """vLLM's field for forms that OpenAI does not have."""
    if form is None:
        return None
    given = [name for name, value in form.items() if value] if isinstance(form, dict) else []
    if len(given) != 1:
        raise refuse("structured_outputs", "must have one of json, regex, choice", "invalid_value")
    name, value = given[0], form[given[0]]
    if name == "choice":
        return Constraint("choice", _text_of(value))
    if name == "regex" and isinstance(value, str):
        return Constraint("regex", value)
    if name == "json" and isinstance(value, dict | str):
        return Constraint("json", value if isinstance(value, str) else _text_of(value))
    raise refuse(f"structured_outputs.{name}", "is not supported")


def _text_of(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise refuse("response_format", f"cannot be kept: {error}") from error


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    """Token numbers are those of this model's vocabulary."""
    biases = body.get("logit_bias") or {}
    if not isinstance(biases, dict) or len(biases) > BIASES_MAX:
        raise refuse("logit_bias", f"must be an object of at most {BIASES_MAX} tokens")
    found = []
    for token in biases:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise refuse(
                "logit_bias", f"has {token!r}, which is no token's number", "invalid_value"
            )
        bias = _number({"logit_bias": biases[token]}, "logit_bias", -100, 100, 0)
        found.append((int(token), bias))
    return tuple(found)


def _include_usage(body: Body) -> bool:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise refuse("stream_options", "must be an object", "invalid_value")
    return bool(options.get("include_usage"))


def _messages(body: Body) -> tuple[Body, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse("messages", "must be a list with at least one message", "invalid_value")
    return tuple(_message(message, f"messages[{i}]") for i, message in enumerate(messages))


def _message(message: Any, field: str) -> Body:
    said = message.get("role") if isinstance(message, dict) else None
    if not isinstance(said, str) or said not in _ROLES:
        raise refuse(f"{field}.role", f"must be one of {', '.join(_ROLES)}")
    for extra in ("function_call", "audio"):
        if message.get(extra):
            raise refuse(f"{field}.{extra}", "is not supported")
    role, content = _ROLES[said], message.get("content")
    if role == "assistant":
        calls = read_calls(message.get("tool_calls"), field)
        if content is None:
            refusal = message.get("refusal")
            content = refusal if isinstance(refusal, str) else "" if calls else None
        if calls:
            return {"role": role, "content": _text(content, field), "tool_calls": calls}
    return {"role": role, "content": _text(content, field)}


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
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows one kind of number
    right_type = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not right_type or not least <= value <= most:
        raise refuse(field, f"must be a number from {least} to {most}", "invalid_value")
    return float(value)


def _whole(body: Body, field: str, least: int, most: int, default: int) -> int:
    return int(_number(body, field, least, most, default, whole=True))


def _seed(body: Body) -> int | None:
    seed = body.get("seed")
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool)):
        return seed
    raise refuse("seed", "must be an integer", "invalid_value")


def _stops(body: Body) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise refuse("stop", "must be a string or a list of strings", "invalid_value")
    if len(stops) > STOPS_MAX or any(len(s) > STOP_CHARACTERS_MAX for s in stops):
        bounds = f"{STOPS_MAX} strings or {STOP_CHARACTERS_MAX} characters in one"
        raise refuse("stop", f"has more than {bounds}", "invalid_value")
    return tuple(s for s in stops if s)  # an empty text stops nothing


def _chat_logprobs(body: Body) -> int | None:
    if not body.get("logprobs"):
        return None
    return _whole(body, "top_logprobs", 0, CHAT_LOGPROBS_MAX, 0)


def _completion_logprobs(body: Body) -> int | None:
    if body.get("logprobs") is None:
        return None
    return _whole(body, "logprobs", 0, COMPLETION_LOGPROBS_MAX, 0)


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
