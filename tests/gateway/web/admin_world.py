"""A whole admin port for tests: real keys, real server, a small month of traffic."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
from litestar import Litestar

from gateway.asgi import AsgiHandler
from gateway.config import Limits
from gateway.ledger import Ledger
from gateway.ledger.event import Refused, UsageEvent
from gateway.policy.holder import PolicyHolder
from gateway.policy.switches import Switches
from gateway.prices import from_contract
from gateway.server import Server
from gateway.stores.keys import KeyRecord, KeyStore, Role
from gateway.telemetry import Metrics
from gateway.web.app import create_admin_app
from gateway.web.services import AdminServices, Probe
from gateway.wire.usage import Usage

NOW_US = int(datetime(2026, 11, 21, 9, 30, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US = 86_400_000_000
USD = 10**12
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


CONTRACT = from_contract(
    contract_id="T",
    provider="bigco",
    model="large",
    currency="USD",
    per_mtok={"input": "2.5", "cached_input": "1.25", "output": "10"},
)
PRICE_ID = CONTRACT.prices[0].price_id
UNPRICED: dict[str, Any] = {"price_id": None, "cost_pico": None, "charge_pico": None}
USAGE = Usage(prompt_tokens=1200, cached_tokens=200, completion_tokens=300, reasoning_tokens=20)


def attempt(number: int, **changes: Any) -> UsageEvent:
    """An ordinary settled attempt of the ``number``-th request, varied."""
    count = changes.get("attempt", 1)
    ordinary = UsageEvent(
        event_id=f"01REQ{number:06d}/{count}",
        request_id=f"01REQ{number:06d}",
        attempt=count,
        ts_us=NOW_US - number * 3_600_000_000,
        recorded_us=NOW_US,
        tenant_id="acme",
        project_id="default",
        key_id="key_1",
        route="support-chat",
        decision="hard",
        reason="p(hard)=0.71 >= 0.35",
        difficulty=0.71,
        policy_version="abc123abc123",
        provider="bigco",
        model_requested="auto",
        model_served="large",
        usage=USAGE,
        price_id=PRICE_ID,
        baseline_price_id=PRICE_ID,
        cost_pico=123_456_789,
        charge_pico=127_160_493,
        baseline_pico=123_456_789,
        status=200,
        duration_us=812_345,
        ttft_us=204_000,
    )
    return msgspec.structs.replace(ordinary, **changes)


POLICY = f"""
apiVersion: tollhouse/v1
kind: Models
metadata: {{name: models}}
providers:
  - {{name: bigco, api: openai, base_url: "https://bigco.example/v1"}}
  - {{name: pretend, api: openai, base_url: "http://127.0.0.1:9/v1", simulated: true}}
models:
  - {{name: large, provider: bigco, upstream_model: big-1, price: {{source: unpriced}}}}
  - {{name: cheap, provider: pretend, upstream_model: sim-1, price: {{source: unpriced}}}}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {{name: routing}}
defaults: {{baseline: large}}
routes:
  - {{name: support-chat, match: {{}}, to: large}}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {{name: tenants}}
tenants:
  - id: acme
    name: Acme Support
    cost_center: CC-4711
    budgets: [{{name: monthly, amount: "50.00", period: calendar_month, enforce: hard}}]
  - {{id: globex, name: Globex Research}}
  - {{id: evil, name: {json.dumps(EVIL)}, cost_center: "=1+1"}}
"""


class World:
    """The services behind the port, and ways to come in."""

    def __init__(self, folder: Path) -> None:
        self.now_us = NOW_US
        self.keys = KeyStore(folder / "keys.sqlite", b"p" * 32)
        self.ledger = Ledger.open(folder, now_us=lambda: self.now_us)
        self.ledger.store.register_prices(CONTRACT.prices)
        self.policy_file = folder / "policy.yaml"
        self.policy_file.write_text(POLICY)
        self.policies = PolicyHolder(
            [self.policy_file],
            state_dir=folder / "policies",
            settle_seconds=0.1,
            now_us=lambda: self.now_us,
            environ={},
        )
        self.metrics = Metrics()
        self.purged: list[str | None] = []
        self.ready = Probe(ok=True, checks={"ledger": "ok"})
        self.services = AdminServices(
            keys=self.keys,
            ledger=self.ledger,
            budgets_used=self.ledger.budgets.used,
            policies=self.policies,
            switches=Switches(folder / "switches.json"),
            metrics=self.metrics.exposition,
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

    def book(self, *events: UsageEvent) -> None:
        """Log settled attempts and ship them into the books, and count them in the budgets."""
        for event in events:
            self.ledger.settle(event)
        self.ledger.shipper.ship()
        # Budgets read the books when they are set up: set them up anew.
        self.ledger.budgets.configure(
            msgspec.structs.replace(self.policies.current, tenants={}), self.now_us
        )
        self.ledger.budgets.configure(self.policies.current, self.now_us)

    def turn_away(self, *refusals: Refused) -> None:
        """Count refused requests and ship the counts into the books."""
        for refused in refusals:
            self.ledger.refuse(refused)
        self.ledger.shipper.ship()

    @contextmanager
    def visitor(self, role: Role = "admin", tenant: str | None = None) -> Iterator[httpx.Client]:
        """A person's client, signed in through the form."""
        with self.client() as client:
            page = client.get("/login")
            form = {"form_token": form_token(page.text), "key": self.key(role, tenant)[1]}
            answer = client.post("/login", data=form)
            assert answer.status_code == 303, answer.text
            yield client

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
    free: dict[str, Any] = {"cost_pico": 0, "charge_pico": 0}
    made.book(
        attempt(1),
        attempt(2, decision="easy", model_served="small", provider="local", **free),
        attempt(3, cache_status="exact", decision="cached", cost_pico=0, charge_pico=12_345_679),
        attempt(
            4, tenant_id="globex", model_served="cheap", provider="pretend", charge_pico=2 * USD
        ),
        attempt(5, tenant_id="evil", model_served=EVIL, route=EVIL, reason=EVIL, **UNPRICED),
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    handler = AsgiHandler(made.app)
    server = Server(handler, Limits())

    async def start() -> asyncio.Server:
        await handler.startup()
        return await loop.create_server(server, "127.0.0.1", 0)

    async def stop(listening: asyncio.Server) -> None:
        listening.close()
        server.abort()
        await handler.shutdown()

    try:
        listening = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        host, port = listening.sockets[0].getsockname()[:2]
        made.address = f"http://{host}:{port}"
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(stop(listening), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        made.ledger.close()
        made.keys.close()
