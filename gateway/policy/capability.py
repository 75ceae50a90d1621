"""What a model can do, held against what a request needs: one judgement for all who ask.

The stages ask before they choose, ``policy explain`` and a policy's tests without a request. Knows
capabilities and sizes; knows no body and no traffic.
"""

from gateway.errors import ContextTooLong, GatewayError, InvalidRequest
from gateway.policy.snapshot import AlwaysLarge, Model, RequestFacts

_MEDIA_PARAMS = {"responses": "input", "decisions": "input"}
_BYTES_PER_TOKEN_MAX = 16  # more bytes than this per token of context cannot fit


def not_for_small(rule: AlwaysLarge, small: Model, facts: RequestFacts) -> str | None:
    """Why the small model is not even considered; None if it is."""
    can = small.capabilities
    if facts.has_tools and (rule.tools or "tools" not in can):
        return "tools go to the large model"
    if facts.has_images and (rule.images or "vision" not in can):
        return "images, audio and files go to the large model"
    if facts.has_json and (rule.json_schema or "json_schema" not in can):
        return "structured output goes to the large model"
    over, tokens = rule.prompt_tokens_over, facts.input_tokens
    if over is not None and tokens > over:
        return f"about {tokens} prompt tokens, over {over}"
    window = small.context_tokens
    if window is None or tokens + facts.output_tokens <= window:
        return None
    if tokens <= window:
        return (
            f"about {tokens} prompt tokens and up to {facts.output_tokens} of the answer do not fit"
            f" the small model's {window}"
        )
    return f"about {tokens} prompt tokens do not fit the small model's {window}"


def unfit(first: Model, facts: RequestFacts) -> GatewayError | None:
    """Why a request cannot be sent to the model that is tried first; None if it can."""
    if facts.endpoint == "embeddings" and "embeddings" not in first.capabilities:
        return InvalidRequest(f"The model '{first.name}' makes no embeddings.", param="model")
    if facts.endpoint != "embeddings" and first.capabilities == {"embeddings"}:
        return InvalidRequest(f"The model '{first.name}' only makes embeddings.", param="model")
    window = first.context_tokens
    if facts.has_images and "vision" not in first.capabilities:
        # A hosted model may see although the policy does not say so; ours reads text alone.
        too_long = window is not None and facts.prompt_bytes > window * _BYTES_PER_TOKEN_MAX
        if too_long or first.provider.api == "local":
            return InvalidRequest(
                f"The model '{first.name}' has no vision: it reads text, and no images, audio or"
                " files.",
                param=_MEDIA_PARAMS.get(facts.endpoint, "messages"),
            )
    # A token is at most a handful of bytes: this refuses only what cannot fit.
    if window is not None and facts.prompt_bytes > window * _BYTES_PER_TOKEN_MAX:
        return ContextTooLong(
            f"This model's maximum context length is {window} tokens and your prompt has"
            f" {facts.prompt_bytes} bytes.",
            param="messages",
        )
    return None
