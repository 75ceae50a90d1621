"""Writes the Grafana dashboard and the README's table of numbers from ``numbers_shown.py``.

    python dashboards/generate.py          write
    python dashboards/generate.py --check  exit 1 if anything is out of date

Needs nothing but Python. Knows Grafana's JSON; asks no Grafana and no Prometheus.
"""

import json
import sys
from pathlib import Path
from typing import Any

from numbers_shown import SECTIONS, Number

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_COLUMNS = 24  # of Grafana's grid
_WIDTH = {"stat": 6, "timeseries": 8}
_HEIGHT = {"stat": 4, "timeseries": 8}
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model, schema version 39."""
    panels: list[dict[str, Any]] = []
    x = y = tallest = 0
    for section, numbers in SECTIONS.items():
        y, x = y + tallest, 0
        panels.append(_row(section, len(panels) + 1, y))
        y, tallest = y + 1, 0
        for number in numbers:
            width, height = _WIDTH[number.kind], _HEIGHT[number.kind]
            if x + width > _COLUMNS or (tallest and height != tallest):
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(number, len(panels) + 1, x, y))
            x, tallest = x + width, max(tallest, height)
    return {
        "uid": "tollhouse",
        "title": "Tollhouse",
        "tags": ["tollhouse"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "utc",
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": panels,
    }


def readme(text: str) -> str:
    """The README with its table of numbers written anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [BEGIN]
    for section, numbers in SECTIONS.items():
        lines += ["", f"### {section}", "", "| number | what it means | query |", "|---|---|---|"]
        for number in numbers:
            query = number.query.replace("|", "\\|")
            lines.append(f"| {number.title} | {number.meaning} | `{query}` |")
    return before + "\n".join([*lines, "", END]) + after


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    grid = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "gridPos": grid, "panels": []}


def _panel(number: Number, panel_id: int, x: int, y: int) -> dict[str, Any]:
    width, height = _WIDTH[number.kind], _HEIGHT[number.kind]
    return {
        "id": panel_id,
        "type": number.kind,
        "title": number.title,
        "description": number.meaning,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": number.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": _DATASOURCE,
                "expr": number.query,
                "legendFormat": number.legend or number.title,
                "instant": number.kind == "stat",
                "range": number.kind != "stat",
            }
        ],
    }


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` compare; the exit status."""
    readme_path = FOLDER / "README.md"
    wanted = {
        FOLDER / "tollhouse.json": json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n",
        readme_path: readme(readme_path.read_text(encoding="utf-8")),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is out of date: python dashboards/generate.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
