"""What providers bill beside the tokens: told from a request's fields, or from a model's name.

Chat completions do not count what the provider's own tools did, so that it has to be foreseen.
Knows no price and no budget.
"""

from typing import Any, Literal

from gateway.wire.verbatim import encode

Fee = Literal["search", "other"]

# Fields of a chat body that make a provider do more than write: OpenAI, xAI, OpenRouter, Alibaba,
# Baidu, Cohere.
FEE_FIELDS = frozenset(
    {"web_search_options", "search_parameters", "plugins", "enable_search", "tools", "web_search",
     "connectors", "mcp_servers"}
)  # fmt: skip
# Fields by which a broker lets the client choose who answers, at another price than the model's:
# OpenRouter, LiteLLM.
_CHOOSING = ("models", "fallbacks", "fallback_models", "model_list", "provider", "preset")
_CHOOSES = frozenset(_CHOOSING)
_CLIENT_TOOLS = frozenset({"function", "custom", None})
_SEARCHING = ("-search-", ":online", "sonar")
_MEDIA = ("audio", "image")
_RESEARCHING = ("deep-research", "groq/compound", "compound-beta", "compound-mini")


def fee_asked(body: dict[str, Any]) -> tuple[str, Fee] | None:
    """The field or tool of a chat body that the provider bills beside the tokens, and its kind."""
    if body.get("web_search_options") is not None:
        return "web_search_options", "search"
    parameters = body.get("search_parameters")
    if isinstance(parameters, dict) and parameters.get("mode") != "off":
        return "search_parameters", "search"
    for name in ("enable_search", "plugins", "web_search", "connectors", "mcp_servers"):
        if body.get(name):
            return name, "search"
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in _CLIENT_TOOLS:
            return kind, "search" if b"search" in encode(tool) else "other"
    return None


def choice_of_model(body: dict[str, Any]) -> str | None:
    """The field that asks a broker for another model, or another seller, than the policy's."""
    if _CHOOSES.isdisjoint(body):
        return None
    return next((name for name in _CHOOSING if body.get(name)), None)


def fee_of_model(name: str) -> Fee | None:
    """What a model does of its own accord at a fee; ``name`` is the provider's."""
    if any(part in name for part in _RESEARCHING):
        return "other"
    if name.endswith("-search") or any(part in name for part in _SEARCHING):
        return "search"
    return None


def media_of_model(name: str) -> frozenset[str]:
    """The price buckets of the media that a model makes; ``name`` is the provider's."""
    return frozenset(f"output_{kind}" for kind in _MEDIA if f"-{kind}" in name)


def media_asked(body: dict[str, Any]) -> frozenset[str]:
    """The price buckets, beside those of text, of media that a chat sends or asks for."""
    asked: set[str] = set()
    modalities = body.get("modalities")
    if isinstance(modalities, list):
        asked.update(f"output_{kind}" for kind in _MEDIA if kind in modalities)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and "audio" in str(part.get("type")):
                asked.add("input_audio")
    return frozenset(asked)
