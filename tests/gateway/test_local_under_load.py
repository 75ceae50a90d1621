"""More requests than the local model computes at once: they wait, or the large model is asked."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway

SLOTS = {"TOLLHOUSE_LOCAL_SLOTS": "2"}


async def ask_all(
    gateway: RunningGateway, key: str, model: str, count: int, tokens: int
) -> list[httpx.Response]:
    """So many requests at once, each of another text."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url,
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=60,
        limits=httpx.Limits(max_connections=count),
    ) as client:

        def one(number: int) -> "asyncio.Future[httpx.Response]":
            body = {
                "model": model,
                "max_tokens": tokens,
                "temperature": 0,
                "messages": [{"role": "user", "content": f"Name {number + 2} rivers."}],
            }
            return asyncio.ensure_future(client.post("/chat/completions", json=body))

        return await asyncio.gather(*map(one, range(count)))


def metric(gateway: RunningGateway, name: str) -> float:
    """The value of a series."""
    lines = httpx.get(gateway.admin_url + "/metrics", trust_env=False).text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])


@pytest.mark.slow
def test_requests_wait_for_a_local_answer_instead_of_being_refused(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Twenty of one tenant on two slots: all are answered, which takes far longer than 100 ms."""
    with running_gateway(tmp_path, provider.base_url, local=True, environment=SLOTS) as gateway:
        answers = asyncio.run(ask_all(gateway, gateway.key("acme"), "small", 20, 16))
        assert [answer.status_code for answer in answers] == [200] * 20
        waiting = metric(gateway, 'tollhouse_local_waiting{provider="onbox"}')
        slots = metric(gateway, 'tollhouse_local_slots{provider="onbox"}')
    assert (waiting, slots >= 3) == (0.0, True)


@pytest.mark.slow
def test_what_cannot_be_answered_here_in_time_is_answered_by_the_large_model(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Two seconds until an answer must begin, and forty easy requests: none is refused."""
    policy = POLICY.replace(
        "- {name: onbox, api: local}", "- {name: onbox, api: local, timeouts: {first_byte: 2s}}"
    )
    with running_gateway(
        tmp_path, provider.base_url, local=True, environment=SLOTS, policy=policy
    ) as gateway:
        answers = asyncio.run(ask_all(gateway, gateway.key("globex"), "auto", 40, 200))
        assert [answer.status_code for answer in answers] == [200] * 40
    models = Counter(answer.headers["x-tollhouse-model"] for answer in answers)
    assert models["small"] > 0
    assert models["large"] > 0
    decisions = {
        answer.headers["x-tollhouse-decision"]
        for answer in answers
        if answer.headers["x-tollhouse-model"] == "large"
    }
    assert decisions <= {"escalated; from=small; because=503", "escalated; from=small; because=504"}
