"""The composition root: settings become Services, Services become two servers in one process.

The only place that knows every part. A part is made here, handed on, and closed here.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import uvloop

from gateway.accepting import Acceptor, limits_of_ports
from gateway.admin import admin_services, purge
from gateway.asgi import AsgiHandler
from gateway.bookkeeping import keep_books, keep_journal
from gateway.caches.exact import ExactCache
from gateway.caches.repeats import Repeats
from gateway.caches.semantic import SemanticCache
from gateway.caches.shared_exact import SharedExactCache
from gateway.caches.single_flight import SingleFlight
from gateway.config import Settings
from gateway.endpoints import V1
from gateway.errors import PolicyError, UpstreamError, UpstreamUnavailable
from gateway.expected_series import expect_series
from gateway.ids import UlidFactory
from gateway.model_clients import ModelClients
from gateway.model_processes import process_of
from gateway.node.messages import serves
from gateway.policy.follower import PolicyFollower
from gateway.policy.holder import PolicyHolder
from gateway.policy.lane import Lanes
from gateway.policy.snapshot import Policy, Provider
from gateway.policy.switches import Switches
from gateway.routing import Router
from gateway.server import Server
from gateway.services import Services
from gateway.stores.keys import KeyRecord
from gateway.stores.limits import Limiter
from gateway.stores.shared_limits import SharedLimiter
from gateway.telemetry import Metrics
from gateway.upkeep import (
    CannotStart,
    Stop,
    announce,
    first_admin_key,
    now_us,
    open_keys,
    open_policies,
    open_redis,
    poll_policies,
    register_prices,
    reload_soon,
    save_late,
    starting,
    tell_health,
    watch_books,
    watch_departures,
    watch_keys,
)
from gateway.upstreams import local_evidence
from gateway.upstreams.base import Upstream, UpstreamRequest, UpstreamResponse
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.health import Outcome
from gateway.upstreams.hedging import Hedged
from gateway.upstreams.local import LocalUpstream
from gateway.upstreams.local_client import PENDING_MAX
from gateway.upstreams.openai import OpenAIUpstream
from gateway.upstreams.retry_budget import RetryBudget

_SAMPLE_SECONDS = 1.0
_STOPPED_SECONDS = 2.0  # for answers to those who were told that we stop
_ADMIN_DRAIN_SECONDS = 5.0
_GC_THRESHOLDS = (50_000, 20, 50)
_ByProvider = dict[tuple[str, ...], float]
_log = logging.getLogger("tollhouse")


class UpstreamPool:
    """One upstream per provider of the policy, made on first use, replaced when it changes."""

    def __init__(self, settings: Settings, models: ModelClients | None) -> None:
        self._settings = settings
        self._models = models
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
        made = dict(self._made)
        found: dict[tuple[str, ...], float] = {}
        for provider in self._current:
            upstream = made.get(provider)  # None: not asked yet, and not known to be ill
            if provider.api != "local" or self._models is not None:
                found[provider.name,] = float(upstream is not None and not upstream.healthy)
        return found

    def local_load(self) -> tuple[_ByProvider, _ByProvider]:
        """Per local provider: slots that it has, and requests that wait for one."""
        slots: _ByProvider = {}
        waiting: _ByProvider = {}
        for provider in self._current:
            upstream = self._made.get(provider) if provider.api == "local" else None
            if upstream is not None:
                slots[provider.name,] = float(upstream.slots.limit)
                waiting[provider.name,] = float(upstream.slots.waiting)
        return slots, waiting

    async def close(self) -> None:
        """Close every connection."""
        for upstream in tuple(self._made.values()):
            await upstream.close()

    def _make(self, provider: Provider) -> Upstream:
        if provider.api == "local":
            if self._models is None:
                return AbsentModel(provider.name)
            process = process_of(provider, self._settings)
            local = LocalUpstream(
                provider.name,
                self._models.of(provider),
                process.model,
                concurrent_max=provider.concurrent_max,
                tenant_share=provider.tenant_share,
                parallel=process.slots,
                waiting_max=self._settings.local.waiting_max,
                ends_nonsense=provider.runtime.ends_nonsense,
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
            private_names=self._settings.egress.private == "allow",
        )


class Gateway:
    """One worker's parts, open from construction to ``close``."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path | None,
        policy: Policy | None = None,
        lock: int | None = None,
    ) -> None:
        """Opens the state folder; with a policy, as one of several workers that use it.

        lock: the folder's, where a parent holds it; None: we do, as long as the books are open.

        Raises PolicyError or OSError with a sentence.
        """
        logging.getLogger("tollhouse.access").setLevel(
            logging.INFO if settings.access_log else logging.WARNING
        )
        state_dir = settings.state_dir
        self.keys = open_keys(state_dir)
        self.policies: PolicyHolder | PolicyFollower = (
            open_policies(settings) if policy is None else PolicyFollower(policy)
        )
        self.models = (
            ModelClients(settings, run_dir)
            if run_dir is not None and settings.local.enabled != "off"
            else None
        )
        metrics = Metrics()
        redis = open_redis(settings, metrics)
        self.bookkeeping = (
            keep_books(settings, redis, lambda: self.policies.current, lock)
            if policy is None
            else keep_journal(settings, redis)
        )
        self.pool = UpstreamPool(settings, self.models)
        models = self.models
        self.services = Services(
            settings=settings,
            policies=self.policies,
            switches=Switches(state_dir / "switches.json"),
            keys=self.keys,
            limiter=Limiter(),
            ledger=self.bookkeeping.journal,
            lanes=Lanes(),
            repeats=Repeats(),
            exact=ExactCache(bytes_max=settings.limits.exact_cache_bytes),
            flights=SingleFlight(),
            semantic=SemanticCache(
                entries_per_namespace_max=settings.limits.semantic_entries_max,
                namespaces_max=settings.limits.semantic_namespaces_max,
            ),
            router=Router.shipped(),
            upstream=self.pool,
            embed=models.embedder.embed if models is not None else None,
            embedding_ready=lambda: models is not None and models.embedder.embedding_ready,
            local_states=lambda: models.states() if models is not None else {},
            local_sha256=lambda provider: models.sha256_of(provider) if models is not None else "",
            metrics=metrics,
            new_id=UlidFactory(),
            now_us=now_us,
            monotonic=time.monotonic,
            redis=redis,
        )
        _share(self.services)
        self._leases: asyncio.Task[None] | None = None
        self.policies.subscribe(self._adopt)
        self.policies.subscribe(local_evidence.prepare)
        local_evidence.prepare(self.policies.current)
        self._adopt(self.policies.current)
        self.v1 = V1(self.services)
        self._watch_metrics()

    def _adopt(self, policy: Policy) -> None:
        """What a new policy changes outside itself: static keys, budgets, known prices."""
        self.keys.replace_static(_static_keys(policy))
        if self.bookkeeping.books is not None:
            register_prices(self.bookkeeping.books, policy)
        self.services.ledger.budgets.configure(policy, now_us())
        self.services.metrics.policy_info.only((policy.version,))
        expect_series(self.services.metrics, policy, redis=self.services.redis is not None)
        self.pool.adopt(policy.providers.values())
        if self.models is not None:
            self.models.adopt(policy.providers.values())

    def _watch_metrics(self) -> None:
        metrics, services = self.services.metrics, self.services
        metrics.in_flight.callback = lambda: self.v1.in_flight
        metrics.upstream_ejected.callback = self.pool.ejected
        if self.models is not None:  # else absent: what is switched off is not down
            metrics.local_model_up.callback = lambda: {
                (model,): float(serves(state)) for model, state in services.local_states().items()
            }
            metrics.local_slots.callback = lambda: self.pool.local_load()[0]
            metrics.local_waiting.callback = lambda: self.pool.local_load()[1]
        books = self.bookkeeping.books
        if books is not None and isinstance(self.policies, PolicyHolder):
            watch_books(metrics, books, self.policies, self.bookkeeping.budgets_used)
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
        if self.models is not None:
            self.models.start()
        redis, limiter = self.services.redis, self.services.shared_limiter
        if redis is not None and limiter is not None:
            await redis.connect()  # or not: then it comes by itself, and we begin without
            self._leases = asyncio.get_running_loop().create_task(limiter.keep())
        self.bookkeeping.start()

    async def sample_model_process(self) -> None:
        """Note once a second how many generations run at once, for ever."""
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            clients = self.models.current().values() if self.models is not None else ()
            for client in clients:
                if not client.generation_ready:
                    continue
                with contextlib.suppress(UpstreamError):
                    stats = await client.stats()
                    if stats.generations:
                        self.services.metrics.local_batch_size.observe(stats.generations)

    async def close(self) -> None:
        """Flush the ledger and close everything. Nothing may be in flight any more."""
        await self.pool.close()
        if self.models is not None:
            await self.models.close()
        await self.bookkeeping.close()
        if self._leases is not None:
            self._leases.cancel()
        if self.services.redis is not None:
            await self.services.redis.close()
        self.keys.close()


def _share(services: Services) -> None:
    """Limits and exact answers through Redis, where the settings name one."""
    settings, metrics, redis = services.settings, services.metrics, services.redis
    if redis is None:
        return
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
        error.unsent, error.fault = True, "operator"
        raise error

    def report(self, outcome: Outcome) -> None:
        """Nothing to learn."""

    async def close(self) -> None:
        """Nothing to close."""


def run_worker(
    settings: Settings, public_fd: int, admin_fd: int, run_dir: Path, lock: int | None
) -> int:
    """Serve on two inherited sockets until SIGTERM; the exit status."""
    try:
        return uvloop.run(_serve(settings, public_fd, admin_fd, run_dir, lock))
    except PolicyError:
        raise
    except CannotStart as error:
        _log.error("cannot start: %s", error)
        return os.EX_IOERR
    except (OSError, RuntimeError) as error:
        _log.error("cannot start: %s", error)
        return 1


async def _serve(
    settings: Settings, public_fd: int, admin_fd: int, run_dir: Path, lock: int | None
) -> int:
    with starting(settings.state_dir):
        gateway = Gateway(settings, run_dir, lock=lock)
        admin_key = first_admin_key(settings, gateway.keys)
    assert isinstance(gateway.policies, PolicyHolder), "nobody else keeps the folder"
    policies = gateway.policies
    await gateway.open()
    admin_pages = _admin_pages(gateway)
    await admin_pages.startup()
    for_public, for_admin = limits_of_ports(settings.limits)
    public, admin = Server(gateway.v1, for_public), Server(admin_pages, for_admin)
    stop = Stop(settings)
    stop.listen()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: reload_soon(policies))
    background = [
        loop.create_task(public.sweep()),
        loop.create_task(admin.sweep()),
        loop.create_task(poll_policies(policies)),
        loop.create_task(watch_keys(gateway.keys)),
        loop.create_task(save_late(gateway.keys, gateway.services.switches)),
        loop.create_task(gateway.sample_model_process()),
        loop.create_task(tell_health(gateway.services.ledger, settings.state_dir)),
        loop.create_task(
            watch_departures(
                settings, gateway.keys, policies, lambda name: purge(gateway.services, name, loop)
            )
        ),
    ]
    listening = [Acceptor(public, public_fd), Acceptor(admin, admin_fd)]
    announce(settings, policies.current.version, admin_key)
    settle_garbage_collector()
    await drained(gateway, public, listening[0], stop)
    listening[1].close()
    await stop.within(admin.drain(_ADMIN_DRAIN_SECONDS))
    await admin_pages.shutdown()
    admin.abort()
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await gateway.close()
    return 0


async def drained(gateway: Gateway, public: Server, listening: Acceptor, stop: Stop) -> None:
    """Wait until told to stop, then until all that was begun is answered.

    Not ready first, then nothing new, then what runs may end within drain_seconds.
    """
    settings = gateway.services.settings
    await stop.told.wait()
    began = time.monotonic()
    _log.info(
        "told to stop: %d requests under way; not ready for %g s, then %g s for what runs",
        gateway.v1.in_flight, settings.unready_seconds, settings.drain_seconds,
    )  # fmt: skip
    gateway.v1.stopping = True
    await stop.noticed(settings.unready_seconds)
    gateway.v1.draining = True
    listening.close()
    if not await stop.within(public.drain(settings.drain_seconds)):
        _log.warning("time is up: %d requests are cut", gateway.v1.in_flight)
        gateway.v1.stop()
        await public.drain(_STOPPED_SECONDS)
        public.abort()
    while gateway.v1.in_flight:  # noqa: ASYNC110 - of clients that have left: soon over
        await asyncio.sleep(0.01)
    _log.info("drained in %.1f s", time.monotonic() - began)


def _admin_pages(gateway: Gateway) -> AsgiHandler:
    from gateway.web.app import create_admin_app

    services = admin_services(gateway.services, gateway.v1, gateway.bookkeeping)
    running_max = gateway.services.settings.limits.admin_requests_max
    return AsgiHandler(create_admin_app(services), running_max)


def settle_garbage_collector() -> None:
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
