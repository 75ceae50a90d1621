"""Budgets: money is reserved before it can be spent, so that no concurrency exceeds a hard limit.

Counts one process; conserved at any time: reserved = settled + released + still held. Held is what
is in progress, and what is pending: the possible cost of an attempt that failed without an answer
stays held until its period ends, so that charging it later cannot exceed the limit. Knows
budgets, tenants and calendars. Does not know requests, prices or where past charges are stored.
"""

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from gateway.errors import BudgetExhausted
from gateway.money import exact_usd
from gateway.policy.snapshot import Budget, Policy, Tenant

# (tenant, from_us, to_us, tags) → (charged, pending) of that span, in pico-USD
PeriodSpent = Callable[[str, int, int, Mapping[str, str]], tuple[int, int]]


class Counter:
    """One budget in one period. Changed only under the lock of its ``Budgets``."""

    __slots__ = ("budget", "end_us", "held_pico", "left", "spent_pico", "start_us")

    def __init__(self, budget: Budget, start_us: int, end_us: int, spent_pico: int) -> None:
        self.budget = budget
        self.start_us = start_us
        self.end_us = end_us
        self.spent_pico = spent_pico
        self.held_pico = 0
        self.left: Counter | None = None  # of the period counted before this one

    def lacks(self, amount_pico: int) -> bool:
        """Whether this amount does not fit any more."""
        return self.spent_pico + self.held_pico + amount_pico > self.budget.amount_pico

    @property
    def hard(self) -> bool:
        """Whether a request that does not fit is refused."""
        return refuses(self.budget)


class Hold:
    """Money reserved for one request in every budget that covers it, until it is settled."""

    __slots__ = ("amount_pico", "counters", "settled", "tags", "tenant_id", "ts_us")

    def __init__(
        self, tenant_id: str, tags: Mapping[str, str], amount_pico: int, ts_us: int
    ) -> None:
        self.tenant_id = tenant_id
        self.tags = tags
        self.amount_pico = amount_pico
        self.ts_us = ts_us
        self.counters: list[Counter] = []
        self.settled = False


class BudgetKeeper(Protocol):
    """What a request needs of the budgets, however many processes share them."""

    def configure(self, policy: Policy, now_us: int) -> None:
        """Take over a policy's budgets."""

    def reserve(
        self,
        tenant: Tenant,
        tags: Mapping[str, str],
        amount_pico: int,
        now_us: int,
        request_id: str = "",
    ) -> Hold | Awaitable[Hold]:
        """Hold an amount in every budget that covers the request, or in none of them.

        Raises BudgetExhausted, and BudgetUnavailable where a hard budget cannot be asked.
        """

    def exceeded(
        self, tenant: Tenant, tags: Mapping[str, str], amount_pico: int, now_us: int
    ) -> Budget | None:
        """The first enforced budget that is known to lack this amount, as far as it is known."""

    def settle(self, hold: Hold, charge_pico: int, now_us: int, pending_pico: int = 0) -> None:
        """Post what the request was charged, keep what is pending and release the rest.

        Repeating it changes nothing.
        """


class Budgets:
    """All budgets of a policy, for one process. Safe to use from several threads."""

    def __init__(self, spent: PeriodSpent) -> None:
        """``spent`` must know everything settled before it is called, also if just now."""
        self._spent = spent
        self._lock = threading.Lock()
        self._counters: dict[str, list[Counter]] = {}  # by tenant
        self._holds: set[Hold] = set()

    def configure(self, policy: Policy, now_us: int) -> None:
        """Take over a policy's budgets. Money spent and held counts in the new ones too.

        A budget that covers the same requests and period keeps its counter, whatever its amount.
        Reads past charges, so it belongs into a thread of its own while requests are served.
        """
        with self._lock:
            known = {
                (tenant_id, _coverage(counter.budget)): counter
                for tenant_id, counters in self._counters.items()
                for counter in counters
            }
            fresh: dict[str, list[Counter]] = {}
            for tenant in policy.tenants.values():
                for budget in tenant.budgets:
                    counter = known.get((tenant.id, _coverage(budget)))
                    if counter is None:
                        counter = self._seeded(tenant.id, budget, now_us)
                    else:
                        for same in filter(None, (counter, counter.left)):
                            same.budget = budget
                    fresh.setdefault(tenant.id, []).append(counter)
            self._counters = fresh

    def reserve(
        self,
        tenant: Tenant,
        tags: Mapping[str, str],
        amount_pico: int,
        now_us: int,
        request_id: str = "",
    ) -> Hold:
        """Hold an amount in every budget that covers the request, or in none of them.

        Raises BudgetExhausted naming the first hard budget that lacks it; soft ones only count.
        """
        del request_id  # needed where holds must be told apart across processes
        hold = Hold(tenant.id, tags, amount_pico, now_us)
        with self._lock:
            counters = self._covering(tenant.id, tags, now_us)
            for counter in counters:
                if counter.lacks(amount_pico) and counter.hard:
                    error = BudgetExhausted(refusal(tenant.id, counter, amount_pico))
                    error.budget_name = counter.budget.name
                    raise error
            for counter in counters:
                counter.held_pico += amount_pico
            hold.counters = counters
            self._holds.add(hold)
        return hold

    def exceeded(
        self, tenant: Tenant, tags: Mapping[str, str], amount_pico: int, now_us: int
    ) -> Budget | None:
        """The first enforced budget that lacks this amount; None where ``reserve`` succeeds."""
        with self._lock:
            for counter in self._covering(tenant.id, tags, now_us):
                if counter.lacks(amount_pico) and counter.hard:
                    return counter.budget
        return None

    def settle(self, hold: Hold, charge_pico: int, now_us: int, pending_pico: int = 0) -> None:
        """Post what the request was charged, keep what is pending and release the rest.

        All of it belongs to the period in which the money was reserved, at ``hold.ts_us``.
        Repeating it changes nothing.
        """
        del now_us  # a request that ends in the next period is charged to the one it began in
        with self._lock:
            if hold.settled:
                return
            hold.settled = True
            self._holds.discard(hold)
            for counter in hold.counters:
                counter.held_pico -= hold.amount_pico - pending_pico
                counter.spent_pico += charge_pico

    def used(self, now_us: int) -> list[tuple[str, Budget, int, int]]:
        """(tenant, budget, spent, held) of every budget in its present period, in pico-USD."""
        with self._lock:
            return [
                (tenant_id, counter.budget, counter.spent_pico, counter.held_pico)
                for tenant_id, counters in self._counters.items()
                for counter in self._current(counters, now_us)
            ]

    def _covering(self, tenant_id: str, tags: Mapping[str, str], now_us: int) -> list[Counter]:
        counters = self._counters.get(tenant_id)
        if not counters:
            return []
        covering: list[Counter] = []
        for counter in self._current(counters, now_us):
            # Most budgets cover all of a tenant's requests.
            if not counter.budget.tags or covers(counter.budget, tags):
                covering.append(counter)
        return covering

    def _current(self, counters: list[Counter], now_us: int) -> Iterable[Counter]:
        """The counters, each replaced by that of its next period where its own is over.

        Holds keep the counter they were made in, so nothing moves between periods.
        """
        for position, counter in enumerate(counters):
            if not counter.start_us <= now_us < counter.end_us:
                counters[position] = _at(counter, now_us)
        return counters

    def _seeded(self, tenant_id: str, budget: Budget, now_us: int) -> Counter:
        """A counter that knows what was charged before, and what is held just now."""
        start_us, end_us = period_bounds(budget, now_us)
        spent, pending = self._spent(tenant_id, start_us, end_us, budget.tags)
        counter = Counter(budget, start_us, end_us, spent)
        counter.held_pico = pending
        for hold in self._holds:
            if (
                hold.tenant_id == tenant_id
                and start_us <= hold.ts_us < end_us
                and covers(budget, hold.tags)
            ):
                counter.held_pico += hold.amount_pico
                hold.counters.append(counter)
        return counter


def _at(counter: Counter, now_us: int) -> Counter:
    """The counter of the period around a moment that is outside of this one's.

    A clock that was ahead for a while gives no fresh budget: its way back finds what was left.
    """
    left, counter.left = counter.left, None
    if left is None or not left.start_us <= now_us < left.end_us:
        if now_us < counter.start_us:
            counter.left = left
            return counter  # nobody here knows that period: its requests count in this one
        left = Counter(counter.budget, *period_bounds(counter.budget, now_us), 0)
    left.left = counter
    return left


def period_bounds(budget: Budget, now_us: int) -> tuple[int, int]:
    """[start, end) of the budget's period around a moment, by its timezone's calendar."""
    zone = ZoneInfo(budget.timezone)
    local = datetime.fromtimestamp(now_us / 1e6, zone)
    start = datetime(local.year, local.month, local.day, tzinfo=zone)
    if budget.period == "calendar_month":
        start = start.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        end = start + timedelta(days=1)  # wall-clock arithmetic: a day may have 23 or 25 hours
    return _to_us(start), _to_us(end)


def _to_us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def refuses(budget: Budget) -> bool:
    """Whether a request that does not fit is refused."""
    return budget.enforce == "hard" and budget.on_exceeded != "allow"


def covers(budget: Budget, tags: Mapping[str, str]) -> bool:
    """Whether a request with these tags counts in this budget."""
    return all(tags.get(name) == value for name, value in budget.tags.items())


def _coverage(budget: Budget) -> tuple[object, ...]:
    """What a counter's past depends on; amount and enforcement may change under it."""
    return (budget.name, budget.period, budget.timezone, tuple(sorted(budget.tags.items())))


def refusal(tenant_id: str, counter: Counter, amount_pico: int) -> str:
    """Why an amount does not fit, for whoever reads the client's log."""
    resets_at = datetime.fromtimestamp(counter.end_us / 1e6, UTC).isoformat().replace("+00:00", "Z")
    return (
        f"tenant {tenant_id}: budget {counter.budget.name!r} has"
        f" {exact_usd(counter.spent_pico)} USD spent and {exact_usd(counter.held_pico)}"
        f" reserved of {exact_usd(counter.budget.amount_pico)}; this request may cost"
        f" {exact_usd(amount_pico)}. It resets at {resets_at}."
    )
