"""Telemetry: the exposition is what Prometheus reads, and money in it is exact."""

import shutil
import subprocess
from decimal import Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import telemetry
from gateway.telemetry import OTHER, TENANTS_MAX, Metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(metrics: Metrics) -> Samples:
    """What prometheus_client's own parser, an independent reader, finds in our text."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def busy() -> Metrics:
    """Metrics with at least one series each."""
    metrics = Metrics()
    for metric in metrics:
        labels = tuple(f"{name} 1" for name in metric.labels)
        if isinstance(metric, telemetry.Counter):
            metric.inc(labels, 3)
        elif isinstance(metric, telemetry.Histogram):
            metric.observe(0.3, labels)
        elif isinstance(metric, telemetry.Gauge):
            metric.set(0.5, labels)
    return metrics


def test_prometheus_client_reads_every_sample_we_write() -> None:
    """Every metric appears under each of its names, and the process speaks of itself."""
    names = {name for name, _ in scrape(busy())}
    for metric in Metrics():
        assert set(metric.sample_names()) <= names
    assert "process_resident_memory_bytes" in names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about() -> None:
    """The lint of Prometheus itself: help texts, suffixes, units."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=busy().exposition(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_money_is_shown_to_the_last_pico_dollar() -> None:
    """A float would lose the last digits of a large sum; the text keeps them."""
    metrics = Metrics()
    labels = ("acme", "gpt-5.5")
    metrics.cost_usd_total.inc(labels, 9_007_199_254_740_993_000_001)  # above 2**53 micro-dollars
    metrics.cost_usd_total.inc(labels, 1)
    [line] = [
        line
        for line in metrics.exposition().decode().splitlines()
        if line.startswith("tollhouse_cost_usd_total{")
    ]
    assert Decimal(line.rsplit(" ", 1)[1]) == Decimal("9007199254.740993000002")


def test_a_saving_that_is_a_loss_is_counted_as_a_loss() -> None:
    """A counter cannot fall, so what cost more than its baseline has a counter of its own."""
    metrics = Metrics()
    metrics.book_saving("acme", "routing", 700)
    metrics.book_saving("acme", "routing", -200)
    assert metrics.saved_usd_total.value(("acme", "routing")) == 700
    assert metrics.overspent_usd_total.value(("acme", "routing")) == 200
    with pytest.raises(ValueError, match="can only grow"):
        metrics.saved_usd_total.inc(("acme", "routing"), -1)


def test_histogram_buckets_are_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    """``le`` means less than or equal."""
    metrics = Metrics()
    for size in (1, 2, 3, 100):
        metrics.local_batch_size.observe(size)
    found = scrape(metrics)
    buckets = {
        labels[0][1]: value
        for (name, labels), value in found.items()
        if name == "tollhouse_local_batch_size_bucket"
    }
    assert [buckets[edge] for edge in ("1", "2", "4", "64", "+Inf")] == [1, 2, 3, 3, 4]
    assert found["tollhouse_local_batch_size_sum", ()] == 106
    assert found["tollhouse_local_batch_size_count", ()] == 4


def test_tenants_beyond_the_limit_share_one_series_and_no_money_is_lost() -> None:
    """A tenant that has a series keeps it, so that no counter ever falls."""
    metrics = Metrics()
    for number in range(TENANTS_MAX + 50):
        for _ in range(2):
            metrics.cost_usd_total.inc((f"tenant-{number}", "m"), 10**12)
    series = {
        dict(labels)["tenant"]: value
        for (name, labels), value in scrape(metrics).items()
        if name == "tollhouse_cost_usd_total"
    }
    assert len(series) == TENANTS_MAX + 1
    assert series[OTHER] == 100
    assert sum(series.values()) == 2 * (TENANTS_MAX + 50)


def test_hostile_label_values_cannot_add_a_sample() -> None:
    """Quotes, backslashes and line ends are escaped as the format asks."""
    metrics = Metrics()
    hostile = 'a"} 1\ntollhouse_in_flight 99\\'
    metrics.cost_usd_total.inc((hostile, "m"), 10**12)
    found = scrape(metrics)
    assert found["tollhouse_cost_usd_total", (("model", "m"), ("tenant", hostile))] == 1
    assert ("tollhouse_in_flight", ()) not in found


def test_one_metric_cannot_grow_without_limit() -> None:
    """Names that a client can invent end in one shared series."""
    metrics = Metrics()
    for number in range(telemetry.SERIES_MAX + 10):
        metrics.unpriced_requests_total.inc((f"model-{number}",))
    assert metrics.unpriced_requests_total.value((OTHER,)) == 10


def test_wrong_label_counts_are_refused_at_once() -> None:
    """Our own mistake shows at its first call, not in a broken scrape."""
    with pytest.raises(ValueError, match="has the labels"):
        Metrics().requests_total.inc(("only-one",))


def test_a_callback_gauge_is_read_at_the_scrape_and_may_fail_alone() -> None:
    """A broken reader costs its own number and no other."""
    metrics = Metrics()
    metrics.budget_used_ratio.callback = lambda: {("acme", "monthly"): 0.5}
    metrics.in_flight.callback = lambda: 1 / 0
    metrics.policy_info.only(("old",))
    metrics.policy_info.only(("new",))
    found = scrape(metrics)
    assert found["tollhouse_budget_used_ratio", (("budget", "monthly"), ("tenant", "acme"))] == 0.5
    assert ("tollhouse_in_flight", ()) not in found
    assert [labels for name, labels in found if name == "tollhouse_policy_info"] == [
        (("version", "new"),)
    ]


def test_span_attribute_names_are_the_registry_s() -> None:
    """Only the conventions' namespaces and our own; the removed ``gen_ai.system`` stays away."""
    names = {
        value
        for name, value in vars(telemetry).items()
        if name.startswith(("GEN_AI_", "TOLLHOUSE_", "SERVER_", "ERROR_"))
    }
    assert "gen_ai.system" not in names
    assert all(name.startswith(("gen_ai.", "tollhouse.", "server.", "error.")) for name in names)
