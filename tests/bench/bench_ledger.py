"""What metering costs: ``python tests/bench/bench_ledger.py [--directory DIR]``.

Checks the books before it believes its own figures. The best of several rounds per line; the
directory decides which disk is measured.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gateway.ledger.budgets import Budgets
from gateway.ledger.shipper import Shipper
from gateway.ledger.store import LedgerStore
from gateway.ledger.wal import WriteAheadLog
from gateway.policy.snapshot import Budget, Policy, Tenant
from gateway.prices import all_prices
from gateway.wire.usage import Usage
from tests.gateway.ledger.books import NOW_US, PRICE, PRICES, final, intent

ROUNDS, CALLS = 7, 20_000


def best_us(call: Callable[[], object]) -> float:
    """Microseconds per call in the best round, after one to warm up."""
    rounds = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - started) / CALLS * 1e6)
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
    tenant = Tenant(id="acme", budgets=(Budget(name="b", amount_pico=10**18),))
    budgets = Budgets(lambda *_: 0)
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

    print(f"reserve + settle      {best_us(spend):8.2f} us")
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
    for number in range(events):
        log.append_intent(intent(f"r{number}"))
        log.append_final(final(f"r{number}", tenant_id=f"tenant-{number % 200}"))
    store = LedgerStore(folder / "ledger.sqlite")
    store.register_prices(all_prices([PRICES]))
    shipper = Shipper(folder / "wal", store, now_us=lambda: NOW_US)
    started = time.perf_counter()
    booked = shipper.ship()
    seconds = time.perf_counter() - started
    assert booked == events, f"{booked} of {events} events were booked"
    print(
        f"shipped               {events / seconds:8.0f} events/s ({seconds / events * 1e6:.1f} us)"
    )
    started = time.perf_counter()
    problems = store.verify()
    print(f"verify                {events / (time.perf_counter() - started):8.0f} events/s")
    assert problems == [], problems
    store.close()
    log.close()


if __name__ == "__main__":
    main()
