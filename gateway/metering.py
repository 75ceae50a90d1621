"""What a provider told of an answer, completed by what was asked for and what cannot be true.

Knows requests, models and usage. Knows no socket and no money.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.policy.snapshot import Model
from gateway.wire.openai import WITHOUT_OUTPUT, ParsedRequest, dearer_tier
from gateway.wire.usage import Usage
from gateway.wire.usage_shapes import tier_of

_COUNTING_NO_TOOLS = frozenset({"chat", "completions"})


def completed(
    told: Usage | None,
    request: ParsedRequest,
    target: Model,
    *,
    tier_named: Any,
    estimate: Callable[[], Usage],
) -> Usage:
    """Usage as it is booked. told: None where the answer has none.

    tier_named: the service tier in the answer, None where it names none. estimate: what the answer
    must have consumed, counted by ourselves; asked only where nothing was told or a count of zero
    cannot be true.
    """
    if told is None:
        told = _with(estimate(), service_tier=tier_of(tier_named))
    if tier_named is None and dearer_tier(request.body) is not None:
        # It was asked for, and nothing says that the provider did otherwise.
        told = _with(told, service_tier=tier_of(request.body.get("service_tier")))
    fee = request.fee or target.fee
    if fee is not None and request.endpoint in _COUNTING_NO_TOOLS and not told.web_searches:
        told = _with(told, web_searches=1) if fee == "search" else _with(told, other_fees=True)
    if told.prompt_tokens and (told.completion_tokens or request.endpoint in WITHOUT_OUTPUT):
        return told
    return told if told.source == "none" else _without_impossible_zeros(told, estimate())


def _without_impossible_zeros(told: Usage, seen: Usage) -> Usage:
    """No prompt has no tokens, and no text either: a zero there is a placeholder."""
    changes: dict[str, Any] = {}
    if not told.prompt_tokens and seen.prompt_tokens:
        changes["prompt_tokens"] = seen.prompt_tokens
    if not told.completion_tokens and seen.completion_tokens:
        changes["completion_tokens"] = seen.completion_tokens
    return _with(told, source="tokenizer", **changes) if changes else told


_with = msgspec.structs.replace
