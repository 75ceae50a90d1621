"""Token usage of one answer, in disjoint buckets whose sums are asserted.

Knows OpenAI's usage objects, of both its interfaces. Does not know prices.
"""

from typing import Any, Literal

import msgspec

UsageSource = Literal["provider", "tokenizer", "partial_stream", "cache", "none"]


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one answer consumed. Sub-counts are parts of their totals, never additions to them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens, read from the provider's prompt cache
    cache_write_tokens: int = 0  # part of prompt_tokens, written to it
    cache_write_1h_tokens: int = 0  # part of cache_write_tokens, to be kept for an hour
    prompt_audio_tokens: int = 0  # part of prompt_tokens
    prompt_image_tokens: int = 0  # part of prompt_tokens
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # part of completion_tokens
    completion_audio_tokens: int = 0  # part of completion_tokens
    compute_us: int = 0  # processor time on our own machine, microseconds
    web_searches: int = 0  # that the provider made, at a fee for each
    other_fees: bool = False  # the provider's tools did something else that it bills for
    source: UsageSource = "provider"

    def __post_init__(self) -> None:
        if self.cached_tokens + self.cache_write_tokens > self.prompt_tokens:
            raise ValueError("cached and cache-write tokens exceed the prompt's tokens")
        if self.cache_write_1h_tokens > self.cache_write_tokens:
            raise ValueError("tokens written for an hour exceed the tokens written")
        if self.reasoning_tokens + self.completion_audio_tokens > self.completion_tokens:
            raise ValueError("reasoning and audio tokens exceed the completion's tokens")

    def document(self) -> dict[str, Any]:
        """The OpenAI ``usage`` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "audio_tokens": self.prompt_audio_tokens,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": self.completion_audio_tokens,
            },
        }


def parse_usage(document: Any) -> Usage | None:
    """Read a provider's OpenAI-shaped ``usage`` object; None where it is absent or unusable.

    Missing and zero differ: an absent object is None, an explicit zero is a Usage of zeros.
    A part that exceeds its total is cut to it, so that a lying provider cannot break the books.
    """
    if not isinstance(document, dict):
        return None
    prompt = count_of(document.get("prompt_tokens", document.get("input_tokens")))
    completion = count_of(document.get("completion_tokens", document.get("output_tokens", 0)))
    if prompt is None or completion is None:
        return None
    prompt_parts = document.get("prompt_tokens_details") or document.get("input_tokens_details")
    completion_parts = document.get("completion_tokens_details") or document.get(
        "output_tokens_details"
    )
    ours = document.get("tollhouse")
    if not (prompt_parts or completion_parts or ours):
        return Usage(prompt_tokens=prompt, completion_tokens=completion)
    cached = min(part_of(prompt_parts, "cached_tokens"), prompt)
    reasoning = min(part_of(completion_parts, "reasoning_tokens"), completion)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=min(part_of(prompt_parts, "cache_write_tokens"), prompt - cached),
        prompt_audio_tokens=min(part_of(prompt_parts, "audio_tokens"), prompt),
        prompt_image_tokens=min(part_of(prompt_parts, "image_tokens"), prompt),
        completion_tokens=completion,
        reasoning_tokens=reasoning,
        completion_audio_tokens=min(
            part_of(completion_parts, "audio_tokens"), completion - reasoning
        ),
        compute_us=part_of(ours, "compute_us"),
    )


_COUNT_MAX = 2**53


def count_of(value: Any) -> int | None:
    """A token count is a non-negative integer below 2**53; anything else is no count."""
    return value if type(value) is int and 0 <= value < _COUNT_MAX else None


def part_of(parts: Any, key: str) -> int:
    """A count inside an object; 0 where there is no such object or count."""
    if type(parts) is not dict or key not in parts:
        return 0
    return count_of(parts[key]) or 0
