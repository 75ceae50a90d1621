"""Budgets: never exceeded under concurrency, conserved at any time, renewed by the calendar."""

import asyncio
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BudgetExhausted
from gateway.ledger.budgets import Budgets, Hold, period_bounds
from gateway.policy.snapshot import Budget, Policy, Tenant

NOW_US = 1_795_168_800_000_000  # 2026-11-20T10:00:00Z
DAY_US = 86_400_000_000


def nothing_spent(
    tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]
) -> tuple[int, int]:
    """Books without a past."""
    return 0, 0


def policy(*budgets: Budget) -> Policy:
    """One tenant with these budgets."""
    return Policy(
        version="v",
        providers={},
        models={},
        routes=(),
        tenants={"acme": Tenant(id="acme", budgets=budgets)},
        baseline=None,
        known_models=frozenset(),
    )


def configured(*budgets: Budget) -> tuple[Budgets, Tenant]:
    """Budgets of one tenant, nothing spent."""
    opened = Budgets(nothing_spent)
    opened.configure(policy(*budgets), NOW_US)
    return opened, Tenant(id="acme")


def used(budgets: Budgets, now_us: int = NOW_US) -> dict[str, tuple[int, int]]:
    """(spent, held) by budget."""
    return {budget.name: (spent, held) for _, budget, spent, held in budgets.used(now_us)}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 120)),
        st.tuples(st.just("settle"), st.integers(0, 5)),
        st.tuples(st.just("again"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(
    steps=steps,
    limit=st.integers(0, 300),
    shares=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=60),
)
def test_reserved_equals_settled_plus_released_plus_held_plus_pending(
    steps: list[tuple[str, int]], limit: int, shares: list[tuple[int, int]]
) -> None:
    """Whatever the order; the limit holds, also if all that is pending were charged; settling
    twice changes nothing.
    """
    budgets, tenant = configured(Budget(name="b", amount_pico=limit))
    live: list[Hold] = []
    done: list[Hold] = []
    reserved = settled = released = pending = 0
    for (step, number), (charged, unclear) in zip(steps, shares, strict=False):
        if step == "reserve":
            try:
                live.append(budgets.reserve(tenant, {}, number, NOW_US))
                reserved += number
            except BudgetExhausted:
                assert settled + (reserved - settled - released) + number > limit
        elif step == "settle" and live:
            hold = live.pop(number % len(live))
            charge = hold.amount_pico * charged // 100
            unknown = hold.amount_pico * unclear // 100
            budgets.settle(hold, charge, NOW_US, unknown)
            settled += charge
            pending += unknown
            released += hold.amount_pico - charge - unknown
            done.append(hold)
        elif step == "again" and done:
            budgets.settle(done[number % len(done)], 10**6, NOW_US, 10**6)
        spent, held = used(budgets)["b"]
        assert spent == settled
        in_progress = sum(hold.amount_pico for hold in live)
        assert held == in_progress + pending
        assert reserved == settled + released + in_progress + pending
        assert spent + held <= limit


def test_threads_cannot_exceed_a_limit_together() -> None:
    """Eight threads, each wanting all of it in small parts: exactly the limit is given out."""
    budgets, tenant = configured(Budget(name="b", amount_pico=1000))
    taken: list[int] = []
    barrier = threading.Barrier(8)

    def spend() -> None:
        barrier.wait()
        for number in range(300):
            try:
                hold = budgets.reserve(tenant, {}, 3, NOW_US)
            except BudgetExhausted:
                continue
            charge = number % 4
            budgets.settle(hold, min(charge, 3), NOW_US)
            taken.append(min(charge, 3))

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used(budgets)["b"] == (sum(taken), 0)
    assert 1000 - 3 < sum(taken) <= 1000


async def test_tasks_that_reserve_before_they_spend_stay_below_the_limit() -> None:
    """The classic failure: a hundred requests pass before the first is booked."""
    budgets, tenant = configured(Budget(name="b", amount_pico=1000))
    served = 0

    async def one() -> None:
        nonlocal served
        try:
            hold = budgets.reserve(tenant, {}, 100, NOW_US)
        except BudgetExhausted:
            return
        await asyncio.sleep(0)
        budgets.settle(hold, 100, NOW_US)
        served += 1

    await asyncio.gather(*[one() for _ in range(100)])
    assert served == 10


def test_every_budget_that_covers_a_request_is_charged() -> None:
    """By tags; and where one lacks money, none of them holds any."""
    budgets, tenant = configured(
        Budget(name="all", amount_pico=1000),
        Budget(name="import", amount_pico=50, tags={"feature": "import"}),
    )
    hold = budgets.reserve(tenant, {"feature": "import", "x": "y"}, 40, NOW_US)
    assert used(budgets) == {"all": (0, 40), "import": (0, 40)}
    with pytest.raises(BudgetExhausted, match="'import'"):
        budgets.reserve(tenant, {"feature": "import"}, 20, NOW_US)
    assert used(budgets) == {"all": (0, 40), "import": (0, 40)}
    budgets.reserve(tenant, {"feature": "chat"}, 20, NOW_US)
    budgets.settle(hold, 30, NOW_US)
    assert used(budgets) == {"all": (30, 20), "import": (30, 0)}


def test_a_refusal_names_what_is_spent_what_the_limit_is_and_when_it_ends() -> None:
    """In dollars, for whoever reads the client's log."""
    budgets, tenant = configured(Budget(name="monthly", amount_pico=5 * 10**12))
    budgets.settle(budgets.reserve(tenant, {}, 4 * 10**12, NOW_US), 4 * 10**12, NOW_US)
    with pytest.raises(BudgetExhausted) as caught:
        budgets.reserve(tenant, {}, 2 * 10**12, NOW_US)
    assert caught.value.message == (
        "tenant acme: budget 'monthly' has 4.0000 USD spent and 0.0000 reserved of 5.0000;"
        " this request may cost 2.0000. It resets at 2026-12-01T00:00:00Z."
    )
    assert (caught.value.status, caught.value.retryable) == (429, False)


@pytest.mark.parametrize("terms", [{"enforce": "soft"}, {"on_exceeded": "allow"}])
def test_a_budget_that_only_counts_refuses_nothing(terms: dict[str, Any]) -> None:
    """It shows more than all of it spent."""
    budgets, tenant = configured(Budget(name="b", amount_pico=10, **terms))
    assert budgets.exceeded(tenant, {}, 100, NOW_US) is None
    budgets.settle(budgets.reserve(tenant, {}, 100, NOW_US), 100, NOW_US)
    assert used(budgets) == {"b": (100, 0)}


def test_what_does_not_fit_is_known_before_it_is_reserved() -> None:
    """So that a plan can go to a cheaper target."""
    budget = Budget(name="b", amount_pico=10, on_exceeded="downgrade")
    budgets, tenant = configured(budget)
    assert budgets.exceeded(tenant, {}, 11, NOW_US) == budget
    assert budgets.exceeded(tenant, {}, 10, NOW_US) is None
    assert used(budgets) == {"b": (0, 0)}


def test_a_charge_above_the_hold_is_not_hidden() -> None:
    """The bound was wrong; the money is gone all the same."""
    budgets, tenant = configured(Budget(name="b", amount_pico=100))
    budgets.settle(budgets.reserve(tenant, {}, 50, NOW_US), 150, NOW_US)
    assert used(budgets) == {"b": (150, 0)}
    with pytest.raises(BudgetExhausted):
        budgets.reserve(tenant, {}, 0, NOW_US)


def test_a_tenant_without_budgets_is_not_limited() -> None:
    """And its hold settles like any other."""
    budgets, _ = configured()
    budgets.settle(budgets.reserve(Tenant(id="free"), {}, 10**18, NOW_US), 5, NOW_US)


def test_a_new_period_starts_empty_and_keeps_nothing_of_the_old() -> None:
    """A request that ends after midnight is charged to the day it began on."""
    budgets, tenant = configured(Budget(name="b", amount_pico=100, period="day"))
    overnight = budgets.reserve(tenant, {}, 100, NOW_US)
    tomorrow = NOW_US + DAY_US
    hold = budgets.reserve(tenant, {}, 100, tomorrow)
    budgets.settle(overnight, 80, tomorrow)
    assert used(budgets, tomorrow) == {"b": (0, 100)}
    budgets.settle(hold, 60, tomorrow)
    assert used(budgets, tomorrow) == {"b": (60, 0)}


def test_a_clock_that_was_ahead_for_a_while_gives_no_fresh_budget() -> None:
    """Over midnight and back, again and again: each day has one counter."""
    budget = Budget(name="b", amount_pico=100, period="day")
    budgets, tenant = configured(budget)
    today, tomorrow = NOW_US, NOW_US + DAY_US
    budgets.settle(budgets.reserve(tenant, {}, 90, today), 90, today)
    budgets.settle(budgets.reserve(tenant, {}, 70, tomorrow), 70, tomorrow)
    for _ in range(2):
        with pytest.raises(BudgetExhausted):
            budgets.reserve(tenant, {}, 11, today)
        budgets.configure(policy(budget), today)
        with pytest.raises(BudgetExhausted):
            budgets.reserve(tenant, {}, 31, tomorrow)
    assert used(budgets, today) == {"b": (90, 0)}
    assert used(budgets, today - DAY_US) == {"b": (90, 0)}, "of the day before nothing is known"
    assert used(budgets, tomorrow) == {"b": (70, 0)}
    assert used(budgets, tomorrow + DAY_US) == {"b": (0, 0)}


def test_a_reload_keeps_what_is_spent_and_held() -> None:
    """A changed amount applies at once; a new budget knows the past, what is pending of it too,
    and the holds it covers.
    """
    asked: list[tuple[str, int, int]] = []

    def spent(tenant_id: str, from_us: int, to_us: int, tags: Mapping[str, str]) -> tuple[int, int]:
        asked.append((tenant_id, from_us, to_us))
        return 4, 3

    budgets = Budgets(spent)
    budgets.configure(policy(Budget(name="b", amount_pico=100)), NOW_US)
    tenant = Tenant(id="acme")
    hold = budgets.reserve(tenant, {"f": "x"}, 40, NOW_US)
    extra = Budget(name="x", amount_pico=200, tags={"f": "x"}, period="day")
    other = Budget(name="y", amount_pico=200, tags={"f": "y"})
    budgets.configure(policy(Budget(name="b", amount_pico=60), extra, other), NOW_US)
    assert used(budgets) == {"b": (4, 43), "x": (4, 43), "y": (4, 3)}
    with pytest.raises(BudgetExhausted):
        budgets.reserve(tenant, {}, 14, NOW_US)
    budgets.settle(hold, 30, NOW_US)
    assert used(budgets) == {"b": (34, 3), "x": (34, 3), "y": (4, 3)}
    assert [span[0] for span in asked] == ["acme"] * 3
    assert asked[1][2] - asked[1][1] == DAY_US


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("UTC", (2026, 11, 20, 10), 24),
        ("Europe/Berlin", (2026, 3, 29, 12), 23),
        ("Europe/Berlin", (2026, 10, 25, 0), 25),
        ("America/Santiago", (2026, 9, 6, 12), 23),  # midnight itself does not exist
        ("Asia/Kolkata", (2026, 1, 1, 0), 24),
    ],
)
def test_a_day_is_the_calendars_day(zone: str, moment: tuple[int, ...], hours: int) -> None:
    """As long as it is where the budget's owner lives."""
    local = datetime(*moment, tzinfo=ZoneInfo(zone))  # type: ignore[misc,arg-type]
    budget = Budget(name="b", amount_pico=1, period="day", timezone=zone)
    start_us, end_us = period_bounds(budget, int(local.timestamp() * 1e6))
    assert end_us - start_us == hours * 3_600_000_000
    for edge in (start_us, end_us - 1):
        assert datetime.fromtimestamp(edge / 1e6, ZoneInfo(zone)).date() == local.date()


def test_a_month_ends_at_local_midnight() -> None:
    """In summer Auckland is thirteen hours ahead of UTC."""
    budget = Budget(name="b", amount_pico=1, timezone="Pacific/Auckland")
    start_us, end_us = period_bounds(budget, NOW_US)
    zone = ZoneInfo("Pacific/Auckland")
    assert datetime.fromtimestamp(start_us / 1e6, zone) == datetime(2026, 11, 1, tzinfo=zone)
    assert datetime.fromtimestamp(end_us / 1e6, zone) == datetime(2026, 12, 1, tzinfo=zone)
