"""The preloaded library moves what it says, and nothing else."""

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.elsewhere import moved_clock
from tests.redis_server import RedisServer

pytestmark = pytest.mark.skipif(moved_clock.compiler() is None, reason="there is no C compiler")

LOOK = """
import os, sqlite3, sys, time, datetime
began, wall = time.monotonic(), time.time()
time.sleep(0.05)
slept = time.monotonic() - began
open(sys.argv[1], "w").close()
print(wall, datetime.datetime.now().timestamp(), time.time_ns() / 1e9,
      sqlite3.connect(":memory:").execute("SELECT unixepoch()").fetchone()[0])
print(began, slept, os.stat(sys.argv[1]).st_mtime)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled here."""
    return moved_clock.build(tmp_path_factory.mktemp("clock"))


def real_seconds(folder: Path) -> float:
    """What the kernel thinks, also where these tests run on another day themselves."""
    (folder / "now").touch()
    return (folder / "now").stat().st_mtime


def test_a_process_and_its_children_see_another_day(library: Path, tmp_path: Path) -> None:
    """By every way to ask; its monotonic clock, its sleeps and its files stay where they are."""
    moved = moved_clock.environment(library, timedelta(days=40))
    command = [sys.executable, "-c", LOOK, str(tmp_path / "file")]
    told = subprocess.run(
        ["env", *command], env=moved, check=True, capture_output=True, text=True, timeout=30
    ).stdout.splitlines()
    walls = [float(text) for text in told[0].split()]
    began, slept, written = (float(text) for text in told[1].split())
    for wall in walls:
        assert abs(wall - real_seconds(tmp_path) - 40 * 86_400) < 30
    assert abs(written - real_seconds(tmp_path)) < 30
    assert abs(began - time.monotonic()) < 30
    assert 0.05 <= slept < 10


def test_redis_sees_it_too(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that a test starts, with its own libraries."""
    for name, value in moved_clock.environment(library, timedelta(days=-3)).items():
        monkeypatch.setenv(name, value)
    server = RedisServer(tmp_path)
    server.start()
    try:
        seconds = int(server.ask("TIME")[0])
    finally:
        server.stop()
    assert abs(seconds - real_seconds(tmp_path) + 3 * 86_400) < 30


@pytest.mark.parametrize(
    "now",
    [datetime(2026, 11, 30, 20, 1, tzinfo=UTC), datetime(2028, 2, 29, 12, 1, tzinfo=UTC),
     datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC), datetime(2027, 1, 31, 0, 0, tzinfo=UTC)],
)  # fmt: skip
def test_the_days_are_what_they_are_called(now: datetime) -> None:
    """From any day on, and every one but a month's end that is this very minute lies ahead."""
    days = {name: now + moved for name, moved in moved_clock.days(now).items()}
    end = days["over a month's end"]
    assert (end + timedelta(minutes=1)).day == 1
    assert (end.hour, end.minute, end.month) == (23, 59, now.month)
    leap = days["on a leap day"]
    assert (leap.month, leap.day) == (2, 29)
    assert leap > now
