"""What a policy may look at of a parsed request: the one place where the two are translated."""

from collections.abc import Mapping

from gateway.policy.snapshot import RequestFacts
from gateway.wire.openai import ParsedRequest
from gateway.wire.tokens import BYTES_PER_TOKEN


def facts_of(
    request: ParsedRequest, *, tenant_id: str, key_id: str, tags: Mapping[str, str]
) -> RequestFacts:
    """The facts of one request. Its tokens are estimated: no tokenizer has looked yet."""
    return RequestFacts(
        tenant=tenant_id,
        key=key_id,
        model=request.model,
        endpoint=request.endpoint,
        tags=tags,
        input_tokens=request.prompt_bytes // BYTES_PER_TOKEN + 1,
        has_tools=request.has_tools,
        has_images=request.has_media,
        stream=request.stream,
        temperature=1.0 if request.temperature is None else request.temperature,
        has_json=request.has_json_format,
        output_tokens=request.max_output_tokens or 0,
        prompt_bytes=request.prompt_bytes // request.prompts,
        ends_with_user_text=request.last_user_text is not None,
    )
