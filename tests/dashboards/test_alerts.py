"""Alerts, computed by Prometheus itself: each fires for what it is for, and for nothing else."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from tests.dashboards.test_dashboards import ALERTS, RECORDING, needs_promtool, rules
from tests.gateway.running import ProviderThread, running_gateway

pytestmark = needs_promtool

GIB = 1 << 30
ATTEMPTS = 'tollhouse_upstream_requests_total{provider="p",model="m",status='
BUDGET = '{tenant="acme",budget="monthly"}'


def faults(**per_minute: float) -> dict[str, str]:
    """Requests by fault over an hour; the counters are there from the start."""
    rates = {"none": 0.0, "client": 0.0, "tenant": 0.0, "operator": 0.0, "upstream": 0.0,
             "gateway": 0.0} | per_minute  # fmt: skip
    return {
        f'tollhouse_request_faults_total{{fault="{fault}"}}': f"0+{rate}x60"
        for fault, rate in rates.items()
    }


def overhead(per_minute: float) -> dict[str, str]:
    """Requests of which half take the gateway between 0.1 and 0.5 s."""
    half = per_minute / 2
    bucket = "tollhouse_overhead_seconds_bucket"
    return {
        f'{bucket}{{route="r",le="0.05"}}': f"0+{half}x60",
        f'{bucket}{{route="r",le="0.5"}}': f"0+{per_minute}x60",
        f'{bucket}{{route="r",le="+Inf"}}': f"0+{per_minute}x60",
    } | faults(none=per_minute)


def disk(free: str, size: float = 100 * GIB) -> dict[str, str]:
    """The disk of the state folder over an hour."""
    return {
        'tollhouse_state_disk_free_bytes{instance="i"}': free,
        'tollhouse_state_disk_size_bytes{instance="i"}': f"{size:.0f}x60",
    }


class Case(NamedTuple):
    """What happened, and which alert must or must not fire after 40 minutes."""

    alert: str
    fires: bool
    series: dict[str, str]


CASES = {
    "a tenth fails by a provider": Case("TollhouseFailing", True, faults(none=90, upstream=10)),
    "a tenth fails by us": Case("TollhouseFailing", True, faults(none=90, gateway=10)),
    "a tenth fails slowly, four an hour": Case(
        "TollhouseFailing", False, faults(none=0.6, upstream=0.07)
    ),
    "most are the clients' mistakes": Case("TollhouseFailing", False, faults(none=90, client=900)),
    "most exceed limits and budgets": Case("TollhouseFailing", False, faults(none=90, tenant=900)),
    "a policy refuses them all": Case("TollhouseFailing", False, faults(operator=900)),
    "a policy refuses some": Case("TollhouseMisconfigured", True, faults(none=90, operator=1)),
    "a policy refuses none": Case("TollhouseMisconfigured", False, faults(none=90, client=9)),
    "nobody asks anything": Case("TollhouseFailing", False, faults()),
    "three quarters fail": Case("TollhouseFailingFast", True, faults(none=10, upstream=30)),
    "a tenth fails": Case("TollhouseFailingFast", False, faults(none=90, upstream=10)),
    "one of two at night fails": Case(
        "TollhouseFailingFast", False, faults(none=0.01, upstream=0.01)
    ),
    "one unpriced request": Case(
        "TollhouseUnpriced", True, {'tollhouse_unpriced_requests_total{model="m"}': "0x20 1x40"}
    ),
    "no unpriced request": Case(
        "TollhouseUnpriced", False, {'tollhouse_unpriced_requests_total{model="m"}': "0x60"}
    ),
    "the model process is down": Case(
        "TollhouseLocalModelDown", True, {'tollhouse_local_model_up{model="m"}': "0x60"}
    ),
    "no model process is wanted": Case("TollhouseLocalModelDown", False, faults(none=60)),
    "slow at one request a second": Case("TollhouseSlow", True, overhead(60)),
    "slow at one a minute": Case("TollhouseSlow", False, overhead(1)),
    "a provider refuses a fifth": Case(
        "TollhouseProviderRateLimits",
        True,
        {f'{ATTEMPTS}"200"}}': "0+40x60", f'{ATTEMPTS}"429"}}': "0+10x60"},
    ),
    "a provider refuses two in an hour": Case(
        "TollhouseProviderRateLimits",
        False,
        {f'{ATTEMPTS}"200"}}': "0+0.1x60", f'{ATTEMPTS}"429"}}': "0+0.04x60"},
    ),
    "a budget turned one away": Case(
        "TollhouseBudgetRefuses",
        True,
        {f"tollhouse_budget_refusals_total{BUDGET}": "0x30 1x30"},
    ),
    "a budget turned none away": Case(
        "TollhouseBudgetRefuses", False, {f"tollhouse_budget_refusals_total{BUDGET}": "0x60"}
    ),
    "a third of a budget in half an hour": Case(
        "TollhouseBudgetBurnsFast", True, {f"tollhouse_budget_used_ratio{BUDGET}": "0.1+0.005x120"}
    ),
    "a third of a budget in a day": Case(
        "TollhouseBudgetBurnsFast",
        False,
        {f"tollhouse_budget_used_ratio{BUDGET}": "0.1+0.0002x120"},
    ),
    "a period begins": Case(
        "TollhouseBudgetBurnsFast", False, {f"tollhouse_budget_used_ratio{BUDGET}": "0.9x60 0x60"}
    ),
    "little disk": Case("TollhouseDiskNearlyFull", True, disk(f"{5 * GIB}x60")),
    "much disk": Case("TollhouseDiskNearlyFull", False, disk(f"{50 * GIB}x60")),
    "no disk": Case("TollhouseDiskFull", True, disk(f"{GIB // 8}x60")),
    "a disk that fills": Case("TollhouseDiskFull", True, disk(f"{20 * GIB}-{GIB // 10}x60")),
    "a large disk that is used": Case("TollhouseDiskFull", False, disk(f"{90 * GIB}-{GIB}x60")),
    "a small disk that is empty": Case(
        "TollhouseDiskFull", False, disk(f"{GIB // 8}x60", GIB // 6)
    ),
    "the books fall behind": Case(
        "TollhouseMeteringBehind", True, {"tollhouse_metering_lag_seconds": "0+60x60"}
    ),
    "Redis is away": Case("TollhouseRedisAway", True, {"tollhouse_redis_up": "0x60"}),
    "no Redis is wanted": Case("TollhouseRedisAway", False, faults(none=60)),
    "a policy is refused": Case(
        "TollhousePolicyNotLoaded", True, {"tollhouse_config_last_reload_successful": "0x60"}
    ),
    "a provider is out": Case(
        "TollhouseUpstreamEjected", True, {'tollhouse_upstream_ejected{provider="p"}': "1x60"}
    ),
    "a budget is nearly used": Case(
        "TollhouseBudgetNearlyUsed", True, {f"tollhouse_budget_used_ratio{BUDGET}": "0.95x60"}
    ),
    "the gateway is down": Case("TollhouseDown", True, {'up{job="tollhouse"}': "0x60"}),
}


def firing(folder: Path, alerts: Iterable[str], series: dict[str, str], at: str) -> set[str]:
    """Which of these alerts Prometheus, with our rules, has firing at a moment."""
    nothing = [{"eval_time": at, "alertname": alert, "exp_alerts": []} for alert in alerts]
    test: dict[str, Any] = {
        "rule_files": [str(RECORDING), str(ALERTS)],
        "evaluation_interval": "30s",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": name, "values": text} for name, text in series.items()],
            "alert_rule_test": nothing,
        }],
    }  # fmt: skip
    file = folder / "alerts_test.yaml"
    file.write_text(yaml.safe_dump(test))
    checked = subprocess.run(
        [str(shutil.which("promtool")), "test", "rules", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = checked.stdout + checked.stderr
    found = set(re.findall(r"alertname: (\w+), time", said))
    assert bool(found) == bool(checked.returncode), said
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_alert_fires_for_what_it_is_for_and_for_nothing_else(tmp_path: Path, case: str) -> None:
    """Prometheus itself decides, for each alert, over the series of its case."""
    alert, expected, series = CASES[case]
    at = "70m" if alert == "TollhouseBudgetBurnsFast" else "40m"
    assert firing(tmp_path, [alert], series, at) == ({alert} if expected else set())


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    """An alert without such a case could be silent for ever, and the operator would not know."""
    assert {rule["alert"] for rule in rules(ALERTS)} == {
        case.alert for case in CASES.values() if case.fires
    }


def scrape(url: str) -> dict[str, float]:
    """Each series of a running gateway and its value."""
    text = httpx.get(url + "/metrics", trust_env=False, timeout=10.0).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def over_time(before: dict[str, float], after: dict[str, float]) -> dict[str, str]:
    """Two scrapes as promtool reads them: ten minutes of the first, then ten towards the second.

    A series that the first lacks is absent for ten minutes, and then born as the second has it.
    """
    return {
        name: f"{before[name]}x9 {before[name]}{(value - before[name]) / 10:+.12f}x10"
        if name in before
        else f"_x9 {value}x10"
        for name, value in after.items()
    }


# What happens: (tenant, model, prompt or other fields), and what must fire after it.
STORIES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "a model without a price": ("globex", {"model": "unpriced"}, {"TollhouseUnpriced"}),
    "a client's mistakes": ("globex", {"model": "uncached", "temperature": "hot"}, set()),
    "a client's mistake that the provider finds": (
        "globex", {"model": "uncached", "prompt": "[[fault:status-400]]"}, set(),
    ),
    "a provider's errors, with a code of its own": (
        "globex", {"model": "uncached", "prompt": "[[fault:status-500]]"},
        {"TollhouseFailing", "TollhouseFailingFast"},
    ),
    "a provider that resets": (
        "globex", {"model": "uncached", "prompt": "[[fault:reset-before-head]]"},
        {"TollhouseFailing", "TollhouseFailingFast"},
    ),
    "a budget that is too small": (
        "poor", {"model": "uncached", "max_tokens": 4_000}, {"TollhouseBudgetRefuses"},
    ),
    "a hard budget over a model without a price": (
        "acme", {"model": "unpriced"}, {"TollhouseMisconfigured"},
    ),
    "a local model that is switched off": (
        "globex", {"model": "small"}, {"TollhouseMisconfigured"},
    ),
}  # fmt: skip


@pytest.mark.slow
def test_what_a_running_gateway_exports_makes_the_right_alerts_fire(tmp_path: Path) -> None:
    """Forty requests of one kind between two scrapes, the first of their kind ever."""
    provider = ProviderThread(seed=7)
    watched = [rule["alert"] for rule in rules(ALERTS)]
    with running_gateway(tmp_path, provider.base_url) as gateway:
        keys = {tenant: gateway.key(tenant) for tenant in ("globex", "poor", "acme")}
        for story, (tenant, fields, expected) in STORIES.items():
            before = scrape(gateway.admin_url)
            body = {name: value for name, value in fields.items() if name != "prompt"}
            body["messages"] = [{"role": "user", "content": fields.get("prompt", "Hello")}]
            with httpx.Client(trust_env=False, timeout=10.0) as client:
                for _ in range(40):
                    client.post(
                        gateway.base_url + "/chat/completions", json=body,
                        headers={"authorization": f"Bearer {keys[tenant]}"},
                    )  # fmt: skip
            series = over_time(before, scrape(gateway.admin_url))
            assert (story, firing(tmp_path, watched, series, "19m")) == (story, expected)
    provider.stop()
