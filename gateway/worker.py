"""One of several gateway workers: answers requests, and the admin process.

It keeps its own log and nothing else of the state folder: policy, keys and switches are what the
admin process says. Until that has been there once, nothing is served.
"""

import asyncio
import logging
import os
import signal
from pathlib import Path

import uvloop

from gateway.accepting import Acceptor, limits_of_ports
from gateway.admin import purge
from gateway.app import Gateway, drained, settle_garbage_collector
from gateway.config import Settings
from gateway.errors import GatewayError, PolicyError
from gateway.ledger.shared_budgets import SharedBudgets
from gateway.merged_metrics import pack, take
from gateway.node.link import keep_link
from gateway.node.messages import (
    Adopt,
    Answer,
    Holds,
    ListHolds,
    Measure,
    Measured,
    Purge,
    Purged,
    Question,
    Standing,
    Wanted,
)
from gateway.policy.follower import PolicyFollower
from gateway.policy.load import SourceFile, compile_files
from gateway.policy.snapshot import Policy
from gateway.server import Server
from gateway.upkeep import Stop, now_us, tell_health, watch_keys

# Between two looks at the keys: a revoked one is seen also while the link is down or busy.
_KEYS_SECONDS = 0.25
_log = logging.getLogger("tollhouse")


class Follower:
    """Does what the admin process asks, with a gateway once there is one."""

    def __init__(self) -> None:
        self.first: asyncio.Future[Policy] = asyncio.get_running_loop().create_future()
        self.gateway: Gateway | None = None
        self._policy = 0  # serial numbers of this admin process
        self._keys = -1
        self._switches: dict[str, int | None] = {}
        self._problem = ""

    def start(self, gateway: Gateway) -> None:
        """There is a gateway: bring it up to date from now on."""
        self.gateway = gateway
        gateway.services.switches.follow(self._switches)

    def connected(self) -> None:
        """Another admin process numbers policies and keys anew."""
        self._policy, self._keys = 0, -1

    async def answer(self, question: Question) -> Answer:
        """Do what is asked. Where that fails, the link ends and is made anew."""
        match question:
            case Wanted():
                await self._follow(question)
                return self._standing()
            case Adopt():
                await self._adopt(question)
                return self._standing()
            case Measure():
                metrics = self.gateway.services.metrics if self.gateway is not None else None
                return Measured(pack(take(metrics)) if metrics is not None else b"")
            case ListHolds():
                return self._holds()
            case Purge():
                return await self._purge(question.tenant)

    async def _follow(self, wanted: Wanted) -> None:
        self._switches = wanted.switches
        gateway = self.gateway
        if gateway is None:
            return
        gateway.services.switches.follow(wanted.switches)
        if wanted.keys != self._keys:
            gateway.keys.deny(wanted.denied)
            await asyncio.to_thread(gateway.keys.reload)
            self._keys = wanted.keys

    async def _adopt(self, asked: Adopt) -> None:
        files = [SourceFile(Path(name), content) for name, content in asked.files]
        try:
            policy = await asyncio.to_thread(
                compile_files, files, environ=os.environ, now_us=now_us()
            )
        except PolicyError as error:
            self._problem = f"the policy in force elsewhere is not acceptable here:\n{error}"
            return
        if self.gateway is None:
            if not self.first.done():
                self.first.set_result(policy)
            return  # counted as in force once it is served
        policies = self.gateway.policies
        assert isinstance(policies, PolicyFollower), "one of several workers"
        await asyncio.to_thread(policies.adopt, policy)
        self._policy, self._problem = asked.policy, ""

    def _standing(self) -> Standing:
        gateway = self.gateway
        if gateway is None:
            return Standing(problem=self._problem)
        services = gateway.services
        return Standing(
            owner=services.ledger.owner,
            policy=self._policy,
            version=services.policies.current.version,
            healthy=services.ledger.healthy,
            draining=gateway.v1.stopping,
            local=dict(services.local_states()),
            in_flight=gateway.v1.in_flight,
            exact_entries=services.exact.stats.entries,
            semantic_namespaces=len(services.semantic.stats()),
            problem=self._problem,
        )

    def _holds(self) -> Holds:
        if self.gateway is None:
            return Holds("", [])
        ledger = self.gateway.services.ledger
        assert isinstance(ledger.budgets, SharedBudgets), "one of several workers"
        return Holds(ledger.owner, ledger.budgets.open_holds())

    async def _purge(self, tenant: str | None) -> Purged:
        if self.gateway is None:
            return Purged()
        loop = asyncio.get_running_loop()
        try:
            return Purged(await asyncio.to_thread(purge, self.gateway.services, tenant, loop))
        except GatewayError as error:
            return Purged(problem=error.message)


def run_shared_worker(
    settings: Settings, number: int, public_fd: int, run_dir: Path, node_socket: Path
) -> int:
    """Serve on an inherited socket until SIGTERM; the exit status."""
    try:
        return uvloop.run(_serve(settings, number, public_fd, run_dir, node_socket))
    except (OSError, RuntimeError, GatewayError) as error:
        _log.error("worker %d cannot start: %s", number, error)
        return 1


async def _serve(
    settings: Settings, number: int, public_fd: int, run_dir: Path, node_socket: Path
) -> int:
    loop = asyncio.get_running_loop()
    stop = Stop(settings)
    stop.listen()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the admin process reloads
    follower = Follower()
    background = [
        loop.create_task(keep_link(node_socket, number, follower)),
        loop.create_task(stop.told.wait()),
    ]
    await asyncio.wait((follower.first, background[1]), return_when=asyncio.FIRST_COMPLETED)
    if not follower.first.done():
        return 0
    gateway = Gateway(settings, run_dir, follower.first.result())
    await gateway.open()
    for_public, _ = limits_of_ports(settings.limits)
    public = Server(gateway.v1, for_public)
    background += [
        loop.create_task(public.sweep()),
        loop.create_task(gateway.sample_model_process()),
        loop.create_task(tell_health(gateway.services.ledger, settings.state_dir)),
        loop.create_task(watch_keys(gateway.keys, _KEYS_SECONDS)),
    ]
    listening = Acceptor(public, public_fd)
    follower.start(gateway)
    settle_garbage_collector()
    await drained(gateway, public, listening, stop)
    await gateway.close()
    # Only now: whoever ships the log waits until nobody writes it any more.
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    return 0
