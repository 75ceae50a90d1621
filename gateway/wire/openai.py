"""OpenAI's request bodies: decoded once, judged, and encoded once for the upstream.

Checks only what the gateway needs; every other field passes through as it came, known or not.
Also redacts a provider's error. Knows no socket.
"""

import re
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any, Literal

import msgspec
import orjson

from gateway.errors import InvalidRequest, UpstreamStatus
from gateway.wire.fees import FEE_FIELDS, Fee, fee_asked
from gateway.wire.reported import Reported, read_reported

Endpoint = Literal["chat", "completions", "embeddings", "messages", "count_tokens", "responses"]
WITHOUT_OUTPUT: frozenset[Endpoint] = frozenset({"embeddings", "count_tokens"})  # no token of it

DEPTH_MAX = 64
KEYS_MAX = 10_000
USER_LENGTH_MAX = 512
_TIERS = (None, "auto", "default", "flex")  # at the list price or below it
_LIMIT_FIELDS = ("max_completion_tokens", "max_tokens")
CONTAINERS_MAX = 100_000  # lists and objects; an empty list of three bytes takes 60 in memory
RETRY_AFTER_SECONDS_MAX = 60.0  # that we wait ourselves; a client is told all of it
_ADVICE_SECONDS_MAX = 1e9  # thirty years: longer advice is none
_REFUSES_US = (401, 402, 403)  # the gateway's account, not the tenant
# Of how we ask, not of what the client asks; most oblige to headers that only the provider knows.
_OUR_WAY = frozenset({405, 406, 407, 411, 415, 417, 421, 426, 431, 505})
_MESSAGE_LENGTH_MAX = 2_000
_REDACTED_LENGTH_MAX = 65_536  # read of a message before it is cut: no half of a secret stays


class ParsedRequest(msgspec.Struct, kw_only=True):
    """A request body and what the gateway must know of it.

    Not changed after parsing, but for ``canonical``, which is filled in when it is first needed.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    stream: bool = False
    include_usage: bool = False  # the client wants the usage event of a stream
    prompt_bytes: int  # UTF-8 bytes of all that becomes prompt: an upper bound of its tokens
    max_output_tokens: int | None = None
    choices: int = 1
    has_tools: bool = False
    has_media: bool = False  # images, audio or files in a message
    has_json_format: bool = False
    last_user_text: str | None = None  # None: the request does not end with a user's plain text
    messages_count: int = 0
    user: str | None = None
    temperature: float | None = None
    canonical: bytes | None = None  # as ``canonical_body`` spells it
    provider_tools: str | None = None  # names what the provider bills as no price foretells
    fee: Fee | None = None  # what a chat is billed for beside its tokens, uncounted in its answer


def parse_request(endpoint: Endpoint, raw: bytes, deployment: str | None = None) -> ParsedRequest:
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
        choices=positive_of(body, "n") or 1,
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
    if endpoint == "chat":
        _read_messages(request)
    elif endpoint == "completions":
        _read_prompt(request)
    else:
        _read_input(request)
    return request


def decode_body(raw: bytes, model: str | None = None) -> dict[str, Any]:
    """A body of any endpoint: an object that names its model. Raises InvalidRequest.

    model: takes the place of what the body says, or does not say.
    """
    openings, colons = raw.count(b"{") + raw.count(b"["), raw.count(b":")
    if openings > CONTAINERS_MAX or colons > CONTAINERS_MAX:
        _check_structure(raw)  # before it takes memory
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"We could not parse the JSON body of your request: {_where(error)}."
        ) from None
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    # Only a body with many brackets or colons can be deep or wide: most need no second look.
    if openings > DEPTH_MAX or colons > KEYS_MAX:
        _check_structure(raw)
    if model is not None:
        body["model"] = model
    elif not isinstance(body.get("model"), str) or not body["model"]:
        raise InvalidRequest("you must provide a model parameter", param="model")
    return body


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
    return orjson.dumps({**request.body, **changes})


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
    if status < 400:
        return UpstreamStatus(
            f"The provider answered with the unexpected status {status}.", status=502
        )
    try:
        reported = read_reported(orjson.loads(raw), certain=True)
    except orjson.JSONDecodeError:
        reported = None
    answer = _as_ours(status, reported or Reported(), secrets)
    if status in _OUR_WAY:
        answer.status, answer.type, answer.retryable = 502, "api_error", False
    if status in (429, 503, 529):
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
        type=kind or ("invalid_request_error" if status < 500 else "api_error"),
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
)


def redact(text: str, secrets: Sequence[str]) -> str:
    """``text`` without anything that is, or looks like, a credential."""
    for secret in secrets:
        for part in (secret, secret.partition(" ")[2]):
            if len(part) >= 4:
                text = text.replace(part, "[redacted]")
    return _SECRETS.sub("[redacted]", text)


def _read_messages(request: ParsedRequest) -> None:
    """Fill in what a chat request says about its messages and tools."""
    body = request.body
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            "'messages' must be a list with at least one message.", param="messages"
        )
    size = 0
    for index, message in enumerate(messages):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise _no_message(message, index)
        content = message.get("content")
        if type(content) is str:
            size += len(content) if content.isascii() else len(content.encode())
            if len(message) > 2:
                size += _size_of_others(message)
        elif content is None or type(content) is list:
            size += _size_of_others(message)
            for part in content or ():
                if _is_media(part):
                    request.has_media = True
                size += _size_of_part(part)
        else:
            raise InvalidRequest(
                f"'messages[{index}].content' must be a string or a list of parts.",
                param=f"messages[{index}].content",
            )
    size += _MESSAGE_OVERHEAD_BYTES * len(messages)
    request.has_tools = bool(body.get("tools") or body.get("functions"))
    for name in _PROMPTING.intersection(body):
        if body[name]:
            size += len(orjson.dumps(body[name]))
    request.prompt_bytes = size
    request.messages_count = len(messages)
    request.last_user_text = _user_text(messages[-1])


def _no_message(message: Any, index: int) -> InvalidRequest:
    where, what = f"messages[{index}]", "an object"
    if isinstance(message, dict):
        where, what = f"{where}.role", "a string"
    return InvalidRequest(f"'{where}' must be {what}.", param=where)


def _read_prompt(request: ParsedRequest) -> None:
    prompt = request.body.get("prompt", "<|endoftext|>")
    best_of = positive_of(request.body, "best_of")
    if best_of is not None:
        request.choices = max(request.choices, best_of)
    if isinstance(prompt, str):
        request.prompt_bytes = _bytes(prompt)
        request.last_user_text = prompt
    elif isinstance(prompt, list):
        request.prompt_bytes = _size_of_batch(prompt, "prompt")
        request.choices *= len(prompt) if prompt and not isinstance(prompt[0], int) else 1
        if len(prompt) == 1 and isinstance(prompt[0], str):
            request.last_user_text = prompt[0]
    else:
        raise InvalidRequest("'prompt' must be a string or a list.", param="prompt")


def _read_input(request: ParsedRequest) -> None:
    given = request.body.get("input")
    if isinstance(given, str):
        request.prompt_bytes = _bytes(given)
    elif isinstance(given, list) and given:
        request.prompt_bytes = _size_of_batch(given, "input")
    else:
        raise InvalidRequest("'input' must be a string or a non-empty list.", param="input")


# Besides messages, what of a body a model reads.
_PROMPTING = frozenset(("tools", "functions", "response_format", "prediction"))
_MESSAGE_OVERHEAD_BYTES = 8  # a chat template's marks around one message, in tokens at most
# An image's bytes say nothing of its tokens. The dearest known rule is that of gpt-4o-mini: 2,833
# and 5,667 for each of at most 8 tiles; "low" detail has no tiles.
IMAGE_TOKENS_MAX = 2_833 + 8 * 5_667
_IMAGE_TOKENS_LOW = 2_833


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _size_of_others(message: dict[str, Any]) -> int:
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    return len(orjson.dumps(others))


def _size_of_part(part: Any) -> int:
    """Upper bound of one content part's tokens."""
    if not isinstance(part, dict):
        return len(orjson.dumps(part))
    text = part.get("text")
    if isinstance(text, str):
        return _bytes(text)
    image = part.get("image_url")
    if image is not None:
        low = isinstance(image, dict) and image.get("detail") == "low"
        return _IMAGE_TOKENS_LOW if low else IMAGE_TOKENS_MAX
    return len(orjson.dumps(part))


def _size_of_batch(items: list[Any], param: str) -> int:
    """Bytes of a batch of texts, of token lists (a token counts as one), or of one token list."""
    size = 0
    for item in items:
        if isinstance(item, str):
            size += _bytes(item)
        elif isinstance(item, list):
            size += len(item)
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
        return content
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "\n".join(texts)


def _is_media(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") not in ("text", "refusal")


def _has_json_format(body: dict[str, Any]) -> bool:
    given = body.get("response_format")
    return isinstance(given, dict) and given.get("type") not in (None, "text")


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _output_tokens(body: dict[str, Any]) -> int | None:
    newer = positive_of(body, "max_completion_tokens")
    older = positive_of(body, "max_tokens")
    if newer is None or older is None:
        return older if newer is None else newer
    return max(newer, older)


def positive_of(body: dict[str, Any], name: str) -> int | None:
    """A field that is a positive integer where it is given. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**31:
        raise InvalidRequest(f"'{name}' must be a positive integer.", param=name)
    return value


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
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(f"'{name}' must be a number.", param=name)
    return float(value)


def user_of(body: dict[str, Any], name: str) -> str | None:
    """The end user's name, which is booked with each request. Raises InvalidRequest."""
    user = _optional_text(body, name)
    if user is not None and len(user) > USER_LENGTH_MAX:
        raise InvalidRequest(f"'{name}' has at most {USER_LENGTH_MAX} characters.", param=name)
    return user


def _optional_text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}:"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level down, one up: as signed bytes
# Between two strings there is a mark, or they were one: with more strings a limit is broken.
_STRINGS_MAX = KEYS_MAX + 2 * CONTAINERS_MAX + 2


def _check_structure(raw: bytes) -> None:
    """Refuse a document that is too deep or has too many keys or containers.

    Never walks it in Python: the marks outside of strings are counted, and 10 MB take a few tens
    of milliseconds at worst, whatever they hold.
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A pair of adjoining quotes can go: what follows stays inside, or outside, of a string.
    kept = raw.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    # An odd number of cuts: what is left beyond them counts as a string's.
    marks = b"".join(kept.split(b'"', 2 * _STRINGS_MAX + 1)[::2])
    brackets = marks.translate(_STEPS, b":")
    if len(marks) - len(brackets) > KEYS_MAX:
        raise InvalidRequest(f"The body has more than {KEYS_MAX} keys.")
    if len(brackets) > 2 * CONTAINERS_MAX:
        raise InvalidRequest(f"The body has more than {CONTAINERS_MAX} lists and objects.")
    if max(accumulate(memoryview(brackets).cast("b")), default=0) > DEPTH_MAX:
        raise InvalidRequest(f"The body is nested deeper than {DEPTH_MAX} levels.")


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
