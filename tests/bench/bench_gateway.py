"""What the gateway costs per request, beside a direct call and other proxies: one table.

    python -m tests.bench.bench_gateway [--rows pinned,hit] [--quick] [--peers litellm,portkey]
        [--check] [--keep]

Whatever is measured runs on one core with all its processes; the mock provider and the load share
the other. CPU is what the kernel charged to the whole process tree (schedstat), from rest to rest.
On a busy machine it rises by up to a third (colder caches, fewer requests per wake-up); rates and
latencies mean little. Rounds are interleaved: each row is measured once per round.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from tests.bench import gateway_peers, gateway_table
from tests.bench.gateway_measure import Figures, measure
from tests.bench.gateway_rows import LOAD_CORE, ROWS, TARGETS, Row, Target, available, provider
from tests.bench.process_tree import resident_bytes, tree

LOAD_MAX = 1.0  # with more to do than this beforehand, figures are not worth keeping


@contextlib.contextmanager
def started(rows: list[Row]) -> Iterator[dict[str, Target]]:
    """Every target that the rows need."""
    known = TARGETS | gateway_peers.TARGETS
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(provider())
        targets = {"provider": upstream}
        for row in rows:
            if row.target not in targets:
                print(f"starting {row.target} ...", file=sys.stderr)
                targets[row.target] = stack.enter_context(known[row.target](upstream))
        yield targets


def run(rows: list[Row], rounds: int, seconds: float) -> gateway_table.Table:
    """Measure every row in every round. The first row is the direct one."""
    found: dict[str, list[Figures]] = {row.name: [] for row in rows}
    with started(rows) as targets:
        resting = {
            name: resident_bytes(tree(target.pid)) / 1e6
            for name, target in targets.items()
            if target.pid is not None
        }
        for number in range(rounds):
            for row in rows:
                print(f"round {number + 1} of {rounds}: {row.title}", file=sys.stderr)
                figures = measure(row, targets[row.target], seconds)
                if row.target in resting:
                    figures["memory_mb"] = resting[row.target]
                if row.name != "direct":
                    for name in figures:
                        if name.startswith("added_"):
                            figures[name] -= found["direct"][-1][name]
                found[row.name].append(figures)
    return {name: gateway_table.summary(rounds) for name, rounds in found.items()}


def chosen(wanted: str | None, peers: str) -> list[Row]:
    """The direct row, and those that were asked for and can be measured here."""
    rows = [row for row in ROWS if wanted is None or row.name in wanted.split(",")]
    missing = [row for row in rows if not available(row)]
    for row in missing:
        print(f"left out, since it cannot run here: {row.title}", file=sys.stderr)
    rows = [row for row in rows if row not in missing and row.name != "direct"]
    return [ROWS[0], *rows, *(gateway_peers.ROWS[name] for name in peers.split(",") if name)]


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--rows", help=f"some of: {names} (default: all)")
    parser.add_argument(
        "--peers", default="", help="install and measure: litellm,portkey,tensorzero"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, per row and round")
    parser.add_argument("--quick", action="store_true", help="3 rounds of half a second")
    parser.add_argument("--check", action="store_true", help="fail where a kept figure is worse")
    parser.add_argument("--keep", action="store_true", help="keep the figures in the repository")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.5
    load = os.getloadavg()[0]
    if arguments.keep and load > LOAD_MAX:
        parser.error(f"the machine is busy (load {load:.1f}): what is kept now would be wrong")
    rows = chosen(arguments.rows, arguments.peers)
    os.sched_setaffinity(0, {LOAD_CORE})
    table = run(rows, arguments.rounds, arguments.seconds)
    gateway_table.show(rows, table)
    lines = gateway_table.worse(rows, table) if arguments.check else []
    if arguments.keep:
        gateway_table.keep(rows, table, gateway_peers.versions(rows))
    if lines:
        print(f"\nWorse than kept:{'':33}{'kept':>12}{'now':>12}")
        print("\n".join(lines))
        sys.exit(1)


if __name__ == "__main__":
    main()
