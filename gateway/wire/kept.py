"""What no request may name: things that a provider keeps for the gateway's account.

All tenants share that account, and a provider does not keep them apart: with the id of another
tenant's file a request would read it. One table, for every dialect. Knows bodies; no socket.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from gateway.errors import InvalidRequest

# By what is kept: how to do without it.
_WAYS_OUT: Final = {
    "a conversation": "send the whole conversation, with 'store': false",
    "a file": "send its bytes in the request, as base64 or in a data: URL",
    "a container": "have a new one made for each request",
    "a vector store": "search on your side, and send what was found as text",
    "a prompt": "send its text",
    "a spoken answer": "send its transcript as text",
    "a cached prompt": "send the prompt itself; providers cache prompts on their own",
    "a skill": "send its instructions as text",
    "an assistant": "send its instructions and the whole conversation",
}
_FIELDS: Final = {
    "previous_response_id": "a conversation",
    "conversation_id": "a conversation",
    "thread_id": "a conversation",
    "assistant_id": "an assistant",
    "prompt_id": "a prompt",
    "file_id": "a file",
    "file_ids": "a file",
    "vector_store_id": "a vector store",
    "vector_store_ids": "a vector store",
    "container_id": "a container",
    "cached_content": "a cached prompt",
    "cachedContent": "a cached prompt",
}
_ADDRESSES: Final = frozenset(
    ("url", "uri", "file_url", "image_url", "video_url", "audio_url", "file_uri", "fileUri")
)
# Of an address, what a provider opens with the account's own rights.
_OPENED_BY_THE_ACCOUNT: Final = re.compile(
    r"(?!(?:https?|data):)[a-z][a-z0-9+.\-]*:"
    r"|https?://generativelanguage\.googleapis\.com/(?:[^?#]*/)?files/",
    re.IGNORECASE,
)
# JSON of the client's own, and what an earlier answer told: nothing is looked up by it.
_UNREAD: Final = frozenset(
    ("parameters", "input_schema", "schema", "json_schema", "arguments", "input", "function",
     "metadata", "annotations", "citations", "results", "text")
)  # fmt: skip
TOP_FIELDS: Final = frozenset(_FIELDS) | {
    "conversation", "container", "tool_resources", "skills", "extra_body", "attachments",
}  # fmt: skip


def refuse_kept(body: dict[str, Any], fields: Iterable[str]) -> None:
    """Raises InvalidRequest, which names the place, for what the provider keeps.

    fields: those of the body that are looked at, besides TOP_FIELDS.
    """
    for field in (*TOP_FIELDS.intersection(body), *fields):
        value = body.get(field)
        if not value:
            continue
        what = _FIELDS.get(field) or _kept_by_shape(field, value, body)
        if what is not None:
            raise refused(field, what)
        if isinstance(value, (dict, list)) and (found := _find(value)) is not None:
            raise refused(field + "".join(reversed(found[1])), found[0])


def refused(place: str, what: str) -> InvalidRequest:
    """The error that names a place in the body and what kind of thing it refers to."""
    return InvalidRequest(
        f"'{place}' refers to {what} that the provider keeps, and it does not keep the gateway's"
        f" tenants apart: {_WAYS_OUT[what]}.",
        param=place,
    )


def _find(value: Any) -> tuple[str, list[str]] | None:
    """(what is kept, the place from its end) of the first reference in a value."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, (dict, list)) and (found := _find(item)) is not None:
                found[1].append(f"[{index}]")
                return found
        return None
    kind = value.get("type")
    if isinstance(kind, str) and kind.endswith("_tool_result"):
        return None  # what a tool of the provider told, as it came
    if kind == "item_reference":
        return "a conversation", []
    for name, item in value.items():
        if not item or name in _UNREAD:
            continue
        what = _FIELDS.get(name) or _kept_by_shape(name, item, value)
        if what is not None:
            return what, [f".{name}"]
        if isinstance(item, (dict, list)) and (found := _find(item)) is not None:
            found[1].append(f".{name}")
            return found
    return None


def _kept_by_shape(name: str, item: Any, owner: dict[str, Any]) -> str | None:
    """What a field refers to whose name alone does not tell."""
    if name in _ADDRESSES:
        if isinstance(item, str) and _OPENED_BY_THE_ACCOUNT.match(item):
            return "a file"
    elif name == "container":
        if isinstance(item, str) or (isinstance(item, dict) and item.get("id")):
            return "a container"
    elif name == "conversation":
        return "a conversation"
    elif name == "prompt":
        if isinstance(item, dict) and item.get("id"):
            return "a prompt"
    elif name == "audio":
        if isinstance(item, dict) and item.get("id"):
            return "a spoken answer"
    elif name == "skill_id" and owner.get("type") != "anthropic":
        return "a skill"
    return None
