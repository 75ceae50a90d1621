"""May the semantic tier be asked at all? Everything doubtful stays with the exact tier.

Knows request bodies and plain text. A reason is a phrase for admins.
"""

import re
from typing import TYPE_CHECKING, Any, Final

from gateway.caches.semantic.facets import estimated_pieces
from gateway.wire.canonical import cacheable

if TYPE_CHECKING:
    from gateway.wire.openai import ParsedRequest

# The encoder reads 128 word pieces with its two marks; the estimate may be a few short.
PIECES_MAX: Final = 110
# Bounds the work of the patterns below, whatever the text.
CHARACTERS_MAX: Final = 800

_VOLATILE: Final = re.compile(
    r"\b(?:today|tonight|yesterday|tomorrow|now|nowadays|currently|current|latest|recent(?:ly)?"
    r"|newest|upcoming|so far|at the moment|(?:this|next|last|past) (?:hour|morning|afternoon"
    r"|evening|night|week|weekend|month|quarter|season|year)|weather|forecast|news|headlines"
    r"|stock price|share price|exchange rate|what time|what day|what date|score of|live|trending"
    r"|just (?:happened|released|announced)|ago|anymore|still)\b",
    re.IGNORECASE,
)
_PERSONAL: Final = re.compile(
    r"\bmy (?:\w+ ){0,2}?(?:order|orders|balance|invoice|bill|package|parcel|delivery|shipment"
    r"|appointment|booking|reservation|flight|ticket|transaction|payment|claim|name|age|birthday"
    r"|address|location|schedule|calendar|inbox|results?|grades?|salary|diagnosis|medication)\b"
    r"|\b(?:order|ticket|case|invoice|tracking|booking|reservation|claim|account|customer)"
    r"(?: (?:number|no\.?|id))?\s*[#:]?\s*[A-Z]{0,4}\d{3,}|#\d{3,}"
    r"|\b(?:my name is|i live (?:in|at)|i am called|remember (?:that|me)|do you remember)\b"
    r"|\bwhere (?:am i|is my)\b|\bwho am i\b",
    re.IGNORECASE,
)
_HOW_TO_MY: Final = re.compile(r"how (?:do|can|could|should|would|to)\b", re.IGNORECASE)
_ACTION: Final = re.compile(
    r"^(?:please |pls |can you |could you |would you |kindly )*(?:book|order|buy|purchase|send"
    r"|email|e-mail|text|message|call|dial|pay|transfer|wire|refund|cancel|schedule|reschedule|remind"
    r"|turn (?:on|off)|switch (?:on|off)|set (?:a|an|the|my)|play|pause|delete|remove|deploy"
    r"|restart|reboot|shut down|approve|submit|post|publish|subscribe|unsubscribe|sign me)\b",
    re.IGNORECASE,
)
_FRESH: Final = re.compile(
    r"\b(?:random(?:ly)?|surprise me|roll (?:a|the) di(?:c)?e|flip a coin|pick (?:a|one|any)"
    r"|another one|one more|something else|again|regenerate|try again|continue|go on|shuffle"
    r"|uuid|new (?:idea|version|one))\b",
    re.IGNORECASE,
)
_SECRET: Final = re.compile(
    r"[\w.+-]+@[\w-]+\.\w{2,}"  # e-mail address
    r"|\b(?:sk|pk|rk|ghp|gho|xox[abp]|th|tha)[-_][A-Za-z0-9_-]{8,}|\bAKIA[0-9A-Z]{12,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}|-----BEGIN|\b[A-Fa-f0-9]{32,}\b"
    r"|\b(?:\d[ -]?){13,19}\b"  # card numbers
    r"|\b\d{3}-\d{2}-\d{4}\b|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,}"  # SSN, IBAN
    r"|(?<!\d)\+?\d{1,3}[ -]?\(?\d{2,4}\)?[ -]?\d{3,4}[ -]?\d{3,4}(?!\d)"  # telephone
    r"|\b(?:password|passwort|pin|token|secret|api key) (?:is|=|:)",
    re.IGNORECASE,
)
_CODE: Final = re.compile(
    r"```|^\s*(?:def |class |import |#include|SELECT |function )|[{};]\s*$|\bTraceback\b",
    re.MULTILINE,
)


def eligible(parsed: "ParsedRequest") -> str | None:
    """None when the semantic tier may be asked; else the reason it is not."""
    if parsed.endpoint != "chat":
        return "not a chat request"
    return cacheable(parsed) or _shape(parsed) or _text(parsed.last_user_text or "")


def _shape(parsed: "ParsedRequest") -> str | None:
    body = parsed.body
    if parsed.has_tools or body.get("functions"):
        return "tools are given: exact tier only"
    if parsed.has_media:
        return "the request carries media"
    if not parsed.last_user_text:
        return "the last message is not a user's text"
    if not isinstance(body["messages"][-1].get("content"), str) and not _lone_text(body):
        return "the last message has several parts"
    if _has_tool_history(body["messages"]):
        return "the history contains tool calls"
    if parsed.choices > 1:
        return "several choices are asked for"
    if body.get("logprobs"):
        return "log-probabilities are asked for"
    return None


def _text(text: str) -> str | None:
    if len(text) > CHARACTERS_MAX or estimated_pieces(text) > PIECES_MAX:
        return "longer than the encoder's window"
    if not any(map(str.isalpha, text)):
        return "no words to compare"
    if _SECRET.search(text):
        return "looks like personal data or a secret"
    if _CODE.search(text):
        return "contains code"
    if _VOLATILE.search(text):
        return "the answer depends on the moment"
    if _PERSONAL.search(text) and not _HOW_TO_MY.match(text):
        return "the question is about a person or a case"
    if _ACTION.match(text):
        return "asks for an action"
    if _FRESH.search(text):
        return "asks for something new"
    return None


def _lone_text(body: dict[str, Any]) -> bool:
    content = body["messages"][-1].get("content")
    return isinstance(content, list) and len(content) == 1


def _has_tool_history(messages: list[Any]) -> bool:
    return any(
        message.get("role") in ("tool", "function")
        or message.get("tool_calls")
        or message.get("function_call")
        for message in messages
        if isinstance(message, dict)
    )
