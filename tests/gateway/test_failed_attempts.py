"""What interrupted and failed attempts cost: what the provider bills, or at most what was held."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from tests.fakes import Peer, RawUpstream, Script
from tests.gateway.running import RunningGateway, free_port, gateway_from_a_loop

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {{name: failing}}
providers:
  - name: provider
    api: openai
    base_url: "http://127.0.0.1:{port}/v1"
    timeouts: {{first_byte: 1s, idle: 1s}}
    health: {{min_requests: 100000}}
models:
  - name: large
    provider: provider
    upstream_model: large
    price: {{source: contract, contract_id: T, per_mtok: {{input: "2", output: "10"}}}}
  - name: thinker
    provider: provider
    upstream_model: gpt-5
    price: {{source: contract, contract_id: T, per_mtok: {{input: "2", output: "10"}}}}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {{name: failing}}
routes:
  - {{name: thinking, match: {{model: thinker}}, to: thinker}}
  - {{name: all, match: {{}}, to: large}}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {{name: failing}}
tenants:
  - {{id: acme, charging: {{markup: 10%}}}}
  - {{id: charged, charging: {{markup: 10%, failures: charge}}}}
  - {{id: tight, budgets: [{{name: daily, amount: "0.0025", period: day}}]}}
"""
BODY: dict[str, Any] = {
    "model": "large",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Good morning"}],
}
HELD_OUTPUT_PICO = 100 * 10_000_000  # of the 100 tokens asked for, at 10 dollars per million
ANSWER = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "large",
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "Hello"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def document(status: bytes, body: bytes, lines: bytes = b"") -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body)


GOOD = document(b"200 OK", json.dumps(ANSWER).encode(), b"content-type: application/json\r\n")


class World:
    """A gateway before one scripted provider."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        self.gateway: RunningGateway
        self.keys: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def provider(self, script: Script) -> AsyncIterator[RawUpstream]:
        async with RawUpstream(script, port=self.port) as upstream:
            yield upstream

    async def ask(self, tenant: str = "acme", **changes: Any) -> httpx.Response:
        if tenant not in self.keys:
            self.keys[tenant] = await asyncio.to_thread(self.gateway.key, tenant)
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            return await client.post(
                self.gateway.base_url + "/chat/completions",
                json={**BODY, **changes},
                headers={"authorization": f"Bearer {self.keys[tenant]}"},
            )

    async def booked(self, answer: httpx.Response, count: int = 1) -> list[reports.EventRow]:
        request_id = answer.headers["x-request-id"]
        return await asyncio.to_thread(self.gateway.events, request_id, count)

    async def summary(self, tenant: str) -> reports.Summary:
        store = LedgerStore(self.gateway.state_dir / "ledger.sqlite")
        try:
            (row,) = reports.tenant_summary(store, time.strftime("%Y-%m", time.gmtime()), tenant)
            assert store.verify() == []
            return row
        finally:
            store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, free_port())
    policy = POLICY.format(port=made.port)
    async with gateway_from_a_loop(tmp_path, "", policy=policy) as gateway:
        made.gateway = gateway
        yield made


def answering(data: bytes) -> Script:
    """Each request on each connection gets these bytes, then the connection ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        peer.close()

    return script


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (False, document(b"502 Bad Gateway", b"<html>502</html>", b"content-type: text/html\r\n")),
        (False, document(b"500 Error", b'{"error":{"message":"broken"}}')),
        (False, document(b"504 Late", b"")),
        (True, document(b"500 Error", b'{"error":{"message":"broken"}}')),
        (False, document(b"400 Wrong", b'{"error":{"message":"wrong"}}')),
    ],
    ids=["502-page", "500", "504", "500-stream", "400"],
)
async def test_an_error_that_the_provider_reports_before_any_data_costs_nothing(
    world: World, stream: bool, data: bytes
) -> None:
    """On lines of its own, one for each time it was asked; nothing is pending."""
    async with world.provider(answering(data)) as upstream:
        answer = await world.ask(stream=stream)
        assert answer.status_code >= 400
        events = await world.booked(answer, len(upstream.peers))
    assert len(events) == sum(len(peer.requests) for peer in upstream.peers)
    for event in events:
        assert (event.cost_pico, event.charge_pico, event.state) == (0, 0, "final")
        assert (event.possible_charge_pico, event.status >= 400) == (0, True)
    row = await world.summary("acme")
    assert (row.charge_pico, row.saved_pico, row.possible) == (0, 0, 0)


async def reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def silence(peer: Peer) -> None:
    await peer.request()
    await peer.gone()


async def role_then_reset(peer: Peer) -> None:
    await peer.request()
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    await peer.send(EVENTS + b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await asyncio.sleep(0.05)
    peer.reset()


FAILING = pytest.mark.parametrize(
    ("stream", "script"),
    [
        (False, reset),
        (True, reset),
        (False, silence),
        (False, answering(document(b"200 OK", b"{no json"))),
        (False, answering(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")),
        (True, role_then_reset),
    ],
    ids=["reset", "reset-stream", "silence", "no-json", "cut", "role-then-reset"],
)


@FAILING
async def test_a_failure_without_a_word_is_a_possible_cost_and_not_charged(
    world: World, stream: bool, script: Script
) -> None:
    """What was held for it, on a line of its own; the books balance, and nothing is saved."""
    async with world.provider(script):
        answer = await world.ask(stream=stream)
        (event,) = await world.booked(answer)
    assert (event.state, event.cost_pico, event.charge_pico) == ("possible", 0, 0)
    prompt_pico = 2_000_000 * len(json.dumps(BODY["messages"]))  # no more tokens than bytes
    assert HELD_OUTPUT_PICO < event.possible_cost_pico <= HELD_OUTPUT_PICO + prompt_pico
    assert event.possible_charge_pico == event.possible_cost_pico * 11 // 10
    row = await world.summary("acme")
    assert (row.possible, row.possible_charge_pico) == (1, event.possible_charge_pico)
    assert (row.charge_pico, row.cost_pico, row.saved_pico, row.unpriced) == (0, 0, 0, 0)


async def test_a_policy_may_charge_for_failures(world: World) -> None:
    """The whole possible cost, told apart from what answers were charged."""
    async with world.provider(reset):
        answer = await world.ask("charged")
        (event,) = await world.booked(answer)
    assert (event.state, event.possible_charge_pico) == ("possible", 0)
    assert event.cost_pico is not None
    assert event.cost_pico > HELD_OUTPUT_PICO
    assert event.charge_pico == event.cost_pico * 11 // 10
    row = await world.summary("charged")
    assert row.failures_charge_pico == row.charge_pico == event.charge_pico
    assert row.saved_pico == 0


async def test_a_possible_cost_counts_against_a_hard_budget_until_its_period_ends(
    world: World,
) -> None:
    """Were it charged later, the limit would still hold: also after a restart."""
    async with world.provider(reset):
        for _ in range(2):
            assert (await world.ask("tight")).status_code == 502
        refused = await world.ask("tight")
        assert refused.json()["error"]["code"] == "insufficient_quota"
        await asyncio.to_thread(world.gateway.kill_worker)
        await asyncio.to_thread(world.gateway.wait_ready)
        refused = await world.ask("tight")
        assert refused.json()["error"]["code"] == "insufficient_quota"


async def test_ten_clients_that_leave_whole_answers_pay_at_least_what_was_written(
    world: World,
) -> None:
    """And at most what was held: the tokens of an answer that nobody saw are not known."""
    seen = asyncio.Semaphore(0)
    ids: list[str] = []

    async def writing(peer: Peer) -> None:
        request = await peer.request()
        ids.append(request.partition(b"x-request-id: ")[2].partition(b"/")[0].decode())
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b" " * 80)
        seen.release()
        await peer.gone()

    async with world.provider(writing):
        asking = [asyncio.create_task(world.ask()) for _ in range(10)]
        for _ in range(10):
            await seen.acquire()
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        events = [
            event for name in ids for event in await asyncio.to_thread(world.gateway.events, name)
        ]
    assert len(events) == 10
    for event in events:
        assert (event.status, event.state) == (499, "estimated")
        assert event.cost_pico is not None
        assert event.cost_pico >= HELD_OUTPUT_PICO, "it may have written all that was asked for"
        assert event.cost_pico <= HELD_OUTPUT_PICO + 2_000_000 * len(json.dumps(BODY["messages"]))
        assert event.possible_cost_pico == 0


@pytest.mark.parametrize(("model", "thinks"), [("thinker", True), ("large", False)])
async def test_who_leaves_a_model_that_thinks_unseen_pays_for_its_thoughts(
    world: World, model: str, thinks: bool
) -> None:
    """By the time that they took, and no more than was asked for."""
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def thinking(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(EVENTS + b": thinking\n\n")
        asked.set_result(request.partition(b"x-request-id: ")[2].partition(b"/")[0].decode())
        await peer.gone()

    async with world.provider(thinking):
        leaving = asyncio.create_task(world.ask(model=model, stream=True))
        name = await asked
        await asyncio.wait({leaving}, timeout=0.4)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        (event,) = await asyncio.to_thread(world.gateway.events, name)
    assert event.status == 499
    assert (30 <= event.completion_tokens <= 100) if thinks else event.completion_tokens == 0
    assert event.prompt_tokens > 0


async def test_a_call_on_a_kept_connection_that_ended_has_a_line_of_its_own(world: World) -> None:
    """The provider may have read it: it is asked again, and the books have both calls."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        if peer.number == 0:
            peer.reset()
        else:
            await peer.send(GOOD)

    async with world.provider(script) as upstream:
        assert (await world.ask()).status_code == 200
        answer = await world.ask()
        assert answer.status_code == 200
        first, second = await world.booked(answer, 2)
        assert sum(len(peer.requests) for peer in upstream.peers) == 3
    assert (first.state, first.superseded, first.cost_pico) == ("possible", True, 0)
    assert first.possible_cost_pico > HELD_OUTPUT_PICO
    assert (second.status, second.decision, second.cost_pico) == (200, first.decision, 26_000_000)
    assert second.request_us is not None
    assert second.request_us >= first.duration_us + second.duration_us


async def test_what_a_kept_connection_s_second_call_may_cost_is_held_too(world: World) -> None:
    """A budget with room for one call does not make two: the client is told to try again."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(GOOD)
        await peer.request()
        peer.reset()

    async with world.provider(script) as upstream:
        assert (await world.ask("tight")).status_code == 200
        answer = await world.ask("tight", max_tokens=150)
        assert answer.status_code == 502
        assert answer.headers["x-should-retry"] == "true"
        assert sum(len(peer.requests) for peer in upstream.peers) == 2
