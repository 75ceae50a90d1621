"""Budgets of several processes: money is reserved in Redis, in one step for all of them.

A worker's part: reserve and settle. What a counter begins with is for ``recount.py`` to say, which
has the books and answers for all that gets lost on the way. Where Redis cannot be asked, or has not
been told what is spent, a hard budget refuses and a soft one goes on. Knows no HTTP and no books.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Mapping
from importlib import resources
from typing import Annotated

import msgspec

from gateway.errors import BudgetExhausted, BudgetUnavailable
from gateway.ledger.budgets import Counter, Hold, covers, period_bounds, refusal, refuses
from gateway.policy.snapshot import Budget, Policy, Tenant
from gateway.stores.redis import Redis, RedisUnavailable, Script

SCRIPT = Script(resources.files("gateway.ledger").joinpath("shared_budgets.lua").read_text())
AMOUNT_PICO_MAX = 2**61  # of a limit or a hold: 2.3 million USD; sums of four fit 64 bits
_RETRY_SECONDS = 1.0


class Span(msgspec.Struct, frozen=True):
    """One budget in one period, and the key of its counter."""

    tenant_id: str
    budget: Budget
    start_us: int
    end_us: int
    key: str


class OpenHold(msgspec.Struct, frozen=True, array_like=True):
    """What a worker tells of a request that is not settled yet."""

    request_id: str
    tenant_id: str
    tags: dict[str, str]
    amount_pico: int
    ts_us: int
    entry: bytes  # as it is in Redis
    admitted: bool  # False: still being asked; Redis may refuse it, or not know it yet


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A hold in Redis: enough to end it without its worker."""

    owner: str  # the worker's name in the usage log
    amount_pico: Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_PICO_MAX)]
    keys: list[str]


class SharedHold(Hold):
    """A hold that other processes see too."""

    __slots__ = ("admitted", "entry", "keys", "request_id")

    def __init__(
        self,
        tenant_id: str,
        tags: Mapping[str, str],
        amount_pico: int,
        ts_us: int,
        request_id: str,
    ) -> None:
        super().__init__(tenant_id, tags, amount_pico, ts_us)
        self.request_id = request_id
        self.keys: list[str] = []
        self.entry = b""
        self.admitted = False


class Keys:
    """The names of what one gateway keeps in Redis."""

    def __init__(self, prefix: str, gateway_id: str) -> None:
        self._prefix = prefix
        self.holds = f"{prefix}:budget-holds:{gateway_id}"

    def entry(self, packed: bytes) -> Entry | None:
        """A hold as Redis has it; None where it cannot be read, or names what is no counter."""
        try:
            entry = msgspec.msgpack.decode(packed, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        ours = all(key.startswith(f"{self._prefix}:budget:") for key in entry.keys)
        return entry if ours else None

    def span(self, tenant_id: str, budget: Budget, now_us: int) -> Span:
        """The budget's period around a moment. A budget renamed or moved is another one."""
        start_us, end_us = period_bounds(budget, now_us)
        coverage = (tenant_id, budget.name, budget.period, budget.timezone, start_us,
                    sorted(budget.tags.items()))  # fmt: skip
        digest = hashlib.sha256(msgspec.json.encode(coverage)).hexdigest()[:24]
        return Span(tenant_id, budget, start_us, end_us, f"{self._prefix}:budget:{digest}")


class SharedBudgets:
    """The budgets as one of several processes sees them. Belongs to one event loop."""

    def __init__(
        self, redis: Redis, *, prefix: str, gateway_id: str, gateways: int, owner: str
    ) -> None:
        """gateways: how many share the counters; owner: this process's name in the usage log."""
        self._redis = redis
        self._keys = Keys(prefix, gateway_id)
        self._gateway_id = gateway_id
        self._gateways = gateways
        self._owner = owner
        self._spans: dict[int, tuple[Tenant, list[Span]]] = {}  # by the tenant's identity
        self._open: dict[str, SharedHold] = {}

    def configure(self, policy: Policy, now_us: int) -> None:
        """A policy brings its own budgets: each request is held against those of its version."""
        del policy, now_us
        self._spans = {}

    def reserve(
        self,
        tenant: Tenant,
        tags: Mapping[str, str],
        amount_pico: int,
        now_us: int,
        request_id: str = "",
    ) -> Hold | Awaitable[Hold]:
        """Hold an amount in every budget that covers the request, or in none of them.

        Raises BudgetExhausted naming the first hard budget that lacks it, and BudgetUnavailable
        where a hard one cannot be asked. Without a budget there is nothing to wait for.
        """
        hold = SharedHold(tenant.id, tags, amount_pico, now_us, request_id)
        if not tenant.budgets:
            return hold
        spans = [span for span in self._current(tenant, now_us) if covers(span.budget, tags)]
        if not spans:
            return hold
        for span in spans:
            if refuses(span.budget) and max(span.budget.amount_pico, amount_pico) > AMOUNT_PICO_MAX:
                raise _unavailable(span, "it is too large to be counted together")
        hold.amount_pico = amount_pico = min(amount_pico, AMOUNT_PICO_MAX)
        hold.keys = [span.key for span in spans]
        hold.entry = msgspec.msgpack.encode(Entry(self._owner, amount_pico, hold.keys))
        return self._reserve(hold, spans)

    def exceeded(
        self, tenant: Tenant, tags: Mapping[str, str], amount_pico: int, now_us: int
    ) -> Budget | None:
        """None: only ``reserve`` can tell, and does."""
        del tenant, tags, amount_pico, now_us
        return None

    def settle(self, hold: Hold, charge_pico: int, now_us: int, pending_pico: int = 0) -> None:
        """Post what the request was charged, keep what is pending and release the rest.

        Repeating it changes nothing. Should it get lost on the way, the next recount finds it in
        the books.
        """
        del now_us
        assert isinstance(hold, SharedHold), "made by reserve"
        if hold.settled:
            return
        hold.settled = True
        if self._open.pop(hold.request_id, None) is None:
            return
        amount = hold.amount_pico - pending_pico
        self._redis.post(
            "EVALSHA", SCRIPT.sha1, 1 + len(hold.keys), self._keys.holds, *hold.keys,
            "settle", self._gateway_id, hold.request_id, str(amount), str(charge_pico - amount),
        )  # fmt: skip

    def open_holds(self) -> list[OpenHold]:
        """What is not settled yet, for the recount."""
        return [
            OpenHold(
                hold.request_id, hold.tenant_id, dict(hold.tags), hold.amount_pico, hold.ts_us,
                hold.entry, hold.admitted,
            )
            for hold in self._open.values()
        ]  # fmt: skip

    async def _reserve(self, hold: SharedHold, spans: list[Span]) -> Hold:
        # Known before it can be in Redis: a recount must never take it for somebody's leftover.
        self._open[hold.request_id] = hold
        try:
            answer = await self._ask(hold, spans)
        except RedisUnavailable:
            hard = [span for span in spans if refuses(span.budget)]
            if not hard:
                hold.admitted = True
                return hold
            self._open.pop(hold.request_id, None)
            raise _unavailable(hard[0], "its counter cannot be reached") from None
        except asyncio.CancelledError:
            self.settle(hold, 0, hold.ts_us)  # travels behind the reservation
            raise
        if answer[0] == b"held":
            hold.admitted = True
            return hold
        self._open.pop(hold.request_id, None)
        span = spans[_amount(answer[1])]
        if answer[0] == b"uncounted":
            raise _unavailable(span, "what is spent is being counted")
        counter = Counter(span.budget, span.start_us, span.end_us, 0)
        counter.held_pico = _amount(answer[3])
        counter.spent_pico = _amount(answer[2]) - counter.held_pico
        error = BudgetExhausted(refusal(hold.tenant_id, counter, hold.amount_pico))
        error.budget_name = span.budget.name
        raise error

    async def _ask(self, hold: SharedHold, spans: list[Span]) -> list[bytes | int | None]:
        amount = hold.amount_pico
        over = [
            str(amount - span.budget.amount_pico) if refuses(span.budget) else "" for span in spans
        ]
        answer: list[bytes | int | None] = await self._redis.run(
            SCRIPT,
            [self._keys.holds.encode(), *(key.encode() for key in hold.keys)],
            [text.encode() for text in (
                "reserve", self._gateway_id, str(self._gateways), hold.request_id,
            )] + [hold.entry, str(amount).encode(), *(text.encode() for text in over)],
        )  # fmt: skip
        return answer

    def _current(self, tenant: Tenant, now_us: int) -> list[Span]:
        """The tenant's budgets in their periods of this moment."""
        known = self._spans.get(id(tenant))
        if known is None or known[0] is not tenant:
            spans = [self._keys.span(tenant.id, budget, now_us) for budget in tenant.budgets]
            self._spans[id(tenant)] = (tenant, spans)
            return spans
        spans = known[1]
        for position, span in enumerate(spans):
            if not span.start_us <= now_us < span.end_us:
                spans[position] = self._keys.span(tenant.id, span.budget, now_us)
        return spans


def _amount(field: bytes | int | None) -> int:
    """A field of a counter, for the text of a refusal; 0 where it is damaged."""
    try:
        return int(field or 0)
    except ValueError:
        return 0


def _unavailable(span: Span, why: str) -> BudgetUnavailable:
    return BudgetUnavailable(
        f"tenant {span.tenant_id}: the hard budget '{span.budget.name}' cannot be checked just"
        f" now: {why}",
        retry_after_seconds=_RETRY_SECONDS,
    )
