"""The numbers of several processes as one page of metrics.

Counters and histograms are added up, and what an ended process counted stays counted: a sum that
fell would read as a restart and be added to every rate. A gauge says itself how its levels combine.
Knows no socket.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.telemetry import Cells, Gauge, Labels, Merge, Metrics, process_readings

Report = Iterable[tuple[Labels, list[float]]]  # each label set and its cell
_COMBINE: Mapping[Merge, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
_GROWS = "process_cpu_seconds_total"
_GONE_MAX = 16  # processes that may only have been cut off


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All numbers of one process at one moment."""

    cells: dict[str, list[tuple[Labels, list[float]]]]  # by metric, each label set's cell
    process: dict[str, float]  # the ``process_*`` readings


def take(metrics: Metrics) -> Snapshot:
    """The numbers of this process."""
    return Snapshot({metric.name: metric.rows() for metric in metrics}, process_readings())


def pack(snapshot: Snapshot) -> bytes:
    """As bytes for another process. Python's own JSON: its integers are never cut to 64 bits."""
    return json.dumps([snapshot.cells, snapshot.process]).encode()


def unpack(content: bytes) -> Snapshot:
    """What ``pack`` packed."""
    cells, process = json.loads(content)
    return Snapshot(
        {name: [(tuple(labels), cell) for labels, cell in rows] for name, rows in cells.items()},
        process,
    )


class Merger:
    """Adds up what processes report, over their lives."""

    def __init__(self) -> None:
        self._ended: dict[str, Cells] = {}
        self._ended_cpu_seconds = 0.0
        self._gone: dict[str, Snapshot] = {}  # by process, oldest first

    def retire(self, process: str, last: Snapshot) -> None:
        """A process is gone; this is the last it told."""
        self._gone[process] = last
        if len(self._gone) > _GONE_MAX:
            self._fold(self._gone.pop(next(iter(self._gone))))

    def returned(self, process: str) -> Snapshot | None:
        """It was only cut off: what it told last is its own again, lest it count twice."""
        return self._gone.pop(process, None)

    @property
    def gone(self) -> tuple[Snapshot, ...]:
        """What those told last that may come back."""
        return tuple(self._gone.values())

    def _fold(self, last: Snapshot) -> None:
        for metric in Metrics():
            if not isinstance(metric, Gauge):
                _add(self._ended.setdefault(metric.name, {}), last.cells.get(metric.name, ()))
        self._ended_cpu_seconds += last.process.get(_GROWS, 0.0)

    def exposition(self, living: Iterable[Snapshot], gone: Iterable[Snapshot]) -> bytes:
        """One page of Prometheus text from what all processes tell, and had told, at one moment."""
        found, gone = tuple(living), tuple(gone)
        merged = Metrics()
        for metric in merged:
            reports = [snapshot.cells.get(metric.name, ()) for snapshot in found]
            if isinstance(metric, Gauge):
                cells = _levels(metric, reports)
            else:
                cells = {
                    labels: list(cell) for labels, cell in self._ended.get(metric.name, {}).items()
                }
                reports += [snapshot.cells.get(metric.name, ()) for snapshot in gone]
                for report in reports:
                    _add(cells, report)
            metric.load(cells)
        ended_cpu = self._ended_cpu_seconds + sum(last.process.get(_GROWS, 0.0) for last in gone)
        return merged.exposition(self._process([snapshot.process for snapshot in found], ended_cpu))

    def _process(
        self, readings: list[dict[str, float]], ended_cpu_seconds: float
    ) -> dict[str, float]:
        """Resources together, limits and the start of whoever has the least and is the oldest."""
        names = {name for reading in readings for name in reading}
        merged: dict[str, float] = {}
        for name in names:
            values = [reading[name] for reading in readings if name in reading]
            least = name in ("process_max_fds", "process_start_time_seconds")
            merged[name] = min(values) if least else sum(values)
        if _GROWS in merged:
            merged[_GROWS] += ended_cpu_seconds
        return merged


def _add(cells: Cells, report: Report) -> None:
    for labels, cell in report:
        known = cells.get(labels)
        if known is None:
            cells[labels] = list(cell)
        else:
            cells[labels] = [mine + theirs for mine, theirs in zip(known, cell, strict=True)]


def _levels(gauge: Gauge, reports: Iterable[Report]) -> Cells:
    levels: Cells = {}
    for report in reports:
        for labels, (level,) in report:
            levels.setdefault(labels, []).append(level)
    return {labels: [_COMBINE[gauge.merge](found)] for labels, found in levels.items()}
