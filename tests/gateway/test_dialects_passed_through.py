"""Messages and responses through a running gateway: the same bytes, and the exact money."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from tests.gateway.dialect_world import BODIES, CACHED, Asked
from tests.gateway.running import ProviderThread, RunningGateway, wait_for

CHARGED = rb'"charge_usd":"([0-9.]+)",'
PATHS = sorted(BODIES)
HELLO: Any = [{"role": "user", "content": "Say hello to the tests."}]


@pytest.fixture(scope="module")
def acme(dialects: RunningGateway, provider: ProviderThread) -> Iterator[Asked]:
    asked = Asked(dialects, provider, "acme")
    yield asked
    asked.close()


@pytest.fixture(scope="module")
def globex(dialects: RunningGateway, provider: ProviderThread) -> Iterator[Asked]:
    asked = Asked(dialects, provider, "globex")
    yield asked
    asked.close()


def with_fault(path: str, fault: str, **changes: Any) -> dict[str, Any]:
    text = f"Break. [[fault:{fault}]]"
    messages = [{"role": "user", "content": text}]
    given = {"messages": messages} if path == "/messages" else {"input": text}
    return {**BODIES[path], **given, **changes}


def documents(stream: str) -> list[dict[str, Any]]:
    """The data of each event, as JSON."""
    return [
        json.loads(line.removeprefix("data: "))
        for line in stream.splitlines()
        if line.startswith("data: ")
    ]


def claude_pico(usage: Any) -> int:
    written = usage["cache_creation"]
    return int(
        usage["input_tokens"] * 3_000_000
        + usage["cache_read_input_tokens"] * 300_000
        + written["ephemeral_5m_input_tokens"] * 3_750_000
        + written["ephemeral_1h_input_tokens"] * 6_000_000
        + usage["output_tokens"] * 15_000_000
    )


def gpt_pico(usage: Any) -> int:
    cached = usage["input_tokens_details"]["cached_tokens"]
    reasoning = usage["output_tokens_details"]["reasoning_tokens"]
    return int(
        (usage["input_tokens"] - cached) * 2_500_000
        + cached * 250_000
        + (usage["output_tokens"] - reasoning) * 15_000_000
        + reasoning * 20_000_000
    )


COSTS = {"/messages": claude_pico, "/responses": gpt_pico}


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_costs_its_price_to_the_last_pico_dollar_whole_or_streamed(
    path: str, acme: Asked, provider: ProviderThread
) -> None:
    """And a stream is the provider's, byte for byte, but for the charge in its last usage."""
    whole = acme.post(path, BODIES[path])
    stream = acme.post(path, {**BODIES[path], "stream": True})
    cost = COSTS[path](whole.json()["usage"])
    assert whole.headers["x-tollhouse-cost-usd"] == f"{cost / 1e12:.12f}"
    assert stream.headers["content-type"].startswith("text/event-stream")
    for answer in (whole, stream):
        assert answer.headers["x-tollhouse-cache"] == "bypass"
        served = acme.seen(answer)
        direct = httpx.post(provider.base_url + path, json=served.body, trust_env=False)
        told = re.findall(CHARGED, answer.content)
        assert re.sub(CHARGED, b"", answer.content) == direct.content
        (event,) = acme.gateway.events(answer.headers["x-request-id"])
        assert (event.cost_pico, event.state, event.usage_source) == (cost, "final", "provider")
        assert told == ([] if answer is whole else [b"%.12f" % (cost / 1e12)])
        assert event.prompt_tokens == served.prompt_tokens
        assert event.completion_tokens == served.completion_tokens
        assert event.cached_tokens > 0
        assert event.upstream_request_id is not None


@pytest.mark.parametrize("path", PATHS)
def test_only_the_models_name_is_changed_on_the_way(path: str, globex: Asked) -> None:
    """Of a tenant without a budget: with one, an answer without a limit gets one."""
    body = {**BODIES[path], "x_unknown": {"deep": [1, None, "ö"]}}
    answer = globex.post(path, body)
    assert globex.seen(answer).body == {**body, "model": f"simulated-{body['model']}"}


def test_counting_tokens_is_free(acme: Asked) -> None:
    """It is booked at zero, also where the provider hangs and the client gets a 504."""
    answer = acme.post("/messages/count_tokens", {"model": "claude", **CACHED})
    assert answer.json() == {"input_tokens": acme.seen(answer).prompt_tokens}
    (event,) = acme.gateway.events(answer.headers["x-request-id"])
    assert (event.cost_pico, event.charge_pico, event.state) == (0, 0, "final")
    failed = acme.post("/messages/count_tokens", with_fault("/messages", "hang-after-head"))
    assert failed.status_code == 504
    (event,) = acme.gateway.events(failed.headers["x-request-id"])
    assert (event.cost_pico, event.prompt_tokens) == (0, 0)


def test_a_provider_sees_the_headers_of_its_dialect_and_our_own_key(acme: Asked) -> None:
    """The client's key, organisation and unknown headers stay here; versions and betas go on."""
    headers = {
        "anthropic-beta": "one,two", "openai-beta": "responses=v9", "openai-organization": "org-1",
        "x-secret": "mine", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    }  # fmt: skip
    seen = acme.seen(acme.post("/messages", BODIES["/messages"], headers)).headers
    assert seen[b"x-api-key"] == b"sk-provider-secret-1234567890"
    assert seen[b"anthropic-beta"] == b"one,two"
    assert seen[b"anthropic-version"] == b"2023-06-01", "the client named none"
    assert seen[b"traceparent"] == headers["traceparent"].encode()
    assert not {b"authorization", b"openai-organization", b"openai-beta", b"x-secret"} & set(seen)
    newer = {"anthropic-version": "2026-10-21"}
    seen = acme.seen(acme.post("/messages", BODIES["/messages"], newer)).headers
    assert seen[b"anthropic-version"] == b"2026-10-21"
    seen = acme.seen(acme.post("/responses", BODIES["/responses"], headers)).headers
    assert seen[b"authorization"] == b"Bearer sk-provider-secret-1234567890"
    assert seen[b"openai-beta"] == b"responses=v9"
    assert not {b"x-api-key", b"openai-organization", b"anthropic-beta", b"x-secret"} & set(seen)


@pytest.mark.parametrize(
    ("model", "path", "url"),
    [
        ("azure-gpt", "/chat/completions", "/openai/v1/chat/completions"),
        ("azure-gpt", "/responses", "/openai/v1/responses"),
        (
            "azure-older-gpt",
            "/chat/completions",
            "/openai/deployments/their%20gpt/chat/completions?api-version=2024-10-21",
        ),
        ("azure-older-gpt", "/responses", "/openai/responses?api-version=2024-10-21"),
    ],
)
def test_azure_is_asked_as_it_wants_to_be(model: str, path: str, url: str, acme: Asked) -> None:
    """Azure gets its own URL, deployment name and api-key header, and no bearer token."""
    body = {"messages": HELLO} if path == "/chat/completions" else {"input": HELLO}
    answer = acme.post(path, {"model": model, **body})
    assert answer.status_code == 200
    seen = acme.seen(answer)
    assert seen.url == url
    assert seen.body["model"] == "their gpt"
    assert seen.headers[b"api-key"] == b"sk-provider-secret-1234567890"
    assert b"authorization" not in seen.headers


def test_the_same_body_for_two_deployments_gets_two_answers(acme: Asked) -> None:
    """The model is in the path alone; each deployment's second answer is its own first one."""
    url = f"http://127.0.0.1:{acme.gateway.port}/openai/deployments"
    answers = [
        httpx.post(
            f"{url}/{model}/chat/completions?api-version=2024-10-21",
            json={"messages": HELLO, "temperature": 0},
            headers={"api-key": acme.key},
            trust_env=False,
        )
        for model in ("gpt", "chatty", "gpt", "gpt", "chatty", "chatty")
    ]
    said = [answer.headers["x-tollhouse-model"] for answer in answers]
    assert said == ["gpt", "chatty", "gpt", "gpt", "chatty", "chatty"]
    hits = [answer.headers["x-tollhouse-cache"] for answer in answers]
    assert hits == ["miss", "miss", *["hit-exact"] * 4]
    assert {answer.json()["model"] for answer in answers} == {"simulated-gpt", "simulated-chat"}


@pytest.mark.parametrize(
    ("path", "model", "speaks"),
    [("/messages", "gpt", "messages"), ("/responses", "claude", "responses"),
     ("/responses", "chatty", "responses"), ("/chat/completions", "claude", "chat")],
)  # fmt: skip
def test_a_model_is_never_asked_in_a_dialect_its_provider_does_not_speak(
    path: str, model: str, speaks: str, acme: Asked
) -> None:
    """The client gets a 400 in its own dialect that names the dialect the model lacks."""
    body = {**BODIES.get(path, {"messages": HELLO}), "model": model}
    answer = acme.post(path, body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert f"not {speaks}" in message
    assert "does not translate" in message
    assert (answer.json().get("type") == "error") is (path == "/messages")


def test_auto_takes_the_first_target_that_speaks_the_dialect(acme: Asked) -> None:
    """Of small (chat), large (chat, responses) and the fallback (messages)."""
    for path, model in (("/messages", "claude"), ("/responses", "gpt")):
        answer = acme.post(path, {**BODIES[path], "model": "auto"})
        assert answer.status_code == 200
        assert answer.headers["x-tollhouse-model"] == model


def test_an_error_before_the_first_event_falls_back(acme: Asked) -> None:
    """The client sees one good stream, and the books have the failed attempt as well."""
    answer = acme.post("/messages", {**BODIES["/messages"], "model": "steady", "stream": True})
    assert answer.status_code == 200
    assert answer.headers["x-tollhouse-model"] == "claude"
    first, second = acme.gateway.events(answer.headers["x-request-id"], 2)
    assert (first.model_served, first.superseded) == ("claude-failing", True)
    assert (second.model_served, second.status) == ("claude", 200)


CUTS = ["cut-after-40", "stall-after-20", "malformed-event-after-10", "error-event-after-10",
        "reset-after-2000"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_broken_stream_ends_with_an_error_in_its_dialect(path: str, acme: Asked) -> None:
    """No completion event is made up, and the delivered part is booked as an estimate."""
    answers = {fault: acme.post(path, with_fault(path, fault, stream=True)) for fault in CUTS}
    for fault, answer in answers.items():
        assert answer.status_code == 200
        events = documents(answer.text)
        kinds = [event["type"] for event in events]
        assert not {"message_stop", "response.completed"} & set(kinds)
        if path == "/messages":
            assert kinds[-1] == "error"
            assert events[-1]["error"].keys() >= {"type", "message"}
        elif fault.startswith("error-event"):
            assert kinds[-1] == "response.failed", "the provider's own"
        else:
            assert kinds[-1] == "error"
            assert events[-1]["sequence_number"] == events[-2]["sequence_number"] + 1
        (event,) = acme.gateway.events(answer.headers["x-request-id"])
        assert event.status >= 500
        assert event.state == "estimated"
        assert event.completion_tokens >= sum("delta" in event for event in events) - 1
        if path == "/messages":
            assert event.prompt_tokens == acme.seen(answer).prompt_tokens, "its first event said so"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [("status-529", 529, "overloaded_error"), ("status-413", 413, "request_too_large"),
     ("not-json", 502, "api_error")],
)  # fmt: skip
def test_a_broken_provider_becomes_an_error_of_the_dialect(
    path: str, fault: str, status: int, kind: str, acme: Asked
) -> None:
    """Status, type and request id are those that the client's library looks for."""
    answer = acme.post(path, with_fault(path, fault))
    error = answer.json()["error"]
    if path == "/messages":
        assert (answer.status_code, error["type"]) == (status, kind)
        assert answer.json()["request_id"] == answer.headers["request-id"]
    else:
        assert answer.status_code == (503 if status == 529 else status)
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", PATHS)
def test_a_provider_that_echoes_our_key_does_not_leak_it(path: str, acme: Asked) -> None:
    """The provider's words reach the tenant with our key redacted."""
    answer = acme.post(path, with_fault(path, "error-leaks-key"))
    assert answer.status_code == 400
    assert "sk-provider-secret" not in answer.text
    assert "redacted" in answer.text


@pytest.fixture
def slowly(provider: ProviderThread) -> Iterator[ProviderThread]:
    """The provider, at fifty tokens a second."""
    provider.simulator.seconds_per_token = 0.02
    yield provider
    provider.simulator.seconds_per_token = 0.0


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_mid_stream_pays_for_what_was_generated(
    path: str, acme: Asked, slowly: ProviderThread
) -> None:
    """The provider's connection is closed within 100 ms, and its tokens are booked."""
    url, headers = acme.gateway.base_url + path, {"api-key": acme.key}
    body = {**BODIES[path], "stream": True}
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", url, json=body, headers=headers) as answer,
    ):
        for line in answer.iter_lines():
            if '.delta"' in line or "content_block_delta" in line:
                break
    left = time.monotonic()
    served = acme.seen(answer)
    wait_for(lambda: served.closed_after_seconds is not None, 5.0)
    assert served.closed_after_seconds is not None
    assert served.received + served.closed_after_seconds - left < 0.1
    (event,) = acme.gateway.events(answer.headers["x-request-id"])
    assert event.status == 499
    assert event.state == "estimated"
    assert 1 <= event.completion_tokens <= served.completion_tokens
    assert event.cost_pico is not None
    assert event.cost_pico > 0
    if path == "/messages":
        assert event.prompt_tokens == served.prompt_tokens
        assert event.cached_tokens > 0


@pytest.mark.parametrize("path", ["/messages", "/messages/count_tokens"])
def test_who_is_unknown_is_told_in_anthropics_words(path: str, acme: Asked) -> None:
    """A wrong key, an unknown model and a wrong method each have Anthropic's shape of error."""
    answer = acme.post(path, BODIES["/messages"], {"x-api-key": "wrong"})
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    answer = acme.post(path, {**BODIES["/messages"], "model": "nobody"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    answer = httpx.get(acme.gateway.base_url + path, trust_env=False)
    assert (answer.status_code, answer.json()["type"]) == (405, "error")


@pytest.mark.parametrize(
    ("path", "tool"),
    [("/messages", "web_search_20250305"), ("/responses", "web_search")],
)
def test_a_hard_budget_refuses_tools_whose_cost_nobody_knows(
    path: str, tool: str, acme: Asked, globex: Asked
) -> None:
    """A tool that the provider bills could exceed the budget; a tenant without one may use it."""
    body = {**BODIES[path], "tools": [{"type": tool, "name": "web_search"}]}
    refused = acme.post(path, body)
    assert refused.status_code == 400
    assert "monthly" in refused.json()["error"]["message"]
    assert globex.post(path, body).status_code == 200, "globex has no budget to keep"


def test_a_budget_never_leaves_a_request_to_who_does_not_speak_its_dialect(
    dialects: RunningGateway, provider: ProviderThread
) -> None:
    """The refusal names the cheaper model and its gap, and tells clients not to retry."""
    thrifty = Asked(dialects, provider, "thrifty")
    refused = thrifty.post("/messages", BODIES["/messages"])
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "'chatty' that it leaves does not speak messages" in refused.text
    thrifty.close()


def test_the_books_are_sound_after_all_that(acme: Asked) -> None:
    """Every cost follows from its tokens and its price, the new buckets included."""
    answer = acme.post("/messages", BODIES["/messages"])
    acme.gateway.events(answer.headers["x-request-id"])
    store = LedgerStore(acme.gateway.state_dir / "ledger.sqlite")
    try:
        assert len(reports.events(store, "acme", 0, 2**62, limit=10_000)) > 10
        assert store.verify() == []
    finally:
        store.close()
