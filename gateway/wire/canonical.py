"""One request body, one byte string: what can change the answer counts, nothing else does.

Two bodies with the same canonical form may share a stored answer; a doubt makes them differ.
Knows OpenAI's request fields and their documented defaults. Does not know tenants or secrets.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from gateway.wire.verbatim import encode

if TYPE_CHECKING:
    from gateway.wire.openai import ParsedRequest

# Transport, bookkeeping and hints: the answer is the same with and without them.
NOT_COUNTED: Final = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",
        "store",
        "background",
    }
)

# Documented defaults: saying them aloud changes nothing. Numbers compare by value, so that 1 and
# 1.0 are one. ``temperature`` is absent on purpose: its default differs between providers.
DEFAULTS: Final[dict[str, Any]] = {
    "top_p": 1,
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "echo": False,
    "best_of": 1,
}

# ``null`` means "not given" for the fields OpenAI documents; in an unknown field it counts.
_NULL_IS_ABSENT: Final = frozenset(DEFAULTS) | {
    "temperature",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "reasoning_effort",
    "verbosity",
    "audio",
    "suffix",
    "dimensions",
    "encoding_format",
}

# Fields with more than one spelling of the same wish.
_ALIASED: Final = frozenset(
    ("max_tokens", "stop", "tools", "functions", "tool_choice", "logit_bias")
)  # fmt: skip

_EXACT_FLOAT_MAX: Final = 2**53
# What else there is has streams that nobody can replay from a stored answer, and answers that
# depend on headers (anthropic-beta), which are no part of the canonical form.
_STORED: Final = frozenset({"chat", "completions", "embeddings", "decisions"})
_TEXT_PART: Final = {"type", "text"}


def canonical_body(parsed: "ParsedRequest") -> bytes:
    """The counted fields in one fixed spelling. Deterministic, unambiguous, no trimming of text.

    JSON arrays carry the structure, so no text inside a field can imitate another field. Key order
    is kept inside JSON schemas, because structured output follows it.
    """
    fields = _counted_fields(parsed.body)
    document = [parsed.endpoint, [[key, fields[key]] for key in sorted(fields)]]
    return encode(document)


# Fields that make a provider look something up, of OpenAI, Perplexity, xAI, Alibaba, OpenRouter,
# Azure and Cohere.
_SEARCHING: Final = frozenset(
    (
        "web_search_options", "search_mode", "search_parameters", "search_options", "web_search",
        "enable_search", "search_domain_filter", "search_recency_filter", "return_images",
        "plugins", "data_sources", "connectors", "mcp_servers",
    )
)  # fmt: skip
# The fields that can keep an answer out of the caches.
_TELLING: Final = _SEARCHING | {
    "store", "background", "tools",
    "modalities", "n",
}  # fmt: skip
_SEARCHING_NAME: Final = re.compile(
    r"(?:^|[-/:_.])(?:search|online|sonar|compound|deep-research)(?:$|[-/:_.])"
)
_MODELS_REMEMBERED: Final = 1024
_SCHEME_LENGTH_MAX: Final = 64


@lru_cache(_MODELS_REMEMBERED)
def searches(model: str) -> bool:
    """Whether a model's name says that it looks things up before it answers."""
    return _SEARCHING_NAME.search(model.lower()) is not None


def cacheable(parsed: "ParsedRequest") -> str | None:
    """None when a stored answer may serve this request; else why both caches are bypassed."""
    body = parsed.body
    if parsed.endpoint not in _STORED:
        return f"{parsed.endpoint}: only chat's answers are stored and replayed"
    searching = searches(parsed.model)
    if _TELLING.isdisjoint(body) and not searching and not parsed.has_media:
        return None  # nearly every request
    if parsed.has_media and parsed.endpoint == "chat" and _shows_what_is_elsewhere(body):
        return "messages: what an address or a file id stands for may change"
    if body.get("store"):
        return "store: the provider keeps the answer under its own id"
    if body.get("background"):
        return "background: the answer comes later"
    for field in _SEARCHING.intersection(body):
        if body.get(field) not in (None, False, []):
            return f"{field}: the answer depends on the moment"
    if searching:
        return "model: a searching model's answer depends on the moment"
    tools = body.get("tools")
    if tools is not None and not _only_client_tools(tools):
        return "tools: a tool runs at the provider"
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        return "modalities: spoken answers are not stored"
    if _count(body.get("n")) > 1 and body.get("temperature") != 0:
        return "n: several sampled choices are asked for"
    return None


def _counted_fields(body: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in body.items():
        if key in NOT_COUNTED or (value is None and key in _NULL_IS_ABSENT):
            continue
        if type(value) is float:
            value = _number(value)
        if key in DEFAULTS and _equal(value, DEFAULTS[key]):
            continue
        fields[key] = value
    if "messages" in fields:
        fields["messages"] = _messages(fields["messages"])
    if not _ALIASED.isdisjoint(fields):
        for key in ("tools", "functions"):
            if key in fields:
                fields[key] = _tools(fields[key])
        _merge_aliases(fields)
    return fields


def _merge_aliases(fields: dict[str, Any]) -> None:
    """Two spellings of one wish become one; where both are given they stay apart."""
    if "max_tokens" in fields and "max_completion_tokens" not in fields:
        fields["max_completion_tokens"] = fields.pop("max_tokens")
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    default_choice = "auto" if fields.get("tools") else "none"
    if fields.get("tool_choice") == default_choice:
        del fields["tool_choice"]
    if isinstance(fields.get("logit_bias"), dict):
        bias = fields["logit_bias"]
        fields["logit_bias"] = [[key, _number(bias[key])] for key in sorted(bias)]


def _messages(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    call_ids: dict[str, int] = {}
    return [_message(message, call_ids) for message in messages]


def _message(message: Any, call_ids: dict[str, int]) -> Any:
    """Keys sorted, nulls gone, a lone text part as its text, tool-call ids by first occurrence."""
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if type(content) is str and len(message) == 2 and message.get("role") is not None:
        return {"content": content, "role": message["role"]}
    plain = {key: message[key] for key in sorted(message) if message[key] is not None}
    if isinstance(content, list):
        plain["content"] = _content(content)
    calls = plain.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_tool_call(call, call_ids) for call in calls]
    if isinstance(plain.get("tool_call_id"), str):
        plain["tool_call_id"] = call_ids.setdefault(plain["tool_call_id"], len(call_ids))
    return plain


def _content(parts: list[Any]) -> Any:
    if len(parts) == 1 and _is_text_part(parts[0]):
        return parts[0]["text"]
    return [_sorted_keys(part) for part in parts]


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == _TEXT_PART
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


def _tool_call(call: Any, call_ids: dict[str, int]) -> Any:
    if not isinstance(call, dict):
        return call
    plain: dict[str, Any] = _sorted_keys(call)
    if isinstance(plain.get("id"), str):
        plain["id"] = call_ids.setdefault(plain["id"], len(call_ids))
    plain["function"] = _sorted_keys(plain.get("function"))
    return plain


def _tools(tools: Any) -> Any:
    """Sorts the envelope's keys only: inside ``parameters`` the order is the writer's."""
    if not isinstance(tools, list):
        return tools
    found = []
    for tool in tools:
        plain = _sorted_keys(tool)
        if isinstance(plain, dict) and "function" in plain:
            plain["function"] = _sorted_keys(plain["function"])
        found.append(plain)
    return found


def _only_client_tools(tools: Any) -> bool:
    return isinstance(tools, list) and all(
        isinstance(tool, dict)
        and (
            tool.get("type") in ("function", "custom")
            or ("type" not in tool and "function" in tool)
        )
        for tool in tools
    )


def _shows_what_is_elsewhere(body: dict[str, Any]) -> bool:
    """Whether a message holds a picture or file by its name, instead of by its bytes."""
    for message in body["messages"]:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in ("text", "refusal"):
                continue
            if _is_elsewhere(part):
                return True
    return False


def _is_elsewhere(value: Any) -> bool:
    """Whether an address, or an object with an id, stands in a part that is no text."""
    if isinstance(value, str):
        return "://" in value[:_SCHEME_LENGTH_MAX] and not value.startswith("data:")
    if isinstance(value, list):
        return any(map(_is_elsewhere, value))
    if isinstance(value, dict):
        return any(_names(*field) or _is_elsewhere(field[1]) for field in value.items())
    return False


def _names(field: str, value: Any) -> bool:
    """Whether a field is an id, or an address that does not carry its bytes with it."""
    if field == "id" or field.endswith("_id"):
        return True
    address = field.endswith(("url", "uri")) and isinstance(value, str)
    return address and not value.startswith("data:")


def _sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: value[key] for key in sorted(value)}
    return value


def _number(value: Any) -> Any:
    """A float that is a whole number becomes that integer; -0.0 becomes 0."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT_FLOAT_MAX:
        return int(value)
    return value


def _equal(value: Any, default: Any) -> bool:
    # True == 1 in Python, but not on the wire.
    return isinstance(value, bool) == isinstance(default, bool) and bool(value == default)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 1
