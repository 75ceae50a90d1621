"""May the semantic tier be asked at all? Everything doubtful stays with the exact tier."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.wire.openai import ParsedRequest


def eligible(parsed: "ParsedRequest") -> str | None:
    """None when the semantic tier may be asked; else the reason it is not."""
    return "not yet"
