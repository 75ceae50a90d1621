"""What whoever keeps the state folder does beside serving: watch, announce, report.

That is the worker where there is one, else the admin process. Knows no request.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

from gateway.config import Settings
from gateway.departures import Departures
from gateway.errors import GatewayError, PolicyError
from gateway.ids import UlidFactory
from gateway.ledger import Books, Journal, Ledger
from gateway.ledger.shipper import TELL_SECONDS
from gateway.policy.holder import PolicyHolder
from gateway.policy.snapshot import Budget, Policy
from gateway.policy.switches import Switches
from gateway.policy.versions import write_atomically
from gateway.private_files import private_file, private_folder
from gateway.stores.keys import KeyStore, load_pepper, new_token
from gateway.stores.redis import Redis
from gateway.telemetry import Metrics

_POLICY_POLL_SECONDS = 0.25
_HEALTH_SECONDS = 0.5
_KEY_FILE_BYTES_MAX = 1024
_ROOM_BYTES = 256 * 1024  # a start needs some
_KEYS_SECONDS = 1.0  # until a key that a command made in the folder is known
_DEPARTURES_SECONDS = 60.0
_log = logging.getLogger("tollhouse")

BudgetsUsed = Callable[[int], Sequence[tuple[str, Budget, int, int]]]


_PARENT = os.getppid()  # a parent that dies before this line takes us with it
_OVERDUE_SECONDS = 10.0  # for all that follows the last answer of an orphan


class Stop:
    """Being told to stop: once, and a second time or by Ctrl-C to hurry.

    Where the signal comes from the death of the supervisor we are orphans: a successor waits for
    our ports and the lock of the state folder, so what runs gets ``orphan_drain_seconds`` and no
    more, and the process ends in any case.
    """

    def __init__(self, settings: Settings) -> None:
        self.told = asyncio.Event()
        self.orphaned = asyncio.Event()
        self._hurry = asyncio.Event()
        self._orphan_seconds = settings.orphan_drain_seconds

    def listen(self) -> None:
        """Take SIGTERM and SIGINT from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.tell)
        loop.add_signal_handler(signal.SIGINT, self.tell, True)

    def tell(self, hurry: bool = False) -> None:
        """A signal has come."""
        orphaned = os.getppid() != _PARENT
        if orphaned and not self.orphaned.is_set():
            seconds = self._orphan_seconds
            _log.error("the supervisor is gone: what runs gets %g s, then we end", seconds)
            self.orphaned.set()
            overdue = threading.Timer(seconds + _OVERDUE_SECONDS, os._exit, (1,))
            overdue.daemon = True
            overdue.start()
        if hurry or orphaned or self.told.is_set():
            self._hurry.set()
        self.told.set()

    async def within(self, ending: Awaitable[bool]) -> bool:
        """Wait for ``ending`` and return its result; False where an orphan's time has run out."""
        task = asyncio.ensure_future(ending)
        orphaned = asyncio.ensure_future(self.orphaned.wait())
        await asyncio.wait((task, orphaned), return_when=asyncio.FIRST_COMPLETED)
        orphaned.cancel()
        await asyncio.wait((task,), timeout=self._orphan_seconds)
        if not task.done():
            task.cancel()
            return False
        return task.result()

    async def noticed(self, seconds: float) -> None:
        """Give whoever sends us requests time to see that we are not ready."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


class CannotStart(Exception):
    """The state folder cannot be used. A restart changes nothing: somebody has to."""


@contextlib.contextmanager
def starting(state_dir: Path) -> Iterator[None]:
    """Translate what opening a state folder can raise into one sentence with the way out."""
    try:
        yield
    except PolicyError:
        raise
    except GatewayError as error:
        raise CannotStart(f"{error.message} (state_dir {state_dir})") from None
    except (sqlite3.Error, OSError, RuntimeError, ValueError) as error:
        raise CannotStart(_sentence(error, state_dir)) from None


def _sentence(error: Exception, state_dir: Path) -> str:
    text = str(error)
    way_out = "Look at its disk and its owner."
    code = getattr(error, "errno", None)
    if "is full" in text or code in (errno.ENOSPC, errno.EDQUOT) or _is_full(state_dir):
        way_out = "Free space on its disk."
    elif "readonly" in text or code == errno.EROFS:
        way_out = "Make it writable for the gateway's user."
    elif "malformed" in text or "not a database" in text:
        way_out = "Move it away, and restore a backup into an empty one: tollhouse restore."
    return f"The state folder {state_dir} cannot be used: {text}. {way_out}"


def _is_full(state_dir: Path) -> bool:
    """SQLite calls a disk without room for its shared memory an I/O error."""
    try:
        disk = os.statvfs(state_dir)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _ROOM_BYTES


def open_keys(state_dir: Path) -> KeyStore:
    """The keys of a state folder; makes folder and pepper. Raises OSError with a sentence."""
    private_folder(state_dir)
    return KeyStore(state_dir / "keys.sqlite", load_pepper(state_dir / "pepper"))


def open_policies(settings: Settings) -> PolicyHolder:
    """The policy files, watched and kept. Raises PolicyError."""
    return PolicyHolder(
        settings.policies,
        state_dir=settings.state_dir / "policies",
        settle_seconds=settings.limits.reload_settle_seconds,
        now_us=now_us,
        file_bytes_max=settings.limits.policy_file_bytes_max,
    )


def open_redis(settings: Settings, metrics: Metrics) -> Redis | None:
    """The Redis of the settings, not connected yet; None where they name none."""
    if settings.redis.url is None:
        return None
    redis = Redis(
        settings.redis.url,
        timeout_seconds=settings.redis.timeout_seconds,
        count=lambda kind: metrics.redis_trouble_total.inc((kind,)),
    )
    metrics.redis_up.callback = lambda: float(redis.healthy)
    return redis


def gateway_id(state_dir: Path) -> str:
    """The name under which this state folder counts in a shared Redis; made on first use."""
    path = state_dir / "gateway-id"
    if not path.exists():
        write_atomically(path, UlidFactory()().encode())
    return path.read_text()


def register_prices(ledger: Ledger | Books, policy: Policy) -> None:
    """Enter a policy's prices into the price book. Raises PolicyError."""
    try:
        ledger.store.register_prices(
            price
            for model in policy.models.values()
            if model.prices is not None
            for price in model.prices.prices
        )
    except sqlite3.OperationalError as error:
        message = f"the prices of the policy cannot be entered into the books: {error}"
        raise PolicyError((message,)) from None


def watch_books(
    metrics: Metrics, ledger: Ledger | Books, policies: PolicyHolder, budgets_used: BudgetsUsed
) -> None:
    """Report what only whoever keeps the books knows."""
    metrics.metering_wal_bytes.callback = lambda: ledger.shipper.wal_bytes
    metrics.metering_lag_seconds.callback = lambda: ledger.shipper.lag_seconds
    metrics.budget_used_ratio.callback = lambda: {
        (tenant, budget.name): (spent + held) / budget.amount_pico
        for tenant, budget, spent, held in budgets_used(now_us())
        if budget.amount_pico
    }
    metrics.state_disk_free_bytes.callback = lambda: _disk(ledger).f_bavail * _disk(ledger).f_frsize
    metrics.state_disk_size_bytes.callback = lambda: _disk(ledger).f_blocks * _disk(ledger).f_frsize
    metrics.config_last_reload_successful.callback = lambda: float(policies.last_error is None)
    metrics.config_last_reload_success_timestamp_seconds.callback = lambda: (
        policies.last_success_us / 1e6
    )


def _disk(ledger: Ledger | Books) -> os.statvfs_result:
    return os.statvfs(ledger.store.path.parent)


async def watch_keys(keys: KeyStore, seconds: float = _KEYS_SECONDS) -> None:
    """Read the keys again whenever another process has changed them, for ever."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(keys.refresh)
        except sqlite3.Error as error:
            _log.error("the keys cannot be read again: %s", error)


async def save_late(keys: KeyStore, switches: Switches) -> None:
    """Keep what a full disk has refused, as soon as it takes writes again; for ever."""
    while True:
        await asyncio.sleep(_KEYS_SECONDS)
        if keys.unsaved:
            with contextlib.suppress(sqlite3.Error):
                await asyncio.to_thread(keys.save)
                _log.info("revoked keys are on disk now")
        if not switches.saved:
            await asyncio.to_thread(switches.save)


async def tell_health(journal: Journal, state_dir: Path) -> None:
    """Log when usage cannot be booked, again once a minute, and when that is over; for ever."""
    told_at: float | None = None
    while True:
        await asyncio.sleep(_HEALTH_SECONDS)
        now = time.monotonic()
        if journal.healthy:
            if told_at is not None:
                _log.warning("usage is booked again")
            told_at = None
        elif told_at is None or now - told_at >= TELL_SECONDS:
            told_at = now
            full = "the disk of the state folder is full" if _is_full(state_dir) else "see /readyz"
            _log.error("usage cannot be booked, so requests are refused with 503: %s", full)


async def poll_policies(policies: PolicyHolder) -> None:
    """Look for changed policy files, for ever."""
    while True:
        await asyncio.sleep(_POLICY_POLL_SECONDS)
        try:
            await asyncio.to_thread(policies.poll, time.monotonic())
        except Exception:  # whatever it was, the next change must be seen
            _log.exception("looking for changed policy files failed")


async def watch_departures(
    settings: Settings, keys: KeyStore, policies: PolicyHolder, purge: Callable[[str], int]
) -> None:
    """End what belongs to tenants that stay away from the policy, for ever."""
    departures = Departures(
        keys,
        purge,
        grace_seconds=settings.limits.departed_tenant_seconds,
        now_us=now_us,
        policy=policies.current,
    )
    policies.subscribe(departures.look)
    while True:
        await asyncio.to_thread(departures.look, policies.current)
        await asyncio.sleep(_DEPARTURES_SECONDS)


def reload_soon(policies: PolicyHolder) -> None:
    """Load the policy files again, in a thread."""
    asyncio.get_running_loop().run_in_executor(None, policies.try_reload)


def first_admin_key(settings: Settings, keys: KeyStore) -> str | None:
    """Make sure that there is an admin key; the text of one that is to be shown, else None.

    On the first start it comes from $TOLLHOUSE_ADMIN_KEY or from admin.key_file; a file that does
    not exist is written. Neither is ever shown. Raises PolicyError with a sentence.
    """
    if keys.list("admin"):
        return None
    path, given = settings.admin.key_file, os.environ.get("TOLLHOUSE_ADMIN_KEY", "")
    source = "$TOLLHOUSE_ADMIN_KEY"
    try:
        if not given and path is not None:
            source = str(path)
            given = _read_key(path)
        if given:
            keys.add_admin(given, f"first start, from {source}", now_us=now_us())
            return None
    except ValueError as error:
        raise PolicyError((f"{source} holds no admin key: {error}",)) from None
    except OSError as error:
        raise PolicyError((f"admin.key_file {path}: {error.strerror}",)) from None
    _, token = keys.create_admin("admin", None, "first start", now_us=now_us())
    return token


def _read_key(path: Path) -> str:
    """The key in a file; a new one, written there, where the file does not exist."""
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_BYTES_MAX).decode("ascii").strip()
    except FileNotFoundError:
        token = new_token("admin")
        private_file(path).write_text(token + "\n")
        return token


def announce(settings: Settings, version: str, admin_key: str | None) -> None:
    """Say where we are; on the very first start, show the first admin key."""
    _log.info(
        "ready: /v1 on http://%s:%d, admin on http://%s:%d, policy %s",
        settings.listen.host, settings.listen.port, settings.admin.host, settings.admin.port,
        version,
    )  # fmt: skip
    if admin_key is not None:
        print(f"\nYour first admin key, shown this once: {admin_key}\n", flush=True)
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
