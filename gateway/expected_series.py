"""The series that a policy lets us expect, shown at 0 from the start.

A counter that appears with its first event is born above 0, and neither ``rate`` nor ``increase``
sees that event. Knows policies and metrics; counts nothing.
"""

from gateway.errors import FAULTS
from gateway.policy.snapshot import Policy
from gateway.telemetry import SERIES_MAX, TENANTS_MAX, Metrics

_STATUSES = ("200", "429", "500", "503")
_SAVINGS = ("routing", "exact", "semantic")
_SHARED_LOOKUPS = ("hit", "miss", "invalid", "unavailable")
_REDIS_TROUBLE = ("failed", "lost", "damaged")
_EXPECTED_MAX = SERIES_MAX // 2  # of one metric: the rest is for what comes unexpected


def expect_series(metrics: Metrics, policy: Policy, *, redis: bool) -> None:
    """Show 0 for every model, tenant and budget of a policy; for Redis where there is one."""
    for fault in ("none", *FAULTS):
        metrics.request_faults_total.expect((fault,))
    for tier in ("exact", "semantic"):
        for result in ("hit", "miss"):
            metrics.cache_lookups_total.expect((tier, result))
    if redis:
        metrics.rate_limits_degraded_total.expect()
        for kind in _REDIS_TROUBLE:
            metrics.redis_trouble_total.expect((kind,))
        for result in _SHARED_LOOKUPS:
            metrics.shared_cache_lookups_total.expect((result,))
    _expect_models(metrics, policy)
    _expect_tenants(metrics, policy)


def _expect_models(metrics: Metrics, policy: Policy) -> None:
    for model in list(policy.models.values())[: _EXPECTED_MAX // len(_STATUSES)]:
        metrics.unpriced_requests_total.expect((model.name,))
        metrics.tokens_total.expect(("input", "none", model.name))
        metrics.tokens_total.expect(("output", "none", model.name))
        for status in _STATUSES:
            metrics.upstream_requests_total.expect((model.provider.name, model.name, status))


def _expect_tenants(metrics: Metrics, policy: Policy) -> None:
    """With more tenants than may have series, the ones with traffic are to have them."""
    if len(policy.tenants) > TENANTS_MAX:
        return
    priced = [model.name for model in policy.models.values() if model.prices is not None]
    for tenant in policy.tenants.values():
        for reason in _SAVINGS:
            metrics.saved_usd_total.expect((tenant.id, reason))
            metrics.overspent_usd_total.expect((tenant.id, reason))
        for budget in tenant.budgets:
            metrics.budget_refusals_total.expect((tenant.id, budget.name))
        if len(policy.tenants) * len(priced) <= _EXPECTED_MAX:
            for model in priced:
                metrics.cost_usd_total.expect((tenant.id, model))
