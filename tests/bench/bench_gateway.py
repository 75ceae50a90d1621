"""CPU per request of the whole gateway, beside a direct call to the same provider.

    python -m tests.bench.bench_gateway [--seconds 4] [--connections 64] [--json FILE]

The gateway runs on one core, the simulated provider and the load on the other. CPU is what the
kernel charged the gateway's processes (/proc/PID/task/*/schedstat), which other work on the machine
does not disturb; requests per second and latencies are disturbed by it, so read them as such.
Everything is on that is on by default: key check, limits, budget, exact look-up, booking, metrics.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from tests.gateway.running import RunningGateway, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]

GATEWAY_CORE, LOAD_CORE = 0, 1
ROUNDS = 3


class Row(dict[str, Any]):
    """One line of the table."""


async def drive(
    port: int, connections: int, seconds: float, make: Callable[[int], bytes]
) -> tuple[int, list[float]]:
    """(answers, latencies in seconds) of closed-loop load; every answer must be a 200."""
    deadline = time.monotonic() + seconds
    latencies: list[float] = []
    numbers = iter(range(10**9))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < deadline:
            began = time.perf_counter()
            writer.write(make(next(numbers)))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode(errors="replace"))
            lowered = head.lower()
            if b"content-length: " in lowered:
                length = int(lowered.partition(b"content-length: ")[2].partition(b"\r")[0])
                await reader.readexactly(length)
            else:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            latencies.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return len(latencies), latencies


def cpu_seconds(pid: int) -> float:
    """CPU time the kernel has charged to all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def post(path: str, key: str, body: dict[str, Any]) -> bytes:
    """One request as bytes."""
    raw = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


def chat(model: str, text: str, **more: Any) -> dict[str, Any]:
    """A small chat request, about 300 bytes."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant of a company. " * 4},
        {"role": "user", "content": text},
    ]
    return {"model": model, "messages": messages, "max_tokens": 64, **more}


@contextlib.contextmanager
def provider() -> Iterator[int]:
    """The simulated provider on the load's core; its port."""
    port = free_port()
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "gateway", "simulate"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        import socket

        def up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_for(up, 20)
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(
    name: str, port: int, pid: int | None, connections: int, seconds: float,
    make: Callable[[int], bytes], events: int = 0,
) -> Row:  # fmt: skip
    """One row: the median of rounds after a warm-up."""
    uvloop.run(drive(port, connections, 1.0, make))
    rates: list[float] = []
    costs: list[float] = []
    latencies: list[float] = []
    for _ in range(ROUNDS):
        before, began = cpu_seconds(pid) if pid else 0.0, time.perf_counter()
        count, found = uvloop.run(drive(port, connections, seconds, make))
        elapsed = time.perf_counter() - began
        rates.append(count / elapsed)
        latencies += found
        if pid:
            costs.append((cpu_seconds(pid) - before) / count * 1e6)
    latencies.sort()
    row = Row(
        name=name,
        requests_per_second=round(statistics.median(rates)),
        cpu_us_per_request=round(statistics.median(costs), 1) if costs else None,
        cpu_us_spread=[round(min(costs), 1), round(max(costs), 1)] if costs else None,
        latency_ms_p50=round(latencies[len(latencies) // 2] * 1e3, 3),
        latency_ms_p99=round(latencies[len(latencies) * 99 // 100] * 1e3, 3),
    )
    if events and costs:
        row["cpu_us_per_event"] = round(statistics.median(costs) / events, 1)
    return row


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    rows: list[Row] = []
    policy = (ROOT / "policies" / "one-upstream" / "all.yaml").read_text()
    with provider() as upstream_port, tempfile.TemporaryDirectory() as folder:
        gateway = RunningGateway(
            Path(folder),
            "",
            policy=policy,
            environment={"UPSTREAM_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1"},
        )
        began = time.perf_counter()
        gateway.start()
        ready = time.perf_counter() - began
        worker = gateway.child("worker")
        for task in Path(f"/proc/{worker}/task").iterdir():
            os.sched_setaffinity(int(task.name), {GATEWAY_CORE})
        key = gateway.key("default")
        path = "/v1/chat/completions"

        def run(name: str, port: int, pid: int | None, connections: int,
                make: Callable[[int], bytes], events: int = 0) -> None:  # fmt: skip
            rows.append(measure(name, port, pid, connections, arguments.seconds, make, events))

        def direct(number: int) -> bytes:
            return post(path, "x", chat("m", f"Question {number}"))

        def miss(number: int) -> bytes:
            return post(path, key, chat("large", f"Question {time.monotonic_ns()} {number}"))

        def hit(number: int) -> bytes:
            return post(path, key, chat("large", "The same question"))

        def stream(number: int) -> bytes:
            text = f"Question {time.monotonic_ns()} {number}"
            return post(path, key, chat("large", text, stream=True))

        many = arguments.connections
        try:
            run("direct", upstream_port, None, many, direct)
            run("miss, pinned model", gateway.port, worker, many, miss)
            run("exact hit", gateway.port, worker, many, hit)
            run("stream, about 43 events", gateway.port, worker, many, stream, 43)
            run("direct, 1 connection", upstream_port, None, 1, direct)
            run("miss, 1 connection", gateway.port, worker, 1, miss)
            memory = {
                "worker": resident_mb(worker),
                "supervisor": resident_mb(gateway.process.pid) if gateway.process else 0.0,
            }
        finally:
            gateway.stop()
    report(rows, memory, ready, arguments.json)


def report(rows: list[Row], memory: dict[str, float], ready: float, file: Path | None) -> None:
    """Print, and keep where asked."""
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, load {load:.1f}")  # fmt: skip
    print(f"{'':28} {'req/s':>8} {'CPU µs':>8} {'spread':>14} {'p50 ms':>8} {'p99 ms':>8}")
    for row in rows:
        cpu = row["cpu_us_per_request"]
        spread = "-".join(str(part) for part in row["cpu_us_spread"] or [])
        event = f"  {row['cpu_us_per_event']} µs/event" if "cpu_us_per_event" in row else ""
        shown = "" if cpu is None else str(cpu)
        latency = f"{row['latency_ms_p50']:8} {row['latency_ms_p99']:8}"
        rate = row["requests_per_second"]
        print(f"{row['name']:28} {rate:8} {shown:>8} {spread:>14} {latency}{event}")
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in memory.items())
    print(f"ready in {ready:.1f} s; resident MB: {sizes}")
    if file is not None:
        versions = {"python": platform.python_version(), "cores": os.cpu_count(), "load": load}
        document = {"machine": versions, "rows": rows, "resident_mb": memory, "ready_s": ready}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
