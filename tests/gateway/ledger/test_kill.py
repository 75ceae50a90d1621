"""``kill -9`` at any instant loses nothing that was acknowledged and books nothing twice."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gateway.ledger import Ledger
from gateway.ledger.wal import WriteAheadLog
from gateway.prices import all_prices
from tests.gateway.ledger.books import NOW_US, PRICES, final, intent, query

pytestmark = pytest.mark.slow

_WRITER = """
import os, sys
from pathlib import Path
from tests.gateway.ledger.books import PRICES, final, intent
from gateway.ledger import Ledger
from gateway.prices import all_prices

run = sys.argv[2]
ledger = Ledger.open(Path(sys.argv[1]), interval_seconds=0.001, segment_bytes=20_000)
ledger.store.register_prices(all_prices([PRICES]))
for number in range(10**9):
    name = f"{run}x{number}"
    ledger.intend(intent(name))
    os.write(1, f"intent {name}/1\\n".encode())
    ledger.checkpoint(f"{name}/1", 10)
    ledger.settle(final(name))
    os.write(1, f"final {name}/1\\n".encode())
"""
_SHIP = "import sys; from pathlib import Path; from gateway.ledger import Ledger;" + (
    "print('open', flush=True); Ledger.open(Path(sys.argv[1])).close()"
)


def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Another process that has this one's imports."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> bytes:
    """Kill it without warning; returns what it had still said."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    rest = process.stdout.read()
    process.stdout.close()
    process.wait(timeout=10)
    return rest


def test_a_gateway_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Writer, shipper and recovery die together, at random points, ten times over."""
    rng = random.Random(7)
    said = bytearray()
    for run in range(10):
        process = start(_WRITER, str(tmp_path), str(run))
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 1500)):
            said += process.stdout.readline()
        said += kill(process)
    lines = [line.split() for line in said.decode().splitlines() if line.endswith("/1")]
    intents = {name for kind, name in lines if kind == "intent"}
    finals = {name for kind, name in lines if kind == "final"}
    Ledger.open(tmp_path).close()
    rows = query(tmp_path / "ledger.sqlite", "SELECT event_id, state, cost_pico FROM usage_event")
    states = {event_id: state for event_id, state, _ in rows}
    assert len(finals) > 1000
    assert Counter(event_id for event_id, _, _ in rows).most_common(1)[0][1] == 1
    assert intents - states.keys() == set(), "an acknowledged intent is not booked"
    assert {states[name] for name in finals} == {"final"}, "a settled event is booked otherwise"
    # At most the one record that each killed process could not report any more.
    assert len(states.keys() - intents) <= 10
    expected = final("x").cost_pico
    assert all(cost == expected for _, state, cost in rows if state == "final")
    assert_in_order(tmp_path)


def test_recovery_killed_again_and_again_happens_once(tmp_path: Path) -> None:
    """A shipper is killed at growing delays on its way through a log full of open attempts."""
    log = WriteAheadLog(tmp_path / "wal", boot_id="dead", segment_bytes=100_000)
    for number in range(4000):
        log.append_intent(intent(f"r{number}"))
        if number % 4:
            log.append_final(final(f"r{number}"))
    log.close()
    unfinished = 0
    for step in range(8):
        process = start(_SHIP, str(tmp_path))
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=0.02 + step * 0.06)
        except subprocess.TimeoutExpired:
            unfinished += 1
        kill(process)
    assert unfinished > 0, "every pass was finished before it could be killed"
    ledger = Ledger.open(tmp_path)
    ledger.store.register_prices(all_prices([PRICES]))
    ledger.close()
    rows = query(
        tmp_path / "ledger.sqlite", "SELECT state, count(*) FROM usage_event GROUP BY 1 ORDER BY 1"
    )
    assert rows == [("estimated", 1000), ("final", 3000)]
    assert_in_order(tmp_path)


def assert_in_order(state_dir: Path) -> None:
    """No contradiction in the books, nothing left open, and the sums are those of the events."""
    ledger = Ledger.open(state_dir, now_us=lambda: NOW_US)
    try:
        assert ledger.store.verify() == []
        assert ledger.store.open_owners() == set()
    finally:
        ledger.close()
