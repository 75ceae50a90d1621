"""Budgets of several processes: never exceeded, exact, and right again whatever gets lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gateway.errors import BudgetExhausted, BudgetUnavailable
from gateway.ledger import Books
from gateway.ledger.budgets import Hold
from gateway.ledger.event import UsageEvent
from gateway.ledger.journal import open_log
from gateway.ledger.recount import Recount
from gateway.ledger.shared_budgets import AMOUNT_PICO_MAX, OpenHold, SharedBudgets, Span
from gateway.ledger.wal import WriteAheadLog
from gateway.policy.snapshot import Budget, Tenant
from gateway.stores.redis import Redis
from gateway.wire.usage import Usage
from tests.gateway.ledger.books import NOW_US, PRICE, final
from tests.gateway.ledger.test_budgets import DAY_US, policy
from tests.redis_proxy import RedisProxy
from tests.redis_server import RedisServer

USD = 10**12


class Node:
    """One gateway: its books, and as many workers as a test wants, each with its own Redis."""

    def __init__(self, folder: Path, url: str, *budgets: Budget, gateways: int = 1) -> None:
        self.folder, self.url, self.gateways = folder, url, gateways
        self.now_us = NOW_US
        self.tenant = Tenant(id="acme", budgets=budgets)
        self.policy = policy(*budgets)
        self.workers: list[SharedBudgets] = []
        self.logs: list[WriteAheadLog] = []
        self.answers = True
        self.books = Books.open(folder, now_us=lambda: self.now_us, interval_seconds=3600)
        self.books.store.register_prices([PRICE])
        self.redis = Redis(url, timeout_seconds=1.0)
        self._connections = [self.redis]
        self.recount = Recount(
            self.redis, self.books, policy=lambda: self.policy, open_holds=self._open_holds,
            prefix="test", gateway_id=folder.name, gateways=gateways, now_us=lambda: self.now_us,
        )  # fmt: skip

    def worker(self, url: str | None = None) -> SharedBudgets:
        redis = Redis(url or self.url, timeout_seconds=1.0)
        self._connections.append(redis)
        log = open_log(self.folder)
        self.logs.append(log)
        made = SharedBudgets(
            redis, prefix="test", gateway_id=self.folder.name, gateways=self.gateways,
            owner=log.owner,
        )  # fmt: skip
        self.workers.append(made)
        return made

    def kill(self, worker: SharedBudgets) -> None:
        """What is left of a killed worker: its log, unlocked, and what is in Redis."""
        position = self.workers.index(worker)
        del self.workers[position]
        self.logs.pop(position).close()

    async def reserve(
        self, worker: SharedBudgets, amount: int, request_id: str, tags: Mapping[str, str] = {}
    ) -> Hold:
        held = worker.reserve(self.tenant, tags, amount, self.now_us, request_id)
        return held if isinstance(held, Hold) else await held

    async def used(self) -> dict[str, tuple[int, int]]:
        """(spent, held) by budget, once all that was posted has arrived."""
        for connection in self._connections:
            if connection.healthy:
                await connection.call("PING")
        await self.recount._look(self.recount._spans(self.policy, self.now_us))
        return {b.name: (spent, held) for _, b, spent, held in self.recount.used(self.now_us)}

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()
        for log in self.logs:
            log.close()
        self.books.close()

    async def _open_holds(self) -> dict[str, list[OpenHold]] | None:
        if not self.answers:
            return None
        return {worker._owner: worker.open_holds() for worker in self.workers}


@contextlib.asynccontextmanager
async def node(folder: Path, url: str, *budgets: Budget, gateways: int = 1) -> AsyncIterator[Node]:
    made = Node(folder, url, *budgets, gateways=gateways)
    try:
        yield made
    finally:
        await made.close()


def charged(request_id: str, charge_pico: int, ts_us: int = NOW_US) -> object:
    return final(
        request_id, charge_pico=charge_pico, cost_pico=None, list_pico=None, price_id=None,
        usage=Usage(prompt_tokens=1), ts_us=ts_us,
    )  # fmt: skip


async def test_four_workers_give_out_exactly_the_budget(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """200 requests at once, each of a tenth of what fits: ten are served, to the last pico."""
    limit = 9_100 * USD + 7  # above what a double counts exactly
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=limit)) as made:
        workers = [made.worker() for _ in range(4)]
        await made.recount.tick()
        amount = limit // 10

        async def one(number: int) -> bool:
            worker = workers[number % 4]
            try:
                hold = await made.reserve(worker, amount, f"R{number}")
            except BudgetExhausted:
                return False
            await asyncio.sleep(0)
            worker.settle(hold, amount, made.now_us)
            return True

        served = await asyncio.gather(*(one(number) for number in range(200)))
        assert sum(served) == 10
        assert await made.used() == {"b": (amount * 10, 0)}
        rest = limit - amount * 10
        with pytest.raises(BudgetExhausted):
            await made.reserve(workers[0], rest + 1, "one-too-many")
        await made.reserve(workers[1], rest, "the-last")
        assert await made.used() == {"b": (amount * 10, rest)}


async def test_a_refusal_says_what_all_processes_together_have_spent(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Another worker's 3 USD spent and 1 reserved are in the message that a client reads."""
    budget = Budget(name="monthly", amount_pico=5 * USD)
    async with node(tmp_path, redis_server.url, budget) as made:
        one, other = made.worker(), made.worker()
        await made.recount.tick()
        one.settle(await made.reserve(one, 4 * USD, "A"), 3 * USD, made.now_us)
        await made.reserve(one, USD, "B")
        with pytest.raises(BudgetExhausted) as caught:
            await made.reserve(other, 2 * USD, "C")
        assert caught.value.budget_name == "monthly"
        assert "3.0000 USD spent and 1.0000 reserved of 5.0000" in caught.value.message


async def test_a_hard_budget_refuses_until_it_is_counted_and_a_soft_one_goes_on(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """After Redis lost its data, spending waits for the first count and leaves no hold."""
    hard, soft = Budget(name="h", amount_pico=USD), Budget(name="s", amount_pico=1, enforce="soft")
    async with node(tmp_path / "hard", redis_server.url, hard) as made:
        worker = made.worker()
        with pytest.raises(BudgetUnavailable, match="is being counted"):
            await made.reserve(worker, 1, "A")
        assert worker.open_holds() == []
        await made.recount.tick()
        await made.reserve(worker, 1, "A")
    async with node(tmp_path / "soft", redis_server.url, soft) as made:
        await made.reserve(made.worker(), 1, "A")


async def test_without_redis_a_hard_budget_refuses_and_a_soft_one_goes_on(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A hard limit cannot be kept blindly, so the client gets a 503 that it may retry."""
    nowhere = "redis://127.0.0.1:9"
    async with node(tmp_path / "hard", nowhere, Budget(name="h", amount_pico=USD)) as made:
        with pytest.raises(BudgetUnavailable, match="cannot be reached") as caught:
            await made.reserve(made.worker(), 1, "A")
        assert (caught.value.status, caught.value.retryable) == (503, True)
    soft = Budget(name="s", amount_pico=USD, on_exceeded="allow")
    async with node(tmp_path / "soft", nowhere, soft) as made:
        worker = made.worker()
        worker.settle(await made.reserve(worker, 1, "A"), 1, made.now_us)


async def test_a_counter_begins_with_what_the_books_say_and_what_is_under_way(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Redis loses everything between a reservation and its end: nothing is lost nor doubled."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker = made.worker()
        await made.recount.tick()
        worker.settle(await made.reserve(worker, 30, "A"), 20, made.now_us)
        made.logs[0].append_final(charged("A", 20))  # type: ignore[arg-type]
        running = await made.reserve(worker, 40, "B")
        redis_server.ask("FLUSHALL")
        with pytest.raises(BudgetUnavailable):
            await made.reserve(worker, 1, "C")
        await made.recount.tick()
        assert await made.used() == {"b": (20, 40)}
        worker.settle(running, 35, made.now_us)
        assert await made.used() == {"b": (55, 0)}


async def test_what_is_pending_stays_held_whatever_redis_and_workers_lose(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """By the settlement, by the recount of the books, and by the end of a killed worker's hold."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker, doomed = made.worker(), made.worker()
        await made.recount.tick()
        worker.settle(await made.reserve(worker, 40, "A"), 5, made.now_us, 30)
        assert await made.used() == {"b": (5, 30)}
        made.logs[0].append_final(pending("A", 5, 30))
        await made.reserve(doomed, 20, "B")
        made.logs[1].append_final(pending("B", 0, 15))
        redis_server.ask("FLUSHALL")
        await made.recount.tick()
        assert await made.used() == {"b": (5, 50)}, "of an open request its hold counts"
        made.kill(doomed)
        made.recount.sweep_soon()
        await made.recount.tick()
        assert await made.used() == {"b": (5, 45)}
        with pytest.raises(BudgetExhausted):
            await made.reserve(worker, 51, "C")
        await made.reserve(worker, 50, "D")


def pending(request_id: str, charge_pico: int, possible_pico: int) -> UsageEvent:
    return final(
        request_id, state="possible", usage=Usage(source="none"), price_id=None, cost_pico=0,
        list_pico=0, baseline_pico=0, charge_pico=charge_pico, possible_charge_pico=possible_pico,
    )  # fmt: skip


async def test_nothing_is_counted_while_a_living_worker_does_not_answer(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """It may have spent what nobody else knows of."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        made.answers = False
        assert await made.recount.tick() is False
        with pytest.raises(BudgetUnavailable):
            await made.reserve(made.worker(), 1, "A")


async def test_what_a_killed_worker_held_becomes_what_was_booked(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """33 of 40 were spent, 50 were never sent and come back, and the living one keeps its 10."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        doomed, other = made.worker(), made.worker()
        await made.recount.tick()
        await made.reserve(doomed, 40, "BOOKED")
        await made.reserve(doomed, 50, "UNSENT")
        await made.reserve(other, 10, "ALIVE")
        made.logs[0].append_final(charged("BOOKED", 33))  # type: ignore[arg-type]
        made.kill(doomed)
        made.recount.sweep_soon()
        await made.recount.tick()
        assert await made.used() == {"b": (33, 10)}
        assert len(redis_server.ask("HGETALL", f"test:budget-holds:{tmp_path.name}")) == 2


async def test_a_settlement_that_never_arrived_is_found_in_the_books(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Its worker lives and thinks it is settled."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker = made.worker()
        await made.recount.tick()
        await made.reserve(worker, 40, "A")
        made.logs[0].append_final(charged("A", 15))  # type: ignore[arg-type]
        worker._open.clear()  # as if the message had been sent
        made.recount.sweep_soon()
        await made.recount.tick()
        assert await made.used() == {"b": (15, 0)}


async def test_a_counter_that_went_wrong_is_put_right(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Such as by a Redis that came back older than it was."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker = made.worker()
        await made.recount.tick()
        worker.settle(await made.reserve(worker, 30, "A"), 20, made.now_us)
        assert await made.used() == {"b": (20, 0)}
        made.logs[0].append_final(charged("A", 25))  # type: ignore[arg-type]
        made.recount.sweep_soon()
        await made.recount.tick()
        assert await made.used() == {"b": (25, 0)}


DAMAGE: dict[str, tuple[str | bytes, ...]] = {
    "a hold that is no hold": ("HSET", "{holds}", "evil", "garbage"),
    "a request id that is no text": ("HSET", "{holds}", b"\xff\xfe", b"\x93\xa1o\x05\x90"),
    "a hold on somebody else's key": ("HSET", "{holds}", "evil", b"\x93\xa1o\x05\x91\xa1x"),
    "a hold of a negative amount": ("HSET", "{holds}", "evil", b"\x93\xa1o\xff\x90"),
    "a table of holds that is no table": ("SET", "{holds}", "garbage"),
    "a counter that is no counter": ("SET", "{counter}", "garbage"),
    "a counter without a number": ("HSET", "{counter}", "used", "garbage"),
    "a number with a leading zero": ("HSET", "{counter}", "held", "007"),
    "a number beyond 64 bits": ("HSET", "{counter}", "used:{gateway}", "9" * 30),
    "a changed number of gateways": ("HSET", "{counter}", "gateways", "many"),
    "a number of changes that is none": ("HSET", "{counter}", "changes:{gateway}", b"\xff"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_damage_in_redis_is_dropped_and_the_recount_goes_on(
    tmp_path: Path, redis_server: RedisServer, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever somebody wrote into Redis by hand, two rounds later a hard budget is kept again."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker = made.worker()
        await made.recount.tick()
        await made.reserve(worker, 30, "A")
        [span] = made.recount._spans(made.policy, made.now_us)
        names = {
            "holds": made.recount._keys.holds, "counter": span.key, "gateway": made.folder.name,
        }  # fmt: skip
        command = [
            part.format(**names) if isinstance(part, str) else part for part in DAMAGE[damage]
        ]
        redis_server.ask(*command)
        for _ in range(2):
            made.recount.sweep_soon()
            await made.recount.tick()
        assert made.recount.state == "ok"
        assert await made.used() == {"b": (0, 30)}
        await made.reserve(worker, 70, "B")
        with pytest.raises(BudgetExhausted):
            await made.reserve(worker, 1, "C")
        assert sum("dropped" in record.message for record in caplog.records) == 1


async def test_a_request_that_is_given_up_while_it_waits_holds_nothing(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A client that leaves in mid-reservation must not use up its tenant's budget."""
    async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
        worker = made.worker()
        await made.recount.tick()
        await made.reserve(worker, 1, "FIRST")  # so that the script is known
        waiting = asyncio.ensure_future(made.reserve(worker, 40, "A"))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [hold.request_id for hold in worker.open_holds()] == ["FIRST"]
        assert await made.used() == {"b": (0, 1)}


async def test_a_reservation_that_a_recount_overtakes_is_judged_like_any_other(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """It is on its way while the counter is put right: it is not admitted by being known."""
    proxy = RedisProxy(redis_server.socket)
    try:
        async with node(tmp_path, redis_server.url, Budget(name="b", amount_pico=100)) as made:
            worker, far = made.worker(), made.worker(proxy.url)
            await made.recount.tick()
            await made.reserve(worker, 80, "A")
            await far._redis.connect()
            proxy.mode = "far"
            late = asyncio.ensure_future(made.reserve(far, 80, "B"))
            await asyncio.sleep(0)
            made.recount.sweep_soon()
            await made.recount.tick()
            assert not late.done()
            with pytest.raises(BudgetExhausted):
                await late
            assert far.open_holds() == []
            assert await made.used() == {"b": (0, 80)}
    finally:
        proxy.stop()


async def test_what_ends_between_two_counters_is_in_neither_twice(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a Redis that lost its data, one counter is there again and the next is not yet."""
    both = (Budget(name="a", amount_pico=1000), Budget(name="b", amount_pico=1000))
    async with node(tmp_path, redis_server.url, *both) as made:
        worker = made.worker()
        await made.recount.tick()
        running = await made.reserve(worker, 400, "B")
        redis_server.ask("FLUSHALL")
        counted: list[str] = []
        count = made.recount._count

        async def counting(span: Span, holds: list[OpenHold]) -> str | None:
            if len(counted) == 1:
                made.logs[0].append_final(charged("B", 100))  # type: ignore[arg-type]
                worker.settle(running, 100, made.now_us)
                await worker._redis.call("PING")
            counted.append(span.key)
            return await count(span, holds)

        monkeypatch.setattr(made.recount, "_count", counting)
        await made.recount.tick()
        assert len(counted) == 2
        assert (await made.used())["a"] == (100, 0)
        for _ in range(3):
            made.recount.sweep_soon()
            await made.recount.tick()
            assert await made.used() == {"a": (100, 0), "b": (100, 0)}
        assert redis_server.ask("HLEN", "test:budget-holds:" + tmp_path.name) == 0


async def test_what_is_too_large_to_be_counted_is_refused_and_leaves_no_hold(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Or one absurd request would use up its tenant's budget until the worker ends."""
    hard, soft = Budget(name="h", amount_pico=USD), Budget(name="s", amount_pico=1, enforce="soft")
    async with node(tmp_path / "hard", redis_server.url, hard) as made:
        worker = made.worker()
        await made.recount.tick()
        for amount in (AMOUNT_PICO_MAX + 1, 2**64, 2**90):
            with pytest.raises(BudgetUnavailable, match="too large"):
                await made.reserve(worker, amount, f"R{amount}")
        assert worker.open_holds() == []
    async with node(tmp_path / "soft", redis_server.url, soft) as made:
        worker = made.worker()
        await made.recount.tick()
        absurd = [await made.reserve(worker, 2**90, f"R{number}") for number in range(9)]
        redis_server.ask("FLUSHALL")
        await made.recount.tick()
        assert await made.used() == {"s": (0, AMOUNT_PICO_MAX)}
        for hold in absurd:
            worker.settle(hold, 5, made.now_us)
        for _ in range(2):  # of a counter that left its 64 bits there is nothing to be trusted
            made.recount.sweep_soon()
            await made.recount.tick()
        assert await made.used() == {"s": (0, 0)}  # none was booked


async def test_the_next_period_is_counted_before_it_begins_and_starts_at_nothing(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Each is kept a day after its end, whatever date Redis believes it is."""
    budget = Budget(name="b", amount_pico=100, period="day")
    async with node(tmp_path, redis_server.url, budget) as made:
        worker = made.worker()
        midnight_us = NOW_US - NOW_US % DAY_US + DAY_US
        made.now_us = midnight_us - 1
        await made.recount.tick()
        late = await made.reserve(worker, 90, "LATE")
        made.now_us = midnight_us
        await made.reserve(worker, 80, "EARLY")
        worker.settle(late, 90, made.now_us)
        await made.recount._look(made.recount._spans(made.policy, made.now_us))
        assert await made.used() == {"b": (0, 80)}
        keys = redis_server.ask("KEYS", "test:budget:*")
        assert sorted(int(redis_server.ask("HGET", key, "used")) for key in keys) == [80, 90]
        kept_us = sorted(redis_server.ask("PTTL", key) * 1000 for key in keys)
        for days, found_us in enumerate(kept_us, start=1):
            assert 0 <= days * DAY_US - found_us < DAY_US / 100


async def test_every_budget_that_covers_a_request_holds_it_or_none_does(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """A refusal by the feature's budget leaves the tenant's own as it was."""
    budgets = (
        Budget(name="all", amount_pico=1000),
        Budget(name="import", amount_pico=50, tags={"feature": "import"}),
    )
    async with node(tmp_path, redis_server.url, *budgets) as made:
        worker = made.worker()
        await made.recount.tick()
        await made.reserve(worker, 40, "A", {"feature": "import"})
        with pytest.raises(BudgetExhausted, match="'import'"):
            await made.reserve(worker, 20, "B", {"feature": "import"})
        assert await made.used() == {"all": (0, 40), "import": (0, 40)}


async def test_two_gateways_count_together_and_only_once_both_have(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Each has books of its own; the money is one."""
    budget = Budget(name="b", amount_pico=100)
    async with (
        node(tmp_path / "one", redis_server.url, budget, gateways=2) as one,
        node(tmp_path / "two", redis_server.url, budget, gateways=2) as two,
    ):
        here, there = one.worker(), two.worker()
        await one.recount.tick()
        with pytest.raises(BudgetUnavailable):
            await one.reserve(here, 1, "A")
        await one.recount.tick()
        assert one.recount.state == "waiting for all 2 gateways"
        two.logs[0].append_final(charged("OLD", 60))  # type: ignore[arg-type]
        await two.recount.tick()
        await one.reserve(here, 30, "A")
        with pytest.raises(BudgetExhausted):
            await two.reserve(there, 11, "B")
        await two.reserve(there, 10, "C")
        one.recount.sweep_soon()
        await one.recount.tick()
        assert await one.used() == {"b": (60, 40)}
