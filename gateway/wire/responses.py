"""OpenAI's responses: what the gateway must know of a body, an answer and a stream.

Nothing is translated: fields and events pass through as they came, known or not. What would keep
a conversation at the provider is refused. Knows no socket.
"""

from typing import Any

import msgspec
import orjson

from gateway.errors import GatewayError, InvalidRequest
from gateway.wire.fees import choice_of_model
from gateway.wire.kept import refuse_kept, refused
from gateway.wire.openai import (
    SCALARS,
    Endpoint,
    ParsedRequest,
    boolean_of,
    choices_of,
    dearer_tier,
    decode_body,
    number_of,
    positive_of,
    user_of,
    whole_text,
)
from gateway.wire.reported import Reported, read_reported
from gateway.wire.sizes import PromptSize
from gateway.wire.typed_events import TypedEventRelay
from gateway.wire.usage import Usage
from gateway.wire.usage_reading import parse_usage
from gateway.wire.usage_shapes import tier_of
from gateway.wire.verbatim import encode

_ITEM_OVERHEAD_TOKENS = 8
_CLIENT_TOOLS = frozenset(
    {"function", "custom", "namespace", "local_shell", "shell", "apply_patch", "computer",
     "computer_use_preview"}
)  # fmt: skip
# Calls that cost their tokens alone, or are counted apart; any other may have a fee.
_FREE_CALLS = frozenset(
    {"function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call",
     "apply_patch_call", "mcp_call", "tool_search_call", "web_search_call"}
)  # fmt: skip
_COUNTED = SCALARS - {"max_tokens", "max_completion_tokens"} | {"input", "instructions"}
_LAST = frozenset({"response.completed", "response.incomplete"})


def parse_request(
    endpoint: Endpoint, raw: bytes | bytearray, deployment: str | None = None
) -> ParsedRequest:
    """Decode a body. Raises InvalidRequest."""
    body = decode_body(raw, deployment)
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise InvalidRequest("'input' must be a text or a list of items.", param="input")
    _refuse_what_stays(body, given)
    request = ParsedRequest(
        endpoint=endpoint,
        body=body,
        model=body["model"],
        stream=boolean_of(body, "stream"),
        prompt_bytes=0,
        max_output_tokens=positive_of(body, "max_output_tokens", 0),
        choices=choices_of(body),
        has_tools=bool(body.get("tools")),
        has_json_format=_has_json_format(body),
        messages_count=len(given) if isinstance(given, list) else 1,
        last_user_text=_user_text(given),
        user=user_of(body, "user"),
        temperature=number_of(body, "temperature"),
        provider_tools=_provider_tools(body),
    )
    measured = PromptSize()
    if isinstance(given, str):
        measured.value(given)
    else:
        for index, item in enumerate(given):
            measured.tokens += _ITEM_OVERHEAD_TOKENS
            if isinstance(item, dict):
                measured.message(item, f"input[{index}]")
            else:
                measured.value(item)
    measured.content(body.get("instructions"), "instructions")
    measured.fields(body, _COUNTED)
    measured.tell(request)
    return request


def encode_request(
    request: ParsedRequest,
    *,
    upstream_model: str,
    max_output_tokens: int | None = None,
    limit_field: str = "",
) -> bytes:
    """The body for the upstream: under another model's name, with a limit where one is given."""
    changes: dict[str, Any] = {"model": upstream_model}
    if max_output_tokens is not None:
        changes["max_output_tokens"] = max_output_tokens
    return encode({**request.body, **changes})


def is_response(document: dict[str, Any]) -> bool:
    """Whether an answer has the shape of a response."""
    output = document.get("output")
    return isinstance(output, list) and all(isinstance(item, dict) for item in output)


def usage_of_response(document: dict[str, Any]) -> Usage | None:
    """The usage of a whole answer; None where it is absent or unusable.

    What the provider's tools did is not in its usage object: it is counted in the output.
    """
    usage = parse_usage(document.get("usage"))
    if usage is None:
        return None
    output = _objects(document.get("output"))
    searches = sum(map(_is_search, output))
    others = any(map(_is_billed, output))
    tier = tier_of(document.get("service_tier"))
    if not searches and not others and not tier:
        return usage
    return msgspec.structs.replace(
        usage,
        web_searches=max(usage.web_searches, searches),
        other_fees=usage.other_fees or others,
        service_tier=tier or usage.service_tier,
    )


def answer_text(document: dict[str, Any]) -> str:
    """All generated text of a response, for counting its tokens."""
    texts: list[str] = []
    for item in document.get("output") or ():
        texts += [item[name] for name in ("arguments", "input") if isinstance(item.get(name), str)]
        for part in _objects(item.get("content")) + _objects(item.get("summary")):
            texts += [part[n] for n in ("text", "refusal") if isinstance(part.get(n), str)]
    return "\n".join(texts)


def error_event(error: GatewayError, request_id: str, sequence: int) -> bytes:
    """The event that ends a broken stream: the provider's own, or ours."""
    if error.frame is not None:
        return error.frame
    document = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "sequence_number": sequence,
    }
    return b"event: error\ndata: " + orjson.dumps(document) + b"\n\n"


class ResponsesRelay(TypedEventRelay):
    """The stream of one response: usage comes with the whole answer, in the last event."""

    __slots__ = ()

    def _study(self, document: dict[str, Any], event: bytes) -> bool:
        number = document.get("sequence_number")
        if type(number) is int:
            self.next_sequence = number + 1
        kind: str = document.get("type") or ""
        if kind.endswith(".delta"):
            self._generated(document.get("delta"))
        elif kind in _LAST:
            self.usage = usage_of_response(document["response"])
            self.tier = document["response"].get("service_tier")
            return True
        elif kind == "response.failed":
            response = document["response"]
            self.usage = usage_of_response(response)
            raise self._error_of(read_reported(response) or Reported(), event)
        return False


def _is_billed(item: dict[str, Any]) -> bool:
    """A call of a tool of the provider's whose fee no price here covers."""
    kind = item.get("type")
    return isinstance(kind, str) and kind.endswith("_call") and kind not in _FREE_CALLS


def _is_search(item: dict[str, Any]) -> bool:
    """A call of the web search that searched; opening what was found costs no fee."""
    action = item.get("action")
    kind = action.get("type", "search") if isinstance(action, dict) else "search"
    return item.get("type") == "web_search_call" and kind == "search"


def _refuse_what_stays(body: dict[str, Any], given: str | list[Any]) -> None:
    """What lives at the provider lives in the gateway's account, where tenants share everything;
    and what is answered later could not be booked.
    """
    if body.get("background"):
        raise InvalidRequest(
            "'background' is not supported here: what is answered later could not be booked.",
            param="background",
        )
    refuse_kept(body, ("input", "tools", "prompt"))
    for index, item in enumerate(_objects(given)):
        if _is_its_id_alone(item):
            raise refused(f"input[{index}]", "a conversation")


def _is_its_id_alone(item: dict[str, Any]) -> bool:
    """Whether an item holds nothing of what it stands for: the provider would look it up."""
    kind = item.get("type")
    if kind == "image_generation_call":
        return not item.get("result")
    return kind is None and "role" not in item


def _user_text(given: str | list[Any]) -> str | None:
    """The last item's text, where it is a user's message that is text alone."""
    if isinstance(given, str):
        return whole_text(given)
    last = given[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = last.get("content")
    if isinstance(content, str):
        return whole_text(content)
    texts = [part["text"] for part in _objects(content) if isinstance(part.get("text"), str)]
    if not isinstance(content, list) or len(texts) != len(content):
        return None
    return whole_text("\n".join(texts))


def _has_json_format(body: dict[str, Any]) -> bool:
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return isinstance(form, dict) and form.get("type") not in (None, "text")


def _provider_tools(body: dict[str, Any]) -> str | None:
    """The first of what is billed by more than the tokens that we see, at more than their price."""
    management = body.get("context_management")
    if any("compact" in str(entry.get("type")) for entry in _objects(management)):
        return "context_management"  # the whole prompt is read once more
    # A tier comes last: it may have a price, and then nothing else is looked at.
    return choice_of_model(body) or _hosted(body.get("tools")) or dearer_tier(body)


def _hosted(tools: Any, depth: int = 2) -> str | None:
    """The kind of the first tool that runs at the provider; a namespace has tools within."""
    for tool in _objects(tools):
        kind = tool.get("type")
        environment = tool.get("environment")
        hosted = isinstance(environment, dict) and environment.get("type") != "local"
        if isinstance(kind, str) and (kind not in _CLIENT_TOOLS or hosted):
            return kind
        within = _hosted(tool.get("tools"), depth - 1) if depth and "tools" in tool else None
        if within is not None:
            return within
    return None


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
