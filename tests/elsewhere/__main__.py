"""``make test-elsewhere``: the suites on other CPUs and on other days, one row each.

    python -m tests.elsewhere [--only TEXT]

A CPU that can be neither used nor emulated here says so and counts as no failure. Every row's
output is in build/elsewhere/; the exit status is 1 if any row failed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tests.elsewhere import emulated_cpu, masked_cpu, moved_clock

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "elsewhere"
ROW_SECONDS_MAX = 1800.0
"""A row that takes longer is ended, and has failed."""

MODELS = ("tests/local_models", "-m", "not long")
FAST = ("tests", "-m", "not long and not slow")
COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped)")


class Row(NamedTuple):
    """One run of pytest, or the reason why there is none."""

    name: str
    arguments: tuple[str, ...] = ()
    python: Path = Path(sys.executable)
    environment: Mapping[str, str] = {}
    note: str = ""


def cpus() -> Iterator[Row]:
    """The suites of models and kernels on every kind of CPU that runs code of its own."""
    own = emulated_cpu.own_class()
    for name in emulated_cpu.CLASSES:
        if name == own:
            yield Row(f"CPU: {name}", MODELS, note="this machine")
        elif own != "AVX-512 with VNNI" or name not in masked_cpu.KINDS:
            yield Row(f"CPU: {name}", note=f"not run here: the CPU is {own}")
        elif missing := masked_cpu.lacking():
            yield Row(f"CPU: {name}", note=f"not run here: no {missing}")
        else:
            environment = masked_cpu.environment(BUILD / "masked", name)
            yield Row(f"CPU: {name}", MODELS, environment=environment, note="this machine, masked")
    if emulated_cpu.available():
        python = emulated_cpu.python(BUILD / "haswell")
        yield Row(
            "CPU: AVX2, emulated", emulated_cpu.SELECTED, python, emulated_cpu.ENVIRONMENT,
            emulated_cpu.LEFT_OUT,
        )  # fmt: skip
    else:
        yield Row("CPU: AVX2, emulated", note=f"not run here: no {emulated_cpu.EMULATOR}")


def days() -> Iterator[Row]:
    """The whole fast suite on other days."""
    missing = moved_clock.compiler() is None
    library = None if missing else moved_clock.build(BUILD)
    for name, moved in moved_clock.days(datetime.now(UTC)).items():
        if library is None:
            yield Row(f"day: {name}", note="not run here: no C compiler")
            continue
        moment = datetime.now(UTC) + moved
        environment = moved_clock.environment(library, moved)
        yield Row(f"day: {name}", FAST, environment=environment, note=f"{moment:%Y-%m-%d %H:%M}")


def run(row: Row) -> bool:
    """Run and print one row; whether nothing failed."""
    if not row.arguments:
        print(f"{row.name:26} {row.note}", flush=True)
        return True
    log = BUILD / (re.sub(r"\W+", "-", row.name) + ".log")
    began = time.monotonic()
    with log.open("w") as file:
        command = [str(row.python), "-m", "pytest", "-rfE", *row.arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | row.environment, stdout=file, stderr=file
        )
        try:
            status = process.wait(ROW_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -1
    output = log.read_text()
    counts = dict.fromkeys(("passed", "failed", "error", "skipped"), 0)
    for count, kind in COUNTS.findall(output.rstrip().rpartition("\n")[2]):
        counts[kind] = int(count)
    counts["failed"] += counts.pop("error")
    told = "  ".join(f"{count:5} {kind}" for kind, count in counts.items())
    ended = "" if status >= 0 else "  ENDED: too slow"
    print(f"{row.name:26} {told}  {time.monotonic() - began:5.0f} s{ended}  {row.note}", flush=True)
    if status:
        failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR "))]
        print("\n".join(f"    {line}" for line in failures[:20]))
        print(f"    {log}", flush=True)
    return status == 0


def main() -> None:
    """Run every row that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    only = parser.parse_args().only
    BUILD.mkdir(parents=True, exist_ok=True)
    # A day's row is made when its turn has come: a month's end must lie just ahead.
    names = [row.name for row in (*cpus(), *days()) if only in row.name]
    results = [run(next(row for row in (*cpus(), *days()) if row.name == name)) for name in names]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
