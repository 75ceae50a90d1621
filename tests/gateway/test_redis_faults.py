"""Gateways that share a Redis, and what becomes of their requests when that is in trouble.

Real gateways in processes of their own, a real Redis, a proxy between them that can be slow or lie.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import (
    POLICY,
    ProviderThread,
    RunningGateway,
    running_gateway,
    wait_for,
)
from tests.redis_proxy import RedisProxy
from tests.redis_server import RedisServer

TIMEOUT_SECONDS = 0.05
SLACK_SECONDS = 0.06  # of a busy machine
BACK_SECONDS = 5.0
CALLS = 25
SHARED_POLICY = POLICY.replace(
    "  - {id: globex}\n",
    "  - {id: globex}\n"
    "  - {id: rated, limits: {rpm: 100000, tpm: 100M, concurrent: 100}}\n"
    "  - {id: strict, limits: {rpm: 1}}\n",
)


class World:
    """One gateway, its Redis, the proxy between them and a client."""

    def __init__(
        self, gateway: RunningGateway, redis: RedisServer, proxy: RedisProxy, client: httpx.Client
    ) -> None:
        self.gateway, self.redis, self.proxy = gateway, redis, proxy
        self._client = client
        self._keys = {name: gateway.key(name) for name in ("rated", "strict", "acme")}
        self._number = 0

    def ask(self, text: str = "", tenant: str = "rated") -> httpx.Response:
        """One chat request; without a text one that nobody has asked before."""
        self._number += 1
        return chat(
            self._client, self.gateway, self._keys[tenant], text or f"Question {self._number}?"
        )

    @property
    def redis_is(self) -> str:
        """What the readiness probe says of Redis; that it is ready is checked at once."""
        answer = self._client.get(self.gateway.admin_url + "/readyz")
        assert answer.status_code == 200
        state: str = answer.json()["checks"]["redis"]
        return state

    def metric(self, name: str) -> float:
        lines = self._client.get(self.gateway.admin_url + "/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"tollhouse_{name}") and line[len(f"tollhouse_{name}")] in " {"
        )

    def healed(self) -> None:
        """Wait until requests are judged with Redis again."""
        wait_for(
            lambda: "x-tollhouse-degraded" not in self.ask().headers,
            BACK_SECONDS,
            self.gateway.describe,
        )


def chat(client: httpx.Client, gateway: RunningGateway, key: str, text: str) -> httpx.Response:
    return client.post(
        gateway.base_url + "/chat/completions",
        json={"model": "large", "messages": [{"role": "user", "content": text}]},
        headers={"authorization": f"Bearer {key}"},
    )


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=10.0) as made:
        yield made


@pytest.fixture(scope="module")
def one(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread, client: httpx.Client
) -> Iterator[World]:
    """Started while Redis was not there yet; one of two gateways, as far as it knows."""
    folder = tmp_path_factory.mktemp("faults")
    redis = RedisServer(folder)
    proxy = RedisProxy(redis.socket)
    try:
        with running_gateway(
            folder, provider.base_url, policy=SHARED_POLICY,
            environment={"TOLLHOUSE_REDIS_URL": proxy.url, "TOLLHOUSE_REPLICAS": "2"},
        ) as gateway:  # fmt: skip
            world = World(gateway, redis, proxy, client)
            assert world.redis_is == "away"
            answer = world.ask()
            assert answer.status_code == 200
            assert answer.headers["x-tollhouse-degraded"] == "rate-limits"
            redis.start()
            world.healed()
            yield world
    finally:
        proxy.stop()
        redis.stop()


@pytest.fixture
def world(one: World) -> World:
    """The same, in good health and with nothing remembered in Redis."""
    one.redis.ask("FLUSHALL")
    assert one.redis_is == "ok"
    return one


def slow(world: World) -> None:
    world.proxy.mode = "slow"


def garbage(world: World) -> None:
    world.proxy.mode = "garbage"


def loading(world: World) -> None:
    world.proxy.mode = "loading"


def faithful(world: World) -> None:
    world.proxy.mode = "faithful"


def full(world: World) -> None:
    world.redis.ask("CONFIG", "SET", "maxmemory", 1)


def roomy(world: World) -> None:
    world.redis.ask("CONFIG", "SET", "maxmemory", 0)


def demoted(world: World) -> None:
    world.redis.ask("REPLICAOF", "127.0.0.1", 1)


def promoted(world: World) -> None:
    world.redis.ask("REPLICAOF", "NO", "ONE")


TROUBLES: dict[str, tuple[Callable[[World], None], Callable[[World], None]]] = {
    "stopped": (lambda world: world.redis.stop(), lambda world: world.redis.start()),
    "frozen": (lambda world: world.redis.freeze(), lambda world: world.redis.thaw()),
    "slow": (slow, faithful),
    "corrupt": (garbage, faithful),
    "loading": (loading, faithful),
    "read-only": (demoted, promoted),
    "full": (full, roomy),
}


@pytest.mark.slow
@pytest.mark.parametrize(("begin", "end"), TROUBLES.values(), ids=TROUBLES)
def test_trouble_costs_50_ms_once_then_requests_go_on_with_the_share_until_redis_is_back(
    world: World, begin: Callable[[World], None], end: Callable[[World], None]
) -> None:
    """Right answers throughout, the fallback announced and counted, and no restart needed."""
    usual_seconds = statistics.median(timed(world)[1] for _ in range(10))
    repeated = world.ask("What is repeated?")
    degraded = world.metric("rate_limits_degraded_total")
    begin(world)
    try:
        taken: list[float] = []
        for _ in range(CALLS):
            answer, seconds = timed(world)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-tollhouse-cache"] == "miss"
            assert answer.headers["x-tollhouse-degraded"] == "rate-limits"
            assert answer.headers["x-ratelimit-limit-requests"] == "50000"
            taken.append(seconds)
        # No request waits longer than the time-out, and they do not all wait in turn.
        assert max(taken) < usual_seconds + TIMEOUT_SECONDS + SLACK_SECONDS
        assert sum(taken) < CALLS * usual_seconds + 4 * TIMEOUT_SECONDS + SLACK_SECONDS * 3
        again = world.ask("What is repeated?")
        assert again.headers["x-tollhouse-cache"] == "hit-exact"  # from this process' memory
        assert again.json()["choices"] == repeated.json()["choices"]
        refused = world.ask(tenant="strict")
        assert refused.status_code == 429
        assert "Redis is away" in refused.json()["error"]["message"]
        assert "x-tollhouse-degraded" not in world.ask(tenant="acme").headers  # has no limits
        assert world.metric("rate_limits_degraded_total") >= degraded + CALLS
        assert world.redis_is in ("away", "ok")  # and ready all the time
    finally:
        end(world)
    world.healed()
    wait_for(lambda: world.redis_is == "ok", BACK_SECONDS)
    assert world.ask().headers["x-ratelimit-limit-requests"] == "100000"


def timed(world: World) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = world.ask()
    return answer, time.monotonic() - began


def test_a_value_that_somebody_altered_in_redis_is_a_miss(
    world: World, provider: ProviderThread
) -> None:
    """Whatever it says, the provider is asked; and the next one finds the new value."""
    text = "What is poisoned?"
    before = exact_names(world)  # of what others have asked
    first = world.ask(text)
    wait_for(lambda: len(exact_names(world) - before) == 1, 5.0)
    (name,) = exact_names(world) - before
    value = world.redis.ask("GET", name)
    purge(world)
    assert world.redis.ask("EXISTS", name) == 0  # purged there too
    for poisoned in (value.replace(b"assistant", b"attackers"), value[:-1], b"\x80\x04K\x01."):
        assert poisoned != value
        invalid = world.metric("shared_cache_lookups_total")
        world.redis.ask("SET", name, poisoned)
        answer = world.ask(text)
        assert answer.headers["x-tollhouse-cache"] == "miss"
        assert answer.json()["choices"] == first.json()["choices"]
        assert world.metric("shared_cache_lookups_total") == invalid + 1
        purge(world)


def exact_names(world: World) -> set[bytes]:
    return {name for name in world.redis.ask("KEYS", "*") if b":exact:" in name}


def purge(world: World) -> None:
    with world.gateway.admin() as admin:
        admin.delete("/admin/cache").raise_for_status()


@pytest.mark.slow
def test_purging_while_redis_is_away_is_refused(world: World) -> None:
    """What it holds would come back."""
    world.redis.stop()
    try:
        with world.gateway.admin() as admin:
            answer = admin.delete("/admin/cache")
        assert answer.status_code == 503
        assert "when Redis is back" in answer.json()["error"]["message"]
    finally:
        world.redis.start()
    world.healed()


@pytest.mark.slow
def test_two_gateways_share_limits_and_answers(
    world: World, tmp_path: Path, provider: ProviderThread, client: httpx.Client
) -> None:
    """With the same pepper they know the same keys; apart from that they share Redis alone."""
    (tmp_path / "state").mkdir()
    shutil.copy(world.gateway.state_dir / "pepper", tmp_path / "state" / "pepper")
    with running_gateway(
        tmp_path, provider.base_url, policy=SHARED_POLICY,
        environment={"TOLLHOUSE_REDIS_URL": world.redis.url, "TOLLHOUSE_REPLICAS": "2"},
    ) as second:  # fmt: skip
        places = [(gateway, gateway.key("limited")) for gateway in (world.gateway, second)]
        answers = [chat(client, *places[n % 2], "What do we share?") for n in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        caches = [answer.headers["x-tollhouse-cache"] for answer in answers[:3]]
        assert caches == ["miss", "hit-exact", "hit-exact"]
        assert answers[0].json()["choices"] == answers[1].json()["choices"]
        left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers[:3]]
        assert left == ["2", "1", "0"]
        assert 0 < int(answers[3].headers["retry-after"]) <= 61
