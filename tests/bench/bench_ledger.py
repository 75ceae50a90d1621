"""What metering costs: ``python tests/bench/bench_ledger.py [--directory DIR]``.

Checks the books before it believes its own figures. CPU time of the thread, in the best of several
rounds per line; the directory decides which disk is measured.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway import booking
from gateway.ids import UlidFactory
from gateway.ledger.budgets import Budgets
from gateway.ledger.shipper import Shipper
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import WriteAheadLog
from gateway.policy.snapshot import Budget, Policy, RateLimits, Tenant
from gateway.prices import all_prices
from gateway.stores.limits import Limiter
from gateway.wire.usage import Usage
from tests.gateway.exchanges import LARGE, SMALL, attempt, exchange
from tests.gateway.ledger.books import NOW_US, PRICE, PRICES, final, intent

ROUNDS, CALLS = 7, 20_000


def best_us(call: Callable[[], object]) -> float:
    """Microseconds of CPU per call in the best round, after one to warm up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        started = time.thread_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.thread_time() - started) / CALLS * 1e6)
    return min(rounds[1:])


def main() -> None:
    """Print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=None)
    directory = parser.parse_args().directory
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}")  # fmt: skip
    usage = Usage(prompt_tokens=1000, cached_tokens=500, completion_tokens=100)
    print(f"cost_pico             {best_us(lambda: PRICE.cost_pico(usage)):8.2f} us")
    print(f"PriceSchedule.at      {best_us(lambda: PRICES.at(NOW_US, 1000)):8.2f} us")
    print(f"ULID                  {best_us(UlidFactory()):8.2f} us")
    made, last_attempt = exchange(), attempt(SMALL, usage)
    candidates = (SMALL, LARGE)
    worst = best_us(lambda: booking.worst_cases_pico(made, candidates, 100))
    print(f"worst_cases_pico of 2 {worst:8.2f} us")
    begin = best_us(lambda: booking.intent(made, last_attempt, 100))
    print(f"booking.intent        {begin:8.2f} us")
    end = best_us(
        lambda: booking.attempt_event(made, last_attempt, recorded_us=NOW_US, superseded=False)
    )
    print(f"booking.attempt_event {end:8.2f} us")
    limiter = Limiter()
    limits = RateLimits(requests_per_minute=10**9, tokens_per_minute=10**9, concurrent=9)
    admit = best_us(lambda: limiter.reserve("acme", limits, 500, 10, 1.0).settle(100))
    print(f"limiter both          {admit:8.2f} us")
    tenant = Tenant(id="acme", budgets=(Budget(name="b", amount_pico=10**18),))
    budgets = Budgets(lambda *_: (0, 0))
    budgets.configure(
        Policy(
            version="v",
            providers={},
            models={},
            routes=(),
            tenants={"acme": tenant},
            baseline=None,
            known_models=frozenset(),
        ),
        NOW_US,
    )

    def spend() -> None:
        budgets.settle(budgets.reserve(tenant, {}, 10, NOW_US), 5, NOW_US)

    print(f"budgets both          {best_us(spend):8.2f} us")
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        log = WriteAheadLog(Path(folder) / "a", boot_id="a")
        first, last = intent("r", tags={"feature": "chat"}), final("r", tags={"feature": "chat"})
        print(f"append_intent         {best_us(lambda: log.append_intent(first)):8.2f} us")
        print(f"append_final          {best_us(lambda: log.append_final(last)):8.2f} us")
        log.close()
        ship(Path(folder), CALLS * 2)


def ship(folder: Path, events: int) -> None:
    """Intents and finals of many requests through the shipper, then audited."""
    log = WriteAheadLog(folder / "wal", boot_id="b")
    new_id = UlidFactory()
    for number in range(events):
        request_id, tenant = new_id(), f"tenant-{number % 50}"
        log.append_intent(intent(request_id, tenant_id=tenant))
        log.append_final(final(request_id, tenant_id=tenant, ts_us=NOW_US + number))
    store = LedgerStore(folder / "ledger.sqlite")
    store.register_prices(all_prices([PRICES]))
    shipper = Shipper(folder / "wal", store, now_us=lambda: NOW_US)
    started = time.thread_time()
    booked = shipper.ship()
    shipped_us = (time.thread_time() - started) / events * 1e6
    assert booked == events, f"{booked} of {events} events were booked"
    print(f"shipped, per event    {shipped_us:8.2f} us")
    started = time.perf_counter()
    problems = store.verify()
    print(f"verify                {events / (time.perf_counter() - started):8.0f} events/s")
    assert problems == [], problems
    store.close()
    log.close()


if __name__ == "__main__":
    main()
