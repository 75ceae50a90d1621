"""A policy of many tenants: how long it takes to load, what it keeps, how long it holds the loop.

    python -m tests.bench.bench_policy [--tenants 10000]

Loads one file of tenants beside the default policy, in a thread as the gateway does, while an event
loop wakes every millisecond. The longest that a wake came late is a hold; as many seconds without a
load are the baseline, since other programs make the loop late too.
"""

import argparse
import asyncio
import gc
import platform
import tempfile
import time
from pathlib import Path

import uvloop

from gateway.app import settle_garbage_collector
from gateway.policy.load import load_policy
from gateway.policy.snapshot import Policy

DEFAULT = Path(__file__).parents[2] / "policies" / "default"
TENANT = """\
  - id: team-{number:05}
    name: Team {number}
    limits: {{rpm: 600, tpm: 400k, concurrent: 16}}
    budgets:
      - {{name: monthly, amount: "100.00"}}
"""


def write_tenants(folder: Path, count: int) -> list[Path]:
    """The default policy with so many more tenants; its files."""
    text = (DEFAULT / "tenants.yaml").read_text()
    text += "".join(TENANT.format(number=number) for number in range(count))
    tenants = folder / "tenants.yaml"
    tenants.write_text(text)
    return [DEFAULT / "models.yaml", DEFAULT / "routing.yaml", tenants]


def _load(paths: list[Path]) -> Policy:
    return load_policy(paths, environ={}, now_us=1)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def _latest_ms(lags: list[float]) -> None:
    while True:
        asked = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append((time.perf_counter() - asked - 0.001) * 1e3)


async def _measure(paths: list[Path]) -> None:
    await asyncio.to_thread(_load, [DEFAULT])  # what is imported once
    settle_garbage_collector()
    before_mb = _resident_mb()
    lags: list[float] = []
    watching = asyncio.create_task(_latest_ms(lags))
    policy: Policy | None = None
    for what in ("load", "reload"):
        lags.clear()
        began = time.perf_counter()
        loaded = await asyncio.to_thread(_load, paths)
        seconds = time.perf_counter() - began
        policy, held_ms = loaded, max(lags)
        lags.clear()
        await asyncio.sleep(seconds)
        print(f"{what}: {seconds:.2f} s; loop held {held_ms:.0f} ms at most,"
              f" without a load {max(lags):.0f} ms")  # fmt: skip
    watching.cancel()
    gc.collect()
    assert policy is not None, "two loads"
    size_mb = paths[-1].stat().st_size / 1e6
    print(
        f"{len(policy.tenants)} tenants, {size_mb:.1f} MB of YAML:"
        f" memory {before_mb:.0f} MB before, {_resident_mb():.0f} MB after"
    )


def main() -> None:
    """Print both loads and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=10_000)
    given = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(_measure(write_tenants(Path(folder), given.tenants)))


if __name__ == "__main__":
    main()
