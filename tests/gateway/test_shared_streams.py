"""Identical streams share one call: same frames for all, and nobody's leaving harms another."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from gateway.ledger.reports import EventRow
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for


@pytest.fixture(scope="module")
def slow_provider() -> Iterator[ProviderThread]:
    """A quarter of a second for its 50 tokens or so: a twin comes in the middle."""
    thread = ProviderThread(seed=5, tokens_per_second=200.0, latency_seconds=0.1)
    yield thread
    thread.stop()


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, slow_provider: ProviderThread
) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("shared")
    with running_gateway(folder, slow_provider.base_url) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(gateway: RunningGateway) -> str:
    return gateway.key("acme")


@pytest.fixture
async def client(gateway: RunningGateway, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers=headers, trust_env=False, timeout=20
    ) as client:
        yield client


class Reader:
    """One client's stream, read in a task."""

    def __init__(self, client: httpx.AsyncClient, text: str, *, usage: bool = False) -> None:
        self.body: dict[str, Any] = {
            "model": "large", "stream": True, "messages": [{"role": "user", "content": text}],
        }  # fmt: skip
        if usage:
            self.body["stream_options"] = {"include_usage": True}
        self.got = ""
        self.headers = httpx.Headers()
        self.begun = asyncio.Event()
        self.task = asyncio.create_task(self._read(client))

    async def _read(self, client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/chat/completions", json=self.body) as answer:
            self.headers = answer.headers
            async for text in answer.aiter_text():
                self.got += text
                if "content" in self.got:
                    self.begun.set()

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def events(self) -> list[str]:
        return [event for event in self.got.split("\n\n") if event]

    def answer(self) -> str:
        """The text of all deltas."""
        chunks = [json.loads(e.removeprefix("data: ")) for e in self.events if "[DONE]" not in e]
        return "".join(
            c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]
        )

    async def until_begun(self) -> None:
        async with asyncio.timeout(5):
            await self.begun.wait()


def calls(provider: ProviderThread, text: str) -> int:
    return sum(text in json.dumps(served.body) for served in provider.simulator.requests)


def booked(gateway: RunningGateway, reader: Reader) -> EventRow:
    (event,) = gateway.events(reader.request_id)
    return event


async def test_a_late_twin_gets_the_same_frames_and_is_booked_as_a_hit(
    gateway: RunningGateway, client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """Four readers make one call; the three that follow cost nothing and see every frame."""
    first = Reader(client, "Twins, please.")
    await first.until_begun()
    twins = [Reader(client, "Twins, please.") for _ in range(3)]
    await asyncio.gather(first.task, *(twin.task for twin in twins))
    assert calls(slow_provider, "Twins, please.") == 1
    for twin in twins:
        assert twin.got == first.got
        assert twin.got.endswith("data: [DONE]\n\n")
        assert twin.headers["x-tollhouse-cache"] == "hit-exact"
        assert twin.headers["x-tollhouse-cache-id"] == first.request_id
    lead, follow = booked(gateway, first), booked(gateway, twins[0])
    assert (lead.cache_status, follow.cache_status) == ("miss", "exact")
    assert (follow.cost_pico, follow.state, follow.status) == (0, "final", 200)
    assert follow.completion_tokens == lead.completion_tokens > 0
    assert follow.baseline_pico == lead.cost_pico


@pytest.mark.parametrize("leads_with_usage", [False, True])
async def test_each_gets_the_usage_only_if_it_asked_for_it(
    client: httpx.AsyncClient, leads_with_usage: bool
) -> None:
    """Twins differ in one event alone, and it makes no difference which one leads."""
    text = f"Usage {leads_with_usage}."
    first = Reader(client, text, usage=leads_with_usage)
    await first.until_begun()
    second = Reader(client, text, usage=not leads_with_usage)
    await asyncio.gather(first.task, second.task)
    assert first.answer() == second.answer() != ""
    with_usage, without = (first, second) if leads_with_usage else (second, first)
    assert [event for event in with_usage.events if event not in without.events] == [
        with_usage.events[-2]
    ]
    usage = json.loads(with_usage.events[-2].removeprefix("data: "))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert with_usage.events[-1] == without.events[-1] == "data: [DONE]"


async def test_the_leaders_client_may_leave_and_its_twin_still_gets_everything(
    gateway: RunningGateway, client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """The call goes on while somebody follows; the leader pays for it, as it would have anyway."""
    first = Reader(client, "Leave me alone.")
    await first.until_begun()
    twin = Reader(client, "Leave me alone.")
    await twin.until_begun()
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    await twin.task
    assert calls(slow_provider, "Leave me alone.") == 1
    assert twin.got.startswith(first.got)
    assert twin.got.endswith("data: [DONE]\n\n")
    assert booked(gateway, first).state == "final"
    assert booked(gateway, twin).cache_status == "exact"


async def test_when_leader_and_twin_have_left_the_provider_is_left_too(
    gateway: RunningGateway, client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """Only the last reader's leaving ends the call, and then no more tokens are paid for."""
    first = Reader(client, "Everybody leaves.")
    await first.until_begun()
    twin = Reader(client, "Everybody leaves.")
    await twin.until_begun()
    served = slow_provider.simulator.requests[-1]
    for reader in (first, twin):
        reader.task.cancel()
    await asyncio.gather(first.task, twin.task, return_exceptions=True)
    await asyncio.to_thread(wait_for, lambda: served.closed_after_seconds is not None, 5.0)
    event = booked(gateway, first)
    assert (event.status, event.state) == (499, "estimated")
    assert event.completion_tokens <= served.completion_tokens


async def test_a_cut_stream_is_an_error_event_for_everybody(
    client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """No follower may take the half answer for whole, or wait for ever."""
    text = "Break. [[fault:cut-after-30]]"
    first = Reader(client, text)
    await first.until_begun()
    twin = Reader(client, text)
    await asyncio.gather(first.task, twin.task)
    assert calls(slow_provider, "[[fault:cut-after-30]]") == 1
    for reader in (first, twin):
        assert "[DONE]" not in reader.got
        assert set(json.loads(reader.events[-1].removeprefix("data: "))) == {"error"}
    assert twin.events[:-1] == first.events[:-1]


async def test_a_leader_that_fails_before_its_first_frame_hands_over_to_a_twin(
    gateway: RunningGateway, client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """Its own error is its own; one twin asks in its place, and the others follow that one."""
    text = "Fail. [[fault:status-400]]"
    readers = [Reader(client, text) for _ in range(3)]
    await asyncio.gather(*(reader.task for reader in readers))
    assert {reader.headers["content-type"] for reader in readers} == {"application/json"}
    assert calls(slow_provider, "[[fault:status-400]]") == 3, "each led once, in its turn"


async def test_a_document_follows_a_stream(
    client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """A client without streaming shares the running call too, and gets the whole text."""
    first = Reader(client, "Both kinds.")
    await first.until_begun()
    body = {name: value for name, value in first.body.items() if name != "stream"}
    document = await client.post("/chat/completions", json=body)
    await first.task
    assert calls(slow_provider, "Both kinds.") == 1
    assert document.json()["choices"][0]["message"]["content"] == first.answer()


async def test_another_tenant_never_follows(
    gateway: RunningGateway, client: httpx.AsyncClient, slow_provider: ProviderThread
) -> None:
    """Equal questions of two tenants are two calls, for answers may not cross between them."""
    first = Reader(client, "Mine alone.")
    await first.until_begun()
    foreign = {"authorization": f"Bearer {gateway.key('globex')}"}
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers=foreign, trust_env=False, timeout=20
    ) as other:
        second = Reader(other, "Mine alone.")
        await asyncio.gather(first.task, second.task)
    assert calls(slow_provider, "Mine alone.") == 2
    assert second.headers["x-tollhouse-cache"] == "miss"
