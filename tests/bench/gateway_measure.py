"""One row of the gateway benchmark, measured once: load, CPU, memory.

CPU is counted from rest to rest: what a request leaves to be done after its answer (booking, for
one) is paid by the row that caused it and disturbs no other.
"""

import time

from tests.bench.gateway_prompts import Make
from tests.bench.gateway_rows import Row, Target
from tests.bench.http_load import Sample, drive, percentile
from tests.bench.process_tree import cpu_seconds, resident_bytes, tree

CONNECTIONS = 64
STREAMS, STREAM_TOKENS = 16, 256  # streams at once: few enough that events do not pile up
REST_SHARE = 0.03  # of a core: less than this is rest
REST_SECONDS_MAX = 15.0

Figures = dict[str, float]

# Figure → column, and whether more is better.
FIGURES = {
    "requests_per_second": ("req/s", True),
    "cpu_us_per_request": ("CPU µs/req", False),
    "added_p50_us": ("+p50 µs", False),
    "added_p99_us": ("+p99 µs", False),
    "cpu_us_per_chunk": ("CPU µs/chunk", False),
    "added_first_byte_us": ("+1st byte µs", False),
    "memory_mb": ("MB at rest", False),
    "memory_loaded_mb": ("MB loaded", False),
}


def measure(row: Row, target: Target, seconds: float) -> Figures:
    """One round of one row. Latencies are absolute: who compares subtracts."""
    figures: Figures = {}
    if row.make is not None:
        many, cpu = _load(row, target, row.make(target.headers), CONNECTIONS, seconds)
        figures["requests_per_second"] = many.requests_per_second
        figures["cpu_us_per_request"] = cpu / many.requests * 1e6
        one, _ = _load(row, target, row.make(target.headers), 1, seconds * 0.6)
        figures["added_p50_us"] = percentile(one.latencies, 0.5) * 1e6
        figures["added_p99_us"] = percentile(one.latencies, 0.99) * 1e6
    if row.stream is not None:
        make = row.stream(target.headers, STREAM_TOKENS)
        streams, cpu = _load(row, target, make, STREAMS, seconds)
        figures["cpu_us_per_chunk"] = cpu / max(1, streams.events) * 1e6
        one, _ = _load(row, target, row.stream(target.headers, 2), 1, seconds * 0.5)
        figures["added_first_byte_us"] = percentile(one.first_bytes, 0.5) * 1e6
    if target.pid is None:
        return {name: value for name, value in figures.items() if "cpu" not in name}
    figures["memory_loaded_mb"] = resident_bytes(tree(target.pid)) / 1e6
    return figures


def _load(
    row: Row, target: Target, make: Make, connections: int, seconds: float
) -> tuple[Sample, float]:
    """What the load saw, and the CPU seconds all of it cost."""
    pids = tree(target.pid) if target.pid is not None else []
    before = at_rest(pids)
    sample = drive(target.port, make, connections=connections, seconds=seconds, mark=row.mark)
    return sample, at_rest(pids) - before


def at_rest(pids: list[int], seconds: float = 0.1) -> float:
    """The CPU seconds of these processes once they have (nearly) nothing to do any more."""
    deadline = time.monotonic() + REST_SECONDS_MAX
    now = cpu_seconds(pids)
    while pids and time.monotonic() < deadline:
        time.sleep(seconds)
        before, now = now, cpu_seconds(pids)
        if now - before < REST_SHARE * seconds:
            break
    return now
