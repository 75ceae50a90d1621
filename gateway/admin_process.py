"""The admin process of a gateway with several workers: pages, probes, metrics, books, policy.

It is the one owner of the state folder. The workers answer requests without it; what changes, they
hear from it. Knows no request.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import uvloop

from gateway.accepting import Acceptor, limits_of_ports
from gateway.asgi import AsgiHandler
from gateway.bookkeeping import recounting
from gateway.config import Settings
from gateway.errors import Overloaded, PolicyError
from gateway.ledger import Books
from gateway.ledger.shared_budgets import OpenHold
from gateway.merged_metrics import Merger, Snapshot, pack, take, unpack
from gateway.node.hub import Hub, Peer
from gateway.node.messages import (
    Adopt,
    Holds,
    ListHolds,
    Measure,
    Measured,
    Purge,
    Purged,
    Wanted,
    serves,
)
from gateway.policy.snapshot import Policy
from gateway.policy.switches import Switches
from gateway.server import Server
from gateway.stores.redis import RedisUnavailable
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
    watch_books,
    watch_departures,
    watch_keys,
)
from gateway.web.services import AdminServices, Probe

_DRAIN_SECONDS = 5.0
_MEASURE_SECONDS_MAX = 5.0
_COUNT_SECONDS_MAX = 1.0  # a new policy does not wait longer for its budgets
_log = logging.getLogger("tollhouse")


class AdminSide:
    """What the state folder holds, and the workers that use it."""

    def __init__(self, settings: Settings, lock: int) -> None:
        """lock: the state folder's. Raises PolicyError or OSError with a sentence."""
        self.settings = settings
        state_dir = settings.state_dir
        self.metrics = Metrics()
        self.keys = open_keys(state_dir)
        self.policies = open_policies(settings)
        self.switches = Switches(state_dir / "switches.json")
        self.books = Books.open(state_dir, now_us=now_us, lock=lock)
        redis = open_redis(settings, self.metrics)
        assert redis is not None, "load_settings refuses several workers without Redis"
        self.redis = redis
        self.hub = Hub(
            settings.workers,
            wanted=self._wanted,
            policy=self._policy,
            came=self._came,
            left=self._left,
        )
        self.recount = recounting(
            settings, redis, self.books, lambda: self.policies.current, self._open_holds
        )
        self.draining = False
        self._merger = Merger()
        self._loop = asyncio.get_running_loop()
        self.policies.subscribe(self._adopt)
        self._adopt(self.policies.current)
        for source in (self.keys, self.switches):
            source.on_change = self.hub.publish
        self.policies.on_adopted = self.hub.publish
        watch_books(self.metrics, self.books, self.policies, self.recount.used)

    async def open(self, node_socket: Path) -> None:
        """Begin to ship, and wait for workers."""
        self.books.start()
        await self.redis.connect()
        await self.hub.open(node_socket)

    def services(self) -> AdminServices:
        """Everything the admin application needs."""
        return AdminServices(
            keys=self.keys,
            ledger=self.books,
            budgets_used=self.recount.used,
            policies=self.policies,
            switches=self.switches,
            metrics=self._exposition,
            purge=self.purge,
            live=lambda: Probe(ok=True),
            ready=self.ready,
            started=self._started,
            stats=self._stats,
            now_us=now_us,
            cookie_secret=self.keys.derive("admin cookies"),
            environment=self.settings.environment,
        )

    def ready(self) -> Probe:
        """Whether every worker serves the policy in force, and what they do is booked."""
        workers = sum(peer.standing.healthy for peer in self.hub.peers)
        checks = {
            "policy": self.policies.current.version,
            "ledger": self.books.state,
            "traffic": "draining" if self.draining else "ok",
            "workers": f"{workers} of {self.settings.workers}",
            "redis": "ok" if self.redis.healthy else "away",  # told, not required
            "budgets": self.recount.state,
        }
        ready = self.books.healthy and self.hub.ready and self.recount.begun
        return Probe(ok=ready and not self.draining, checks=checks)

    async def close(self) -> None:
        """End what the workers left open, book everything and give the folder up."""
        await self.hub.close()
        await self.recount.finish()
        await self.redis.close()
        await asyncio.to_thread(self.books.close)
        self.keys.close()

    # What the hub asks of us

    def _wanted(self) -> Wanted:
        return Wanted(
            self.policies.adopted.serial,
            self.keys.changes,
            self.switches.until_us,
            tuple(sorted(self.keys.unsaved)),
        )

    def _policy(self) -> Adopt:
        adopted = self.policies.adopted
        return Adopt(adopted.serial, [(str(file.path), file.content) for file in adopted.files])

    def _came(self, peer: Peer) -> None:
        last = self._merger.returned(peer.process)
        if last is not None:
            peer.snapshot = pack(last)

    def _left(self, peer: Peer) -> None:
        if peer.snapshot:
            self._merger.retire(peer.process, unpack(peer.snapshot))
        self.recount.sweep_soon()

    def _adopt(self, policy: Policy) -> None:
        """Before any worker has it: its prices are in the books, its budgets are counted."""
        register_prices(self.books, policy)
        if threading.current_thread() is threading.main_thread():
            return  # at the start, when there is no worker yet
        counting = asyncio.run_coroutine_threadsafe(self.recount.tick(policy), self._loop)
        with contextlib.suppress(TimeoutError, RedisUnavailable):
            counting.result(_COUNT_SECONDS_MAX)

    # What is asked of the workers

    async def _open_holds(self) -> dict[str, list[OpenHold]] | None:
        # Who lives is looked up first: a worker that comes later has nothing open before we ask.
        living = await asyncio.to_thread(self.books.shipper.living)
        answers = await self.hub.ask_all(ListHolds())
        found = {answer.owner: answer.holds for _, answer in answers if isinstance(answer, Holds)}
        return found if living <= found.keys() else None

    def _exposition(self) -> bytes:
        measuring = asyncio.run_coroutine_threadsafe(self._measure(), self._loop)
        packed, gone = measuring.result(_MEASURE_SECONDS_MAX)
        return self._merger.exposition([take(self.metrics), *map(unpack, packed)], gone)

    async def _measure(self) -> tuple[list[bytes], tuple[Snapshot, ...]]:
        """What every worker tells, and what those had told that are gone; each in one of them."""
        for peer, answer in await self.hub.ask_all(Measure()):
            if isinstance(answer, Measured) and answer.snapshot and peer in self.hub.peers:
                peer.snapshot = answer.snapshot
        return [peer.snapshot for peer in self.hub.peers if peer.snapshot], self._merger.gone

    def purge(self, tenant: str | None) -> int:
        """Drop cached answers in every worker; how many. Raises Overloaded where one is missing."""
        asking = asyncio.run_coroutine_threadsafe(self.hub.ask_all(Purge(tenant)), self._loop)
        entries = 0
        answers = asking.result()
        if len(answers) < self.settings.workers:  # one that is cut off still answers from its own
            missing = self.settings.workers - len(answers)
            raise Overloaded(
                f"Not purged in {missing} of {self.settings.workers} workers: try again."
            )
        for peer, answer in answers:
            if not isinstance(answer, Purged) or answer.problem:
                why = answer.problem if isinstance(answer, Purged) else "it does not answer"
                raise Overloaded(f"Not purged in worker {peer.number}: {why}")
            entries += answer.entries
        return entries

    def _started(self) -> Probe:
        standings = [peer.standing for peer in self.hub.peers if peer.standing.version]
        missing = self.settings.workers - len(standings)
        checks = {"workers": f"{missing} have not begun"} if missing else {}
        for standing in standings:
            for model, state in standing.local.items():
                if serves(checks.get(model, "ok")):  # of several, what one still lacks
                    checks[model] = state
        return Probe(ok=all(map(serves, checks.values())), checks=checks)

    def _stats(self) -> Mapping[str, object]:
        standings = [peer.standing for peer in self.hub.peers]
        return {
            "workers": len(standings),
            "in_flight": sum(standing.in_flight for standing in standings),
            "exact_cache_entries": sum(standing.exact_entries for standing in standings),
            "semantic_namespaces": sum(standing.semantic_namespaces for standing in standings),
        }


def run_admin(settings: Settings, admin_fd: int, node_socket: Path, lock: int) -> int:
    """Serve the admin port and the workers until SIGTERM; the exit status."""
    try:
        return uvloop.run(_serve(settings, admin_fd, node_socket, lock))
    except PolicyError:
        raise
    except CannotStart as error:
        _log.error("cannot start: %s", error)
        return os.EX_IOERR
    except (OSError, RuntimeError) as error:
        _log.error("cannot start: %s", error)
        return 1


async def _serve(settings: Settings, admin_fd: int, node_socket: Path, lock: int) -> int:
    from gateway.web.app import create_admin_app

    loop = asyncio.get_running_loop()
    stop = Stop(settings)
    stop.listen()
    with starting(settings.state_dir):
        admin_side = AdminSide(settings, lock)
        admin_key = first_admin_key(settings, admin_side.keys)
    policies = admin_side.policies
    loop.add_signal_handler(signal.SIGHUP, lambda: reload_soon(policies))
    await admin_side.open(node_socket)
    pages = AsgiHandler(create_admin_app(admin_side.services()), settings.limits.admin_requests_max)
    await pages.startup()
    _, for_admin = limits_of_ports(settings.limits)
    server = Server(pages, for_admin)
    listening = Acceptor(server, admin_fd)
    background = [
        loop.create_task(server.sweep()),
        loop.create_task(poll_policies(policies)),
        loop.create_task(watch_keys(admin_side.keys)),
        loop.create_task(save_late(admin_side.keys, admin_side.switches)),
        loop.create_task(watch_departures(settings, admin_side.keys, policies, admin_side.purge)),
        loop.create_task(admin_side.recount.run()),
        loop.create_task(_announce_once(admin_side, admin_key)),
    ]
    await stop.told.wait()
    admin_side.draining = True
    # The workers were told to stop as well; each is gone when its log is complete.
    await stop.within(_without_workers(admin_side))
    listening.close()
    await stop.within(server.drain(_DRAIN_SECONDS))
    await pages.shutdown()
    server.abort()
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await admin_side.close()
    return 0


async def _without_workers(admin_side: AdminSide) -> bool:
    while admin_side.hub.peers:  # noqa: ASYNC110 - the supervisor sets the deadline
        await asyncio.sleep(0.02)
    return True


async def _announce_once(admin_side: AdminSide, admin_key: str | None) -> None:
    while not admin_side.ready().ok:  # noqa: ASYNC110 - of four parts, in three processes
        await asyncio.sleep(0.05)
    version = admin_side.policies.current.version
    await asyncio.to_thread(announce, admin_side.settings, version, admin_key)
