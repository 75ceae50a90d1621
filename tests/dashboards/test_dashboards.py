"""Dashboards, rules and alerts: up to date, valid, and about metrics that exist."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.ledger.reports import Summary
from gateway.telemetry import PROCESS_METRICS, Metrics
from gateway.web.exports import document

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards"
RECORDING = DASHBOARDS / "recording_rules.yaml"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def rules(path: Path) -> list[dict[str, Any]]:
    """The rules of a file, in order."""
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def numbers() -> list[Any]:
    """Every number of the dashboard."""
    sections = runpy.run_path(str(DASHBOARDS / "numbers_shown.py"))["SECTIONS"]
    return [number for section in sections.values() for number in section]


def queries() -> list[str]:
    """Every query anywhere."""
    return [
        *(number.query for number in numbers()),
        *(rule["expr"] for path in (RECORDING, ALERTS) for rule in rules(path)),
    ]


def test_dashboard_and_table_are_what_the_code_makes() -> None:
    """Editing the JSON by hand, or forgetting to generate it, fails here."""
    checked = subprocess.run(
        [sys.executable, "dashboards/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_every_metric_in_a_query_exists() -> None:
    """In the telemetry, or as a recorded sum; a renamed metric cannot leave an empty panel."""
    known = {name for metric in Metrics() for name in metric.sample_names()}
    known |= {name for name, _, _ in PROCESS_METRICS}
    known |= {rule["record"] for rule in rules(RECORDING)}
    for query in queries():
        used = set(re.findall(r"(?:tollhouse|process)[_:][a-z0-9_:]+", query))
        assert used <= known, (used - known, query)


def test_every_label_in_a_query_belongs_to_its_metric() -> None:
    """Grouping or selecting by a label the metric does not have gives silence, not an error."""
    labels = {name: set(metric.labels) for metric in Metrics() for name in metric.sample_names()}
    for query in queries():
        for name, selector in re.findall(r"(tollhouse_[a-z_]+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name], query
        metrics = re.findall(r"tollhouse_[a-z_]+", query)
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            wanted = {label.strip() for label in grouping.split(",")} - {"le", "instance"}
            for name in metrics:
                assert wanted <= labels[name], (query, name)


def test_panels_do_not_overlap() -> None:
    """Each cell of Grafana's 24 columns holds one panel."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((DASHBOARDS / "tollhouse.json").read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    """Whoever is woken reads one sentence on what happened and one on what to do."""
    for rule in rules(ALERTS):
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}


@needs_promtool
def test_prometheus_accepts_every_rule_and_every_query(tmp_path: Path) -> None:
    """Grafana's variables get a value; each query then stands as a rule of its own."""
    everything = tmp_path / "queries.yaml"
    panels = [
        {
            "record": f"panel:{index}",
            "expr": query.replace("$__rate_interval", "5m").replace("$__range", "1h"),
        }
        for index, query in enumerate(queries())
    ]
    everything.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": panels}]}))
    checked = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(everything), str(RECORDING), str(ALERTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_column_of_the_exports_is_described() -> None:
    """Finance finds what it downloads in the table, and nothing else."""
    table = (ROOT / "dashboards" / "README.md").read_text().partition("| column |")[2]
    rows = table.partition("<!-- numbers")[0].splitlines()[2:]
    described = [name for row in rows if row for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(described) == sorted(set(document(Summary(key=""))) - {"key", "provider"})
