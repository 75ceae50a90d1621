"""What happens when something dies, leaves or breaks: nothing is lost, doubled or hidden."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for

QUESTION: Any = [{"role": "user", "content": "Tell me something long."}]


@pytest.fixture
def slow_provider() -> Any:
    """Writes 50 tokens per second, so that a client can leave in the middle."""
    thread = ProviderThread(seed=3, tokens_per_second=50.0, latency_seconds=0.05)
    yield thread
    thread.stop()


def chat(gateway: RunningGateway, key: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": "uncached", "messages": QUESTION, **body},
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=30,
    )


def prompt(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_client_that_leaves_mid_stream_pays_for_what_was_generated(
    tmp_path: Path, slow_provider: ProviderThread
) -> None:
    """The provider's connection is closed within 100 ms, and its tokens are booked."""
    with running_gateway(tmp_path, slow_provider.base_url) as gateway:
        key = gateway.key("acme")
        with openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
            stream = client.chat.completions.with_raw_response.create(
                model="uncached", messages=QUESTION, stream=True
            )
            request_id = stream.headers["x-request-id"]
            chunks = stream.parse()
            for count, _ in enumerate(chunks):
                if count == 6:
                    break
            left = time.monotonic()
            chunks.close()
        served = slow_provider.simulator.requests[-1]
        wait_for(lambda: served.closed_after_seconds is not None, 5.0)
        assert served.closed_after_seconds is not None
        assert served.received + served.closed_after_seconds - left < 0.1
        (event,) = gateway.events(request_id)
        assert event.status == 499
        assert event.state == "estimated"
        assert 4 <= event.completion_tokens <= served.completion_tokens
        assert event.cost_pico is not None
        assert event.cost_pico > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_is_noticed(
    tmp_path: Path, provider: ProviderThread, stream: bool
) -> None:
    """Also without a stream: the provider hangs, the client goes, the connection closes."""
    with running_gateway(tmp_path, provider.base_url) as gateway:
        key = gateway.key("acme")
        before = len(provider.simulator.requests)
        body = json.dumps(
            {"model": "uncached", "stream": stream, **prompt("Wait. [[fault:hang]]")}
        ).encode()
        connection = socket.create_connection(("127.0.0.1", gateway.port))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            + key.encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        wait_for(lambda: len(provider.simulator.requests) > before, 5.0)
        served = provider.simulator.requests[-1]
        left = time.monotonic()
        connection.close()
        wait_for(lambda: served.closed_after_seconds is not None, 5.0)
        assert served.closed_after_seconds is not None
        assert served.received + served.closed_after_seconds - left < 0.1
        (event,) = gateway.events(served.id.partition("/")[0])
        assert event.status == 499
        assert event.completion_tokens == 0
        if stream:
            assert event.prompt_tokens > 0
        assert event.cost_pico


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("status-500", 500),
        ("status-503", 503),
        ("status-429", 429),
        ("hang", 504),
        ("garbage-head", 502),
        ("redirect", 502),
        ("gzip", 502),
        ("cut-after-40", 502),
    ],
)
def test_a_broken_provider_becomes_an_error_in_openais_shape(
    plain: RunningGateway, fault: str, status: int
) -> None:
    """Each fault has its status, the four fields that OpenAI's clients read, and a request id."""
    answer = chat(plain, plain.key("acme"), prompt(f"Break. [[fault:{fault}]]"))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_a_provider_that_echoes_our_key_does_not_leak_it(plain: RunningGateway) -> None:
    """The tenant reads the provider's refusal with our credential redacted."""
    answer = chat(plain, plain.key("acme"), prompt("Leak. [[fault:error-leaks-key]]"))
    assert answer.status_code == 400
    assert "sk-provider-secret" not in answer.text
    assert "redacted" in answer.text


@pytest.mark.parametrize("fault", ["cut-after-40", "stall-after-20", "malformed-event-after-10"])
def test_a_broken_stream_ends_with_an_error_event_and_without_done(
    plain: RunningGateway, fault: str
) -> None:
    """A client cannot take it for whole, and the delivered part is booked as an estimate."""
    answer = chat(plain, plain.key("acme"), {"stream": True, **prompt(f"Break. [[fault:{fault}]]")})
    events = [line for line in answer.text.split("\n\n") if line]
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    assert set(json.loads(events[-1].removeprefix("data: "))["error"]) == {
        "message", "type", "param", "code",
    }  # fmt: skip
    delivered = sum('"content":"' in event for event in events)
    assert delivered >= 9
    (event,) = plain.events(answer.headers["x-request-id"])
    assert event.state == "estimated"
    assert event.completion_tokens >= delivered - 1
    assert event.error_type is not None


def test_a_dead_target_falls_back_and_both_attempts_are_booked(plain: RunningGateway) -> None:
    """The client gets 200 from the large model; the dead attempt is booked at no cost."""
    answer = chat(plain, plain.key("acme"), {"model": "with-fallback"})
    assert answer.status_code == 200
    assert answer.headers["x-tollhouse-model"] == "large"
    first, second = plain.events(answer.headers["x-request-id"], 2)
    assert (first.model_served, first.superseded, first.cost_pico) == ("other", True, 0)
    assert (second.model_served, second.decision) == ("large", "fallback")
    assert second.status == 200


def test_a_provider_without_a_price_is_unpriced_never_free(plain: RunningGateway) -> None:
    """Tenants with a hard budget get a 403; for others the cost is left unknown."""
    refused = chat(plain, plain.key("acme"), {"model": "unpriced"})
    assert refused.status_code == 403, "a hard budget cannot be kept without a price, ever"
    assert "x-should-retry" not in refused.headers
    error = refused.json()["error"]
    assert (error["param"], "has no price" in error["message"]) == ("model", True)
    answer = chat(plain, plain.key("globex"), {"model": "unpriced"})
    assert answer.status_code == 200
    assert "x-tollhouse-cost-usd" not in answer.headers
    (event,) = plain.events(answer.headers["x-request-id"])
    assert event.cost_pico is None


def test_missing_usage_is_counted_and_marked_as_an_estimate(plain: RunningGateway) -> None:
    """A provider that tells no usage does not make its answers free."""
    answer = chat(plain, plain.key("acme"), prompt("Count. [[fault:no-usage]]"))
    (event,) = plain.events(answer.headers["x-request-id"])
    assert event.usage_source == "tokenizer"
    assert event.state == "estimated"
    assert event.completion_tokens > 10


def test_sigterm_lets_running_streams_end_and_exits_cleanly(
    tmp_path: Path, slow_provider: ProviderThread
) -> None:
    """A stream begun before a deployment reaches its last token, and the exit status is 0."""
    with running_gateway(tmp_path, slow_provider.base_url) as gateway:
        with openai.OpenAI(
            base_url=gateway.base_url, api_key=gateway.key("acme"), max_retries=0
        ) as client:
            stream = client.chat.completions.create(
                model="uncached", messages=QUESTION, stream=True
            )
            iterator = iter(stream)
            next(iterator)
            assert gateway.process is not None
            gateway.process.terminate()
            rest = list(iterator)
        assert rest[-1].choices[0].finish_reason == "stop"
        assert gateway.process.wait(15) == 0


@pytest.mark.slow
async def test_killing_the_gateway_loses_no_booking_and_doubles_none(
    tmp_path: Path, slow_provider: ProviderThread
) -> None:
    """20 × kill -9 during 500 requests: one ledger event for each request that was served."""
    slow_provider.simulator.seconds_per_token = 0.002
    slow_provider.simulator.latency_seconds = 0.02
    kills, requests = 20, 500
    with running_gateway(tmp_path, slow_provider.base_url) as gateway:
        headers = {"authorization": f"Bearer {gateway.key('acme')}"}
        url = gateway.base_url + "/chat/completions"
        done = 0

        async def ask(client: httpx.AsyncClient, number: int) -> None:
            nonlocal done
            body = {"model": "uncached", "stream": number % 2 == 0, **prompt(f"Number {number}")}
            try:
                answer = await client.post(url, json=body, headers=headers)
                await answer.aread()
            except httpx.TransportError:
                pass  # the gateway was killed under it: the application would try again
            finally:
                done += 1

        async def kill() -> None:
            for count in range(1, kills + 1):
                while done < requests * count // (kills + 2):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(wait_for, gateway_is_up, 20.0, gateway.describe)
                gateway.kill_worker()

        def gateway_is_up() -> bool:
            try:
                gateway.child("worker")
                with socket.create_connection(("127.0.0.1", gateway.port), 1):
                    return gateway._answers("/readyz")
            except (LookupError, OSError):
                return False

        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as client:
            turnstile = asyncio.Semaphore(16)

            async def turn(number: int) -> None:
                async with turnstile:
                    await ask(client, number)

            async with asyncio.TaskGroup() as group:
                killer = group.create_task(kill())
                for number in range(requests):
                    group.create_task(turn(number))
            assert killer.done()
        gateway.wait_ready()
        gateway.stop()
    store = LedgerStore(gateway.state_dir / "ledger.sqlite")
    try:
        booked = reports.events(store, "acme", 0, 2**62, limit=10_000)
        problems = store.verify()
    finally:
        store.close()
    by_id = [event.event_id for event in booked]
    served = {record.id for record in slow_provider.simulator.requests}
    assert len(by_id) == len(set(by_id)), "an event was booked twice"
    assert served <= set(by_id), f"{len(served - set(by_id))} served requests were never booked"
    assert not problems
    whole = {r.id: r for r in slow_provider.simulator.requests if r.finished}
    for event in booked:
        if event.state == "final" and event.status == 200:
            assert event.completion_tokens == whole[event.event_id].completion_tokens


@pytest.mark.slow
def test_killing_the_model_process_costs_local_answers_for_seconds_and_nothing_else(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Forty remote calls and a routed one succeed meanwhile; it is back within 5 seconds."""
    with running_gateway(tmp_path, provider.base_url, local=True) as gateway:
        key = gateway.key("acme")
        local = {"model": "small", "max_tokens": 8}
        assert chat(gateway, key, local).status_code == 200
        os.kill(gateway.child("--generation"), signal.SIGKILL)
        killed = time.monotonic()
        statuses = [chat(gateway, key, prompt(f"Meanwhile {i}")).status_code for i in range(40)]
        assert statuses == [200] * 40
        routed = chat(gateway, key, {"model": "auto", **prompt("What is the capital of Spain?")})
        assert routed.status_code == 200
        wait_for(lambda: chat(gateway, key, local).status_code == 200, 10.0, gateway.describe)
        assert time.monotonic() - killed < 5.0
