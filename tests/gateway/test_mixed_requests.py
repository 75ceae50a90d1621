"""Many requests of several tenants and models at once are answered as each is alone."""

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from local_models.catalogue import ensure
from local_models.messages import ModelUnavailable
from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway

TENANTS = ("red", "green", "blue", "white")
MODELS = ("small", "little")
AT_ONCE_MAX = 32
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "people": {"type": "integer"},
        "kind": {"enum": ["town", "village"]},
    },
    "required": ["city", "people", "kind"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_river",
        "description": "Find a river by its country.",
        "parameters": {
            "type": "object",
            "properties": {"country": {"type": "string", "maxLength": 12}},
            "required": ["country"],
            "additionalProperties": False,
        },
    },
}


class Asked(msgspec.Struct, frozen=True):
    """One request of the mixture. leaves: the client goes after the first bytes."""

    tenant: str
    body: dict[str, Any]
    leaves: bool


def mixture(count: int, seed: int, tools: frozenset[str] = frozenset()) -> list[Asked]:
    """Requests of every length and kind; each has a word in it that no other tenant has.

    tools: models that can call them.
    """
    rng = random.Random(seed)
    made = []
    for number in range(count):
        tenant = rng.choice(TENANTS)
        words = [f"{tenant}-{number}"] + [rng.choice(("river", "hill", "town", "sea"))] * (
            rng.choice((1, 5, 40, 150))
        )
        body: dict[str, Any] = {
            "model": rng.choice(MODELS),
            "max_tokens": rng.choice((1, 4, 12, 30)),
            "messages": [{"role": "user", "content": f"Tell me of {' '.join(words)}."}],
            **rng.choice(({"temperature": 0}, {"temperature": 0.9, "seed": number})),
        }
        kind = rng.choice(("text", "text", "schema", "tool", "penalty", "stop", "leaves"))
        if kind == "tool" and body["model"] not in tools:
            kind = "schema"
        match kind:
            case "schema":
                form = {"name": "place", "schema": _SCHEMA, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": form}
                body["max_tokens"] = 60
            case "tool":
                body |= {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 60}
            case "penalty":
                body |= {"frequency_penalty": 0.7, "logit_bias": {"42": -50}}
            case "stop":
                body["stop"] = ["the", "."]
            case "leaves":
                body |= {"stream": True, "max_tokens": 200}
        made.append(Asked(tenant, body, kind == "leaves"))
    return made


async def ask(client: httpx.AsyncClient, key: str, asked: Asked) -> Any:
    """What the client sees of an answer, less what differs from one call to the next."""
    headers = {"authorization": f"Bearer {key}"}
    if asked.leaves:
        async with client.stream(
            "POST", "/chat/completions", json=asked.body, headers=headers
        ) as stream:
            async for _ in stream.aiter_bytes():
                break
        return None
    answer = await client.post("/chat/completions", json=asked.body, headers=headers)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    for choice in document["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            del call["id"]
    usage = document["usage"]
    return document["choices"], usage["prompt_tokens"], usage["completion_tokens"]


async def answers(gateway: RunningGateway, requests: list[Asked], at_once: int) -> list[Any]:
    """Every answer, with so many requests under way."""
    keys = {tenant: gateway.key(tenant) for tenant in TENANTS}
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(
        base_url=gateway.base_url, trust_env=False, timeout=300, limits=limits
    ) as client:
        turn = asyncio.Semaphore(at_once)

        async def one(asked: Asked) -> Any:
            async with turn:
                return await ask(client, keys[asked.tenant], asked)

        return await asyncio.gather(*map(one, requests))


def policy(second: str) -> str:
    """Two local models, nothing cached, four tenants, and patience for slow machines."""
    models = POLICY.replace(
        "- {name: onbox, api: local}\n",
        "- {name: onbox, api: local, timeouts: {first_byte: 5m, idle: 5m}}\n"
        "  - name: second\n    api: local\n    timeouts: {first_byte: 5m, idle: 5m}\n"
        f"    runtime: {{model: {second}, slots: 3, context: 1024}}\n",
    ).replace(
        "  - name: embedder\n",
        "  - name: little\n    provider: second\n    upstream_model: little\n"
        "    price: {source: unpriced}\n    capabilities: [chat, tools, json_schema]\n"
        "  - name: embedder\n",
    )
    models = models.replace("[chat, completions]", "[chat, tools, json_schema]")
    models = models.replace("    cache: {exact: {ttl: 1h}}\n", "")
    tenants = "".join(f"  - {{id: {tenant}}}\n" for tenant in TENANTS)
    return models + tenants


def check(gateway: RunningGateway, requests: list[Asked]) -> None:
    """Ask all at once, then one by one."""
    together = asyncio.run(answers(gateway, requests, AT_ONCE_MAX))
    staying = [asked for asked in requests if not asked.leaves]
    alone = asyncio.run(answers(gateway, staying, 1))
    shared = [seen for asked, seen in zip(requests, together, strict=True) if not asked.leaves]
    assert shared == alone
    for asked, seen in zip(staying, shared, strict=True):
        text = json.dumps(seen)
        assert not any(f"{tenant}-" in text for tenant in TENANTS if tenant != asked.tenant), text


@pytest.mark.slow
def test_mixed_requests_of_four_tenants_and_two_models_are_answered_as_alone(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Forty; the same model twice, in two processes of other sizes."""
    with running_gateway(
        tmp_path, provider.base_url, local=True, policy=policy("smollm2-135m-instruct")
    ) as gateway:
        check(gateway, mixture(40, seed=3))


@pytest.mark.long
def test_a_thousand_mixed_requests_are_answered_as_alone(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Four tenants, SmolLM2 and Qwen2.5-Coder-0.5B, lengths, forms, tools, and clients that go."""
    second = "qwen2.5-coder-0.5b-instruct"
    try:
        ensure(second)
    except ModelUnavailable as error:
        pytest.skip(f"the second model cannot be had: {error}")
    with running_gateway(
        tmp_path,
        provider.base_url,
        local=True,
        policy=policy(second),
        environment={"TOLLHOUSE_LOCAL_NICE": "0", "TOLLHOUSE_LOCAL_SLOTS": "8"},
    ) as gateway:
        count = int(os.environ.get("TESTS_MIXED_REQUESTS", "1000"))
        check(gateway, mixture(count, seed=8, tools=frozenset({"little"})))
