"""The ledger as the stages use it: one owner per folder, health, drain, budgets that remember."""

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BudgetExhausted, MeteringUnavailable
from gateway.ledger import Ledger, reports
from gateway.policy.snapshot import Budget, Policy, Tenant
from gateway.prices import all_prices
from tests.gateway.ledger.books import NOW_US, PRICES, final, intent, query


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


def test_a_second_process_on_the_same_folder_gets_a_sentence(tmp_path: Path) -> None:
    """And the first is not disturbed."""
    ledger = Ledger.open(tmp_path)
    with pytest.raises(MeteringUnavailable, match="another Tollhouse process"):
        Ledger.open(tmp_path)
    ledger.settle(final("r"))
    ledger.close()
    Ledger.open(tmp_path).close()


async def test_after_a_drain_everything_is_booked(tmp_path: Path) -> None:
    """Reports are complete up to the call."""
    ledger = Ledger.open(tmp_path, interval_seconds=3600)
    ledger.intend(intent("r"))
    ledger.checkpoint("r/1", 5)
    ledger.settle(final("r"))
    assert ledger.durable() is None
    await ledger.drain()
    assert len(reports.request(ledger.store, "r")) == 1
    ledger.close()


def test_closing_settles_what_is_still_open(tmp_path: Path) -> None:
    """An attempt that the drain gave up is in the books when the process ends."""
    ledger = Ledger.open(tmp_path)
    ledger.store.register_prices(all_prices([PRICES]))
    ledger.intend(intent("r"))
    ledger.checkpoint("r/1", 7)
    ledger.close()
    rows = query(tmp_path / "ledger.sqlite", "SELECT state, completion_tokens FROM usage_event")
    assert rows == [("interrupted", 7)]


def test_a_refused_record_makes_the_ledger_unhealthy(tmp_path: Path) -> None:
    """A failed checkpoint does not break the answer, but is not forgotten either."""
    ledger = Ledger.open(tmp_path)
    before = ledger.healthy
    ledger.checkpoint("x" * (1 << 20), 1)
    assert (before, ledger.healthy) == (True, False)
    with pytest.raises(MeteringUnavailable):
        ledger.intend(intent("r", reason="x" * (1 << 20)))
    with pytest.raises(MeteringUnavailable):
        ledger.settle(final("r", reason="x" * (1 << 20)))
    ledger.close()


def test_a_lying_usage_is_settled_without_its_amounts(tmp_path: Path) -> None:
    """An integer that no log can hold is no reason to fail a request."""
    ledger = Ledger.open(tmp_path)
    ledger.settle(final("r", cost_pico=2**80))
    ledger.close()
    rows = query(tmp_path / "ledger.sqlite", "SELECT cost_pico, error_type FROM usage_event")
    assert rows == [(None, "implausible_usage")]


@pytest.mark.parametrize("tags", [{}, {"feature": "chat"}])
def test_a_budget_survives_a_restart(tmp_path: Path, tags: dict[str, str]) -> None:
    """What was spent before counts, shipped or not; what another spent does not."""
    spend: dict[str, Any] = {"charge_pico": 600, "tags": {"feature": "chat"}}
    ledger = Ledger.open(tmp_path)
    ledger.settle(final("a", **spend))
    ledger.settle(final("b", **spend, tenant_id="other"))
    ledger.close()
    ledger = Ledger.open(tmp_path, interval_seconds=3600)
    ledger.settle(final("c", **spend))
    current = policy(Budget(name="monthly", amount_pico=1300, tags=tags))
    ledger.budgets.configure(current, NOW_US)
    tenant = current.tenants["acme"]
    with pytest.raises(BudgetExhausted, match="monthly"):
        ledger.budgets.reserve(tenant, {"feature": "chat"}, 101, NOW_US)
    ledger.budgets.reserve(tenant, {"feature": "chat"}, 100, NOW_US)
    ledger.close()
