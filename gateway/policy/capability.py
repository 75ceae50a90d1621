"""What a model can do, held against what a request needs: one judgement for all who ask.

The router asks before it chooses, ``policy explain`` and a policy's tests without a request. Knows
capabilities and sizes; knows no body and no traffic.
"""

import msgspec

from gateway.policy.snapshot import AlwaysLarge, Model


class Needs(msgspec.Struct, frozen=True):
    """What of a request decides which models can serve it. Tokens are estimates."""

    tools: bool
    media: bool
    json: bool
    input_tokens: int
    output_tokens: int = 0


def not_for_small(rule: AlwaysLarge, small: Model, needs: Needs) -> str | None:
    """Why the small model is not even considered; None if it is."""
    can = small.capabilities
    if needs.tools and (rule.tools or "tools" not in can):
        return "tools go to the large model"
    if needs.media and (rule.images or "vision" not in can):
        return "images, audio and files go to the large model"
    if needs.json and (rule.json_schema or "json_schema" not in can):
        return "structured output goes to the large model"
    over, tokens = rule.prompt_tokens_over, needs.input_tokens
    if over is not None and tokens > over:
        return f"about {tokens} prompt tokens, over {over}"
    window = small.context_tokens
    if window is not None and tokens + needs.output_tokens > window:
        return f"about {tokens} prompt tokens do not fit the small model's {window}"
    return None
