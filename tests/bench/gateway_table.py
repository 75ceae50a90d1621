"""The gateway benchmark's table, the file its figures are kept in, and the ratchet between them."""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.interpreter import is_profile_guided
from tests.bench.gateway_measure import FIGURES, Figures
from tests.bench.gateway_rows import Row

KEPT = Path(__file__).parent / "results" / "gateway.json"
WORSE_SHARE = 0.10
_COLUMN = 24

_LEGEND = """
Median of the rounds (least-most). Latencies: one connection, less those of a direct call in the
same round; the direct row's own are shown as they are. CPU: every process of what is measured.

Switched on:"""

Cells = dict[str, list[float]]  # figure → median, least, most
Table = dict[str, Cells]  # row → its cells


def summary(rounds: list[Figures]) -> Cells:
    """Median and extremes of every figure that was measured."""
    cells: Cells = {}
    for figure in FIGURES:
        values = [one[figure] for one in rounds if figure in one]
        if values:
            median = statistics.median(values)
            cells[figure] = [round(value, 1) for value in (median, min(values), max(values))]
    return cells


def show(rows: list[Row], table: Table) -> None:
    """Print the figures, what was switched on, and the goals."""
    print(machine_line())
    width = max(len(row.title) for row in rows) + 1
    print(" " * width + "".join(f"{column:>{_COLUMN}}" for column, _ in FIGURES.values()))
    for row in rows:
        cells = table[row.name]
        line = "".join(f"{_cell(cells.get(figure)):>{_COLUMN}}" for figure in FIGURES)
        print(f"{row.title:{width}}{line}")
    print(_LEGEND)
    for row in rows:
        print(f"  {row.title:{width}}{row.switched_on}")
    goals = [(row, figure, goal) for row in rows for figure, goal in row.goals.items()]
    print("\nGoals:" if goals else "")
    for row, figure, goal in goals:
        column, more_is_better = FIGURES[figure]
        found = table[row.name][figure][0]
        met = found >= goal if more_is_better else found <= goal
        sign = "≥" if more_is_better else "≤"
        print(f"  {row.title:{width}}{column:>13} {found:>10,.1f}  {sign} {goal:>8,.0f}  "
              f"{'met' if met else 'missed'}")  # fmt: skip


def _cell(values: list[float] | None) -> str:
    if values is None:
        return ""
    median, least, most = (f"{value:,.{1 if abs(value) < 100 else 0}f}" for value in values)
    return f"{median} ({least}-{most})"


def machine_line() -> str:
    """Where and when this was measured, in one line."""
    built = "" if is_profile_guided() else " (built without profiles)"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}{built}, load {os.getloadavg()[0]:.1f}, {_today()}"
    )


def keep(rows: list[Row], table: Table, versions: dict[str, str], file: Path = KEPT) -> None:
    """Write the figures; rows that were not measured this time keep theirs."""
    kept = _read(file)
    for row in rows:
        kept["rows"][row.name] = {
            "title": row.title, "switched_on": row.switched_on, "measured": machine_line(),
            "figures": table[row.name], "goals": row.goals,
        }  # fmt: skip
    kept["versions"] |= versions | {"uvloop": version("uvloop"), "msgspec": version("msgspec")}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def worse(rows: list[Row], table: Table, file: Path = KEPT) -> list[str]:
    """One line for each figure that is clearly worse than the kept one.

    Clearly: its median by more than a tenth, and its best round no better than the kept median.
    The direct row is the instrument, so it is left out.
    """
    kept = _read(file)["rows"]
    lines: list[str] = []
    for row in rows:
        for figure, (median, least, most) in table[row.name].items():
            old = kept.get(row.name, {}).get("figures", {}).get(figure, [0.0])[0]
            if not old or row.name == "direct":
                continue
            column, more_is_better = FIGURES[figure]
            change = median / old - 1.0
            best = most if more_is_better else least
            if (-change if more_is_better else change) > WORSE_SHARE and (
                best < old if more_is_better else best > old
            ):
                lines.append(
                    f"{row.title:36}{column:>13}{old:>12,.1f}{median:>12,.1f}{change:>+9.0%}"
                )
    return lines


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return {"versions": found.get("versions", {}), "rows": found.get("rows", {})}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
