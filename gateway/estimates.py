"""What an answer has consumed where its provider did not say, or not to the end.

Pure: times are told. Every estimate names its source in the usage, so that books can show it.
"""

from typing import Any

import msgspec

from gateway.exchange import Attempt, Exchange
from gateway.metering import completed
from gateway.wire.dialects import DIALECTS, Relay
from gateway.wire.tokens import count_prompt, count_tokens
from gateway.wire.usage import Usage

_UNSPENT = Usage(source="none")
_COUNTED_BYTES_MAX = 8192  # above it, tokenizing would hold up the event loop: estimate
_BYTES_PER_TOKEN_MAX = 6  # of running text, on average: more bytes were more tokens
_THOUGHTS_PER_SECOND = 100  # tokens; the fast ones of the hosted models that think
_THOUGHTLESS = ("none", "minimal")


def of_stream(exchange: Exchange, attempt: Attempt, relay: Relay, now: float) -> Usage:
    """What the provider has told, unless more came through after that and the end never did."""
    told = relay.usage
    if told is not None:
        told = completed(
            told,
            exchange.request,
            attempt.target,
            tier_named=relay.tier,
            estimate=lambda: of_interrupted(exchange, attempt, relay, now),
        )
    if told is not None and (exchange.tail or told.completion_tokens >= tokens_so_far(relay)):
        return told
    seen = of_interrupted(exchange, attempt, relay, now)
    if told is None:
        return seen
    return msgspec.structs.replace(
        told, completion_tokens=seen.completion_tokens, source="partial_stream"
    )


def of_interrupted(exchange: Exchange, attempt: Attempt, relay: Relay | None, now: float) -> Usage:
    """What an interrupted answer has consumed, as far as we saw it. now: monotonic seconds."""
    if exchange.endpoint == "count_tokens":
        return _UNSPENT
    if relay is not None and relay.prompt is not None:
        return msgspec.structs.replace(
            relay.prompt, completion_tokens=tokens_so_far(relay), source="partial_stream"
        )
    local = attempt.target.provider.api == "local"
    elapsed = now - attempt.started_monotonic
    return Usage(
        prompt_tokens=_prompt_tokens(exchange),
        completion_tokens=tokens_so_far(relay) if relay is not None else 0,
        compute_us=max(0, round(elapsed * 1e6)) if local else 0,
        source="partial_stream",
    )


def with_thoughts(exchange: Exchange, attempt: Attempt, seen: Usage, now: float) -> Usage:
    """What a client has consumed that left a model which thinks before it answers, unseen.

    How long it thought is known, how fast it did is not: capped by what is held for it.
    """
    plan, effort = exchange.plan, exchange.request.body.get("reasoning_effort")
    if not attempt.target.thinks or effort in _THOUGHTLESS or plan is None:
        return seen
    came = exchange.first_byte if seen.completion_tokens else None
    until = came if came is not None else now
    thought = round(max(0.0, until - attempt.started_monotonic) * _THOUGHTS_PER_SECOND)
    most = plan.output_tokens_max * exchange.request.choices
    tokens = max(seen.completion_tokens, min(seen.completion_tokens + thought, most))
    return msgspec.structs.replace(seen, completion_tokens=tokens)


def tokens_so_far(relay: Relay) -> int:
    """About a token per event, and never below what so much text must be."""
    return max(relay.content_events, relay.text_bytes // _BYTES_PER_TOKEN_MAX)


def of_document(exchange: Exchange, attempt: Attempt, document: dict[str, Any]) -> Usage:
    """Usage of a complete answer that reports none: counted by a tokenizer."""
    text = DIALECTS[exchange.endpoint].text(document)
    if len(text) <= _COUNTED_BYTES_MAX:
        tokens, _ = count_tokens(
            text, model=attempt.target.vendor_model or attempt.target.upstream_model
        )
    else:
        tokens = len(text) // 4
    return Usage(
        prompt_tokens=_prompt_tokens(exchange), completion_tokens=tokens, source="tokenizer"
    )


def _prompt_tokens(exchange: Exchange) -> int:
    if exchange.request.prompt_bytes <= _COUNTED_BYTES_MAX:
        return count_prompt(exchange.request)[0]
    return exchange.request.prompt_bytes // 4
