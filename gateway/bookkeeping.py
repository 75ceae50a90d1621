"""How this process books: alone, as one of several gateways, or as one worker of several.

Alone it keeps books and budgets itself. Gateways that share a Redis count their budgets there, each
with books of its own. A worker beside others keeps a journal; the admin process has the books.
"""

import asyncio
from collections.abc import Callable

from gateway.config import Settings
from gateway.ledger import Books, Journal, Ledger
from gateway.ledger.journal import open_log
from gateway.ledger.recount import AskHolds, Recount
from gateway.ledger.shared_budgets import OpenHold, SharedBudgets
from gateway.policy.snapshot import Policy
from gateway.stores.redis import Redis
from gateway.upkeep import BudgetsUsed, gateway_id, now_us


class Bookkeeping:
    """The journal, and the books where they are here."""

    def __init__(
        self,
        journal: Journal,
        books: Books | None = None,
        budgets_used: BudgetsUsed = lambda _: (),
        recount: Recount | None = None,
    ) -> None:
        self.journal = journal
        self.books = books
        self.budgets_used = budgets_used
        self._recount = recount
        self._counting: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether what is done is booked, as far as this process can tell."""
        return self.journal.healthy and (self.books is None or self.books.healthy)

    @property
    def state(self) -> str:
        """``ok``, or what is not booked and why."""
        state = self.journal.state
        return self.books.state if state == "ok" and self.books is not None else state

    def start(self) -> None:
        """Begin to count what is shared."""
        if self._recount is not None:
            self._counting = asyncio.get_running_loop().create_task(self._recount.run())

    async def close(self) -> None:
        """Book everything and close. Nothing may be in flight any more."""
        if self._counting is not None:
            self._counting.cancel()
        if isinstance(self.journal, Ledger):
            await self.journal.drain()
        self.journal.close()
        if self._recount is not None:
            await self._recount.finish()
        if self.books is not None and not isinstance(self.journal, Ledger):
            await asyncio.to_thread(self.books.close)


def keep_books(
    settings: Settings, redis: Redis | None, policy: Callable[[], Policy], lock: int | None = None
) -> Bookkeeping:
    """For the only worker of a gateway. lock: the state folder's, where a parent holds it.

    Raises MeteringUnavailable where another gateway runs.
    """
    if redis is None or not settings.shares_budgets:
        ledger = Ledger.open(
            settings.state_dir, durability=settings.durability, now_us=now_us, lock=lock
        )
        return Bookkeeping(ledger, ledger.books, ledger.budgets.used)
    books = Books.open(settings.state_dir, now_us=now_us, lock=lock)
    books.start()
    journal, budgets = _sharing(settings, redis)

    async def open_holds() -> dict[str, list[OpenHold]] | None:
        """Ours; None while the log of an earlier process is not given up."""
        living = await asyncio.to_thread(books.shipper.living)
        return {journal.owner: budgets.open_holds()} if living <= {journal.owner} else None

    recount = recounting(settings, redis, books, policy, open_holds)
    return Bookkeeping(journal, books, recount.used, recount)


def keep_journal(settings: Settings, redis: Redis | None) -> Bookkeeping:
    """Build the books of one of several workers."""
    assert redis is not None, "load_settings refuses several workers without Redis"
    return Bookkeeping(_sharing(settings, redis)[0])


def recounting(
    settings: Settings,
    redis: Redis,
    books: Books,
    policy: Callable[[], Policy],
    open_holds: AskHolds,
) -> Recount:
    """What keeps this gateway's part of the shared counters true."""
    return Recount(
        redis,
        books,
        policy=policy,
        open_holds=open_holds,
        prefix=settings.redis.prefix,
        gateway_id=gateway_id(settings.state_dir),
        gateways=settings.replicas,
        now_us=now_us,
    )


def _sharing(settings: Settings, redis: Redis) -> tuple[Journal, SharedBudgets]:
    wal = open_log(settings.state_dir, durability=settings.durability)
    budgets = SharedBudgets(
        redis,
        prefix=settings.redis.prefix,
        gateway_id=gateway_id(settings.state_dir),
        gateways=settings.replicas,
        owner=wal.owner,
    )
    return Journal(wal, budgets), budgets
