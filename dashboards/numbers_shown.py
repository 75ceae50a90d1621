"""The numbers of the dashboard, once: title, meaning and query of each.

``generate.py`` makes the Grafana dashboard and the table of the README from them. Plain data.
"""

from typing import NamedTuple


class Number(NamedTuple):
    """One panel. ``legend`` names the series in Grafana's own syntax."""

    title: str
    meaning: str
    query: str
    unit: str  # Grafana's name of a unit
    legend: str = ""
    kind: str = "timeseries"  # or "stat"


_RATE = "[$__rate_interval]"

SECTIONS: dict[str, tuple[Number, ...]] = {
    "Money": (
        Number(
            "Cost in the time shown",
            "What providers are owed. The ledger, not this counter, is what is invoiced.",
            "sum(increase(tollhouse_cost_usd_total[$__range]))",
            "currencyUSD",
            kind="stat",
        ),
        Number(
            "Saved in the time shown, net",
            "Baseline price less cost, less what some requests cost above their baseline.",
            "sum(increase(tollhouse_saved_usd_total[$__range]))"
            " - (sum(increase(tollhouse_overspent_usd_total[$__range])) or vector(0))",
            "currencyUSD",
            kind="stat",
        ),
        Number(
            "Requests without a price",
            "Their cost is unknown, not zero: give their models a price.",
            "sum(increase(tollhouse_unpriced_requests_total[$__range])) or vector(0)",
            "short",
            kind="stat",
        ),
        Number(
            "Cost per hour by tenant",
            "The ten dearest tenants. Tenants beyond the two hundredth share `_other`.",
            "topk(10, sum by (tenant) (tollhouse:cost_usd:rate1h) * 3600)",
            "currencyUSD",
            "{{tenant}}",
        ),
        Number(
            "Budget used",
            "Spent and reserved money over the limit, in the budget's running period.",
            "tollhouse_budget_used_ratio",
            "percentunit",
            "{{tenant}} / {{budget}}",
        ),
        Number(
            "Refused by a budget",
            "Requests that a hard budget turned away, in the last hour.",
            "sum by (tenant, budget) (increase(tollhouse_budget_refusals_total[1h]))",
            "short",
            "{{tenant}} / {{budget}}",
        ),
        Number(
            "Saved per hour by reason",
            "Where savings come from: the two caches, and routing to the small model.",
            "sum by (reason) (rate(tollhouse_saved_usd_total[1h])) * 3600",
            "currencyUSD",
            "{{reason}}",
        ),
    ),
    "Requests": (
        Number(
            "Requests per second by outcome",
            "`ok`, `hit-exact`, `hit-semantic`, or the kind of the error.",
            f"sum by (outcome) (rate(tollhouse_requests_total{_RATE}))",
            "reqps",
            "{{outcome}}",
        ),
        Number(
            "Failed requests per second by fault",
            "Who has to act: `client`, `tenant` (its limits and money), `operator` (settings and"
            " policy), `upstream` (a provider) or `gateway`.",
            f'sum by (fault) (rate(tollhouse_request_faults_total{{fault!="none"}}{_RATE}))',
            "reqps",
            "{{fault}}",
        ),
        Number(
            "Failed share",
            "Requests that failed by our fault or a provider's; refusals are not failures.",
            "tollhouse:requests_failed:ratio_rate5m",
            "percentunit",
        ),
        Number(
            "Time to answer, median",
            "From the request's last byte in to the answer's last byte out.",
            "tollhouse:request_duration_seconds:p50_5m",
            "s",
        ),
        Number(
            "Time to answer, 99th percentile",
            "One request in a hundred takes longer.",
            "tollhouse:request_duration_seconds:p99_5m",
            "s",
        ),
        Number(
            "Time to the first token, 95th percentile",
            "Streams only.",
            "histogram_quantile(0.95, sum by (le, target)"
            f" (rate(tollhouse_ttft_seconds_bucket{_RATE})))",
            "s",
            "{{target}}",
        ),
        Number(
            "The gateway's own time, 99th percentile",
            "Total less waiting for the target: what Tollhouse adds.",
            "tollhouse:overhead_seconds:p99_5m",
            "s",
        ),
        Number("In flight", "Requests being answered now.", "sum(tollhouse_in_flight)", "short"),
    ),
    "Deciding": (
        Number(
            "Share by target",
            "Which model answered; answers from cache count for the model that wrote them.",
            f"sum by (target) (rate(tollhouse_requests_total{_RATE}))"
            f" / ignoring(target) group_left sum(rate(tollhouse_requests_total{_RATE}))",
            "percentunit",
            "{{target}}",
        ),
        Number(
            "Cache hit rate by tier",
            "Hits over look-ups that were made.",
            "tollhouse:cache_hits:ratio_rate1h",
            "percentunit",
            "{{tier}}",
        ),
        Number("Cached answers", "Entries held.", "tollhouse_cache_entries", "short", "{{tier}}"),
        Number(
            "Difficulty, median",
            "Estimated probability that the small model fails, by route.",
            "histogram_quantile(0.5, sum by (le, route)"
            f" (rate(tollhouse_difficulty_bucket{_RATE})))",
            "percentunit",
            "{{route}}",
        ),
        Number(
            "Time to judge, 99th percentile",
            "Features, and the embedding where one was made.",
            "histogram_quantile(0.99, sum by (le)"
            f" (rate(tollhouse_classifier_duration_seconds_bucket{_RATE})))",
            "s",
        ),
        Number(
            "Tokens per second",
            "Input and output; `read` came from the provider's own prompt cache.",
            f"sum by (direction, cache) (rate(tollhouse_tokens_total{_RATE}))",
            "short",
            "{{direction}} {{cache}}",
        ),
    ),
    "Providers and this node": (
        Number(
            "Attempts per second by provider and status",
            "More than requests: a fallback is an attempt of its own.",
            f"sum by (provider, status) (rate(tollhouse_upstream_requests_total{_RATE}))",
            "reqps",
            "{{provider}} {{status}}",
        ),
        Number(
            "Refused by a provider's rate limit",
            "Share of the attempts that a provider answered with 429.",
            "tollhouse:provider_rate_limited:ratio_rate5m",
            "percentunit",
            "{{provider}}",
        ),
        Number(
            "Ejected",
            "1 while a provider's circuit breaker is open.",
            "tollhouse_upstream_ejected",
            "short",
            "{{provider}}",
        ),
        Number(
            "Local model",
            "1 while every local model answers; absent where none is wanted.",
            "min(tollhouse_local_model_up)",
            "short",
            kind="stat",
        ),
        Number(
            "Local batch, mean",
            "Sequences per step: more is cheaper per token.",
            f"sum(rate(tollhouse_local_batch_size_sum{_RATE}))"
            f" / sum(rate(tollhouse_local_batch_size_count{_RATE}))",
            "short",
        ),
        Number(
            "Waiting for a local model",
            "Requests in line for a slot; those that would wait too long ask the large model.",
            "sum by (provider) (tollhouse_local_waiting)",
            "short",
            "{{provider}}",
        ),
        Number(
            "Slots of a local model",
            "Requests that it is given at once, as measured.",
            "sum by (provider) (tollhouse_local_slots)",
            "short",
            "{{provider}}",
        ),
        Number(
            "Not yet booked",
            "Write-ahead log that the ledger has not taken over.",
            "sum(tollhouse_metering_wal_bytes)",
            "bytes",
        ),
        Number(
            "Age of the oldest unbooked event",
            "How far the cost pages are behind.",
            "max(tollhouse_metering_lag_seconds)",
            "s",
        ),
        Number(
            "Free disk",
            "Of the state folder. Without space nothing can be booked, so nothing is answered.",
            "min(tollhouse_state_disk_free_bytes)",
            "bytes",
        ),
        Number(
            "Policy in force",
            "Two at once for longer than a reload means that a worker did not take the new one.",
            "count by (version) (tollhouse_policy_info)",
            "short",
            "{{version}}",
        ),
        Number(
            "Resident memory",
            "Of the gateway's processes.",
            "process_resident_memory_bytes",
            "bytes",
            "{{instance}}",
        ),
    ),
}
