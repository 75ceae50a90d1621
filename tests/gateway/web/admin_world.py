"""A whole admin port for tests: real keys, real server, a small month of traffic."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import uvicorn
from litestar import Litestar

from gateway.errors import PolicyError
from gateway.policy.snapshot import Budget, Model, Policy, Provider, Route, Tenant
from gateway.stores.keys import KeyRecord, KeyStore, Role
from gateway.telemetry import Metrics
from gateway.web.app import create_admin_app
from gateway.web.services import (
    AdminServices,
    BudgetState,
    Completeness,
    EventRow,
    Figures,
    Probe,
    ReloadStatus,
    SwitchState,
)

NOW_US = int(datetime(2026, 11, 21, 9, 30, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US = 86_400_000_000
USD = 10**12
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def booked(number: int, **changes: object) -> EventRow:
    """An ordinary booked attempt, varied."""
    ordinary = EventRow(
        event_id=f"01REQ{number:06d}/1",
        request_id=f"01REQ{number:06d}",
        attempt=1,
        ts_us=NOW_US - number * 3_600_000_000,
        tenant="acme",
        project="default",
        key_id="key_1",
        route="support-chat",
        decision="hard",
        reason="p(hard)=0.71 >= 0.35",
        difficulty=0.71,
        policy_version="abc123abc123",
        cache_status="miss",
        similarity=None,
        provider="bigco",
        model_requested="auto",
        model_served="large",
        prompt_tokens=1200,
        cached_tokens=200,
        completion_tokens=300,
        reasoning_tokens=20,
        usage_source="provider",
        price_id="bigco/large@2026-10-12~0123456789ab",
        cost_pico=123_456_789,
        charge_pico=127_160_493,
        baseline_pico=123_456_789,
        overhead_pico=0,
        status=200,
        error_type=None,
        duration_us=812_345,
        ttft_us=204_000,
        state="final",
        superseded=False,
    )
    return msgspec.structs.replace(ordinary, **changes)


class ListedReports:
    """Reports over a list of attempts: the plainest possible reading of each question."""

    def __init__(self) -> None:
        self.rows: list[EventRow] = []

    def _of(self, period: str, tenant: str | None) -> list[EventRow]:
        return [
            row
            for row in self.rows
            if tenant in (None, row.tenant) and _day(row.ts_us).startswith(period)
        ]

    def _grouped(
        self, period: str, tenant: str | None, key: Callable[[EventRow], tuple[str, str]]
    ) -> list[Figures]:
        groups: dict[tuple[str, str], list[EventRow]] = {}
        for row in self._of(period, tenant):
            groups.setdefault(key(row), []).append(row)
        summed = [_sum(name, provider, rows) for (name, provider), rows in groups.items()]
        return sorted(summed, key=lambda figures: -figures.charge_pico)

    def by_tenant(self, period: str, tenant: str | None = None) -> Sequence[Figures]:
        return self._grouped(period, tenant, lambda row: (row.tenant, ""))

    def by_model(self, period: str, tenant: str | None) -> Sequence[Figures]:
        return self._grouped(period, tenant, lambda row: (row.model_served, row.provider))

    def by_route(self, period: str, tenant: str | None) -> Sequence[Figures]:
        return self._grouped(period, tenant, lambda row: (row.route, ""))

    def by_day(self, period: str, tenant: str | None) -> Sequence[Figures]:
        days = self._grouped(period, tenant, lambda row: (_day(row.ts_us), ""))
        return sorted(days, key=lambda figures: figures.key)

    def events(self, period: str, tenant: str | None, limit: int) -> Sequence[EventRow]:
        return sorted(self._of(period, tenant), key=lambda row: -row.ts_us)[:limit]

    def request(self, request_id: str) -> Sequence[EventRow]:
        return [row for row in self.rows if row.request_id == request_id]

    def completeness(self) -> Completeness:
        return Completeness(as_of_us=NOW_US, waiting_bytes=0)


def _day(timestamp_us: int) -> str:
    return datetime.fromtimestamp(timestamp_us / 1e6, UTC).strftime("%Y-%m-%d")


def _sum(key: str, provider: str, rows: list[EventRow]) -> Figures:
    hits = [row for row in rows if row.cache_status in ("exact", "semantic")]
    misses = [row for row in rows if row not in hits]
    return Figures(
        key=key,
        provider=provider,
        requests=len(rows),
        errors=sum(row.status >= 400 for row in rows),
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        cached_tokens=sum(row.cached_tokens for row in rows),
        completion_tokens=sum(row.completion_tokens for row in rows),
        cost_pico=sum(row.cost_pico or 0 for row in rows),
        charge_pico=sum(row.charge_pico or 0 for row in rows),
        saved_cache_pico=sum((row.baseline_pico or 0) - (row.cost_pico or 0) for row in hits),
        saved_routing_pico=sum((row.baseline_pico or 0) - (row.cost_pico or 0) for row in misses),
        cache_hits=len(hits),
        small=sum(row.decision == "easy" for row in rows),
        unpriced=sum(row.cost_pico is None for row in rows),
        estimated=sum(row.state != "final" for row in rows),
    )


class OneSwitch:
    """A gateway with a single switch."""

    def __init__(self) -> None:
        self.state = SwitchState(name="semantic-cache", on=True, meaning="answer from meaning")

    def states(self) -> Sequence[SwitchState]:
        return [self.state]

    def throw(self, name: str, on: bool, until_us: int | None) -> SwitchState:
        if name != self.state.name:
            raise KeyError(name)
        self.state = SwitchState(name=name, on=on, until_us=until_us)
        return self.state


class TwoPolicies:
    """A policy with one earlier version; ``problems`` makes the next reload fail."""

    def __init__(self, policy: Policy) -> None:
        self.current = policy
        self.problems: tuple[str, ...] = ()

    def status(self) -> ReloadStatus:
        return ReloadStatus(
            version=self.current.version,
            successful=not self.problems,
            loaded_us=NOW_US,
            tried_us=NOW_US,
            problems=self.problems,
        )

    def versions(self) -> Sequence[str]:
        return ["000000000000"]

    def reload(self) -> ReloadStatus:
        if self.problems:
            raise PolicyError(self.problems)
        return self.status()

    def rollback(self, version: str | None) -> ReloadStatus:
        if version not in (None, "000000000000"):
            raise KeyError(version)
        self.current = msgspec.structs.replace(self.current, version="000000000000")
        return self.status()


def small_policy() -> Policy:
    """Three tenants, one of them with a hostile name; one provider of two is simulated."""
    bigco = Provider(name="bigco", api="openai", base_url="https://bigco.example/v1")
    pretend = Provider(
        name="pretend", api="openai", base_url="http://127.0.0.1:9/v1", simulated=True
    )
    large = Model(name="large", provider=bigco, upstream_model="big-1", prices=None)
    cheap = Model(name="cheap", provider=pretend, upstream_model="sim-1", prices=None)
    budget = Budget(name="monthly", amount_pico=50 * USD)
    return Policy(
        version="abc123abc123",
        providers={"bigco": bigco, "pretend": pretend},
        models={"large": large, "cheap": cheap},
        routes=(
            Route(
                name="support-chat",
                where="routing.yaml:1",
                matches=lambda facts: True,
                models=frozenset(),
                to=large,
            ),
        ),
        tenants={
            "acme": Tenant(
                id="acme", name="Acme Support", cost_center="CC-4711", budgets=(budget,)
            ),
            "globex": Tenant(id="globex", name="Globex Research"),
            "evil": Tenant(id="evil", name=EVIL, cost_center="=1+1"),
        },
        baseline=large,
        known_models=frozenset({"auto", "large", "cheap"}),
    )


class World:
    """The services behind the port, and ways to come in."""

    def __init__(self, folder: Path) -> None:
        self.keys = KeyStore(folder / "keys.sqlite", b"p" * 32)
        self.reports = ListedReports()
        self.policies = TwoPolicies(small_policy())
        self.switches = OneSwitch()
        self.metrics = Metrics()
        self.purged: list[str | None] = []
        self.now_us = NOW_US
        self.ready = Probe(ok=True, checks={"ledger": "ok"})
        self.services = AdminServices(
            keys=self.keys,
            reports=self.reports,
            policies=self.policies,
            switches=self.switches,
            metrics=self.metrics,
            budgets=self._budgets,
            purge=self._purge,
            live=lambda: Probe(ok=True),
            ready=lambda: self.ready,
            started=lambda: Probe(ok=True),
            stats=lambda: {"in_flight": 0},
            now_us=lambda: self.now_us,
            cookie_secret=b"c" * 32,
            environment="test",
        )
        self.app: Litestar = create_admin_app(self.services)
        self.address = ""

    def key(self, role: Role = "admin", tenant: str | None = None) -> tuple[KeyRecord, str]:
        """A new admin key."""
        return self.keys.create_admin(role, tenant, f"{role} key", now_us=self.now_us)

    def client(self, token: str = "") -> httpx.Client:
        """A program's client, with a key where one is given."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.address, headers=headers)

    @contextmanager
    def visitor(self, role: Role = "admin", tenant: str | None = None) -> Iterator[httpx.Client]:
        """A person's client, signed in through the form."""
        with self.client() as client:
            page = client.get("/login")
            form = {"form_token": form_token(page.text), "key": self.key(role, tenant)[1]}
            answer = client.post("/login", data=form)
            assert answer.status_code == 303, answer.text
            yield client

    def _budgets(self, tenant: str) -> Sequence[BudgetState]:
        known = self.policies.current.tenants.get(tenant)
        return [
            BudgetState(
                name=budget.name,
                limit_pico=budget.amount_pico,
                spent_pico=41 * USD + 123_456_789_012,
                reserved_pico=250_000_000_000,
                period=budget.period,
                enforce=budget.enforce,
                resets_us=int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * 1_000_000,
            )
            for budget in (known.budgets if known else ())
        ]

    def _purge(self, tenant: str | None) -> int:
        self.purged.append(tenant)
        return 7


def form_token(html: str) -> str:
    """The token in a page's form."""
    return html.split('name="form_token" value="', 1)[1].split('"', 1)[0]


@contextmanager
def served(folder: Path) -> Iterator[World]:
    """A served admin port with a handful of booked requests."""
    made = World(folder)
    made.reports.rows += [
        booked(1),
        booked(
            2, decision="easy", model_served="small", provider="local", cost_pico=0, charge_pico=0
        ),
        booked(3, cache_status="exact", decision="cached", cost_pico=0, charge_pico=12_345_679),
        booked(4, tenant="globex", model_served="cheap", provider="pretend", charge_pico=2 * USD),
        booked(5, tenant="evil", model_served=EVIL, route=EVIL, reason=EVIL, cost_pico=None),
    ]
    server = uvicorn.Server(
        uvicorn.Config(made.app, host="127.0.0.1", port=0, log_level="error", lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.005)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        made.address = f"http://{host}:{port}"
        yield made
    finally:
        server.should_exit = True
        thread.join()
        made.keys.close()
