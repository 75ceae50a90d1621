"""The composition root: settings become Services, Services become two servers in one process.

The only place that knows every part. A part is made here, handed on, and closed here.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Collection
from pathlib import Path

import uvloop

from gateway.admin import admin_services
from gateway.asgi import AsgiHandler
from gateway.caches.exact import ExactCache
from gateway.caches.repeats import Repeats
from gateway.caches.semantic import SemanticCache
from gateway.caches.shared_exact import SharedExactCache
from gateway.caches.single_flight import SingleFlight
from gateway.config import Settings
from gateway.endpoints import V1
from gateway.errors import PolicyError, UpstreamError, UpstreamUnavailable
from gateway.ids import UlidFactory
from gateway.ledger import Ledger
from gateway.policy.holder import PolicyHolder
from gateway.policy.snapshot import Policy, Provider
from gateway.policy.switches import Switches
from gateway.routing import Router
from gateway.server import Server
from gateway.services import Services
from gateway.stores.keys import KeyRecord, KeyStore, load_pepper
from gateway.stores.limits import Limiter
from gateway.stores.redis import Redis
from gateway.stores.shared_limits import SharedLimiter
from gateway.telemetry import Metrics
from gateway.upstreams.base import Upstream, UpstreamRequest, UpstreamResponse
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.health import Outcome
from gateway.upstreams.hedging import Hedged
from gateway.upstreams.local import LocalUpstream, ModelProcessClient
from gateway.upstreams.local_client import PENDING_MAX
from gateway.upstreams.openai import OpenAIUpstream
from gateway.upstreams.retry_budget import RetryBudget

_POLICY_POLL_SECONDS = 0.25
_SAMPLE_SECONDS = 1.0
_BACKLOG = 2048  # connections that wait to be accepted
_STOPPED_SECONDS = 2.0  # for answers to those who were told that we stop
_ADMIN_DRAIN_SECONDS = 5.0
_GC_THRESHOLDS = (50_000, 20, 50)
_log = logging.getLogger("tollhouse")


class UpstreamPool:
    """One upstream per provider of the policy, made on first use, replaced when it changes."""

    def __init__(self, settings: Settings, model_process: ModelProcessClient | None) -> None:
        self._settings = settings
        self._model_process = model_process
        self._made: dict[Provider, Upstream] = {}  # by value: a reload that changes nothing
        self._known: dict[int, tuple[Provider, Upstream]] = {}  # by identity: the hot path
        self._current: tuple[Provider, ...] = ()

    def __call__(self, provider: Provider) -> Upstream:
        """The upstream of ``provider``."""
        known = self._known.get(id(provider))
        if known is not None:
            return known[1]
        upstream = self._made.get(provider)
        if upstream is None:
            upstream = self._made[provider] = self._make(provider)
        # The provider is kept beside its upstream, so that its identity stays its own.
        self._known[id(provider)] = (provider, upstream)
        return upstream

    def adopt(self, providers: Collection[Provider]) -> None:
        """A new policy names these. The others stay: requests of an older policy run on them."""
        self._current = tuple(providers)
        self._known.clear()

    def ejected(self) -> dict[tuple[str, ...], float]:
        """Per provider: 1 while it is not healthy."""
        return {
            (provider.name,): float(not upstream.healthy)
            for provider, upstream in tuple(self._made.items())
            if provider in self._current
        }

    async def close(self) -> None:
        """Close every connection."""
        for upstream in tuple(self._made.values()):
            await upstream.close()

    def _make(self, provider: Provider) -> Upstream:
        if provider.api == "local":
            if self._model_process is None:
                return AbsentModel(provider.name)
            local = LocalUpstream(
                provider.name,
                self._model_process,
                provider.runtime.model,
                concurrent_max=provider.concurrent_max,
                tenant_share=provider.tenant_share,
                parallel=self._settings.local.slots,
            )
            return Hedged(local) if self._settings.local.hedge else local
        timeouts, health, limits = provider.timeouts, provider.health, self._settings.limits
        secret = provider.authorization
        return OpenAIUpstream(
            name=provider.name,
            base_url=provider.base_url,
            authorization=secret.reveal() if secret is not None else None,
            authorization_header=provider.authorization_header,
            connect_seconds=timeouts.connect_seconds,
            concurrent_max=provider.concurrent_max,
            tenant_share=provider.tenant_share,
            window_seconds=health.window_seconds,
            min_requests=health.min_requests,
            error_rate=health.error_rate,
            eject_seconds=health.eject_seconds,
            answer_bytes_max=limits.answer_bytes_max,
            network=provider.network,
        )


class Gateway:
    """One worker's parts, open from construction to ``close``."""

    def __init__(self, settings: Settings, model_socket: Path | None) -> None:
        """Opens the state folder. Raises PolicyError or OSError with a sentence."""
        logging.getLogger("tollhouse.access").setLevel(
            logging.INFO if settings.access_log else logging.WARNING
        )
        state_dir = settings.state_dir
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.keys = KeyStore(state_dir / "keys.sqlite", load_pepper(state_dir / "pepper"))
        self.policies = PolicyHolder(
            settings.policies,
            state_dir=state_dir / "policies",
            settle_seconds=settings.limits.reload_settle_seconds,
            now_us=now_us,
        )
        self.model_process = (
            ModelProcessClient(model_socket, f"worker-{os.getpid()}")
            if model_socket is not None and settings.local.enabled != "off"
            else None
        )
        ledger = Ledger.open(state_dir, durability=settings.durability, now_us=now_us)
        self.pool = UpstreamPool(settings, self.model_process)
        client = self.model_process
        self.services = Services(
            settings=settings,
            policies=self.policies,
            switches=Switches(state_dir / "switches.json"),
            keys=self.keys,
            limiter=Limiter(),
            ledger=ledger,
            repeats=Repeats(),
            exact=ExactCache(bytes_max=settings.limits.exact_cache_bytes),
            flights=SingleFlight(),
            semantic=SemanticCache(
                entries_per_namespace_max=settings.limits.semantic_entries_max,
                namespaces_max=settings.limits.semantic_namespaces_max,
            ),
            router=Router.shipped(),
            upstream=self.pool,
            embed=client.embed if client is not None else None,
            embedding_ready=lambda: client is not None and client.embedding_ready,
            local_answers=lambda: client is not None and client.generation_ready,
            metrics=Metrics(),
            new_id=UlidFactory(),
            now_us=now_us,
            monotonic=time.monotonic,
        )
        _share(self.services)
        self._leases: asyncio.Task[None] | None = None
        self.policies.subscribe(self._adopt)
        self._adopt(self.policies.current)
        self.v1 = V1(self.services)
        self._watch_metrics()

    def _adopt(self, policy: Policy) -> None:
        """What a new policy changes outside itself: static keys, budgets, known prices."""
        self.keys.replace_static(_static_keys(policy))
        ledger = self.services.ledger
        ledger.store.register_prices(
            price
            for model in policy.models.values()
            if model.prices is not None
            for price in model.prices.prices
        )
        ledger.budgets.configure(policy, now_us())
        self.services.metrics.policy_info.only((policy.version,))
        self.pool.adopt(policy.providers.values())

    def _watch_metrics(self) -> None:
        metrics, services = self.services.metrics, self.services
        metrics.in_flight.callback = lambda: self.v1.in_flight
        metrics.upstream_ejected.callback = self.pool.ejected
        metrics.local_model_up.callback = lambda: float(services.local_answers())
        metrics.metering_wal_bytes.callback = lambda: services.ledger.shipper.wal_bytes
        metrics.metering_lag_seconds.callback = lambda: services.ledger.shipper.lag_seconds
        metrics.budget_used_ratio.callback = lambda: {
            (tenant, budget.name): (spent + held) / budget.amount_pico
            for tenant, budget, spent, held in services.ledger.budgets.used(now_us())
            if budget.amount_pico
        }
        metrics.config_last_reload_successful.callback = lambda: float(
            self.policies.last_error is None
        )
        metrics.config_last_reload_success_timestamp_seconds.callback = lambda: (
            self.policies.last_success_us / 1e6
        )
        metrics.cache_entries.callback = lambda: {
            ("exact",): float(services.exact.stats.entries),
            ("semantic",): float(
                sum(space.entries for space in services.semantic.stats().values())
            ),
        }

    async def open(self) -> None:
        """Start what runs in the background."""
        loop = asyncio.get_running_loop()
        self.services.metrics.event_loop_tasks.callback = lambda: len(asyncio.all_tasks(loop))
        if self.model_process is not None:
            self.model_process.start()
        redis, limiter = self.services.redis, self.services.shared_limiter
        if redis is not None and limiter is not None:
            await redis.connect()  # or not: then it comes by itself, and we begin without
            self._leases = asyncio.get_running_loop().create_task(limiter.keep())

    async def sample_model_process(self) -> None:
        """Note once a second how many generations run at once, for ever."""
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            client = self.model_process
            if client is None or not client.generation_ready:
                continue
            with contextlib.suppress(UpstreamError):
                stats = await client.stats()
                if stats.generations:
                    self.services.metrics.local_batch_size.observe(stats.generations)

    async def close(self) -> None:
        """Flush the ledger and close everything. Nothing may be in flight any more."""
        await self.pool.close()
        if self.model_process is not None:
            await self.model_process.close()
        await self.services.ledger.drain()
        self.services.ledger.close()
        if self._leases is not None:
            self._leases.cancel()
        if self.services.redis is not None:
            await self.services.redis.close()
        self.keys.close()


def _share(services: Services) -> None:
    """Limits and exact answers through Redis, where the settings name one."""
    settings, metrics = services.settings, services.metrics
    if settings.redis.url is None:
        return
    redis = services.redis = Redis(
        settings.redis.url,
        timeout_seconds=settings.redis.timeout_seconds,
        count=lambda kind: metrics.redis_trouble_total.inc((kind,)),
    )
    metrics.redis_up.callback = lambda: float(redis.healthy)
    services.shared_limiter = SharedLimiter(
        redis,
        prefix=settings.redis.prefix,
        processes=settings.replicas * settings.workers,
        count_degraded=metrics.rate_limits_degraded_total.inc,
    )
    services.shared_exact = SharedExactCache(
        redis,
        prefix=settings.redis.prefix,
        tenant_secret=services.keys.tenant_secret,
        answer_bytes_max=settings.limits.shared_answer_bytes_max,
        count=lambda result: metrics.shared_cache_lookups_total.inc((result,)),
    )


class AbsentModel:
    """Stands for the local provider where no model process is wanted. Never healthy."""

    healthy = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots = Bulkhead(name, slots_max=PENDING_MAX)
        self.retries = RetryBudget()

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Refuse: there is nobody to ask."""
        error = UpstreamUnavailable("This gateway runs no model process (local.enabled is off).")
        error.unsent = True
        raise error

    def report(self, outcome: Outcome) -> None:
        """Nothing to learn."""

    async def close(self) -> None:
        """Nothing to close."""


class _Stop:
    """Being told to stop: once, and a second time or by Ctrl-C to hurry."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self._hurry = asyncio.Event()

    def tell(self, hurry: bool = False) -> None:
        """A signal has come."""
        if hurry or self.told.is_set():
            self._hurry.set()
        self.told.set()

    async def noticed(self, seconds: float) -> None:
        """Give whoever sends us requests time to see that we are not ready."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


def run_worker(settings: Settings, public_fd: int, admin_fd: int, model_socket: Path) -> int:
    """Serve on two inherited sockets until SIGTERM; the exit status."""
    try:
        return uvloop.run(_serve(settings, public_fd, admin_fd, model_socket))
    except PolicyError:
        raise
    except (OSError, RuntimeError) as error:
        _log.error("cannot start: %s", error)
        return 1


async def _serve(settings: Settings, public_fd: int, admin_fd: int, model_socket: Path) -> int:
    gateway = Gateway(settings, model_socket)
    await gateway.open()
    admin_pages = _admin_pages(gateway)
    await admin_pages.startup()
    public, admin = (Server(handler, settings.limits) for handler in (gateway.v1, admin_pages))
    stop = _Stop()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.tell)
    loop.add_signal_handler(signal.SIGINT, stop.tell, True)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(gateway.policies))
    background = [
        loop.create_task(public.sweep()),
        loop.create_task(admin.sweep()),
        loop.create_task(_poll_policies(gateway.policies)),
        loop.create_task(gateway.sample_model_process()),
    ]
    listening = [
        await loop.create_server(server, sock=socket.socket(fileno=fd), backlog=_BACKLOG)
        for server, fd in ((public, public_fd), (admin, admin_fd))
    ]
    _announce(settings, gateway)
    _settle_garbage_collector()
    await stop.told.wait()
    # Not ready first, then nothing new, then what runs may end within drain_seconds.
    gateway.v1.stopping = True
    await stop.noticed(settings.unready_seconds)
    gateway.v1.draining = True
    listening[0].close()
    if not await public.drain(settings.drain_seconds):
        gateway.v1.stop()
        await public.drain(_STOPPED_SECONDS)
        public.abort()
    while gateway.v1.in_flight:  # noqa: ASYNC110 - of clients that have left: soon over
        await asyncio.sleep(0.01)
    listening[1].close()
    await admin.drain(_ADMIN_DRAIN_SECONDS)
    await admin_pages.shutdown()
    admin.abort()
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await gateway.close()
    return 0


def _admin_pages(gateway: Gateway) -> AsgiHandler:
    from gateway.web.app import create_admin_app

    return AsgiHandler(create_admin_app(admin_services(gateway.services, gateway.v1)))


async def _poll_policies(policies: PolicyHolder) -> None:
    while True:
        await asyncio.sleep(_POLICY_POLL_SECONDS)
        try:
            await asyncio.to_thread(policies.poll, time.monotonic())
        except Exception:  # whatever it was, the next change must be seen
            _log.exception("looking for changed policy files failed")


def _reload(policies: PolicyHolder) -> None:
    asyncio.get_running_loop().run_in_executor(None, policies.try_reload)


def _settle_garbage_collector() -> None:
    """What was made at the start stays: never look at it again, and look at the rest less often.

    Requests leave next to no cycles; with Python's own thresholds the collector walks the caches
    every few hundred requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _static_keys(policy: Policy) -> dict[str, KeyRecord]:
    return {
        key.digest: KeyRecord(
            id=key.id,
            kind="api",
            tenant_id=tenant.id,
            project_id=key.project,
            name=f"{key.id} (policy)",
            created_us=0,
            expires_us=key.expires_us,
            tags=dict(key.tags),
        )
        for tenant in policy.tenants.values()
        for key in tenant.keys
    }


def _announce(settings: Settings, gateway: Gateway) -> None:
    """Say where we are; on the very first start, show the first admin key."""
    _log.info(
        "ready: /v1 on http://%s:%d, admin on http://%s:%d, policy %s",
        settings.listen.host, settings.listen.port, settings.admin.host, settings.admin.port,
        gateway.policies.current.version,
    )  # fmt: skip
    if not gateway.keys.list("admin"):
        _, token = gateway.keys.create_admin("admin", None, "first start", now_us=now_us())
        print(f"\nYour first admin key, shown this once: {token}\n", flush=True)
    notify_systemd("READY=1")


def notify_systemd(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.connect(address)
        notifier.sendall(state.encode())


def now_us() -> int:
    """UTC, in microseconds."""
    return time.time_ns() // 1000
