"""Exchanges as the stages leave them, for tests of what is made of them."""

from typing import Any

from gateway.caches.entry import StoredAnswer
from gateway.exchange import Attempt, Exchange, Plan
from gateway.policy.lane import Way
from gateway.policy.snapshot import Charging, Match, Model, Policy, Provider, Route, Tenant
from gateway.prices import PriceSchedule, from_contract
from gateway.stores.keys import KeyRecord
from gateway.wire.openai import parse_request
from gateway.wire.usage import Usage

NOW_US = 1_795_168_800_000_000  # 2026-11-20T10:00:00Z
BODY = b'{"model":"auto","user":"u-1","messages":[{"role":"user","content":"Good morning"}]}'


class NobodyThere:
    """A client that is told nothing."""

    gone = False

    def start(self, exchange: Exchange, status: int, content_type: bytes) -> None:
        raise AssertionError("nothing is sent here")

    def write(self, data: bytes) -> None:
        raise AssertionError("nothing is sent here")

    def watch(self, task: object) -> None:
        raise AssertionError("nothing is cancelled here")


def contract(name: str, **per_mtok: str) -> PriceSchedule:
    return from_contract(
        contract_id="T", provider="p", model=name, currency="USD", per_mtok=per_mtok
    )


def model(name: str, prices: PriceSchedule | None) -> Model:
    return Model(
        name=name, provider=Provider(name=f"{name}-provider", api="openai"),
        upstream_model=name, prices=prices, paths={"chat": "/chat/completions"},
    )  # fmt: skip


SMALL = model("small", contract("small", input="0.10", output="0.40"))
LARGE = model("large", contract("large", input="2.50", cached_input="1.25", output="15.00"))
AT_COST = Charging()
UNPRICED = model("unpriced", None)


def exchange(
    *,
    small: Model = SMALL,
    large: Model = LARGE,
    baseline: Model | None = LARGE,
    charging: Charging = AT_COST,
    pinned: Model | None = None,
    body: bytes = BODY,
) -> Exchange:
    """A request of the tenant ``acme`` that has been resolved and planned."""
    tenant = Tenant(id="acme", charging=charging)
    route = Route(
        name="chat", where="policy.yaml:1", matches=Match(), models=frozenset(),
        small=small, large=large,
    )  # fmt: skip
    policy = Policy(
        version="0123456789ab",
        providers={}, models={small.name: small, large.name: large},
        routes=(route,), tenants={tenant.id: tenant}, baseline=baseline, known_models=frozenset(),
    )  # fmt: skip
    made = Exchange(
        request_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", endpoint="chat", headers={}, raw=body,
        client=NobodyThere(), policy=policy, started=100.0, started_us=NOW_US,
    )  # fmt: skip
    made.key = KeyRecord(id="key_1", kind="api", tenant_id="acme", project_id="web", created_us=0)
    made.tenant, made.route = tenant, route
    made.way = Way(route=route, pinned=pinned, usual=(pinned or large,), meant=(pinned or large,))
    made.request = parse_request("chat", body)
    made.cache_status = "miss"
    made.plan = Plan(
        candidates=(small, large), decision="easy", reason="p(hard)=0.18", output_tokens_max=100,
        worst_pico=(0, 0),
    )  # fmt: skip
    return made


def attempt(target: Model, usage: Usage | None, number: int = 1, **changes: Any) -> Attempt:
    """A call that took a quarter of a second."""
    fields: dict[str, Any] = {
        "number": number, "target": target, "started_us": NOW_US, "started_monotonic": 100.0,
        "ended_monotonic": 100.25, "usage": usage,
    }  # fmt: skip
    return Attempt(**(fields | changes))


def stored(usage: Usage, served: str = "large") -> StoredAnswer:
    """An answer of an hour ago."""
    return StoredAnswer(
        answer=b'{"id":"x","choices":[]}', endpoint="chat", served_model=served,
        provider=f"{served}-provider", usage=usage, stored_us=NOW_US - 3_600_000_000,
        expires_us=NOW_US + 1, cache_id="01CACHED", route_identity=b"", tenant_id="acme",
        writer_key_id="key_1",
    )  # fmt: skip
