"""The recount: shared budget counters are what the books say, whatever gets lost on the way.

Runs where the books are. It counts a budget that Redis does not know (a new period, a Redis that
lost its data), checks one known budget after the other, and ends holds whose request is over: of a
worker that was killed, or whose message never arrived. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec

from gateway.ledger.books import Books
from gateway.ledger.budgets import covers
from gateway.ledger.shared_budgets import (
    AMOUNT_PICO_MAX,
    SCRIPT,
    Keys,
    OpenHold,
    Span,
)
from gateway.policy.snapshot import Budget, Policy
from gateway.stores.redis import Redis, RedisRefused, RedisUnavailable

TICK_SECONDS = 0.5
SWEEP_SECONDS = 5.0  # between two searches for holds that nobody will end
_AHEAD_US = 60_000_000  # the next period is counted so long before it begins
_KEPT_MS = 86_400_000  # a counter, after its period
_BATCH = 500  # budgets asked for in one turn
_CHECKS = 20  # budgets checked in one sweep
_INTEGER = re.compile(rb"-?[1-9][0-9]{0,18}|0")

# What every living worker has open, by its name in the usage log; None: not all could be asked.
AskHolds = Callable[[], Awaitable[dict[str, list[OpenHold]] | None]]
_log = logging.getLogger("tollhouse.budgets")


class _Seen(msgspec.Struct, frozen=True):
    """One counter as Redis has it."""

    used_pico: int = 0
    held_pico: int = 0
    changes: str = ""  # of this gateway's part; "": never counted
    gateways: int = 0  # that have counted


class Recount:
    """Keeps the shared counters of one gateway true."""

    def __init__(
        self,
        redis: Redis,
        books: Books,
        *,
        policy: Callable[[], Policy],
        open_holds: AskHolds,
        prefix: str,
        gateway_id: str,
        gateways: int,
        now_us: Callable[[], int],
    ) -> None:
        """gateways: how many share the counters."""
        self._redis = redis
        self._books = books
        self._policy = policy
        self._open_holds = open_holds
        self._keys = Keys(prefix, gateway_id)
        self._gateway_id = gateway_id
        self._gateways = gateways
        self._now_us = now_us
        self._turn = asyncio.Lock()  # of rounds
        self._of: Policy | None = None  # whose spans are known
        self._known: dict[tuple[str, str], Span] = {}
        self._seen: dict[str, _Seen] = {}
        self._checked: dict[str, str] = {}  # by key: the changes at which it was last right
        self._swept_at = float("-inf")
        self.state = "not counted yet"  # or "ok", or why not
        self.begun = False  # the counters are known, or Redis is away

    def used(self, now_us: int) -> list[tuple[str, Budget, int, int]]:
        """(tenant, budget, spent, held) of every budget in its present period, as last seen."""
        found = []
        for span in self._spans(self._policy(), now_us):
            seen = self._seen.get(span.key)
            if seen is not None:
                spent = seen.used_pico - seen.held_pico
                found.append((span.tenant_id, span.budget, spent, seen.held_pico))
        return found

    async def run(self) -> None:
        """Recount for ever."""
        while True:
            try:
                self.begun |= await self.tick()
            except RedisUnavailable as error:
                self.state, self.begun = f"Redis: {error}", True
            except Exception:  # whatever it was: without this loop hard budgets stop for good
                _log.exception("recounting the budgets failed")
                self.state = "failing"
            await asyncio.sleep(TICK_SECONDS)

    async def tick(self, policy: Policy | None = None) -> bool:
        """One round: count what Redis does not know, and now and then check the rest.

        policy: one that is about to come into force; None: the one that is. False while not every
        worker can be asked, and therefore nothing counted. Raises RedisUnavailable.
        """
        async with self._turn:
            return await self._round(policy or self._policy())

    async def _round(self, policy: Policy) -> bool:
        now_us = self._now_us()
        moments = (now_us, now_us + _AHEAD_US)
        spans = {span.key: span for at in moments for span in self._spans(policy, at)}
        await self._look(spans.values())
        due = asyncio.get_running_loop().time() >= self._swept_at + SWEEP_SECONDS
        missing = [span for span in spans.values() if not self._seen[span.key].changes]
        changed = [
            span
            for span in spans.values()
            if self._checked.get(span.key) != self._seen[span.key].changes
        ]
        if not (due or missing):
            return True
        done = await self.reconcile(missing or changed[:_CHECKS])
        if done and not missing:
            self._swept_at = asyncio.get_running_loop().time()
        if missing and not done:
            self.state = "waiting for every worker to answer"
        elif any(seen.gateways < self._gateways for seen in self._seen.values()) and not missing:
            self.state = f"waiting for all {self._gateways} gateways"
        else:
            self.state = "ok"
        return done

    async def finish(self) -> None:
        """End all holds: no worker is left. What cannot be done now, the next start does."""
        with contextlib.suppress(RedisUnavailable):
            await self.reconcile([])

    def sweep_soon(self) -> None:
        """A worker has ended: what it held is to be settled."""
        self._swept_at = float("-inf")

    async def reconcile(self, spans: list[Span]) -> bool:
        """End the holds of requests that are over, then put what the books say into counters.

        False where not every worker could be asked: then nothing has changed.
        """
        # In this order: a hold found here that no worker has afterwards is nobody's any more, and
        # what its request was charged is in the log. What is settled later changes the counter,
        # which then is not written.
        flat = await self._holds()
        living = await self._open_holds()
        if living is None:
            return False
        found = [hold for holds in living.values() for hold in holds]
        await asyncio.to_thread(self._books.shipper.ship)
        await self._end_leftovers(flat, {hold.request_id.encode() for hold in found})
        known = set(flat[::2])
        # A reservation that is on its way counts itself when it arrives, where it is admitted.
        holds = [hold for hold in found if hold.admitted or hold.request_id.encode() in known]
        for span in spans:
            right = await self._count(span, [hold for hold in holds if _in(span, hold)])
            if right is not None and len(holds) == len(found):
                self._checked[span.key] = right
        return True

    async def _holds(self) -> list[bytes]:
        """Request ids and entries in turns."""
        try:
            found: list[bytes] = await self._redis.call("HGETALL", self._keys.holds)
        except RedisRefused:  # no hash: whoever wrote that, without ours no counter is ever right
            await self._redis.call("UNLINK", self._keys.holds)
            self._redis.dropped("the table of budget holds")
            return []
        return found

    async def _end_leftovers(self, flat: list[bytes], known: set[bytes]) -> None:
        """flat: request ids and entries in turns; known: the requests that are not over."""
        gone = [pair for pair in zip(flat[::2], flat[1::2], strict=True) if pair[0] not in known]
        left = [(name, self._keys.entry(entry)) for name, entry in gone if entry]
        damaged = [name for name, entry in left if entry is None or not name.isascii()]
        ended = [name for name, entry in gone if not entry]
        settled = 0
        for name, entry in left:
            if entry is None or not name.isascii():
                continue
            request_id = name.decode()
            spent = await asyncio.to_thread(self._books.store.request_spent, request_id)
            charge, amount = spent.charged_pico, entry.amount_pico - spent.pending_pico
            try:
                await self._run(
                    (self._keys.holds, *entry.keys),
                    ("settle", self._gateway_id, request_id, str(amount), str(charge - amount)),
                )
                settled += 1
            except RedisRefused:  # a counter is damaged: it is counted anew, without this hold
                damaged.append(name)
        for start in range(0, len(ended + damaged), _BATCH):
            batch = (ended + damaged)[start : start + _BATCH]
            await self._redis.call("HDEL", self._keys.holds, *batch)
        if damaged:
            self._checked.clear()  # which counters still have these holds is not known
            self._redis.dropped(f"{len(damaged)} budget holds", len(damaged))
        if settled:
            _log.info("ended %d budget holds that their workers had left behind", settled)

    async def _look(self, spans: Iterable[Span]) -> None:
        """What Redis has of these budgets, all asked at once."""
        listed = list(spans)
        own = [f"{name}:{self._gateway_id}" for name in ("changes", "used", "held")]
        fields = ("used", "held", "gateways", *own)
        seen: dict[str, _Seen] = {}
        for start in range(0, len(listed), _BATCH):
            batch = listed[start : start + _BATCH]
            # One damaged counter must not cost the others their answers.
            rows = await asyncio.gather(
                *(self._redis.call("HMGET", span.key, *fields) for span in batch),
                return_exceptions=True,
            )
            for span, row in zip(batch, rows, strict=True):
                if isinstance(row, BaseException) and not isinstance(row, RedisRefused):
                    raise row
                seen[span.key] = _seen(row) or await self._drop(span)
        self._seen = seen
        self._checked = {key: at for key, at in self._checked.items() if key in seen}

    async def _drop(self, span: Span) -> _Seen:
        """Remove a counter that cannot be read: every gateway then counts it anew."""
        await self._redis.call("UNLINK", span.key)
        self._redis.dropped(f"the counter of budget '{span.budget.name}' of {span.tenant_id}")
        return _Seen()

    async def _count(self, span: Span, holds: list[OpenHold]) -> str | None:
        """Put what the books say into one counter, unless it has changed since it was seen.

        The changes at which it is right; None: it is to be looked at again.
        """
        spent, parts = await asyncio.to_thread(
            self._books.store.spent, span.tenant_id, span.start_us, span.end_us,
            span.budget.tags, [hold.request_id for hold in holds],
        )  # fmt: skip
        # What is pending counts as held; of an open request only its hold counts.
        pending = spent.pending_pico - sum(part.pending_pico for part in parts.values())
        held = sum(hold.amount_pico for hold in holds) + pending
        used = held + spent.charged_pico - sum(part.charged_pico for part in parts.values())
        used, held = min(used, AMOUNT_PICO_MAX), min(held, AMOUNT_PICO_MAX)  # no limit is larger
        seen = self._seen[span.key].changes
        # From now on, not until a date: the clock of Redis' machine need not be right.
        kept_ms = (span.end_us - self._now_us()) // 1000 + _KEPT_MS
        entries = [part for hold in holds for part in (hold.request_id.encode(), hold.entry)]
        written = await self._run(
            (self._keys.holds, span.key),
            ("count", self._gateway_id, seen, str(used), str(held), str(kept_ms)),
            entries,
        )
        return str(int(seen or 0) + 2) if written else None  # as the script leaves it

    async def _run(
        self, keys: Iterable[str], texts: Iterable[str], entries: Sequence[bytes] = ()
    ) -> Any:
        arguments = [*(text.encode() for text in texts), *entries]
        return await self._redis.run(SCRIPT, [key.encode() for key in keys], arguments)

    def _spans(self, policy: Policy, now_us: int) -> list[Span]:
        """Every budget in its period of a moment."""
        if policy is not self._of:
            self._of, self._known = policy, {}
        spans: list[Span] = []
        for tenant in policy.tenants.values():
            for budget in tenant.budgets:
                name = (tenant.id, budget.name)
                span = self._known.get(name)
                if span is None or not span.start_us <= now_us < span.end_us:
                    span = self._keys.span(tenant.id, budget, now_us)
                    self._known[name] = span
                spans.append(span)
        return spans


def _seen(row: list[bytes | None] | BaseException) -> _Seen | None:
    """A counter's fields in the order asked for; None where one of them is no 64-bit integer."""
    if isinstance(row, BaseException):
        return None
    if any(field is not None and not _is_integer(field) for field in row):
        return None
    used, held, gateways, changes = row[:4]
    return _Seen(int(used or 0), int(held or 0), (changes or b"").decode(), int(gateways or 0))


def _is_integer(field: bytes) -> bool:
    """Whether Redis can add to it: decimal, without spaces, plus sign or leading zeros."""
    return _INTEGER.fullmatch(field) is not None and -(2**63) <= int(field) < 2**63


def _in(span: Span, hold: OpenHold) -> bool:
    return (
        hold.tenant_id == span.tenant_id
        and span.start_us <= hold.ts_us < span.end_us
        and covers(span.budget, hold.tags)
    )
