"""Anthropic's messages: what the gateway must know of a body, an answer, a stream and an error.

Nothing is translated: fields and events pass through as they came, known or not. Knows no socket.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import orjson

from gateway.errors import GatewayError, InvalidRequest, UpstreamStatus
from gateway.wire.fees import choice_of_model
from gateway.wire.kept import refuse_kept
from gateway.wire.openai import (
    SCALARS,
    Endpoint,
    ParsedRequest,
    boolean_of,
    choices_of,
    decode_body,
    number_of,
    positive_of,
    upstream_error,
    user_of,
    whole_text,
)
from gateway.wire.sizes import PromptSize
from gateway.wire.typed_events import TypedEventRelay
from gateway.wire.usage import Usage, count_of
from gateway.wire.usage_reading import merged
from gateway.wire.usage_shapes import read_usage
from gateway.wire.verbatim import encode

_MESSAGE_OVERHEAD_TOKENS = 8
_TOOLS_OVERHEAD_TOKENS = 1_024  # of the prompt that the provider adds for tools
# Tools that the provider defines and the client runs; others with a type run at the provider.
_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
_OWN_ITERATIONS = frozenset({"message", "compaction"})  # others ask a model of another price
_COUNTED = SCALARS | {"messages", "system"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OVERLOADED = 529
# Of a refusal for quota, what Anthropic's own clients show and wait for: whether, which window, and
# until when. How much of its quota the gateway's account has used is nobody's business.
_QUOTA_TOLD = frozenset(
    b"anthropic-ratelimit-unified-" + name
    for name in (b"status", b"reset", b"representative-claim", b"overage-status")
)
_TELLABLE = re.compile(rb"[\x20-\x7e]{1,100}")


def parse_request(
    endpoint: Endpoint, raw: bytes | bytearray, deployment: str | None = None
) -> ParsedRequest:
    """Decode the body of ``messages`` or ``count_tokens``. Raises InvalidRequest."""
    body = decode_body(raw, deployment)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages: must be a list of at least one message", param="messages")
    answered = endpoint == "messages"
    output_tokens = positive_of(body, "max_tokens", 0)
    if answered and output_tokens is None:
        raise InvalidRequest("max_tokens: Field required", param="max_tokens")
    metadata = body.get("metadata")
    request = ParsedRequest(
        endpoint=endpoint,
        body=body,
        model=body["model"],
        stream=answered and boolean_of(body, "stream"),
        prompt_bytes=0,
        max_output_tokens=output_tokens if answered else None,
        choices=choices_of(body),
        has_tools=bool(body.get("tools")),
        has_json_format=_has_json_format(body),
        messages_count=len(messages),
        user=user_of(metadata, "user_id") if isinstance(metadata, dict) else None,
        temperature=number_of(body, "temperature"),
        provider_tools=_provider_tools(body),
    )
    measured = PromptSize(_MESSAGE_OVERHEAD_TOKENS * len(messages))
    measured.content(body.get("system"), "system")
    for index, message in enumerate(messages):
        _check_message(message, index)
        measured.message(message, f"messages[{index}]")
    measured.fields(body, _COUNTED)
    for name in ("tools", "tool_choice", "mcp_servers", "output_config", "output_format"):
        if body.get(name):
            measured.tokens += _TOOLS_OVERHEAD_TOKENS
    # Each tool of the provider's own is a page that it adds; one of the client's stands here.
    measured.tokens += _TOOLS_OVERHEAD_TOKENS * sum(
        isinstance(tool, dict) and tool.get("type") not in (None, "custom")
        for tool in _list_of(body.get("tools"))
    )
    measured.tell(request)
    refuse_kept(body, ("messages",) if request.has_media else ())
    request.last_user_text = _user_text(messages[-1])
    return request


def encode_request(
    request: ParsedRequest,
    *,
    upstream_model: str,
    max_output_tokens: int | None = None,
    limit_field: str = "",
) -> bytes:
    """The body for the upstream: under another model's name. A message always has its own limit."""
    return encode({**request.body, "model": upstream_model})


def is_message(document: dict[str, Any]) -> bool:
    """Whether an answer has the shape of a message."""
    content = document.get("content")
    return isinstance(content, list) and all(isinstance(block, dict) for block in content)


def is_count(document: dict[str, Any]) -> bool:
    """Whether an answer is a count of tokens."""
    return count_of(document.get("input_tokens")) is not None


def usage_of_message(document: dict[str, Any]) -> Usage | None:
    """The usage of a whole answer; None where it is absent or unusable."""
    given = document.get("usage")
    if not isinstance(given, dict):
        return None
    return _usage({**given, "container": document.get("container")})


def usage_of_count(document: dict[str, Any]) -> Usage:
    """Counting is free: it consumes nothing."""
    return Usage(source="none")


def answer_text(document: dict[str, Any]) -> str:
    """All generated text of a message, for counting its tokens."""
    texts: list[str] = []
    for block in document.get("content") or ():
        texts += [block[name] for name in ("text", "thinking") if isinstance(block.get(name), str)]
        if isinstance(block.get("input"), dict):
            texts.append(encode(block["input"]).decode())
    return "\n".join(texts)


def read_error(
    status: int,
    raw: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    secrets: Sequence[str],
    now_seconds: float = 0.0,
) -> UpstreamStatus:
    """As ``openai.upstream_error``, with the status that Anthropic's clients know overload by."""
    headers = tuple(headers)
    error = upstream_error(status, raw, headers, secrets, now_seconds)
    if status == 429:
        error.passed_on = tuple(
            (name, value)
            for name, value in headers
            if name in _QUOTA_TOLD and _TELLABLE.fullmatch(value)
        )
    if status == _OVERLOADED:
        error.status = _OVERLOADED
    return error


def error_body(error: GatewayError, request_id: str) -> bytes:
    """Anthropic's error document."""
    kind = error.type if isinstance(error, UpstreamStatus) else None
    if kind not in _ERROR_TYPES.values():
        kind = _ERROR_TYPES.get(error.status, "invalid_request_error")
        if error.status >= 500 and error.status not in _ERROR_TYPES:
            kind = "api_error"
    return orjson.dumps(
        {
            "type": "error",
            "error": {"type": kind, "message": error.message},
            "request_id": request_id,
        }
    )


def error_event(error: GatewayError, request_id: str, sequence: int) -> bytes:
    """The event that ends a broken stream: the provider's own, or ours."""
    return error.frame or b"event: error\ndata: " + error_body(error, request_id) + b"\n\n"


class MessagesRelay(TypedEventRelay):
    """The stream of one message: counts come with its first event, and grow with its last ones."""

    overloaded_status = _OVERLOADED
    __slots__ = ("_counts",)

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__(secrets)
        self._counts: dict[str, Any] = {}

    def _study(self, document: dict[str, Any], event: bytes) -> bool:
        match document.get("type"):
            case "content_block_delta":
                delta = document["delta"]
                self._generated(
                    delta.get("text") or delta.get("partial_json") or delta.get("thinking")
                )
            case "message_start":
                self._counts = {"output_tokens": 0, **_given(document["message"].get("usage"))}
                usage = _usage({**self._counts, "output_tokens": 0, "output_tokens_details": None})
                if usage is not None and usage.prompt_tokens:
                    self.prompt = usage
            case "message_delta":
                told = _given(document.get("usage"))
                if told:
                    self._counted = event
                    self._counts = merged(self._counts, told)  # cumulative, not added
                    container = _given(document.get("delta")).get("container")
                    self.usage = _usage({**self._counts, "container": container})
            case "message_stop":
                return True
        return False


def _usage(counts: dict[str, Any]) -> Usage | None:
    """Anthropic's counts are disjoint: what was read from or written to the cache is no input.

    counts: a usage object, and the answer's ``container``.
    """
    usage = read_usage(counts, cache_beside=True)
    if usage is None:
        return None
    iterations = counts.get("iterations")
    listed = [_given(entry) for entry in iterations] if isinstance(iterations, list) else []
    # What a compaction took is not in the totals; the turns of a loop are.
    for entry in listed:
        taken = read_usage(entry, cache_beside=True) if entry.get("type") == "compaction" else None
        if taken is not None:
            usage = msgspec.structs.replace(
                usage,
                **{name: getattr(usage, name) + getattr(taken, name) for name in _COMPACTED},
            )
    if counts.get("container") is None and all(
        entry.get("type") in _OWN_ITERATIONS for entry in listed
    ):
        return usage
    return msgspec.structs.replace(usage, other_fees=True)


_COMPACTED = (
    "prompt_tokens", "cached_tokens", "cache_write_tokens", "cache_write_1h_tokens",
    "completion_tokens",
)  # fmt: skip


def _given(usage: Any) -> dict[str, Any]:
    """What an object says at all: null means that nothing new is known."""
    if not isinstance(usage, dict):
        return {}
    return {name: value for name, value in usage.items() if value is not None}


def _check_message(message: Any, index: int) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequest(
            f"messages.{index}: must be an object with a role", param=f"messages.{index}"
        )
    if not isinstance(message.get("content"), str | list):
        raise InvalidRequest(
            f"messages.{index}.content: must be a string or a list of blocks",
            param=f"messages.{index}.content",
        )


def _user_text(message: dict[str, Any]) -> str | None:
    """The text of a user's message that is text alone."""
    content = message["content"]
    if message["role"] != "user":
        return None
    if isinstance(content, str):
        return whole_text(content)
    texts = [
        block["text"]
        for block in content
        if isinstance(block, dict) and isinstance(block.get("text"), str)
    ]
    return whole_text("\n".join(texts)) if len(texts) == len(content) else None


def _has_json_format(body: dict[str, Any]) -> bool:
    config = body.get("output_config")
    return bool(body.get("output_format") or (isinstance(config, dict) and config.get("format")))


def _provider_tools(body: dict[str, Any]) -> str | None:
    if body.get("mcp_servers"):
        return "mcp_servers"
    if body.get("speed") not in (None, "standard"):
        return "speed"
    if body.get("inference_geo") not in (None, "global"):
        return "inference_geo"  # at a tenth more
    management = body.get("context_management")
    if isinstance(management, dict) and "compact" in str(management.get("edits")):
        return "context_management"  # the whole prompt is read once more
    chosen = choice_of_model(body)
    if chosen is not None:
        return chosen
    for tool in _list_of(body.get("tools")):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and not kind.startswith(_CLIENT_TOOLS):
            return kind
    return None


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
