"""Tenants that leave the policy: whoever gets their name later gets nothing of theirs."""

import time
from pathlib import Path

import httpx
import pytest

from gateway.departures import Departures
from gateway.errors import Overloaded
from gateway.policy.holder import PolicyHolder
from gateway.stores.keys import KeyStore
from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway, wait_for

DAY_US = 86_400_000_000
NOW_US = 1_795_168_800_000_000


class Town:
    """Keys and a policy file whose tenants come and go, and what was purged."""

    def __init__(self, folder: Path) -> None:
        self.now_us = NOW_US
        self.file = folder / "policy.yaml"
        self.keys = KeyStore(folder / "keys.sqlite", b"p" * 32)
        self.purged: list[str] = []
        self.redis_away = False
        self.write("acme", "globex")
        self.policies = PolicyHolder(
            [self.file], state_dir=folder / "policies", settle_seconds=0.1,
            now_us=lambda: self.now_us, environ={"TOLLHOUSE_TEST_PROVIDER": "http://127.0.0.1:9",
                                                 "TOLLHOUSE_TEST_SECRET": "s" * 8},
        )  # fmt: skip
        self.departures = Departures(
            self.keys, self.purge, grace_seconds=86_400.0,
            now_us=lambda: self.now_us, policy=self.policies.current,
        )  # fmt: skip
        self.policies.subscribe(self.departures.look)

    def write(self, *tenants: str) -> None:
        listed = "".join(f"  - {{id: {name}}}\n" for name in tenants)
        self.file.write_text(POLICY.partition("tenants:\n")[0] + "tenants:\n" + listed)

    def load(self, *tenants: str) -> None:
        self.write(*tenants)
        self.policies.reload()

    def purge(self, tenant_id: str) -> int:
        if self.redis_away:
            raise Overloaded("Redis is away")
        self.purged.append(tenant_id)
        return 1

    def opens(self, token: str) -> bool:
        return self.keys.authenticate(token, "api", self.now_us) is not None


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def test_keys_of_a_tenant_that_stayed_away_open_no_door_of_its_successor(town: Town) -> None:
    """The name is given again after the time of grace, to somebody else."""
    _, old = town.keys.create_api("acme", "default", "old", now_us=NOW_US)
    _, other = town.keys.create_api("globex", "default", "other", now_us=NOW_US)
    town.load("globex")
    town.now_us += DAY_US
    town.load("globex", "acme")
    assert not town.opens(old)
    assert town.opens(other)
    _, new = town.keys.create_api("acme", "default", "new", now_us=town.now_us)
    town.departures.look(town.policies.current)
    assert town.opens(new)


def test_a_tenant_left_out_by_mistake_has_its_keys_again(town: Town) -> None:
    """A bad deploy of an hour costs an hour, and the next departure counts anew."""
    _, token = town.keys.create_api("acme", "default", "old", now_us=NOW_US)
    for _ in range(2):
        town.load("globex")
        town.now_us += DAY_US - 1
        town.load("globex", "acme")
        assert town.opens(token)


def test_keys_end_even_if_the_name_never_comes_back(town: Town) -> None:
    """A look in the background is enough, also after a restart in between."""
    _, token = town.keys.create_api("acme", "default", "old", now_us=NOW_US)
    town.load("globex")
    town.now_us += 2 * DAY_US
    again = Departures(
        town.keys, town.purge, grace_seconds=86_400.0,
        now_us=lambda: town.now_us, policy=town.policies.current,
    )  # fmt: skip
    again.look(town.policies.current)
    assert not town.opens(token)
    assert town.keys.departed() == {}


def test_cached_answers_are_dropped_before_the_name_is_in_force_again(town: Town) -> None:
    """However short the absence, and for a tenant without a key made at run time too."""
    town.load("globex")
    assert town.purged == []
    town.load("globex", "acme")
    assert town.purged == ["acme"]


def test_a_purge_that_failed_is_made_up_for(town: Town) -> None:
    """With Redis away the policy comes into force, and the next look purges."""
    town.load("globex")
    town.redis_away = True
    town.load("globex", "acme")
    assert "acme" in town.policies.current.tenants
    town.redis_away = False
    town.departures.look(town.policies.current)
    assert town.purged == ["acme"]


def completion(gateway: RunningGateway, token: str) -> httpx.Response:
    return httpx.post(
        f"{gateway.base_url}/chat/completions",
        headers={"authorization": f"Bearer {token}"},
        json={"model": "large", "temperature": 0,
              "messages": [{"role": "user", "content": "What is owed?"}]},
        timeout=10.0, trust_env=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_served_name_given_again_answers_nothing_of_before(tmp_path: Path) -> None:
    """A whole gateway: refused while gone, then a miss where the answer had been cached."""
    provider = ProviderThread()
    settings = "limits: {departed_tenant_seconds: 0}\n"
    with running_gateway(tmp_path, provider.base_url, settings=settings) as gateway:
        old = gateway.key("globex")
        states = [completion(gateway, old).headers["x-tollhouse-cache"] for _ in range(2)]
        assert states == ["miss", "hit-exact"]
        _swap(gateway, POLICY.replace("  - {id: globex}\n", ""))
        assert completion(gateway, old).status_code == 403
        _swap(gateway, POLICY)
        assert completion(gateway, old).status_code == 401
        assert completion(gateway, gateway.key("globex")).headers["x-tollhouse-cache"] == "miss"
    provider.stop()


def _swap(gateway: RunningGateway, policy: str) -> None:
    """Write another policy and wait until it is in force."""

    def version() -> str:
        with gateway.admin() as admin:
            return str(admin.get("/readyz").json()["checks"]["policy"])

    before = version()
    gateway.policy_file.write_text(f"{policy}# {time.monotonic_ns()}\n")
    wait_for(lambda: version() != before, 20.0, gateway.describe)
