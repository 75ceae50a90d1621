"""Hedging: the first to answer wins, the other is cancelled, and it happens seldom."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from gateway.errors import UpstreamStatus
from gateway.upstreams.base import UpstreamRequest
from gateway.upstreams.hedging import LATENCIES_MIN, Hedged
from gateway.upstreams.local import LocalUpstream, ModelProcessClient
from tests.gateway.upstreams.fake_model import MODEL, FakeModel


def request(name: str, *, path: str = "/chat/completions") -> UpstreamRequest:
    deadline = time.monotonic() + 10
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return UpstreamRequest(
        request_id=name, path=path, body=orjson.dumps(body),
        first_byte_deadline=deadline, idle_seconds=10, deadline=deadline,
    )  # fmt: skip


async def ask(upstream: Hedged, name: str) -> float:
    """Seconds until the answer was there."""
    began = time.monotonic()
    response = await upstream.send(request(name))
    assert b"ok" in await response.receive()
    response.close()
    return time.monotonic() - began


@asynccontextmanager
async def hedged(
    tmp_path: Path, seconds: Callable[[int], float], *, slots: int = 8
) -> AsyncIterator[tuple[Hedged, FakeModel]]:
    """An upstream that has seen enough prompt answers to know a late one."""
    async with FakeModel(tmp_path / "m.sock", parallel=8, seconds=seconds) as model:
        client = ModelProcessClient(model.path, "worker")
        client.start()
        await client.until_ready("generation", timeout_seconds=5)
        upstream = Hedged(LocalUpstream("local", client, MODEL, concurrent_max=slots))
        for number in range(LATENCIES_MIN):
            await ask(upstream, f"warm-{number}")
        yield upstream, model
        await client.close()


def slow(*numbers: int) -> Callable[[int], float]:
    """So long does the request with one of these numbers take that no test could wait for it."""
    return lambda number: 60.0 if number in numbers else 0.002


async def test_a_late_answer_is_asked_for_again_and_the_loser_is_cancelled(
    tmp_path: Path,
) -> None:
    """The client waits below a second instead of sixty, and the slow run frees its slot."""
    async with hedged(tmp_path, slow(LATENCIES_MIN)) as (upstream, model):
        assert await ask(upstream, "late") < 1.0
        assert model.asked[-2:] == ["late", "late-hedge"]
        async with asyncio.timeout(2):
            while model.cancelled != ["late"]:  # noqa: ASYNC110 - another task's state
                await asyncio.sleep(0.001)
        assert upstream.hedges == 1


async def test_a_prompt_answer_is_asked_for_once(tmp_path: Path) -> None:
    """Once a late answer is known by those before it, one that is much sooner has no copy."""
    async with hedged(tmp_path, lambda n: 0.3 if n < LATENCIES_MIN else 0.002) as (upstream, model):
        await ask(upstream, "prompt")
        assert model.asked == [*(f"warm-{number}" for number in range(LATENCIES_MIN)), "prompt"]
        assert upstream.hedges == 0


async def test_the_first_may_still_win(tmp_path: Path) -> None:
    """Where the original comes first after all, its copy is cancelled and not left running."""

    def seconds(number: int) -> float:
        return {LATENCIES_MIN: 0.1, LATENCIES_MIN + 1: 60.0}.get(number, 0.002)

    async with hedged(tmp_path, seconds) as (upstream, model):
        assert await ask(upstream, "late") < 1.0
        async with asyncio.timeout(2):
            while model.cancelled != ["late-hedge"]:  # noqa: ASYNC110 - another task's state
                await asyncio.sleep(0.001)


async def test_a_busy_model_is_not_made_busier(tmp_path: Path) -> None:
    """With its only slot taken, a late answer is not asked for a second time."""
    async with hedged(tmp_path, slow(LATENCIES_MIN), slots=1) as (upstream, model):
        assert upstream.slots.take("t")
        asking = asyncio.create_task(ask(upstream, "late"))
        done, _ = await asyncio.wait((asking,), timeout=0.2)
        assert not done
        assert model.asked[-1] == "late"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_no_more_than_the_retry_budget_allows_are_asked_twice(tmp_path: Path) -> None:
    """Of seven late answers five are asked for again, so that a stalled model gets no avalanche."""
    async with hedged(tmp_path, slow(*range(LATENCIES_MIN, 100))) as (upstream, model):
        asking = [asyncio.create_task(ask(upstream, f"late-{number}")) for number in range(7)]
        await asyncio.wait(asking, timeout=0.2)
        assert upstream.hedges == 5
        assert len(model.asked) == LATENCIES_MIN + 7 + 5
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        async with asyncio.timeout(2):
            while len(model.cancelled) < 12:  # noqa: ASYNC110 - another task's state
                await asyncio.sleep(0.001)


async def test_a_refusal_is_passed_on_and_not_tried_again(tmp_path: Path) -> None:
    """A request that the model cannot serve is told so at once; name and health are the inner's."""
    async with hedged(tmp_path, lambda number: 0.002) as (upstream, _):
        with pytest.raises(UpstreamStatus):
            await upstream.send(request("wrong", path="/images"))
        assert upstream.hedges == 0
        assert upstream.name == "local"
        assert upstream.healthy
