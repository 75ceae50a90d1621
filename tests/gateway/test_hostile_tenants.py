"""What one caller must not be able to do to the others, or to the books."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for


def ask(gateway: RunningGateway, key: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    message = {"role": "user", "content": body.pop("text", "Hello.")}
    return httpx.post(
        gateway.base_url + "/chat/completions",
        json={"model": "large", "max_tokens": 60, "messages": [message], **body},
        headers={"authorization": f"Bearer {key}", **headers},
        trust_env=False,
        timeout=30,
    )


def test_callers_without_a_key_cannot_fill_the_house(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """They send headers and wait; a paying tenant is answered all the same."""
    limits = {"TOLLHOUSE_LIMITS_REQUESTS_IN_FLIGHT_MAX": "4"}
    with running_gateway(tmp_path, provider.base_url, environment=limits) as gateway:
        idle = []
        for _ in range(12):
            connection = socket.create_connection(("127.0.0.1", gateway.port))
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
            )
            idle.append(connection)
        assert ask(gateway, gateway.key("acme"), {}).status_code == 200
        for connection in idle:
            connection.close()


def test_bodies_on_their_way_count_as_requests_in_progress(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """One key cannot hold more bodies in memory than there may be requests."""
    limits = {"TOLLHOUSE_LIMITS_REQUESTS_IN_FLIGHT_MAX": "4"}
    with running_gateway(tmp_path, provider.base_url, environment=limits) as gateway:
        key = gateway.key("acme")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}"
        idle = []
        for _ in range(4):
            connection = socket.create_connection(("127.0.0.1", gateway.port))
            connection.sendall(head.encode() + b"\r\ncontent-length: 100\r\n\r\n{")
            idle.append(connection)
        wait_for(lambda: ask(gateway, key, {}).status_code == 503, 5.0)
        for connection in idle:
            connection.close()
        wait_for(lambda: ask(gateway, key, {}).status_code == 200, 5.0)


def test_an_endless_user_name_is_refused_and_the_gateway_stays_ready(
    plain: RunningGateway,
) -> None:
    """A name of 1.1 million bytes gets a 400 that names its field, before it reaches the books."""
    answer = ask(plain, plain.key("acme"), {"user": "u" * 1_100_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "user"
    assert httpx.get(plain.admin_url + "/readyz", trust_env=False).status_code == 200


def test_the_larger_of_two_output_limits_counts(plain: RunningGateway) -> None:
    """A small one beside it does not make the reservation small."""
    refused = ask(plain, plain.key("poor"), {"max_completion_tokens": 1, "max_tokens": 100_000})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"


def test_what_could_cost_more_than_64_bits_can_count_is_answered(plain: RunningGateway) -> None:
    """As many choices of as many tokens as may be written down: no error of ours, and booked."""
    answer = ask(plain, plain.key("globex"), {"n": 2**31, "max_tokens": 2**31, "text": "Absurd."})
    assert answer.status_code < 500, answer.text


def test_cached_answers_spend_the_budget_they_are_charged_to(plain: RunningGateway) -> None:
    """Where hits are charged, repeating one question cannot go round a budget."""
    key = plain.key("charged")
    statuses = []
    for _ in range(40):
        statuses.append(ask(plain, key, {"text": "The same question again."}).status_code)
        if statuses[-1] != 200:
            break
    assert statuses[0] == 200
    assert statuses[-1] == 429, "hits are charged like misses here, so the budget runs out"


def test_a_fallbacks_answer_is_not_kept_for_when_the_target_is_back(
    plain: RunningGateway,
) -> None:
    """A second request for the same text asks again, so the better model returns at once."""
    key = plain.key("acme")
    for _ in range(2):
        answer = ask(plain, key, {"model": "with-fallback", "text": "Keep me not."})
        assert answer.status_code == 200
        assert answer.headers["x-tollhouse-cache"] == "miss"


def test_a_header_cannot_override_a_tag_that_an_admin_has_fixed(plain: RunningGateway) -> None:
    """Costs stay with the fixed environment though a caller's header names another."""
    answer = ask(plain, plain.key("tagged"), {}, **{"x-tollhouse-tags": "feature=x,env=staging"})
    (event,) = plain.events(answer.headers["x-request-id"])
    assert event.tags == {"feature": "x", "env": "prod"}


def test_twins_share_one_call_even_for_an_answer_that_is_not_kept(tmp_path: Path) -> None:
    """Cut at its length, it may not be cached; asked for by eight at once, it is fetched once."""
    slow = ProviderThread(seed=5, latency_seconds=0.5)
    with running_gateway(tmp_path, slow.base_url) as gateway:
        key = gateway.key("acme")
        body = {"text": "Twins.", "max_tokens": 3}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(gateway, key, dict(body)), range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
        assert len(slow.simulator.requests) == 1
        ask(gateway, key, dict(body))
        assert len(slow.simulator.requests) == 2
    slow.stop()


def test_an_absurd_age_is_a_client_error(plain: RunningGateway) -> None:
    """A max-age of 5,000 digits gets a 400, never a crash."""
    key = plain.key("acme")
    ask(plain, key, {"text": "Absurd."})
    answer = ask(plain, key, {"text": "Absurd."}, **{"cache-control": "max-age=" + "9" * 5000})
    assert answer.status_code == 400


def test_a_provider_that_refuses_us_is_asked_once(
    plain: RunningGateway, provider: ProviderThread
) -> None:
    """A redirect is neither followed with our key nor tried again; the client gets a 502."""
    before = len(provider.simulator.requests)
    answer = ask(plain, plain.key("acme"), {"text": "No. [[fault:redirect]]"})
    assert answer.status_code == 502
    assert len(provider.simulator.requests) == before + 1


def test_connections_are_refused_once_the_gateway_is_told_to_stop(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Refused, not queued behind a listener that nobody serves."""
    with (
        running_gateway(tmp_path, provider.base_url) as gateway,
        openai.OpenAI(
            base_url=gateway.base_url, api_key=gateway.key("acme"), max_retries=0
        ) as client,
    ):
        stalled: Any = [{"role": "user", "content": "Wait. [[fault:stall-after-20]]"}]
        stream = iter(
            client.chat.completions.create(model="uncached", messages=stalled, stream=True)
        )
        next(stream)
        assert gateway.process is not None
        gateway.process.terminate()

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", gateway.port)) != 0

        wait_for(refused, 2.0)
        with pytest.raises(openai.APIError):
            list(stream)


def test_an_endless_name_of_a_model_does_not_come_back(plain: RunningGateway) -> None:
    """The 404 stays below 1,000 bytes though the name has 500,000."""
    answer = ask(plain, plain.key("acme"), {"model": "m" * 500_000})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}},
    ],
)
def test_a_picture_for_a_model_without_eyes_is_called_that(
    plain: RunningGateway, part: dict[str, Any]
) -> None:
    """Not a prompt that is too long: clients would cut it, and try again."""
    answer = ask(plain, plain.key("globex"), {"model": "small", "text": [part]})
    assert answer.status_code == 400
    assert "no vision" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] is None
