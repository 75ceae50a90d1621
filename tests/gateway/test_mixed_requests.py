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
UNSHARED = "-unshared"
"""Ends the name by which each model shares no beginnings of prompts."""

AT_ONCE_MAX = 32
# Every tenant has it, so that what is shared across tenants would be noticed.
_SYSTEM = "You are the guide of a region with rivers, hills and towns. Say what you know, briefly."
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

    Half of them begin with a system prompt that all tenants have.

    tools: models that can call them.
    """
    rng = random.Random(seed)
    made = []
    for number in range(count):
        tenant = rng.choice(TENANTS)
        words = [f"{tenant}-{number}"] + [rng.choice(("river", "hill", "town", "sea"))] * (
            rng.choice((1, 5, 40, 150))
        )
        system = [{"role": "system", "content": _SYSTEM}] * rng.choice((0, 1))
        body: dict[str, Any] = {
            "model": rng.choice(MODELS),
            "max_tokens": rng.choice((1, 3, 8, 16)),
            "messages": [*system, {"role": "user", "content": f"Tell me of {' '.join(words)}."}],
            **rng.choice(({"temperature": 0}, {"temperature": 0.9, "seed": number})),
        }
        kind = rng.choice(("text", "text", "schema", "tool", "penalty", "stop", "leaves"))
        if kind == "tool" and body["model"] not in tools:
            kind = "schema"
        match kind:
            case "schema":
                form = {"name": "place", "schema": _SCHEMA, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": form}
                body["max_tokens"] = 40
            case "tool":
                body |= {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 40}
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
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return (document["choices"], usage["prompt_tokens"], usage["completion_tokens"]), cached


async def answers(
    gateway: RunningGateway, keys: dict[str, str], requests: list[Asked], at_once: int
) -> list[Any]:
    """Every answer, with so many requests under way."""
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
    """Two local models, nothing cached, four tenants, and patience for slow machines.

    Each model also under a second name, with the same process: there it shares no beginnings.
    """
    models = POLICY.replace(
        "- {name: onbox, api: local}\n",
        "- {name: onbox, api: local, timeouts: {first_byte: 5m, idle: 5m}}\n"
        "  - name: second\n    api: local\n    timeouts: {first_byte: 5m, idle: 5m}\n"
        f"    runtime: {{model: {second}, slots: 3, context: 1024}}\n"
        "  - name: onbox-unshared\n    api: local\n    timeouts: {first_byte: 5m, idle: 5m}\n"
        "    runtime: {prefix_scope: none}\n"
        "  - name: second-unshared\n    api: local\n    timeouts: {first_byte: 5m, idle: 5m}\n"
        f"    runtime: {{model: {second}, slots: 3, context: 1024, prefix_scope: none}}\n",
    ).replace(
        "  - name: embedder\n",
        "  - name: little\n    provider: second\n    upstream_model: little\n"
        "    price: {source: unpriced}\n    capabilities: [chat, tools, json_schema]\n"
        "  - name: embedder\n",
    )
    models = models.replace("[chat, completions]", "[chat, tools, json_schema]")
    start, end = models.index("  - name: small\n"), models.index("  - name: embedder\n")
    again = models[start:end]
    for name in ("small", "little"):
        again = again.replace(f"name: {name}\n", f"name: {name}{UNSHARED}\n")
    for provider in ("onbox", "second"):
        again = again.replace(f"provider: {provider}\n", f"provider: {provider}-unshared\n")
    models = models[:end] + again + models[end:]
    models = models.replace("    cache: {exact: {ttl: 1h}}\n", "")
    tenants = "".join(f"  - {{id: {tenant}}}\n" for tenant in TENANTS)
    return models + tenants


def unshared(asked: Asked) -> Asked:
    """The same request to the same model, which gets nothing that was read before."""
    return Asked(asked.tenant, {**asked.body, "model": asked.body["model"] + UNSHARED}, False)


async def one_by_one(
    gateway: RunningGateway, keys: dict[str, str], requests: list[Asked]
) -> list[Any]:
    """The answers where each request has its model's process to itself."""
    parts = [
        [number for number, asked in enumerate(requests) if asked.body["model"] == model]
        for model in MODELS
    ]
    found = await asyncio.gather(
        *(answers(gateway, keys, [unshared(requests[n]) for n in part], 1) for part in parts)
    )
    seen: list[Any] = [None] * len(requests)
    for part, each in zip(parts, found, strict=True):
        for number, answer in zip(part, each, strict=True):
            seen[number] = answer
    return seen


def check(gateway: RunningGateway, requests: list[Asked]) -> int:
    """Ask all at once, then one by one; how many tokens were shared when all were asked."""
    keys = {tenant: gateway.key(tenant) for tenant in TENANTS}
    together = asyncio.run(answers(gateway, keys, requests, AT_ONCE_MAX))
    staying = [asked for asked in requests if not asked.leaves]
    alone = asyncio.run(one_by_one(gateway, keys, staying))
    shared = [seen for asked, seen in zip(requests, together, strict=True) if not asked.leaves]
    assert [seen for seen, _ in shared] == [seen for seen, _ in alone]
    assert not any(cached for _, cached in alone)
    for asked, seen in zip(staying, shared, strict=True):
        text = json.dumps(seen)
        assert not any(f"{tenant}-" in text for tenant in TENANTS if tenant != asked.tenant), text
    return sum(cached for _, cached in shared)


@pytest.mark.slow
def test_mixed_requests_of_four_tenants_and_two_models_are_answered_as_alone(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Forty; the same model twice, in two processes of other sizes."""
    with running_gateway(
        tmp_path, provider.base_url, local=True, policy=policy("smollm2-135m-instruct")
    ) as gateway:
        assert check(gateway, mixture(40, seed=3)) > 0


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
        shared = check(gateway, mixture(count, seed=8, tools=frozenset({"little"})))
        assert shared > count
