"""OpenAI's request bodies: decoded once, judged, and encoded once for the upstream.

Checks only what the gateway needs; every other field passes through as it came, known or not.
Also redacts a provider's error. Knows no socket.
"""

import re
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec
import orjson

from gateway.errors import InvalidRequest, UpstreamStatus
from gateway.wire.fees import FEE_FIELDS, Fee, choice_of_model, fee_asked
from gateway.wire.kept import TOP_FIELDS, refuse_kept
from gateway.wire.reported import Reported, read_odd
from gateway.wire.sizes import PromptSize, size_of
from gateway.wire.structure import (
    DEPTH_MAX,
    KEYS_MAX,
    LARGE_BYTES,
    check_structure,
    decode_large,
)
from gateway.wire.verbatim import Number, decode, encode, without_halves

Endpoint = Literal[
    "chat", "completions", "embeddings", "messages", "count_tokens", "responses", "decisions"
]
# No token is written.
WITHOUT_OUTPUT: frozenset[Endpoint] = frozenset({"embeddings", "count_tokens", "decisions"})

USER_LENGTH_MAX = 512
_TIERS = (None, "auto", "default", "flex")  # at the list price or below it
_LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
RETRY_AFTER_SECONDS_MAX = 60.0  # that we wait ourselves; a client is told all of it
_ADVICE_SECONDS_MAX = 1e9  # thirty years: longer advice is none
_REFUSES_US = (401, 402, 403)  # the gateway's account, not the tenant
# Of how we ask, not of what the client asks; most oblige to headers that only the provider knows.
_OUR_WAY = frozenset({405, 406, 407, 411, 415, 417, 421, 426, 431, 505})
_TYPES = {429: "rate_limit_error"}  # where the provider names none
_MESSAGE_LENGTH_MAX = 2_000
_SHOWN_LENGTH_MAX = 100
_REDACTED_LENGTH_MAX = 65_536  # read of a message before it is cut: no half of a secret stays


class ParsedRequest(msgspec.Struct, kw_only=True):
    """A request body and what the gateway must know of it.

    Not changed after parsing, but for ``canonical`` and ``growth``, which are filled in when they
    are first needed.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    stream: bool = False
    include_usage: bool = False  # the client wants the usage event of a stream
    prompt_bytes: int  # UTF-8 bytes of all that becomes prompt: an upper bound of its tokens
    prompts: int = 1  # that are read, each within the model's window
    unsized: str | None = None  # names a field that may be more prompt than ``prompt_bytes`` says
    enclosed: str | None = None  # likewise, of a file or recording that the body itself holds
    max_output_tokens: int | None = None
    predicted_bytes: int = 0  # of a predicted answer: what is not taken of it is billed as output
    choices: int = 1  # answers that are written, shown or not
    has_tools: bool = False
    has_media: bool = False  # images, audio or files in a message
    has_json_format: bool = False
    last_user_text: str | None = None  # None: the request does not end with a user's plain text
    messages_count: int = 0
    user: str | None = None
    temperature: float | None = None
    canonical: bytes | None = None  # as ``canonical_body`` spells it
    growth: int | None = None  # bytes that a normalizing tokenizer may add, once it was asked for
    provider_tools: str | None = None  # names what the provider bills as no price foretells
    fee: Fee | None = None  # what a chat is billed for beside its tokens, uncounted in its answer


def parse_request(
    endpoint: Endpoint, raw: bytes | bytearray, deployment: str | None = None
) -> ParsedRequest:
    """Decode a body. Raises InvalidRequest naming the field, in OpenAI's manner.

    deployment: Azure's name of the model, in the path; the body need not name it then.
    Duplicate keys: the last wins, for us and, by ``encode_request``, for the upstream.
    """
    body = decode_body(raw, deployment)
    stream = boolean_of(body, "stream")
    request = ParsedRequest(
        endpoint=endpoint,
        body=body,
        model=body["model"],
        stream=stream and endpoint != "embeddings",
        include_usage=stream and _include_usage(body),
        prompt_bytes=0,
        max_output_tokens=_output_tokens(body),
        choices=choices_of(body),
        has_json_format="response_format" in body and _has_json_format(body),
        user=user_of(body, "user") if "user" in body else None,
        temperature=number_of(body, "temperature"),
    )
    if "service_tier" in body:
        request.provider_tools = dearer_tier(body)
    if endpoint == "chat" and not FEE_FIELDS.isdisjoint(body):
        asked = fee_asked(body)
        if asked is not None:
            request.provider_tools, request.fee = asked
    chosen = choice_of_model(body)
    if chosen is not None:
        request.provider_tools = chosen
    if body.get("prediction"):
        request.predicted_bytes = size_of(body["prediction"])
    if endpoint == "chat":
        shown = _read_messages(request) or request.has_media
        if shown or request.has_tools or not TOP_FIELDS.isdisjoint(body):
            refuse_kept(body, ("messages", "tools") if shown else ("tools",))
    elif endpoint == "completions":
        _read_prompt(request)
    else:
        _read_input(request)
    return request


def decode_body(raw: bytes | bytearray, model: str | None = None) -> dict[str, Any]:
    """A body of any endpoint: an object that names its model. Raises InvalidRequest.

    model: takes the place of what the body says, or does not say.
    """
    try:
        if len(raw) > LARGE_BYTES:
            body = decode_large(raw)
        else:
            openings, colons = raw.count(b"{") + raw.count(b"["), raw.count(b":")
            # Only a body with many brackets or colons can be deep or wide.
            if openings > DEPTH_MAX or colons > KEYS_MAX:
                check_structure(raw)
            body = decode(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {_where(error)}."
        ) from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    if model is not None:
        body["model"] = model
    elif not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidRequest("you must provide a model parameter", param="model")
    return body


def under_known_limit(request: ParsedRequest) -> ParsedRequest:
    """The request with its limit under the name that every provider of chats knows.

    Whoever does not know ``max_completion_tokens`` ignores it, and writes as much as it likes.
    """
    body = {n: value for n, value in request.body.items() if n not in _LIMIT_FIELDS}
    body["max_tokens"] = request.max_output_tokens
    return msgspec.structs.replace(request, body=body)


def dearer_tier(body: dict[str, Any]) -> str | None:
    """The field's name where it asks for a tier that is, or may be, dearer than the list price."""
    return None if body.get("service_tier") in _TIERS else "service_tier"


def encode_request(
    request: ParsedRequest,
    *,
    upstream_model: str,
    max_output_tokens: int | None = None,
    limit_field: str = "max_tokens",
) -> bytes:
    """The body for the upstream: another model, usage asked for, a limit where one is given.

    limit_field: the name by which a chat's limit goes that the client has not named itself.
    """
    changes: dict[str, Any] = {"model": upstream_model}
    if request.stream:
        options = request.body.get("stream_options")
        changes["stream_options"] = {
            **(options if isinstance(options, dict) else {}),
            "include_usage": True,
        }
    if max_output_tokens is not None:
        named: list[str] = [f for f in _LIMIT_FIELDS if f in request.body]
        fields = named or [limit_field if request.endpoint == "chat" else "max_tokens"]
        changes |= dict.fromkeys(fields, max_output_tokens)
    elif request.endpoint == "completions" and request.body.get("max_tokens") is None:
        # Providers of completions know no other name of a limit.
        limit = request.max_output_tokens
        changes |= {"max_tokens": limit} if limit is not None else {}
    return encode({**request.body, **changes})


def upstream_error(
    status: int,
    raw: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    secrets: Sequence[str],
    now_seconds: float = 0.0,
) -> UpstreamStatus:
    """A provider's error as ours: its text redacted, its status kept where the client is at fault.

    401, 402 and 403 become 502: it is our account that the provider refuses, not the tenant's. So
    do 405, 415 and their like: they are about our request, not the client's.
    now_seconds: Unix time, against which a ``retry-after`` date is read.
    """
    if status in _REFUSES_US:
        return _credentials_refused()
    if not 400 <= status <= 599:
        return UpstreamStatus(
            f"The provider answered with the unexpected status {status}.", status=502
        )
    answer = _as_ours(status, read_odd(raw, certain=True) or Reported(), secrets)
    if status in _OUR_WAY:
        answer.status, answer.type, answer.retryable = 502, "api_error", False
    answer.retry_after_seconds = _retry_after_seconds(headers, now_seconds)
    return answer


def reported_error(
    reported: Reported, secrets: Sequence[str], *, begun: bool = False
) -> UpstreamStatus:
    """The error that a provider reports under the status 200, as if its status had said so.

    Without any hint of a status it is a failure of the provider: 502. begun: a part of an answer
    has come, or its usage.
    """
    status = reported.status or 502
    if status in _REFUSES_US:
        return _credentials_refused()
    error = _as_ours(status, reported, secrets)
    if reported.message is None:
        error.message = "The provider reported an error and did not say which."
    error.unsent = error.unsent and not begun
    error.retryable = error.retryable and not begun  # else the same would be paid for twice
    return error


def _as_ours(status: int, reported: Reported, secrets: Sequence[str]) -> UpstreamStatus:
    message, kind, code, param = (
        redact(text[:_REDACTED_LENGTH_MAX], secrets)[:_MESSAGE_LENGTH_MAX] if text else None
        for text in (reported.message, reported.type, reported.code, reported.param)
    )
    answer = UpstreamStatus(
        message or f"The provider answered with status {status}.",
        status=503 if status == 529 else status,
        type=kind or _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error"),
        code=code,
        param=param,
    )
    # What OpenAI's own clients ask again for; they do as we say.
    answer.retryable = status in (408, 409, 429) or status >= 500
    answer.unsent = status < 500 or status in (503, 529)  # refused: nobody bills for that
    return answer


def _credentials_refused() -> UpstreamStatus:
    refused = UpstreamStatus(
        "The provider refused the gateway's credentials.", status=502, code="upstream_refused"
    )
    refused.unsent = True
    return refused


_SECRETS = re.compile(
    r"(?i:bearer|basic)\s+[\w\-.~+/=]{8,}"
    r"|\b(?:sk|pk|rk|th|tha|key|gsk|xai|hf|AIza)[-_A-Z][A-Za-z0-9_\-]{8,}"
    r"|\beyJ[\w\-]{8,}\.[\w\-.]+"
    r"|\b(?:org|proj)[-_][A-Za-z0-9]{16,}"  # the gateway's account, which is no tenant's business
    r"|(?<=://)[^/\s:@]{1,256}:[^/\s@]{1,256}(?=@)"
    r"|(?i:(?<=[?&])(?:api[-_]?key|key|token|access_token|sig)=)[^\s&\"']{6,}"
)


def redact(text: str, secrets: Sequence[str]) -> str:
    """``text`` without anything that is, or looks like, a credential."""
    text = without_halves(text)
    for secret in secrets:
        for part in (secret, secret.partition(" ")[2]):
            if len(part) >= 4:
                text = text.replace(part, "[redacted]")
    return _SECRETS.sub("[redacted]", text)


def _read_messages(request: ParsedRequest) -> bool:
    """Fill in what a chat request says about its messages and tools; whether one is spoken."""
    body = request.body
    measured = PromptSize()
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            "'messages' must be a list with at least one message.", param="messages"
        )
    size, spoken = 0, False
    for index, message in enumerate(messages):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise _no_message(message, index)
        content = message.get("content")
        if type(content) is str:
            size += len(content) if content.isascii() else size_of(content)
            if content.startswith(_FILE_REFERENCE):
                measured.refuse(f"messages[{index}].content")
            if len(message) > 2:
                spoken = spoken or "audio" in message
                measured.message(_without_content(message), f"messages[{index}]")
        elif content is None or type(content) is list:
            spoken = spoken or "audio" in message
            measured.message(message, f"messages[{index}]")
        else:
            raise InvalidRequest(
                f"'messages[{index}].content' must be a string or a list of parts.",
                param=f"messages[{index}].content",
            )
    size += _MESSAGE_OVERHEAD_BYTES * len(messages)
    request.has_tools = bool(body.get("tools") or body.get("functions"))
    if not _PLAIN.issuperset(body):
        measured.fields(body, _PLAIN)
    measured.tokens += size
    measured.tell(request)
    request.messages_count = len(messages)
    request.last_user_text = _user_text(messages[-1])
    return spoken


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "content"}


def _no_message(message: Any, index: int) -> InvalidRequest:
    where, what = f"messages[{index}]", "an object"
    if isinstance(message, dict):
        where, what = f"{where}.role", "a string"
    return InvalidRequest(f"'{where}' must be {what}.", param=where)


def _read_prompt(request: ParsedRequest) -> None:
    prompt = request.body.get("prompt", "<|endoftext|>")
    if isinstance(prompt, str):
        request.prompt_bytes = size_of(prompt)
        request.last_user_text = whole_text(prompt)
    elif isinstance(prompt, list):
        request.prompt_bytes = _size_of_batch(prompt, "prompt")
        # A list of tokens is one prompt; all else in a list is a prompt of its own.
        request.choices *= max(1, sum(not isinstance(item, int) for item in prompt))
        if len(prompt) == 1 and isinstance(prompt[0], str):
            request.last_user_text = whole_text(prompt[0])
    else:
        raise InvalidRequest("'prompt' must be a string or a list.", param="prompt")
    measure_fields(request, _PLAIN_COMPLETION)


def _read_input(request: ParsedRequest) -> None:
    given = request.body.get("input")
    if isinstance(given, str):
        request.prompt_bytes = size_of(given)
    elif isinstance(given, list) and given:
        request.prompt_bytes = _size_of_batch(given, "input")
    else:
        raise InvalidRequest("'input' must be a string or a non-empty list.", param="input")
    measure_fields(request, _PLAIN_EMBEDDING)


def measure_fields(request: ParsedRequest, counted: frozenset[str]) -> None:
    """Add every field of the body but those ``counted`` elsewhere to the prompt's size."""
    if counted.issuperset(request.body):
        return
    measured = PromptSize(request.prompt_bytes)
    measured.fields(request.body, counted)
    measured.tell(request)


# Fields that no model reads, or that are counted by themselves. All others count, known or not.
SCALARS = frozenset(
    ("model", "stream", "temperature", "n", "best_of", "max_tokens", "max_completion_tokens")
)
_PLAIN = SCALARS | {"messages"}
_PLAIN_COMPLETION = SCALARS | {"prompt"}
_PLAIN_EMBEDDING = SCALARS | {"input"}
_FILE_REFERENCE = "fileid://"  # Alibaba's: the whole text of a message stands for a file
_MESSAGE_OVERHEAD_BYTES = 8  # a chat template's marks around one message, in tokens at most


def _size_of_batch(items: list[Any], param: str) -> int:
    """Bytes of a batch of texts, of token lists (a token counts as one), or of one token list.

    A list may hold something else where a provider takes it, such as pairs of texts.
    """
    size = 0
    for item in items:
        if isinstance(item, str):
            size += size_of(item)
        elif isinstance(item, list):
            size += sum(1 if type(part) is int else size_of(part) for part in item)
        elif isinstance(item, int) and not isinstance(item, bool):
            size += 1
        else:
            raise InvalidRequest(f"'{param}' must hold strings or tokens.", param=param)
    return size


def _user_text(message: dict[str, Any]) -> str | None:
    """The text of a user's message that is text alone."""
    if message["role"] != "user":
        return None
    content = message.get("content")
    if isinstance(content, str):
        return whole_text(content)
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return whole_text("\n".join(texts))


def shown(text: str) -> str:
    """A client's own words in a message: a hundred characters of them, in UTF-8."""
    return without_halves(text[:_SHOWN_LENGTH_MAX])


def whole_text(text: str) -> str | None:
    """The text, or None where it holds half a surrogate pair: no model of ours reads that."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return None
    return text


def _has_json_format(body: dict[str, Any]) -> bool:
    given = body.get("response_format")
    return isinstance(given, dict) and given.get("type") not in (None, "text")


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _output_tokens(body: dict[str, Any]) -> int | None:
    older = positive_of(body, "max_tokens", 0) if "max_tokens" in body else None
    if "max_completion_tokens" not in body:
        return older
    newer = positive_of(body, "max_completion_tokens", 0)
    if newer is None or older is None:
        return older if newer is None else newer
    return max(newer, older) if newer and older else 0  # 0 may mean no limit


def positive_of(body: dict[str, Any], name: str, least: int = 1) -> int | None:
    """A field that is an integer from ``least`` on where it is given. Raises InvalidRequest.

    ``20.0`` is an integer: JSON knows one kind of number.
    """
    value = body.get(name)
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**31:
        kind = "a positive integer" if least else "an integer of 0 or more"
        raise InvalidRequest(f"'{name}' must be {kind}, and {2**31} at most.", param=name)
    return value


def choices_of(body: dict[str, Any]) -> int:
    """How many answers may be written, shown or not."""
    choices = (positive_of(body, "n") or 1) if "n" in body else 1
    return max(choices, positive_of(body, "best_of", 0) or 1) if "best_of" in body else choices


def boolean_of(body: dict[str, Any], name: str) -> bool:
    """A field that is true or false; false where it is absent. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' must be true or false.", param=name)
    return value


def number_of(body: dict[str, Any], name: str) -> float | None:
    """A field that is a number where it is given. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Number):
        raise InvalidRequest(f"'{name}' must be a number.", param=name)
    number = float(value)
    if number - number != 0.0:
        raise InvalidRequest(f"'{name}' must be a number that a double can hold.", param=name)
    return number


def user_of(body: dict[str, Any], name: str) -> str | None:
    """The end user's name, which is booked with each request. Raises InvalidRequest."""
    user = _optional_text(body, name)
    if user is not None and whole_text(user) is None:
        raise InvalidRequest(f"'{name}' holds half a surrogate pair.", param=name)
    if user is not None and len(user) > USER_LENGTH_MAX:
        raise InvalidRequest(f"'{name}' has at most {USER_LENGTH_MAX} characters.", param=name)
    return user


def _optional_text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _where(error: orjson.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}: {error.msg.partition(':')[0]}"


def _retry_after_seconds(
    headers: Iterable[tuple[bytes, bytes]], now_seconds: float
) -> float | None:
    """What the provider asks us to wait: ``retry-after-ms``, seconds or an HTTP date."""
    given = {name: value.decode("latin-1") for name, value in headers if b"retry-after" in name}
    try:
        if b"retry-after-ms" in given:
            seconds = float(given[b"retry-after-ms"]) / 1e3
        elif b"retry-after" in given:
            text = given[b"retry-after"]
            try:
                seconds = float(text)
            except ValueError:
                seconds = parsedate_to_datetime(text).timestamp() - now_seconds
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds <= _ADVICE_SECONDS_MAX else None
