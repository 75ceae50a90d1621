"""Four workers on one port: one gateway to whoever looks at it, whatever happens to one of them."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.stores.keys import KeyStore, load_pepper
from tests.gateway.running import (
    POLICY,
    ProviderThread,
    RunningGateway,
    running_gateway,
    wait_for,
)
from tests.redis_server import RedisServer

WORKERS = 4
CONNECTIONS = 48  # over four workers: one of them has none once in 250,000 times
BUDGET_PICO = 10_000_000_000
TENANTS = """
  - {id: tight, budgets: [{name: day, amount: "0.01", period: day}]}
  - id: thrifty
    budgets:
      - {name: day, amount: "0.0001", period: day, on_exceeded: downgrade, downgrade_to: cheap}
  - {id: soft, budgets: [{name: day, amount: "0.0001", period: day, enforce: soft}]}
"""
CHEAP = """
  - name: cheap
    provider: provider
    upstream_model: simulated-large
    price: {source: contract, contract_id: TEST, per_mtok: {input: "0", output: "0"}}
"""
_ROUTING = "---\napiVersion: tollhouse/v1\nkind: Routing\n"
WORKERS_POLICY = POLICY.replace(_ROUTING, CHEAP[1:] + _ROUTING) + TENANTS[1:]
BODY = {"model": "uncached", "max_tokens": 40, "messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis-of-workers")) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread, redis: RedisServer
) -> Iterator[RunningGateway]:
    with running_gateway(
        tmp_path_factory.mktemp("workers"), provider.base_url, policy=WORKERS_POLICY,
        settings=f"workers: {WORKERS}\nredis: {{url: '{redis.url}', timeout_seconds: 1.0}}\n",
    ) as running:  # fmt: skip
        yield running


class Crowd:
    """Clients with a connection each, which stays with one worker."""

    def __init__(self, gateway: RunningGateway, key: str, size: int = CONNECTIONS) -> None:
        self._url = gateway.base_url + "/chat/completions"
        self._clients = [
            httpx.AsyncClient(
                headers={"authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=30.0,
                verify=False,
            )
            for _ in range(size)
        ]

    async def all(self, **changes: object) -> list[httpx.Response]:
        """One request of each, at once."""
        return await asyncio.gather(*(self._ask(client, changes) for client in self._clients))

    async def rounds(self, count: int) -> list[httpx.Response | httpx.TransportError]:
        """So many requests of each, one after the other."""

        async def go(client: httpx.AsyncClient) -> list[httpx.Response | httpx.TransportError]:
            found: list[httpx.Response | httpx.TransportError] = []
            for _ in range(count):
                try:
                    found.append(await self._ask(client, {}))
                except httpx.TransportError as error:
                    found.append(error)
            return found

        found = await asyncio.gather(*(go(client) for client in self._clients))
        return [answer for answers in found for answer in answers]

    async def __aenter__(self) -> "Crowd":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.aclose()

    async def _ask(self, client: httpx.AsyncClient, changes: dict[str, object]) -> httpx.Response:
        return await client.post(self._url, json={**BODY, **changes})


def codes(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def query(gateway: RunningGateway, sql: str, *parameters: object) -> list[tuple[int, ...]]:
    with contextlib.closing(sqlite3.connect(gateway.state_dir / "ledger.sqlite")) as books:
        return books.execute(sql, parameters).fetchall()


def metric(gateway: RunningGateway, name: str) -> float:
    """The sum over its label sets."""
    text = httpx.get(gateway.admin_url + "/metrics", trust_env=False, timeout=10).text
    lines = [line for line in text.splitlines() if line.startswith(f"tollhouse_{name}")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def open_holds(redis: RedisServer) -> int:
    return sum(redis.ask("HLEN", key) for key in redis.ask("KEYS", "tollhouse:budget-holds:*"))


def counted_pico(redis: RedisServer) -> int:
    """Over all budgets of all tenants."""
    keys = redis.ask("KEYS", "tollhouse:budget:*")
    return sum(int(redis.ask("HGET", key, "used")) for key in keys)


def booked_once(gateway: RunningGateway) -> set[str]:
    """The requests with exactly one event."""
    rows = query(gateway, "SELECT request_id, count(*) FROM usage_event GROUP BY request_id")
    return {str(request_id) for request_id, events in rows if events == 1}


def booked_pico(gateway: RunningGateway, tenant: str) -> int:
    ((found,),) = query(
        gateway, "SELECT coalesce(sum(charge_pico), 0) FROM usage_event WHERE tenant_id = ?", tenant
    )
    return found


async def test_metrics_are_the_sum_of_what_all_workers_did(gateway: RunningGateway) -> None:
    """A scrape that met one worker's numbers alone would show a fraction of the traffic."""
    key = gateway.key("acme")
    before = metric(gateway, "requests_total")
    seconds = metric(gateway, "request_duration_seconds_count")
    async with Crowd(gateway, key) as crowd:
        answers = await crowd.all()
        assert codes(answers) == {200: CONNECTIONS}
        assert metric(gateway, "requests_total") - before == CONNECTIONS
        assert metric(gateway, "request_duration_seconds_count") - seconds == CONNECTIONS
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == CONNECTIONS
    with gateway.admin() as admin:
        assert admin.get("/admin/stats").json()["workers"] == WORKERS


async def test_a_revoked_key_is_refused_by_every_worker_within_a_second(
    gateway: RunningGateway,
) -> None:
    """And a new one is known to all of them when its maker hears of it."""
    with gateway.admin() as admin:
        asked = {"kind": "api", "tenant": "acme", "name": "short"}
        made = admin.post("/admin/keys", json=asked).json()
        async with Crowd(gateway, made["token"]) as crowd:
            assert codes(await crowd.all()) == {200: CONNECTIONS}
            began = time.monotonic()
            admin.delete(f"/admin/keys/{made['key']['id']}").raise_for_status()
            assert codes(await crowd.all()) == {401: CONNECTIONS}
            assert time.monotonic() - began < 2.0, "one of it for the requests themselves"


async def test_a_revoked_key_is_refused_while_the_admin_process_does_not_answer(
    gateway: RunningGateway,
) -> None:
    """Frozen, or busy with a large policy or purge: the workers look at the keys themselves."""
    with gateway.admin() as admin:
        made = admin.post("/admin/keys", json={"kind": "api", "tenant": "acme", "name": "b"}).json()
    keys = KeyStore(gateway.state_dir / "keys.sqlite", load_pepper(gateway.state_dir / "pepper"))
    admin_process = gateway.child("admin-process")
    async with Crowd(gateway, made["token"], 8) as crowd:
        assert codes(await crowd.all()) == {200: 8}
        os.kill(admin_process, signal.SIGSTOP)
        try:
            keys.revoke(made["key"]["id"], now_us=time.time_ns() // 1000)
            async with asyncio.timeout(1.0):
                while codes(await crowd.all()) != {401: 8}:  # noqa: ASYNC110 - asks, over HTTP
                    await asyncio.sleep(0.02)
        finally:
            os.kill(admin_process, signal.SIGCONT)
            keys.close()


async def test_a_switch_is_thrown_in_every_worker(gateway: RunningGateway) -> None:
    """An operator who turns a cache off must not find it on in one of four processes."""
    async with Crowd(gateway, gateway.key("acme")) as crowd:
        await crowd.all(model="large", max_tokens=1000)  # fills the exact cache
        answers = await crowd.all(model="large", max_tokens=1000)
        assert {answer.headers["x-tollhouse-cache"] for answer in answers} == {"hit-exact"}
        with gateway.admin() as admin:
            admin.post("/admin/switches", json={"name": "exact", "thrown": True})
            answers = await crowd.all(model="large", max_tokens=1000)
            admin.post("/admin/switches", json={"name": "exact", "thrown": False})
        assert "hit-exact" not in {answer.headers["x-tollhouse-cache"] for answer in answers}


async def test_a_new_policy_reaches_every_worker_and_an_answer_names_one_version(
    gateway: RunningGateway,
) -> None:
    """The new one brings a hard budget, which is counted before anybody is held to it."""
    async with Crowd(gateway, gateway.key("globex")) as crowd:
        old = {answer.headers["x-tollhouse-policy"] for answer in await crowd.all()}
        assert len(old) == 1
        text = gateway.policy_file.read_text()
        load = asyncio.ensure_future(crowd.rounds(8))
        gateway.policy_file.write_text(
            text.replace("{id: globex}", '{id: globex, budgets: [{name: new, amount: "9.00"}]}')
        )
        with gateway.admin() as admin:
            answer = await asyncio.to_thread(admin.post, "/admin/policy/reload")
            version = answer.json()["version"]
        during = await load
        assert all(isinstance(a, httpx.Response) and a.is_success for a in during)
        seen = {answer.headers["x-tollhouse-policy"] for answer in during}  # type: ignore[union-attr]
        assert seen <= {*old, version}
        after = await crowd.all()
        assert {answer.headers["x-tollhouse-policy"] for answer in after} == {version}
        with gateway.admin() as admin:  # and a broken file changes nothing anywhere
            gateway.policy_file.write_text("kind: [")
            assert admin.post("/admin/policy/reload").status_code == 400
        assert {a.headers["x-tollhouse-policy"] for a in await crowd.all()} == {version}
        gateway.policy_file.write_text(text)
        with gateway.admin() as admin:
            await asyncio.to_thread(admin.post, "/admin/policy/reload")


async def test_a_hard_budget_is_used_up_by_all_workers_together_and_not_exceeded(
    gateway: RunningGateway, redis: RedisServer
) -> None:
    """200 at once want far more than there is."""
    async with Crowd(gateway, gateway.key("tight"), 100) as crowd:
        answers = [*await crowd.all(), *await crowd.all()]
    found = codes(answers)
    assert set(found) == {200, 429}
    wait_for(lambda: open_holds(redis) == 0, 10.0, gateway.describe)
    served = [answer.headers["x-request-id"] for answer in answers if answer.is_success]
    gateway.events(served[-1])
    wait_for(
        lambda: query(gateway, "SELECT count(*) FROM usage_event WHERE tenant_id = 'tight'")
        == [(len(served),)], 10.0,
    )  # fmt: skip
    assert 0 < booked_pico(gateway, "tight") <= BUDGET_PICO
    refusal = next(answer for answer in answers if answer.status_code == 429).json()["error"]
    assert refusal["code"] == "insufficient_quota"
    # No phantom: what is left is less than one request may cost.
    worst_pico = (len(BODY["messages"][0]["content"]) + 100) * 2_500_000 + 40 * 15_000_000  # type: ignore[index]
    assert BUDGET_PICO - booked_pico(gateway, "tight") < worst_pico


async def test_a_used_up_budget_sends_its_tenant_to_the_cheaper_model(
    gateway: RunningGateway,
) -> None:
    """All eight clients get the model that the policy still allows, and none gets a 429."""
    async with Crowd(gateway, gateway.key("thrifty"), 8) as crowd:
        answers = await crowd.all()
    assert codes(answers) == {200: 8}
    assert {answer.headers["x-tollhouse-model"] for answer in answers} == {"cheap"}


def test_a_second_gateway_on_the_folder_is_refused(
    gateway: RunningGateway, provider: ProviderThread
) -> None:
    """Two writers would spoil the books; the message says that the ledger is taken."""
    settings = gateway.config.read_text().replace(str(gateway.port), "0")
    other = gateway.folder / "other.yaml"
    other.write_text(settings.replace(str(gateway.admin_port), "0"))
    refused = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(other)],
        env=gateway.environment, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "another Tollhouse process has the ledger" in refused.stderr


async def test_killing_a_worker_loses_no_booking_and_the_others_go_on(
    gateway: RunningGateway, redis: RedisServer
) -> None:
    """Every answer that a client got is booked once, and no money stays held."""
    before = set(gateway.children("--public-fd"))
    requests = metric(gateway, "requests_total")
    async with Crowd(gateway, gateway.key("acme")) as crowd:
        load = asyncio.ensure_future(crowd.rounds(12))
        await asyncio.sleep(0.1)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        answers = await load
    served = [answer for answer in answers if isinstance(answer, httpx.Response)]
    assert {answer.status_code for answer in served} == {200}
    assert len(served) > len(answers) * 2 // 3, "the others went on"
    wait_for(lambda: len(gateway.children("--public-fd")) == WORKERS, 10.0, gateway.describe)
    assert before - set(gateway.children("--public-fd")) == {victim}
    gateway.wait_ready()
    wait_for(lambda: open_holds(redis) == 0, 15.0, gateway.describe)
    ids = {answer.headers["x-request-id"] for answer in served}
    assert len(ids) == len(served)
    wait_for(lambda: booked_once(gateway) >= ids, 10.0, gateway.describe)
    assert metric(gateway, "requests_total") >= requests, "what it counted stays counted"


async def test_the_admin_process_may_die_and_nobody_at_the_front_notices(
    gateway: RunningGateway,
) -> None:
    """Requests go on meanwhile, and new keys work once its successor is up."""
    async with Crowd(gateway, gateway.key("acme"), 8) as crowd:
        victim = gateway.child("admin-process")
        os.kill(victim, signal.SIGKILL)
        assert codes(await crowd.all()) == {200: 8}
        wait_for(lambda: victim not in gateway.children("gateway"), 10.0, gateway.describe)
        gateway.wait_ready()
        key = gateway.key("globex")
    async with Crowd(gateway, key, 8) as crowd:
        assert codes(await crowd.all()) == {200: 8}


async def test_without_redis_hard_budgets_refuse_and_the_rest_goes_on(
    gateway: RunningGateway, redis: RedisServer
) -> None:
    """And when it is back without its data, they are counted again from the books."""
    hard, soft, none = (gateway.key(tenant) for tenant in ("acme", "soft", "globex"))
    redis.stop()
    async with Crowd(gateway, hard, 8) as crowd:
        answers = await crowd.all()
        assert codes(answers) == {503: 8}
        assert {answer.json()["error"]["code"] for answer in answers} == {"budget_unavailable"}
    for key in (soft, none):
        async with Crowd(gateway, key, 8) as crowd:
            assert codes(await crowd.all()) == {200: 8}
    redis.start()
    async with Crowd(gateway, hard, 1) as crowd:
        deadline = time.monotonic() + 10.0
        while not (await crowd.all())[0].is_success:
            assert time.monotonic() < deadline, gateway.describe()
            await asyncio.sleep(0.05)
    tenants = ("acme", "tight", "soft", "poor", "charged", "thrifty")
    wait_for(
        lambda: open_holds(redis) == 0
        and counted_pico(redis) == sum(booked_pico(gateway, tenant) for tenant in tenants),
        15.0, gateway.describe,
    )  # fmt: skip


async def test_being_told_to_stop_answers_what_runs_and_books_it_all(
    gateway: RunningGateway, provider: ProviderThread
) -> None:
    """The last of this file: the gateway is started again for nobody."""
    crowd = Crowd(gateway, gateway.key("globex"))
    await crowd.all()
    provider.simulator.latency_seconds = 1.0
    running = asyncio.ensure_future(crowd.all())
    while await asyncio.to_thread(metric, gateway, "in_flight") < CONNECTIONS:
        assert not running.done()
    children = [*gateway.children("--public-fd"), gateway.child("admin-process")]
    assert await asyncio.to_thread(gateway.stop) == 0, gateway.describe()
    provider.simulator.latency_seconds = 0.0
    answers = await running
    assert codes(answers) == {200: CONNECTIONS}
    await crowd.__aexit__()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert {answer.headers["x-request-id"] for answer in answers} <= booked_once(gateway)
    assert query(gateway, "SELECT count(*) FROM open_intent") == [(0,)]
