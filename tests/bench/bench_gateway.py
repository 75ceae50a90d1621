"""What the gateway costs per request, beside a direct call and other proxies: one table.

    python -m tests.bench.bench_gateway [--rows pinned,hit] [--rounds 5] [--quick]
        [--check] [--keep]

Whatever is measured runs on one core with all its processes; the mock provider and the load share
the other. CPU is what the kernel charged to the whole process tree (schedstat), which other work on
the machine disturbs little; rates and latencies are disturbed by it. Rounds are interleaved: each
row is measured once per round, and a figure is the median over rounds with its extremes. Latencies
are those of one connection, less what a direct call in the same round took.
"""

import argparse
import contextlib
import os
import statistics
from collections.abc import Iterator

from tests.bench.gateway_rows import LOAD_CORE, ROWS, TARGETS, Row, Target, provider
from tests.bench.http_load import Sample, drive, percentile
from tests.bench.process_tree import cpu_seconds, resident_bytes, tree

CONNECTIONS = 64
STREAMS, STREAM_TOKENS = 16, 256  # streams at once: few enough that events do not pile up
FIGURES = {
    "requests_per_second": "req/s",
    "cpu_us_per_request": "CPU µs/req",
    "added_p50_us": "p50 +µs",
    "added_p99_us": "p99 +µs",
    "cpu_us_per_chunk": "CPU µs/chunk",
    "added_first_byte_us": "1st byte +µs",
    "memory_mb": "MB at rest",
    "memory_loaded_mb": "MB loaded",
}
Figures = dict[str, float]


def measure(row: Row, target: Target, seconds: float) -> Figures:
    """One round of one row. Latencies are absolute as yet."""
    pids = tree(target.pid) if target.pid is not None else []

    def load(make: object, connections: int, share: float, warm: float = 0.2) -> Sample:
        return drive(
            target.port, make, connections=connections, seconds=seconds * share,  # type: ignore[arg-type]
            warm_seconds=warm, mark=row.mark, meter=lambda: cpu_seconds(pids),
        )  # fmt: skip

    figures: Figures = {}
    if row.make is not None:
        many = load(row.make(target.headers), CONNECTIONS, 1.0)
        figures["requests_per_second"] = many.requests / many.seconds
        figures["cpu_us_per_request"] = many.cpu_seconds / max(1, many.requests) * 1e6
        one = load(row.make(target.headers), 1, 0.6)
        figures["added_p50_us"] = percentile(one.latencies, 0.5) * 1e6
        figures["added_p99_us"] = percentile(one.latencies, 0.99) * 1e6
    if row.stream is not None:
        streams = load(row.stream(target.headers, STREAM_TOKENS), STREAMS, 1.0)
        figures["cpu_us_per_chunk"] = streams.cpu_seconds / max(1, streams.events) * 1e6
        one = load(row.stream(target.headers, 2), 1, 0.5)
        figures["added_first_byte_us"] = percentile(one.first_bytes, 0.5) * 1e6
    if pids:
        figures["memory_loaded_mb"] = resident_bytes(pids) / 1e6
    else:
        figures.pop("cpu_us_per_request", None)
        figures.pop("cpu_us_per_chunk", None)
    return figures


@contextlib.contextmanager
def started(rows: list[Row]) -> Iterator[dict[str, Target]]:
    """Every target that the rows need."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(provider())
        targets = {"provider": upstream}
        for row in rows:
            if row.target not in targets:
                targets[row.target] = stack.enter_context(TARGETS[row.target](upstream))
        yield targets


def run(rows: list[Row], rounds: int, seconds: float) -> dict[str, list[Figures]]:
    """Per row one set of figures per round; the first row is the direct one."""
    found: dict[str, list[Figures]] = {row.name: [] for row in rows}
    with started(rows) as targets:
        at_rest = {
            name: resident_bytes(tree(target.pid)) / 1e6
            for name, target in targets.items()
            if target.pid is not None
        }
        for _ in range(rounds):
            direct: Figures = {}
            for row in rows:
                figures = measure(row, targets[row.target], seconds)
                if row.name == "direct":
                    direct = figures
                else:
                    for name in figures:
                        if name.startswith("added_"):
                            figures[name] -= direct[name]
                if row.target in at_rest:
                    figures["memory_mb"] = at_rest[row.target]
                found[row.name].append(figures)
    return found


def summary(found: list[Figures]) -> dict[str, list[float]]:
    """Per figure: median, least, most."""
    return {
        name: [
            statistics.median(one[name] for one in found),
            min(one[name] for one in found),
            max(one[name] for one in found),
        ]
        for name in FIGURES
        if name in found[0]
    }


def show(rows: list[Row], found: dict[str, list[Figures]]) -> None:
    """Print the table."""
    print(f"{'':32}" + "".join(f"{title:>22}" for title in FIGURES.values()))
    for row in rows:
        cells = summary(found[row.name])
        line = f"{row.title:32}"
        for name in FIGURES:
            cell = ""
            if name in cells:
                median, least, most = (
                    f"{value:,.{1 if value < 100 else 0}f}" for value in cells[name]
                )
                cell = f"{median} ({least}-{most})"
            line += f"{cell:>22}"
        print(line)


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.5
    wanted = arguments.rows.split(",")
    rows = [row for row in ROWS if row.name in wanted or row.name == "direct"]
    os.sched_setaffinity(0, {LOAD_CORE})
    show(rows, run(rows, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
