"""A disk that is full in mid-answer: what is paid for is delivered, and booked later."""

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import Peer, RawUpstream
from tests.gateway.running import RunningGateway, free_port, gateway_from_a_loop, wait_for
from tests.gateway.test_failed_attempts import BODY, GOOD, POLICY

NO_LIMIT = resource.RLIM_INFINITY


class World:
    """A gateway whose provider answers when it is told to."""

    def __init__(self, gateway: RunningGateway, key: str) -> None:
        self.gateway = gateway
        self.key = key
        self.asked = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()
        self.ids: list[str] = []

    async def script(self, peer: Peer) -> None:
        request = await peer.request()
        self.ids.append(request.partition(b"x-request-id: ")[2].partition(b"/")[0].decode())
        self.asked.release()
        await self.go_on.wait()
        await peer.send(GOOD)
        peer.close()

    async def ask(self, **changes: Any) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            return await client.post(
                self.gateway.base_url + "/chat/completions",
                json={**BODY, **changes},
                headers={"authorization": f"Bearer {self.key}"},
            )

    async def asking(self, count: int) -> list[asyncio.Task[httpx.Response]]:
        """So many requests whose provider is writing."""
        tasks = [asyncio.create_task(self.ask()) for _ in range(count)]
        for _ in range(count):
            await self.asked.acquire()
        return tasks

    def fill_disk(self, full: bool = True) -> None:
        """The kernel refuses every further byte of any file of the worker, or takes them again."""
        limit = (0 if full else NO_LIMIT, NO_LIMIT)
        resource.prlimit(self.gateway.child("worker"), resource.RLIMIT_FSIZE, limit)

    def ready(self) -> tuple[int, str]:
        with self.gateway.admin() as admin:
            probe = admin.get("/readyz")
        return probe.status_code, str(probe.json()["checks"]["ledger"])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    port = free_port()
    policy = POLICY.format(port=port).replace("first_byte: 1s", "first_byte: 20s")
    async with gateway_from_a_loop(tmp_path, "", policy=policy) as gateway:
        made = World(gateway, await asyncio.to_thread(gateway.key, "acme"))
        async with RawUpstream(made.script, port=port):
            yield made


async def test_answers_are_delivered_and_booked_exactly_once_there_is_room(world: World) -> None:
    """Meanwhile nothing new is asked of a provider, and the probe says what is waiting."""
    tasks = await world.asking(5)
    await asyncio.to_thread(world.fill_disk)
    world.go_on.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(answer.json()["usage"]["completion_tokens"] == 2 for answer in answers)
    status, state = await asyncio.to_thread(world.ready)
    assert status == 503
    assert "5 settled events wait" in state
    refused = await world.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "metering_unavailable")
    await asyncio.to_thread(world.fill_disk, False)
    await asyncio.to_thread(wait_for, lambda: world.ready() == (200, "ok"), 20.0)
    for name in world.ids:
        (event,) = await asyncio.to_thread(world.gateway.events, name)
        assert (event.state, event.status, event.completion_tokens) == ("final", 200, 2)
        assert event.cost_pico == 3 * 2_000_000 + 2 * 10_000_000
    assert (await world.ask()).status_code == 200


async def test_who_is_killed_before_there_is_room_leaves_what_was_held(world: World) -> None:
    """The intent is on record: nothing is lost, and nothing booked twice."""
    tasks = await world.asking(3)
    await asyncio.to_thread(world.fill_disk)
    world.go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 3
    os.kill(world.gateway.child("worker"), signal.SIGKILL)
    for name in world.ids:
        (event,) = await asyncio.to_thread(world.gateway.events, name)
        assert (event.state, event.error_type) == ("estimated", "interrupted")
        assert event.cost_pico is not None
        assert event.cost_pico > 100 * 10_000_000
    await asyncio.to_thread(world.gateway.wait_ready)
