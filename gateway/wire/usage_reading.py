"""A provider's usage, from where it stands in an answer or a stream; its plain form at low cost.

Knows where providers put it. What other spellings mean is ``usage_shapes``' matter.
"""

from typing import Any

import msgspec

from gateway.wire.usage import Usage, count_of
from gateway.wire.usage_shapes import read_usage, tier_of

# The fields of OpenAI's own usage objects, of both its interfaces.
_CHAT_FIELDS = ("prompt_tokens", "completion_tokens", "prompt_tokens_details",
                "completion_tokens_details")  # fmt: skip
_RESPONSES_FIELDS = ("input_tokens", "output_tokens", "input_tokens_details",
                     "output_tokens_details")  # fmt: skip
_PROMPT_PARTS = frozenset({"cached_tokens", "audio_tokens", "text_tokens"})
_COMPLETION_PARTS = frozenset(
    {"reasoning_tokens", "audio_tokens", "accepted_prediction_tokens",
     "rejected_prediction_tokens", "text_tokens"}
)  # fmt: skip
_NO_PARTS: dict[str, Any] = {}
_PLACES = ("x_groq", "usageMetadata", "usage_metadata", "timings")
_OLLAMA = "prompt_eval_count"
_SEARCH_RESULTS = frozenset({"search_results", "citations", "web_search"})
_MERGE_DEPTH_MAX = 4
_NUMBERS = frozenset({int, float})


def parse_usage(document: Any) -> Usage | None:
    """Read a provider's ``usage`` object; None where it is absent or tells nothing.

    Missing and zero differ: an absent object is None, an explicit zero is a Usage of zeros.
    """
    if type(document) is not dict:
        return None
    usage = _plain(document)
    return read_usage(document) if usage is None else usage


def _plain(document: dict[str, Any]) -> Usage | None:
    """OpenAI's own form, as nearly all write it, if everything in it adds up; else None."""
    fields = _CHAT_FIELDS if "prompt_tokens" in document else _RESPONSES_FIELDS
    prompt, completion = document.get(fields[0]), document.get(fields[1])
    total = document.get("total_tokens")
    if completion is None and type(prompt) is int and total == prompt >= 0 and len(document) == 2:
        return Usage(prompt_tokens=prompt)  # of embeddings
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    if total != prompt + completion or type(total) is not int:
        return None
    size = len(document)
    if size == 3:
        return Usage(prompt_tokens=prompt, completion_tokens=completion)
    prompt_parts = document.get(fields[2], _NO_PARTS)
    completion_parts = document.get(fields[3], _NO_PARTS)
    if size != 3 + (prompt_parts is not _NO_PARTS) + (completion_parts is not _NO_PARTS):
        return None
    if not prompt_parts and not completion_parts:
        return Usage(prompt_tokens=prompt, completion_tokens=completion)
    prompt_parts, completion_parts = prompt_parts or _NO_PARTS, completion_parts or _NO_PARTS
    if not (
        type(prompt_parts) is type(completion_parts) is dict
        and prompt_parts.keys() <= _PROMPT_PARTS
        and completion_parts.keys() <= _COMPLETION_PARTS
    ):
        return None
    cached = prompt_parts.get("cached_tokens") or 0
    heard = prompt_parts.get("audio_tokens") or 0
    reasoning = completion_parts.get("reasoning_tokens") or 0
    spoken = completion_parts.get("audio_tokens") or 0
    if not type(cached) is type(heard) is type(reasoning) is type(spoken) is int:
        return None
    if not (
        0 <= cached <= prompt
        and 0 <= heard <= prompt
        and reasoning >= 0
        and spoken >= 0
        and reasoning + spoken <= completion
    ):
        return None
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        prompt_audio_tokens=heard,
        completion_tokens=completion,
        reasoning_tokens=reasoning,
        completion_audio_tokens=spoken,
    )


def usage_of_chat(document: dict[str, Any]) -> Usage | None:
    """The usage of a whole answer of chat, completions or embeddings; None where it is not told."""
    usage = parse_usage(usage_place(document))
    if usage is None:
        return None
    searched = not _SEARCH_RESULTS.isdisjoint(document) and searched_by(document)
    choices = document.get("choices")
    for choice in choices if type(choices) is list else ():
        message = choice.get("message") if type(choice) is dict else None
        if type(message) is dict:
            searched = searched or cites(message.get("annotations"))
            if message.get("executed_tools"):
                usage = msgspec.structs.replace(usage, other_fees=True)
    return with_extras(usage, tier_of(document.get("service_tier")), searched)


def with_extras(usage: Usage, tier: str, searched: bool) -> Usage:
    """Usage with what an answer tells outside of its usage object.

    searched: something in the answer shows that the provider searched the web, but not how often.
    """
    if not tier and (not searched or usage.web_searches):
        return usage
    return msgspec.structs.replace(
        usage,
        service_tier=tier or usage.service_tier,
        web_searches=usage.web_searches or int(searched),
    )


def searched_by(document: dict[str, Any]) -> bool:
    """Whether an answer, or one event of it, lists what a search has found."""
    return any(document.get(name) for name in _SEARCH_RESULTS)


def cites(annotations: Any) -> bool:
    """Whether the annotations of a message cite a page of the web."""
    return type(annotations) is list and any(
        type(note) is dict and note.get("type", "url_citation") == "url_citation"
        for note in annotations
    )


def usage_place(document: dict[str, Any]) -> Any:
    """The usage object of a chat's answer or event, wherever the provider puts it; else None."""
    usage = document.get("usage")
    if usage is not None:
        return usage
    for name in _PLACES:
        place = document.get(name)
        if place is not None:
            return place.get("usage") if name == "x_groq" and type(place) is dict else place
    return document if _OLLAMA in document else None


def merged(earlier: dict[str, Any], later: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """What two usage objects of one stream tell together.

    Counts are cumulative: what is absent or zero is no news, and the larger holds.
    """
    told = dict(earlier)
    for name, value in later.items():
        known = told.get(name)
        if known is None:
            told[name] = value
        elif type(known) is dict and type(value) is dict:
            if depth < _MERGE_DEPTH_MAX:
                told[name] = merged(known, value, depth + 1)
        elif value and _outweighs(value, known):
            told[name] = value
    return told


def _outweighs(value: Any, known: Any) -> bool:
    """Whether what is told later replaces what was told before."""
    if type(value) is list and type(known) is list:
        return _weight(value) >= _weight(known)
    if type(value) in _NUMBERS and type(known) in _NUMBERS:
        return bool(value > known)
    count, before = count_of(value), count_of(known)
    if count is not None and before is not None:
        return count > before
    return type(value) is dict or (before is None and type(known) is not dict)


def _weight(entries: list[Any]) -> int:
    """The sum of all counts in a list of objects."""
    return sum(
        count_of(part) or 0 for entry in entries if type(entry) is dict for part in entry.values()
    )
