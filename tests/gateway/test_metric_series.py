"""The series of a gateway: bounded, known from the start, and none of what is switched off."""

import re
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.expected_series import expect_series
from gateway.policy.load import load_policy
from gateway.telemetry import OTHER, TENANTS_MAX, Metrics, status_label
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway

Series = dict[str, list[dict[str, str]]]


def exported(text: str) -> Series:
    """Label sets by sample name, as an independent reader finds them."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def scrape(gateway: RunningGateway) -> Series:
    return exported(httpx.get(gateway.admin_url + "/metrics", trust_env=False, timeout=10).text)


@pytest.mark.slow
def test_errors_that_a_provider_invents_become_no_series(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Two hundred statuses, each with a code of its own: outcomes and statuses stay few, and no
    word of the provider's reaches a label.
    """
    with running_gateway(tmp_path, provider.base_url) as gateway:
        headers = {"authorization": f"Bearer {gateway.key('globex')}"}
        with httpx.Client(trust_env=False, timeout=30, headers=headers) as client:
            for status in range(400, 600):
                for stream in (False, True):
                    question = f"[[fault:status-{status}]]"
                    client.post(
                        gateway.base_url + "/chat/completions",
                        json={"model": "uncached", "stream": stream, "user": f"u{status}",
                              "messages": [{"role": "user", "content": question}]},
                    )  # fmt: skip
        found = scrape(gateway)
    outcomes = {labels["outcome"] for labels in found["tollhouse_requests_total"]}
    assert outcomes <= {
        "upstream_refused", "upstream_error", "upstream_rate_limited", "upstream_overloaded",
        "upstream_timeout", "upstream_unavailable", "upstream_protocol_error",
    }  # fmt: skip
    assert "simulated" not in str(found)
    assert len(found["tollhouse_upstream_requests_total"]) < 100
    faults = {labels["fault"] for labels in found["tollhouse_request_faults_total"]}
    assert faults == {"none", "client", "tenant", "operator", "upstream", "gateway"}


def test_every_status_has_one_of_a_few_labels() -> None:
    """Those of the standard and of well-known proxies keep their number, the rest share one."""
    assert [status_label(status) for status in (200, 429, 529, 522, 418)] == [
        "200", "429", "529", "522", "418",
    ]  # fmt: skip
    assert [status_label(status) for status in (499, 555, 299, 42, 999)] == [
        "499", "5xx", "2xx", OTHER, OTHER,
    ]  # fmt: skip
    assert len({status_label(status) for status in range(1000)}) < 90


@pytest.mark.slow
def test_counters_of_a_gateway_that_nobody_has_asked_stand_at_zero(tmp_path: Path) -> None:
    """Every model, every tenant and every budget of the policy; what is off is absent."""
    with running_gateway(tmp_path, "http://127.0.0.1:9/v1") as gateway:
        text = httpx.get(gateway.admin_url + "/metrics", trust_env=False).text
    assert re.findall(r"^tollhouse_\w+_total.* [^0\n].*$", text, re.MULTILINE) == []
    found = exported(text)
    models = {"large", "other", "unpriced", "small", "embedder"}
    assert models == {labels["model"] for labels in found["tollhouse_unpriced_requests_total"]}
    assert models <= {labels["model"] for labels in found["tollhouse_upstream_requests_total"]}
    assert {"acme", "globex", "limited", "poor", "tagged", "charged"} <= {
        labels["tenant"] for labels in found["tollhouse_cost_usd_total"]
    }
    assert {"tenant": "poor", "budget": "daily"} in found["tollhouse_budget_refusals_total"]
    assert {"tier": "exact", "result": "hit"} in found["tollhouse_cache_lookups_total"]
    assert found["tollhouse_state_disk_free_bytes"] == [{}]
    for absent in (
        "tollhouse_local_model_up", "tollhouse_redis_up", "tollhouse_redis_trouble_total",
        "tollhouse_rate_limits_degraded_total", "tollhouse_shared_cache_lookups_total",
    ):  # fmt: skip
        assert absent not in found, absent
    ejected = {labels["provider"] for labels in found["tollhouse_upstream_ejected"]}
    assert ejected == {"provider", "dead"}, "the local providers are switched off"


def test_a_policy_of_many_tenants_leaves_the_series_to_those_that_ask(tmp_path: Path) -> None:
    """More than may have series: none is taken by a tenant that never comes."""
    file = tmp_path / "p.yaml"
    tenants = "".join(f"  - {{id: t{number}}}\n" for number in range(TENANTS_MAX + 1))
    file.write_text(
        "apiVersion: tollhouse/v1\nkind: Models\nmetadata: {name: m}\nproviders:\n"
        "  - {name: p, api: openai, base_url: 'https://p.example/v1'}\nmodels:\n"
        "  - {name: m, provider: p, upstream_model: m, price: {source: unpriced}}\n---\n"
        "apiVersion: tollhouse/v1\nkind: Routing\nmetadata: {name: r}\n"
        "routes: [{name: all, match: {}, to: m}]\n---\n"
        "apiVersion: tollhouse/v1\nkind: Tenants\nmetadata: {name: t}\ntenants:\n" + tenants
    )
    policy = load_policy([file], environ={}, now_us=time.time_ns() // 1000)
    metrics = Metrics()
    expect_series(metrics, policy, redis=False)
    assert "tollhouse_saved_usd_total" not in exported(metrics.exposition().decode())
    metrics.book_saving("late", "routing", 1)
    assert {"tenant": "late", "reason": "routing"} in exported(metrics.exposition().decode())[
        "tollhouse_saved_usd_total"
    ]
