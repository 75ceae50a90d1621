"""What HTTP obliges an answer to say (RFC 9110), and what browsers, probes and proxies look for."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.gateway.running import RunningGateway, running_gateway, wait_for
from tests.gateway.scripted_provider import ScriptedProvider, scripted_provider

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: test}
providers:
  - name: inner-provider
    api: openai
    base_url: "${env:TOLLHOUSE_TEST_PROVIDER}"
    dialects: [chat, responses, messages]
  - {name: gone, api: openai, base_url: "http://127.0.0.1:9/v1", health: {min_requests: 100000}}
models:
  - {name: away, provider: gone, upstream_model: m, price: {source: unpriced}}
  - name: m
    provider: inner-provider
    upstream_model: m
    price:
      source: contract
      contract_id: SECRET-TERMS
      per_mtok: {input: "2.50", cached_input: "0.25", output: "15.00"}
      tiers: [{when_input_over: 1000, multiply: {input: "2", output: "1.5"}}]
    capabilities: [chat, tools]
    context: 128000
    max_output: 16384
  - name: cheap
    provider: inner-provider
    upstream_model: cheap
    price: {source: contract, contract_id: T, per_mtok: {input: "0.001", output: "0.001"}}
  - {name: unpriced, provider: inner-provider, upstream_model: u, price: {source: unpriced}}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: test}
routes:
  - {name: alias, match: {model: nickname}, to: m}
  - name: steady
    match: {model: [away, steady]}
    to: away
    fallback: [{to: m}]
  - {name: rest, match: {}, to: m}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: test}
tenants:
  - id: shop
    cors: {origins: ["https://shop.example", "http://localhost:3000"]}
    charging: {markup: 10%}
  - {id: anybody, cors: {origins: ["*"]}}
  - {id: backend}
  - id: thrifty
    budgets: [{name: monthly, amount: "0.01", on_exceeded: downgrade, downgrade_to: cheap}]
"""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
MESSAGE = {**CHAT, "max_tokens": 100}
ANSWER = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}  # fmt: skip
ANTHROPIC_ANSWER = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
    "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 5},
}  # fmt: skip
EVENT = {
    "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider
) -> Iterator[RunningGateway]:
    with running_gateway(
        tmp_path_factory.mktemp("http"), provider.base_url, policy=POLICY,
        settings="access_log: true\nlimits: {body_bytes_max: 200000}\n",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def keys(gateway: RunningGateway) -> dict[str, str]:
    return {tenant: gateway.key(tenant) for tenant in ("shop", "anybody", "backend", "thrifty")}


@pytest.fixture
def client(gateway: RunningGateway, keys: dict[str, str]) -> Iterator[httpx.Client]:
    """A client of the tenant without pages."""
    with httpx.Client(
        base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False, timeout=10.0,
        headers={"authorization": f"Bearer {keys['backend']}"},
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(autouse=True)
def answering(provider: ScriptedProvider) -> None:
    provider.answer(json.dumps(ANSWER).encode())


# Statuses and what they oblige to say


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST", "OPTIONS"}),
        ("HEAD", "/v1/messages", {"POST", "OPTIONS"}),
        ("DELETE", "/openai/deployments/m/chat/completions", {"POST", "OPTIONS"}),
        ("DELETE", "/v1/models/m", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/v1/models", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_405_names_the_methods_that_the_path_takes(
    client: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    """RFC 9110 15.5.6."""
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_a_405_of_the_admin_port_names_the_methods_too(gateway: RunningGateway) -> None:
    """Each path lists its own, with HEAD wherever GET is taken."""
    with gateway.admin() as admin:
        for method, path, allowed in (
            ("PUT", "/admin/keys", {"GET", "HEAD", "POST"}),
            ("OPTIONS", "/admin/keys", {"GET", "HEAD", "POST"}),
            ("GET", "/admin/keys/some", {"DELETE"}),
            ("POST", "/livez", {"GET", "HEAD"}),
        ):
            answer = admin.request(method, path)
            assert answer.status_code == 405, path
            assert set(answer.headers["allow"].split(", ")) == allowed, path


def test_head_is_answered_as_get_without_its_body(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    """RFC 9110 9.1 and 9.3.2, on both ports."""
    with gateway.admin() as admin:
        for asking, path in ((client, "/v1/models"), (admin, "/livez"), (admin, "/login")):
            full, head = asking.get(path), asking.head(path)
            assert (head.status_code, head.content) == (full.status_code, b"")
            assert head.headers["content-type"] == full.headers["content-type"]
            assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("told", "secure"),
    [
        ({}, False),
        ({"x-forwarded-proto": "http"}, False),
        ({"x-forwarded-proto": "HTTPS"}, True),
        ({"x-forwarded-proto": "http, https"}, True),
    ],
)
def test_cookies_are_secure_where_the_proxy_speaks_tls(
    gateway: RunningGateway, told: dict[str, str], secure: bool
) -> None:
    """As deploy/README.md promises; the one-time link leads to where people are, too."""
    with gateway.admin() as admin:
        cookie = admin.get("/login", headers=told).headers["set-cookie"]
        assert ("secure" in cookie.lower().split("; ")) is secure
        link = admin.post("/admin/login-links", headers=told).json()["url"]
        assert link.startswith("https://" if secure else "http://")


def test_a_204_states_no_length(gateway: RunningGateway, client: httpx.Client) -> None:
    """RFC 9110 8.6."""
    assert "content-length" not in client.options("/v1/chat/completions").headers
    with gateway.admin() as admin:
        made = admin.post("/admin/keys", json={"kind": "api", "tenant": "shop", "name": "x"})
        gone = admin.delete(f"/admin/keys/{made.json()['key']['id']}")
    assert gone.status_code == 204
    assert "content-length" not in gone.headers


def test_a_401_says_how_to_say_who_one_is(client: httpx.Client) -> None:
    """RFC 9110 15.5.2."""
    for headers in ({"authorization": "Bearer th_wrong"}, {"authorization": "Basic eA=="}):
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("coding", ["Identity", "", "IDENTITY", "identity, identity"])
def test_a_body_that_is_not_coded_is_taken_however_that_is_said(
    client: httpx.Client, coding: str
) -> None:
    """RFC 9110 8.4.1: codings have no case."""
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"content-encoding": coding})
    assert answer.status_code == 200


@pytest.mark.parametrize("coding", ["zstd", "GZIP", "identity, br"])
def test_a_415_for_a_coding_says_which_is_taken(
    client: httpx.Client, provider: ScriptedProvider, coding: str
) -> None:
    """RFC 9110 15.5.16."""
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"content-encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert not provider.asked


def test_tokens_have_no_case(client: httpx.Client, keys: dict[str, str]) -> None:
    """Scheme of authorization, media type, connection options, cache directives."""
    told = {
        "authorization": f"bEARER   {keys['backend']}",
        "content-type": 'Application/JSON; Charset="utf-8"',
        "connection": "Keep-Alive",
        "cache-control": "No-Store, MAX-AGE=0",
    }
    answer = client.post("/v1/chat/completions", json=CHAT, headers=told)
    assert answer.status_code == 200
    closing = client.post("/v1/chat/completions", json=CHAT, headers={"connection": "Close"})
    assert (closing.status_code, closing.headers["connection"]) == (200, "close")


def test_an_answer_is_read_whatever_the_case_of_its_head(
    client: httpx.Client, provider: ScriptedProvider
) -> None:
    """Providers may write codings and connection options in any case, or leave a coding empty."""
    for coding in ("Identity", ""):
        provider.answer(json.dumps(ANSWER).encode(), Content_Encoding=coding, Connection="CLOSE")
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("told", [405, 407, 415, 426])
def test_a_refusal_of_how_we_ask_is_not_the_clients(
    client: httpx.Client, provider: ScriptedProvider, told: int
) -> None:
    """Its own statuses oblige to headers about a request that the client never made."""
    provider.answer(b'{"error": {"message": "not so"}}', told)
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json()["error"]["message"]) == (502, "not so")
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_too_large_is_refused_under_its_id_in_its_dialect(
    gateway: RunningGateway, client: httpx.Client, stated: bool
) -> None:
    """Whether its length stands in the head or is found out on the way."""
    body = json.dumps({**MESSAGE, "system": "x" * 300_000}).encode()
    parts = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    answer = client.post("/v1/messages", content=body if stated else iter(parts))
    document = answer.json()
    assert (answer.status_code, document["type"]) == (413, "error")
    assert document["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]
    wait_for(lambda: document["request_id"] in gateway.log.read_text(), 5.0)


# Credentials


@pytest.mark.parametrize(
    "other", ["Bearer sk-ant-oat01-aaaaaaaa", "Basic dXNlcjpwYXNz", "whatever"]
)
@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_our_key_counts_beside_a_foreign_credential(
    client: httpx.Client, keys: dict[str, str], provider: ScriptedProvider, header: str, other: str
) -> None:
    """Claude's clients send their account's token beside ours; it goes nowhere."""
    provider.answer(json.dumps(ANTHROPIC_ANSWER).encode())
    told = {"authorization": other, header: keys["backend"], "anthropic-version": "2023-06-01"}
    answer = client.post("/v1/messages", json=MESSAGE, headers=told)
    assert answer.status_code == 200
    assert other not in str(provider.asked)
    assert keys["backend"] not in str(provider.asked)


def test_two_foreign_credentials_are_none(client: httpx.Client) -> None:
    """Two keys that are not ours and an empty third still make a 401."""
    told = {"authorization": "Bearer sk-a", "x-api-key": "sk-b", "api-key": ""}
    assert client.post("/v1/messages", json=MESSAGE, headers=told).status_code == 401


# What a provider tells clients


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_long_wait_reaches_the_client_as_it_was_asked(
    client: httpx.Client, provider: ScriptedProvider, path: str
) -> None:
    """RFC 9110 10.2.3. Clients wait a minute at most, so they are told not to try again."""
    provider.answer(b'{"error": {"message": "weekly quota"}}', 429, retry_after="287441")
    answer = client.post(path, json=MESSAGE)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "287441"
    assert answer.headers["retry-after-ms"] == "287441000"
    assert answer.headers["x-should-retry"] == "false"
    assert len(provider.asked) == 1, "nor do we wait so long"


@pytest.mark.parametrize("told", ["inf", "nan", "-5", "1e300", "soon"])
def test_advice_that_is_none_is_left_out(
    client: httpx.Client, provider: ScriptedProvider, told: str
) -> None:
    """Infinity, negative numbers and words from a provider never reach a client as a wait."""
    provider.answer(b"{}", 503, retry_after=told)
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert "retry-after" not in answer.headers


def test_of_the_accounts_quota_a_client_learns_when_and_not_how_much(
    client: httpx.Client, provider: ScriptedProvider
) -> None:
    """Claude Code shows what it is told of a refusal; the account's limits are not its own."""
    provider.answer(
        b"{}", 429, anthropic_ratelimit_unified_status="rejected",
        anthropic_ratelimit_unified_reset="1790000000",
        anthropic_ratelimit_unified_5h_utilization="0.93",
        anthropic_ratelimit_requests_limit="4000", x_ratelimit_limit_requests="4000",
    )  # fmt: skip
    answer = client.post("/v1/messages", json=MESSAGE)
    told = {name for name in answer.headers if "ratelimit" in name}
    assert told == {"anthropic-ratelimit-unified-status", "anthropic-ratelimit-unified-reset"}


# Browsers


def test_a_preflight_is_answered_for_the_origins_of_the_policy(client: httpx.Client) -> None:
    """A browser app may send POST with its own headers to a tenant that lets any page ask."""
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    ours = client.options("/v1/chat/completions", headers={"origin": "http://x.test", **asked})
    # One tenant lets any page ask, and a preflight carries no key.
    assert ours.status_code == 204
    assert ours.headers["access-control-allow-origin"] == "*"
    assert "POST" in ours.headers["access-control-allow-methods"]
    assert ours.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert set(ours.headers["allow"].split(", ")) == {"POST", "OPTIONS"}


def test_a_page_reads_answers_of_the_tenants_that_name_it(
    client: httpx.Client, keys: dict[str, str]
) -> None:
    """Errors too; and our headers, which a browser hides unless they are named."""
    for tenant, origin, allowed in (
        ("shop", "https://shop.example", "https://shop.example"),
        ("shop", "https://evil.example", None),
        ("anybody", "https://evil.example", "*"),
        ("backend", "https://shop.example", None),
    ):
        told = {"authorization": f"Bearer {keys[tenant]}", "origin": origin}
        for body in (CHAT, {}):
            answer = client.post("/v1/chat/completions", json=body, headers=told)
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert "origin" in answer.headers["vary"]
        listed = client.get("/v1/models", headers=told)
        assert listed.headers.get("access-control-allow-origin") == allowed
    exposed = set(
        client.post("/v1/chat/completions", json=CHAT, headers={
            "authorization": f"Bearer {keys['shop']}", "origin": "https://shop.example",
        }).headers["access-control-expose-headers"].split(", ")
    )  # fmt: skip
    assert {"x-request-id", "x-tollhouse-cost-usd", "x-tollhouse-decision"} <= exposed


def test_a_page_reads_why_it_was_refused_before_anybody_knew_it(client: httpx.Client) -> None:
    """Without this header a browser hides the 401, and its developer sees only a network error."""
    told = {"origin": "https://shop.example", "authorization": "Bearer wrong"}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/no")):
        answer = client.request(method, path, headers=told)
        assert answer.headers["access-control-allow-origin"] == "*", path


# Probes and wrong addresses


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/api/hello"])
def test_a_probe_finds_somebody_at_home(client: httpx.Client, path: str) -> None:
    """Claude Code asks HEAD / and HEAD /api/hello, without a key, before anything else."""
    del client.headers["authorization"]
    head, full = client.head(path), client.get(path)
    assert (head.status_code, head.content, full.status_code) == (200, b"", 200)
    assert full.text


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/messages", "/v1/messages"),
        ("/models", "/v1/models"),
        ("/v1/v1/models/m", "/v1/models/m"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_a_wrong_base_url_gets_the_right_path(client: httpx.Client, path: str, right: str) -> None:
    """A missing, doubled or trailing part of the URL costs a newcomer one look at the 404."""
    for method in ("POST", "GET"):
        answer = client.request(method, path, json={})
        assert answer.status_code == 404
        assert f"Did you mean {right}?" in answer.json()["error"]["message"]


def test_anthropics_clients_are_refused_in_their_own_shape(client: httpx.Client) -> None:
    """Their libraries read the error's type, and the request's id, from nowhere else."""
    for method, path, told in (
        ("POST", "/v1/messages/batches", {}),
        ("GET", "/v1/messages", {}),
        ("POST", "/v1/complete", {}),
        ("GET", "/v1/files", {"anthropic-version": "2023-06-01"}),
        ("GET", "/v1/models/zzz", {"anthropic-version": "2023-06-01"}),
        ("POST", "/v1/messages", {"content-encoding": "gzip"}),
    ):
        answer = client.request(method, path, headers=told)
        document = answer.json()
        assert document["type"] == "error", path
        assert answer.headers["request-id"] == document["request_id"]
        assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_whoever_asks_for_nothing_that_exists_is_seen(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    """In the access log by its path, and in the metrics; lists of models and bad bodies too."""
    client.post("/v1/audio/speech", json={})
    client.get("/v1/models")
    refused = client.post("/v1/chat/completions", content=b"{")
    assert refused.status_code == 400

    def lines() -> list[dict[str, Any]]:
        found = [line[line.index("{") :] for line in gateway.log.read_text().splitlines()
                 if '"request_id"' in line]  # fmt: skip
        return [json.loads(line) for line in found]

    def seen() -> bool:
        known = {(line.get("path"), line["status"], line["error"]) for line in lines()}
        return {("/v1/audio/speech", 404, "not_found"), ("/v1/models", 200, None)} <= known

    wait_for(seen, 5.0, gateway.describe)
    told = [line for line in lines() if line["request_id"] == refused.headers["x-request-id"]]
    assert told[0]["error"] == "invalid_request_error"
    with gateway.admin() as admin:
        metrics = admin.get("/metrics").text
    assert 'tollhouse_other_requests_total{what="unknown",status="404"}' in metrics
    assert 'tollhouse_other_requests_total{what="models",status="200"}' in metrics


# Streams


def test_no_proxy_keeps_events_back(client: httpx.Client, provider: ScriptedProvider) -> None:
    """Two headers keep nginx and caches from holding tokens until the end of a stream."""
    provider.stream(EVENT, "data: [DONE]\n\n")
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"


# Another model than the one that should


def test_who_is_answered_by_another_model_is_told_why(
    gateway: RunningGateway, client: httpx.Client, keys: dict[str, str]
) -> None:
    """After a fallback and after a downgrade, in the header and in the books; else nothing is."""
    plain = client.post("/v1/chat/completions", json=CHAT)
    assert "x-tollhouse-decision" not in plain.headers
    fallen = client.post("/v1/chat/completions", json={**CHAT, "model": "away"})
    assert (fallen.status_code, fallen.headers["x-tollhouse-model"]) == (200, "m")
    assert fallen.headers["x-tollhouse-decision"] == "fallback; from=away; because=502"
    rows = gateway.events(fallen.headers["x-request-id"], 2)
    assert "away failed with 502: m instead" in rows[-1].reason
    told = {"authorization": f"Bearer {keys['thrifty']}"}
    downgraded = client.post("/v1/chat/completions", json=CHAT, headers=told)
    assert downgraded.headers["x-tollhouse-model"] == "cheap"
    decision = downgraded.headers["x-tollhouse-decision"]
    assert decision == "downgraded; budget=monthly; from=m"
    (row,) = gateway.events(downgraded.headers["x-request-id"])
    assert "budget 'monthly' used up" in row.reason


# Lists of models


def test_a_listed_model_says_what_it_holds_and_what_it_costs_this_tenant(
    client: httpx.Client, keys: dict[str, str]
) -> None:
    """The rates are the tenant's tariff: 10 % above the price for this one."""
    told = {"authorization": f"Bearer {keys['shop']}"}
    listed = {m["id"]: m for m in client.get("/v1/models", headers=told).json()["data"]}
    model = listed["m"]
    assert (model["context_length"], model["max_output_tokens"]) == (128_000, 16_384)
    assert model["capabilities"] == ["chat", "tools"]
    assert float(model["tariff"]["per_mtok"]["input"]) == 2.75
    assert float(model["tariff"]["per_mtok"]["output"]) == 16.5
    assert float(model["tariff"]["tiers"][0]["per_mtok"]["input"]) == 5.5
    assert model["created"] > 1_700_000_000
    assert listed["nickname"]["tariff"] == model["tariff"], "an alias costs what answers it"
    assert "tariff" not in listed["unpriced"], "nobody knows is not nothing"
    text = json.dumps(listed)
    assert "SECRET-TERMS" not in text
    assert "inner-provider" not in text


def test_anthropics_client_reads_the_list_of_models(
    gateway: RunningGateway, keys: dict[str, str]
) -> None:
    """Its context length and date parse, and an unknown model is that client's NotFoundError."""
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{gateway.port}", api_key=keys["shop"], max_retries=0
    ) as client:
        page = client.models.list()
        assert not page.has_more
        assert page.first_id in {model.id for model in page.data}
        one = client.models.retrieve("m")
        assert (one.type, one.display_name, one.max_input_tokens) == ("model", "m", 128_000)
        assert one.created_at.year >= 2026
        with pytest.raises(anthropic.NotFoundError) as refused:
            client.models.retrieve("zzz")
        assert refused.value.request_id
