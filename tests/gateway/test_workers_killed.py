"""Twenty random kills under load: no booking is lost or doubled, and the counters end true."""

import asyncio
import os
import random
import signal
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import ProviderThread, running_gateway, wait_for
from tests.gateway.test_workers import (
    WORKERS,
    WORKERS_POLICY,
    Crowd,
    booked_once,
    booked_pico,
    counted_pico,
    open_holds,
    query,
)
from tests.redis_server import RedisServer

KILLS = 20
CLIENTS = 32


@pytest.mark.long
async def test_random_kills_of_workers_and_admin_process_lose_and_double_nothing(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Every answer a client got is booked once, every answer the provider wrote is booked."""
    rng = random.Random(11)
    provider = ProviderThread(seed=11, latency_seconds=0.02)
    settings = f"workers: {WORKERS}\nredis: {{url: '{redis_server.url}', timeout_seconds: 1.0}}\n"
    with running_gateway(
        tmp_path / "gateway", provider.base_url, policy=WORKERS_POLICY, settings=settings
    ) as gateway:
        key, served = gateway.key("acme"), set()
        async with Crowd(gateway, key, CLIENTS) as crowd:
            for number in range(KILLS):
                load = asyncio.ensure_future(crowd.rounds(8))
                await asyncio.sleep(rng.uniform(0.02, 0.3))
                kind = "admin-process" if number % 5 == 4 else "--public-fd"
                os.kill(rng.choice(gateway.children(kind)), signal.SIGKILL)
                answers = [a for a in await load if isinstance(a, httpx.Response)]
                served |= {a.headers["x-request-id"] for a in answers if a.is_success}
                assert {a.status_code for a in answers} <= {200, 503}, "503: not counted yet"
                await asyncio.to_thread(gateway.wait_ready)
        assert len(served) > KILLS * CLIENTS * 4
        wait_for(lambda: booked_once(gateway) >= served, 20.0, gateway.describe)
        wait_for(lambda: open_holds(redis_server) == 0, 20.0, gateway.describe)
        wait_for(
            lambda: counted_pico(redis_server) == booked_pico(gateway, "acme"), 20.0,
            gateway.describe,
        )  # fmt: skip
    assert query(gateway, "SELECT count(*) FROM open_intent") == [(0,)]
    ((events, requests),) = query(
        gateway, "SELECT count(*), count(DISTINCT request_id) FROM usage_event"
    )
    assert events == requests, "no provider failed, so each request has one attempt"
    assert events >= len(provider.simulator.requests)
    provider.stop()
