"""Token usage of one answer: totals and their parts, whose sums are asserted.

Knows no provider's spelling (``usage_reading`` does) and no price.
"""

from typing import Any, Literal

import msgspec

# unclear: the provider's own counts contradict each other, and the dearer reading was booked.
UsageSource = Literal["provider", "unclear", "tokenizer", "partial_stream", "cache", "none"]


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one answer consumed. Sub-counts are parts of their totals, never additions to them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens, read from the provider's prompt cache
    cache_write_tokens: int = 0  # part of prompt_tokens, written to it
    cache_write_1h_tokens: int = 0  # part of cache_write_tokens, to be kept for an hour
    prompt_audio_tokens: int = 0  # part of prompt_tokens
    prompt_image_tokens: int = 0  # part of prompt_tokens
    prompt_video_tokens: int = 0  # part of prompt_tokens
    cached_audio_tokens: int = 0  # part of cached_tokens
    cached_image_tokens: int = 0  # part of cached_tokens
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # part of completion_tokens
    completion_audio_tokens: int = 0  # part of completion_tokens
    completion_image_tokens: int = 0  # part of completion_tokens
    completion_video_tokens: int = 0  # part of completion_tokens
    citation_tokens: int = 0  # part of completion_tokens: what a search read, billed as output
    compute_us: int = 0  # processor time on our own machine, microseconds
    web_searches: int = 0  # that the provider made, at a fee for each
    told_pico: int = 0  # what the provider says that the answer cost; 0: it does not say
    other_fees: bool = False  # something else was billed, or a kind of token without a name here
    service_tier: str = ""  # that served, where it has a price of its own; empty: the standard one
    source: UsageSource = "provider"

    def __post_init__(self) -> None:
        cached, written = self.cached_tokens, self.cache_write_tokens
        if cached + written > self.prompt_tokens:
            raise ValueError("cached and cache-write tokens exceed the prompt's tokens")
        if self.cache_write_1h_tokens > written:
            raise ValueError("tokens written for an hour exceed the tokens written")
        if self.cached_audio_tokens + self.cached_image_tokens > cached:
            raise ValueError("cached audio and image tokens exceed the cached tokens")
        # Spelt out where it is needed: a property would cost more than all else here.
        others = (
            self.completion_audio_tokens
            + self.completion_image_tokens
            + self.completion_video_tokens
            + self.citation_tokens
        )
        if self.reasoning_tokens + others > self.completion_tokens:
            raise ValueError("reasoning and media tokens exceed the completion's tokens")

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


_COUNT_MAX = 2**53


def count_of(value: Any) -> int | None:
    """A token count: a non-negative whole number below 2**53, in whatever form JSON gives it.

    Some providers write ``12.0`` or ``"12"``; anything else is no count.
    """
    if type(value) is int:
        return value if 0 <= value < _COUNT_MAX else None
    if type(value) is str and len(value) <= _DIGITS_MAX:
        try:
            value = float(value)
        except ValueError:
            return None
    if type(value) is float and value.is_integer() and 0 <= value < _COUNT_MAX:
        return int(value)
    return None


_DIGITS_MAX = 20


def part_of(parts: Any, key: str) -> int:
    """A count inside an object; 0 where there is no such object or count."""
    if type(parts) is not dict or key not in parts:
        return 0
    return count_of(parts[key]) or 0
