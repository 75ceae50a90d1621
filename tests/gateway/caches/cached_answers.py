"""Stored answers and parsed requests for the caches' tests."""

from typing import Any

import orjson

from gateway.caches.entry import StoredAnswer
from gateway.wire.openai import ParsedRequest, parse_request
from gateway.wire.usage import Usage

NOW_US = 1_700_000_000_000_000


def stored(cache_id: str, *, size_bytes: int = 100, expires_us: int = NOW_US * 2) -> StoredAnswer:
    """An entry with an answer of ``size_bytes``."""
    return StoredAnswer(
        answer=b"x" * size_bytes,
        endpoint="chat",
        served_model="small",
        provider="local",
        usage=Usage(prompt_tokens=3, completion_tokens=4),
        stored_us=NOW_US,
        expires_us=expires_us,
        cache_id=cache_id,
        route_identity=b"route",
        tenant_id="acme",
        writer_key_id="key",
    )


def chat(text: Any, **changes: Any) -> ParsedRequest:
    """A chat request whose last message is the user's ``text``."""
    history = changes.pop("history", [])
    body = {
        "model": "auto",
        "messages": [*history, {"role": "user", "content": text}],
        "temperature": 0,
        **changes,
    }
    return parse_request("chat", orjson.dumps(body))
