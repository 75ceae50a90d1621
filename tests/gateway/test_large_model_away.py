"""The large model cannot be asked: the small one answers what is easy, the rest fails at once."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway

EASY = "What is the capital of France?"
HARD = "Prove that the square root of 2 is irrational, and generalise the proof to every prime."
ROUTES = """
  - name: away
    match: {model: auto, tags: {large: away}}
    small: large
    large: other
    target: {quality: 95%}
    cache: {exact: {ttl: 1h}}
  - name: unmeasured
    match: {model: auto, tags: {large: there}}
    small: other
    large: large
    target: {quality: 95%}
"""


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """The model 'other' is at a port where nobody listens, and 'large' plays the small one."""
    policy = POLICY.replace("routes:\n", "routes:" + ROUTES)
    folder = tmp_path_factory.mktemp("away")
    with running_gateway(folder, provider.base_url, policy=policy) as gateway:
        yield gateway


def ask(gateway: RunningGateway, text: str, large: str, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    return httpx.post(
        f"{gateway.base_url}/chat/completions",
        json={"model": "auto", "messages": messages, "max_tokens": 8, **fields},
        headers={
            "authorization": f"Bearer {gateway.key('globex')}",
            "x-tollhouse-tags": f"large={large}",
        },
        trust_env=False,
        timeout=20.0,
    )


def test_the_small_model_stands_in_for_what_is_easy(gateway: RunningGateway) -> None:
    """Whole or as a stream; the answer says so, is booked as a fallback, and is not kept."""
    for stream in (False, True):
        answer = ask(gateway, EASY, "away", stream=stream, temperature=0)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tollhouse-model"] == "large"
        assert answer.headers["x-tollhouse-degraded"] == "large-away"
        assert answer.headers["x-tollhouse-cache"] == "miss"
        event = gateway.events(answer.headers["x-request-id"])[-1]
        assert event.decision == "fallback"


@pytest.mark.parametrize(
    "fields", [{}, {"tools": [{"type": "function", "function": {"name": "f"}}]}], ids=str
)
def test_the_rest_fails_at_once_with_a_sentence(
    gateway: RunningGateway, fields: dict[str, Any]
) -> None:
    """What is hard, and what the small model may never be asked."""
    began = time.monotonic()
    answer = ask(gateway, HARD if not fields else EASY, "away", **fields)
    assert time.monotonic() - began < 5.0
    assert answer.status_code == 502
    assert "Cannot connect to '127.0.0.1'" in answer.json()["error"]["message"]
    assert answer.headers["x-tollhouse-degraded"] == "large-away"


def test_while_nothing_is_measured_the_large_model_answers_what_is_easy(
    gateway: RunningGateway,
) -> None:
    """The small one, which is away here, is not even tried."""
    answer = ask(gateway, EASY, "there")
    assert answer.status_code == 200
    assert answer.headers["x-tollhouse-model"] == "large"
    assert "x-tollhouse-degraded" not in answer.headers
    (event,) = gateway.events(answer.headers["x-request-id"])
    assert event.reason == "no quality is measured yet: large until then"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_error_of_the_request_is_no_reason_to_stand_in(
    gateway: RunningGateway, status: int
) -> None:
    """The provider is there and has refused: the client hears it, and nobody else is asked."""
    answer = ask(gateway, f"{EASY} [[fault:status-{status}]]", "there")
    assert answer.status_code == status
    assert answer.json()["error"]["message"].endswith(f"answers {status}.")
    assert "x-tollhouse-degraded" not in answer.headers
    attempts = gateway.events(answer.headers["x-request-id"])
    assert [(event.provider, event.decision) for event in attempts] == [("provider", "hard")]
