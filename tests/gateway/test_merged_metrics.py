"""Several processes' numbers on one page: sums are exact, and never fall."""

from prometheus_client.parser import text_string_to_metric_families

from gateway.merged_metrics import Merger, pack, take, unpack
from gateway.telemetry import Metrics


def page(merger: Merger, *processes: Metrics) -> dict[tuple[str, ...], float]:
    """What an independent reader finds: values by name and label values."""
    text = merger.exposition(
        [unpack(pack(take(metrics))) for metrics in processes], merger.gone
    ).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_histograms_are_added_up() -> None:
    """Two workers' requests and latencies read as those of one gateway, bucket by bucket."""
    one, other = Metrics(), Metrics()
    one.requests_total.inc(("rest", "large", "ok"), 3)
    other.requests_total.inc(("rest", "large", "ok"), 4)
    other.requests_total.inc(("rest", "small", "ok"))
    one.overhead_seconds.observe(0.0002, ("rest",))
    other.overhead_seconds.observe(0.02, ("rest",))
    found = page(Merger(), one, other)
    assert found["tollhouse_requests_total", "rest", "large", "ok"] == 7
    assert found["tollhouse_requests_total", "rest", "small", "ok"] == 1
    assert found["tollhouse_overhead_seconds_count", "rest"] == 2
    assert found["tollhouse_overhead_seconds_bucket", "rest", "0.00025"] == 1
    assert found["tollhouse_overhead_seconds_bucket", "rest", "+Inf"] == 2


def test_money_stays_exact_beyond_64_bits() -> None:
    """A float would drop the last pico-dollar of a sum of 18 million dollars."""
    one, other = Metrics(), Metrics()
    one.cost_usd_total.inc(("acme", "large"), 2**64)
    other.cost_usd_total.inc(("acme", "large"), 1)
    text = Merger().exposition([unpack(pack(take(one))), take(other)], ()).decode()
    assert 'cost_usd_total{tenant="acme",model="large"} 18446744.073709551617' in text


def test_a_level_is_a_sum_or_the_most_or_the_least_of_the_processes() -> None:
    """Work in flight adds up, one ejection shows, and a model is up only where it is up for all."""
    one, other = Metrics(), Metrics()
    for metrics, up in ((one, 1.0), (other, 0.0)):
        metrics.in_flight.set(5)
        metrics.local_model_up.set(up, ("m",))
        metrics.upstream_ejected.set(up, ("openai",))
        metrics.policy_info.only((f"v{int(up)}",))
    found = page(Merger(), one, other)
    assert found["tollhouse_in_flight",] == 10
    assert found["tollhouse_local_model_up", "m"] == 0
    assert found["tollhouse_upstream_ejected", "openai"] == 1
    assert {name for name in found if name[0] == "tollhouse_policy_info"} == {
        ("tollhouse_policy_info", "v0"), ("tollhouse_policy_info", "v1"),
    }  # fmt: skip


def test_what_an_ended_process_counted_stays_counted_and_its_levels_go() -> None:
    """A sum that fell would be read as a restart of the gateway."""
    merger, ended, living = Merger(), Metrics(), Metrics()
    for metrics in (ended, living):
        metrics.requests_total.inc(("rest", "large", "ok"))
        metrics.in_flight.set(2)
    before = page(merger, ended, living)
    merger.retire("ended", take(ended))
    after = page(merger, living)
    assert after["tollhouse_requests_total", "rest", "large", "ok"] == 2
    assert after["tollhouse_in_flight",] == 2
    assert after["process_cpu_seconds_total",] >= before["process_cpu_seconds_total",]


def test_a_process_that_was_only_cut_off_is_not_counted_twice() -> None:
    """A worker that comes back continues from its own count: five and one are six."""
    merger, cut = Merger(), Metrics()
    cut.requests_total.inc(("rest", "large", "ok"), 5)
    merger.retire("cut", take(cut))
    name = ("tollhouse_requests_total", "rest", "large", "ok")
    assert page(merger)[name] == 5
    cut.requests_total.inc(("rest", "large", "ok"))
    merger.returned("cut")
    assert page(merger, cut)[name] == 6


def test_what_very_many_ended_processes_counted_stays_counted() -> None:
    """A hundred restarts lose no request from the total."""
    merger = Merger()
    for number in range(100):
        ended = Metrics()
        ended.requests_total.inc(("rest", "large", "ok"))
        merger.retire(str(number), take(ended))
    assert page(merger)["tollhouse_requests_total", "rest", "large", "ok"] == 100
