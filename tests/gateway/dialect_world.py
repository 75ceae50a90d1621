"""A gateway before a simulated provider that speaks every dialect, for tests of passing through."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from gateway.simulator.server import Served
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: test}
providers:
  - name: openai
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    auth: {bearer: "${env:TOLLHOUSE_TEST_SECRET}"}
    timeouts: {connect: 2s, first_byte: 2s, idle: 1s, total: 20s}
    health: {min_requests: 100000}
  - name: anthropic
    api: anthropic
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    auth: {key: "${env:TOLLHOUSE_TEST_SECRET}"}
    timeouts: {connect: 2s, first_byte: 2s, idle: 1s, total: 20s}
    health: {min_requests: 100000}
  - name: azure
    api: azure
    base_url: "${env:TOLLHOUSE_TEST_AZURE}"
    auth: {key: "${env:TOLLHOUSE_TEST_SECRET}"}
  - name: azure-older
    api: azure
    api_version: 2024-10-21
    base_url: "${env:TOLLHOUSE_TEST_AZURE}"
    auth: {key: "${env:TOLLHOUSE_TEST_SECRET}"}
  - name: chat-only
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    dialects: [chat]
models:
  - name: gpt
    provider: openai
    upstream_model: simulated-gpt
    price: GPT_PRICE
  - name: claude
    provider: anthropic
    upstream_model: simulated-claude
    price: CLAUDE_PRICE
  - name: claude-failing
    provider: anthropic
    upstream_model: fault-error-event-after-0
    price: CLAUDE_PRICE
  - {name: azure-gpt, provider: azure, upstream_model: their gpt, price: GPT_PRICE}
  - {name: azure-older-gpt, provider: azure-older, upstream_model: their gpt, price: GPT_PRICE}
  - {name: chatty, provider: chat-only, upstream_model: simulated-chat, price: GPT_PRICE}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: test}
defaults: {baseline: gpt}
routes:
  - name: routed
    match: {model: auto}
    small: chatty
    large: gpt
    target: {quality: 95%, until_then: prior}
    fallback: [{to: claude}]
  - name: steady
    match: {model: steady}
    to: claude-failing
    fallback: [{to: claude}]
  - name: rest
    match: {}
    to: gpt
    cache: {exact: {ttl: 1h}}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: test}
tenants:
  - {id: acme, budgets: [{name: monthly, amount: "1000.00"}]}
  - {id: globex}
  - id: thrifty
    budgets: [{name: tiny, amount: "0.000001", on_exceeded: downgrade, downgrade_to: chatty}]
""".replace(
    "GPT_PRICE",
    '{source: contract, contract_id: TEST, per_mtok: {input: "2.50", cached_input: "0.25",'
    ' output: "15.00", reasoning: "20.00"}}',
).replace(
    "CLAUDE_PRICE",
    '{source: contract, contract_id: TEST, per_mtok: {input: "3.00", cached_input: "0.30",'
    ' cache_write: "3.75", cache_write_1h: "6.00", output: "15.00"}}',
)

CACHED: dict[str, Any] = {
    "system": [
        {"type": "text", "text": "Be brief, and " * 20, "cache_control": {"type": "ephemeral"}}
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "The whole of a long file. " * 10,
                    "cache_control": {"type": "ephemeral", "ttl": "1h"},
                },
                {
                    "type": "text",
                    "text": "And a short one.",
                    "cache_control": {"type": "ephemeral"},
                },
                {"type": "text", "text": "What do they say?"},
            ],
        }
    ],
}
BODIES: dict[str, dict[str, Any]] = {
    "/messages": {"model": "claude", "max_tokens": 200, **CACHED},
    "/responses": {
        "model": "gpt",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": "What does the long file say?"}],
        "prompt_cache_key": "file",
        "reasoning": {"effort": "low"},
    },
}


@contextlib.contextmanager
def dialect_gateway(folder: Path, provider: ProviderThread) -> Iterator[RunningGateway]:
    """A gateway with the policy above."""
    with running_gateway(
        folder,
        provider.base_url,
        policy=POLICY,
        environment={"TOLLHOUSE_TEST_AZURE": provider.base_url.removesuffix("/v1")},
    ) as gateway:
        yield gateway


class Asked:
    """Bodies posted by hand, and what the provider saw of them."""

    def __init__(self, gateway: RunningGateway, provider: ProviderThread, tenant: str) -> None:
        self.gateway, self.provider = gateway, provider
        self.key = gateway.key(tenant)
        self._client = httpx.Client(trust_env=False, timeout=30)

    def post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        given = {"x-api-key": self.key, **(headers or {})}
        return self._client.post(self.gateway.base_url + path, json=body, headers=given)

    def seen(self, answer: httpx.Response) -> Served:
        """The provider's record of an answered request."""
        (served,) = (
            served
            for served in self.provider.simulator.requests
            if served.id.startswith(answer.headers["x-request-id"])
        )
        return served

    def close(self) -> None:
        self._client.close()
