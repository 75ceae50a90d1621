"""What a tenant is told of money is its own charge: our cost and margin are for us alone."""

import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import openai
import pytest

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from tests.gateway.running import RunningGateway, running_gateway, wait_for
from tests.gateway.scripted_provider import ScriptedProvider, scripted_provider

TENANTS = 5
HEAD = "apiVersion: tollhouse/v1\nkind: {}\nmetadata: {{name: t}}\n"
RNG = random.Random(20261129)
CHUNK: dict[str, Any] = {
    "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"},
                 "finish_reason": "stop"}],
}  # fmt: skip
NUMBER = re.compile(r"\d+\.\d+")


def policy(seeds: random.Random) -> tuple[str, list[Decimal]]:
    """A policy of odd contract prices and mark-ups; what no tenant may read of it."""
    rates = [f"{seeds.randrange(1, 90)}.{seeds.randrange(100_000, 999_999)}" for _ in range(4)]
    models = (
        HEAD.format("Models")
        + "providers: [{name: up, api: openai, base_url: '${env:TOLLHOUSE_TEST_PROVIDER}',"
        " dialects: [chat, responses, messages]}]\n"
        "models:\n"
        + "".join(
            f"  - {{name: {name}, provider: up, upstream_model: {name}, price: {{source: contract,"
            f" contract_id: CONFIDENTIAL,"
            f" per_mtok: {{input: '{cost_in}', output: '{cost_out}'}}}}}}\n"
            for name, cost_in, cost_out in (("m", *rates[:2]), ("dear", *rates[2:]))
        )
    )
    routing = (
        HEAD.format("Routing") + "defaults: {baseline: dear}\n"
        "routes:\n"
        "  - {name: cached, match: {model: kept}, to: m, cache: {exact: {ttl: 1h}}}\n"
        "  - {name: rest, match: {}, to: m}\n"
    )
    tenants = HEAD.format("Tenants") + "tenants:\n"
    secrets = [Decimal(rate) for rate in rates]
    for number in range(TENANTS):
        markup, hits = seeds.randrange(3_000, 60_000), seeds.randrange(10_000, 90_000)
        secrets.append(Decimal(markup).scaleb(-5))
        tenants += (
            f"  - id: t{number}\n"
            f"    charging: {{markup: {markup / 1000:.3f}%,"
            f" cache_hits: {{charge: {hits / 1000:.3f}%}}}}\n"
            "    budgets: [{name: monthly, amount: '500.00'}]\n"
        )
    return "---\n".join((models, routing, tenants)), secrets


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with scripted_provider() as running:
        yield running


@pytest.fixture(scope="module")
def made() -> tuple[str, list[Decimal]]:
    return policy(random.Random(77))


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: ScriptedProvider,
    made: tuple[str, list[Decimal]],
) -> Iterator[RunningGateway]:  # fmt: skip
    folder = tmp_path_factory.mktemp("tenants")
    with running_gateway(folder, provider.base_url, policy=made[0]) as running:
        yield running


def usage(prompt: int, output: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
    }  # fmt: skip


def ask_everything(gateway: RunningGateway, provider: ScriptedProvider, key: str) -> list[str]:
    """All that a tenant's API key gets: heads and bodies of every kind of answer."""
    heard: list[str] = []
    messages = [{"role": "user", "content": f"hello {RNG.random()}"}]

    def ask(method: str, path: str, body: Any = None, **headers: str) -> None:
        told = {"authorization": f"Bearer {key}", **headers}
        answer = client.request(method, path, json=body, headers=told)
        heard.append(f"{answer.headers!r}\n{answer.text}")

    with httpx.Client(
        base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False, timeout=10.0
    ) as client:
        counts = usage(RNG.randrange(1_000, 90_000), RNG.randrange(100, 9_000))
        message = {"role": "assistant", "content": "hi"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
                 "choices": [choice], "usage": counts}  # fmt: skip
        provider.answer(json.dumps(whole).encode())
        for model in ("m", "kept", "kept", "nothing"):
            ask("POST", "/v1/chat/completions", {"model": model, "messages": messages})
        body = {"model": "kept", "messages": messages, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        ask("POST", "/v1/chat/completions", body)  # from the cache
        provider.stream(CHUNK, {**CHUNK, "choices": [], "usage": counts}, "data: [DONE]\n\n")
        ask("POST", "/v1/chat/completions", {**body, "model": "m"})
        provider.answer(b'{"error": {"message": "no"}}', 400)
        ask("POST", "/v1/chat/completions", {"model": "m", "messages": messages})
        provider.answer(b"no answer at all")  # what it costs is possible, and nobody knows
        ask("POST", "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 999})
        ask("GET", "/v1/models")
        ask("GET", "/v1/models/m")
        ask("GET", "/v1/models", anthropic_version="2023-06-01")
        ask("GET", "/nothing")
    return heard


def look_at_everything(gateway: RunningGateway, tenant: str, ids: list[str]) -> list[str]:
    """All that a tenant's finance key reads on the admin port, by page and by interface."""
    heard: list[str] = []
    with gateway.admin() as admin:
        for role in ("finance", "viewer"):
            made = admin.post("/admin/keys", json={
                "kind": "admin", "name": role, "role": role, "tenant": tenant,
            }).json()  # fmt: skip
            told = {"authorization": f"Bearer {made['token']}"}
            link = admin.post("/admin/login-links", headers=told).json()["url"]
            paths = [f"/costs/{tenant}", f"/costs.csv?tenant={tenant}", "/costs.csv", "/costs",
                     *(f"/requests/{request_id}" for request_id in ids)]  # fmt: skip
            with httpx.Client(
                base_url=gateway.admin_url, trust_env=False, follow_redirects=True, timeout=10.0
            ) as browser:
                page = browser.get(link).text
                form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
                assert browser.post("/login", data=form).status_code == 200
                heard += [browser.get(path).text for path in paths]
            for by in ("tenant", "project", "key", "model", "route", "day"):
                heard.append(admin.get(f"/admin/usage?by={by}", headers=told).text)
            for path in ("/admin/keys", "/admin/stats", "/admin/policy", "/metrics?x=1"):
                answer = admin.get(path, headers=told)
                if not path.startswith("/metrics"):
                    assert answer.status_code == 403
    return heard


def tells(text: str, secret: Decimal) -> str | None:
    """A number in the text that is the secret, as exactly as it is written."""
    for found in NUMBER.findall(text):
        shown = Decimal(found)
        digits = len(found.replace(".", "").lstrip("0").rstrip("0"))
        places = len(found.partition(".")[2])
        if digits >= 4 and round(secret, places) == shown:
            return str(found)
    return None


def test_nothing_that_a_tenant_can_reach_tells_cost_or_margin(
    gateway: RunningGateway, provider: ScriptedProvider, made: tuple[str, list[Decimal]]
) -> None:
    """Over odd prices and mark-ups: no answer, list, event, error, page, export or sum has the cost
    of a request or of a group, what we earn on it, or a rate of our contract.
    """
    for number in range(TENANTS):
        tenant = f"t{number}"
        key = gateway.key(tenant)
        heard = ask_everything(gateway, provider, key)
        store = LedgerStore(gateway.state_dir / "ledger.sqlite")
        try:
            bounds = (0, 2**62)
            # The last of them: a call that failed in silence.
            wait_for(
                lambda: any(
                    event.possible_cost_pico
                    for event in reports.events(store, tenant, *bounds, limit=99)  # noqa: B023
                ),
                10.0,
            )
            events = reports.events(store, tenant, *bounds, limit=99)
        finally:
            store.close()
        heard += look_at_everything(gateway, tenant, sorted({e.request_id for e in events}))
        costs = [event.cost_pico or 0 for event in events]
        # Of what cost nothing, a cached answer, the margin is the charge itself.
        margins = [(e.charge_pico or 0) - e.cost_pico for e in events if e.cost_pico]
        possible = [event.possible_cost_pico for event in events]
        assert any(possible)
        pico = [*costs, *possible, sum(possible), *margins, sum(costs), sum(margins)]
        secrets = [Decimal(p).scaleb(-12) for p in pico if p > 0] + made[1]
        told = "\n".join(heard)
        assert f'"charge_usd":"{_usd(sum(e.charge_pico or 0 for e in events))}"' in told, "of all"
        for secret in secrets:
            assert tells(told, secret) is None, secret
        for word in ("cost_usd", "overhead_usd", "cost_pico", "markup", "CONFIDENTIAL"):
            assert word not in told.replace("x-tollhouse-cost-usd", ""), word


def _usd(pico: int) -> str:
    return f"{Decimal(pico).scaleb(-12):.12f}"


def test_the_header_and_the_last_usage_of_a_stream_are_the_charge(
    gateway: RunningGateway, provider: ScriptedProvider
) -> None:
    """Booked is what is told, to the last pico-dollar; and only who asked for usage is told it."""
    key = gateway.key("t0")
    provider.stream(CHUNK, {**CHUNK, "choices": [], "usage": usage(1234, 567)}, "data: [DONE]\n\n")
    with openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
        made = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "a"}], stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(made.parse())
    (event,) = gateway.events(made.headers["x-request-id"])
    told = chunks[-1].usage
    assert told is not None
    assert (told.prompt_tokens, told.completion_tokens) == (1234, 567)
    assert told.model_extra == {"charge_usd": _usd(event.charge_pico or 0)}
    assert (event.charge_pico or 0) > (event.cost_pico or 0)
    with httpx.Client(trust_env=False) as plain:
        answer = plain.post(
            f"{gateway.base_url}/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "b"}], "stream": True},
            headers={"authorization": f"Bearer {key}"},
        )
    assert "usage" not in answer.text


def test_anthropics_and_openais_clients_read_the_charge_of_their_streams(
    gateway: RunningGateway, provider: ScriptedProvider
) -> None:
    """In the last ``message_delta`` and in ``response.completed``, beside what it told."""
    key = gateway.key("t1")
    start = {"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": None, "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }}  # fmt: skip
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
             "usage": {"output_tokens": 77}}  # fmt: skip
    frames = [
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
        for event in (start, delta, {"type": "message_stop"})
    ]
    provider.stream(*frames)
    base_url = f"http://127.0.0.1:{gateway.port}"
    with (
        anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as claude,
        claude.messages.stream(
            model="m", max_tokens=100, messages=[{"role": "user", "content": "a"}]
        ) as stream,
    ):
        deltas = [event for event in stream if event.type == "message_delta"]
        request_id = stream.response.headers["request-id"]
    (event,) = gateway.events(request_id)
    assert deltas[0].usage.output_tokens == 77
    assert deltas[0].usage.model_extra == {"charge_usd": _usd(event.charge_pico or 0)}

    schema = {"type": "object", "properties": {"usage": {"type": "object", "input_tokens": {}}}}
    response = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed",
        "output": [], "parallel_tool_calls": True, "tool_choice": "auto",
        "usage": {"input_tokens": 30, "output_tokens": 4, "total_tokens": 34},
        "tools": [{"type": "function", "name": "f", "strict": False, "parameters": schema}],
    }  # fmt: skip
    done = {"type": "response.completed", "sequence_number": 1, "response": response}
    provider.stream(f"event: response.completed\ndata: {json.dumps(done)}\n\n")
    with openai.OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as client:
        raw = client.responses.with_raw_response.create(model="m", input="hi", stream=True)
        (last,) = list(raw.parse())
    (event,) = gateway.events(raw.headers["x-request-id"])
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.model_extra == {"charge_usd": _usd(event.charge_pico or 0)}
    assert last.response.model_dump(mode="json")["tools"][0]["parameters"] == schema


def test_we_see_what_we_pay(gateway: RunningGateway) -> None:
    """The same export with our own key has cost and overhead."""
    with gateway.admin() as admin:
        rows = admin.get("/admin/usage").json()["rows"]
    assert {"cost_usd", "overhead_usd", "charge_usd"} <= set(rows[0])
