"""What the admin application may ask of a worker: probes, purging, numbers. Thin, no decisions."""

from collections.abc import Mapping

from gateway.caches.entry import StoredAnswer
from gateway.endpoints import V1
from gateway.services import Services
from gateway.web.services import AdminServices, Probe


def admin_services(services: Services, v1: V1) -> AdminServices:
    """Everything the admin application needs, from the parts of a worker."""

    def ready() -> Probe:
        healthy = services.ledger.healthy
        checks = {
            "policy": services.policies.current.version,
            "ledger": "ok" if healthy else "failing",
            "traffic": "draining" if v1.stopping else "ok",
        }
        return Probe(ok=healthy and not v1.stopping, checks=checks)

    def started() -> Probe:
        wanted = services.settings.local.enabled != "off"
        checks = {
            "embedding": "ok" if services.embedding_ready() or not wanted else "loading",
            "generation": "ok" if services.local_answers() or not wanted else "loading",
        }
        return Probe(ok=all(state == "ok" for state in checks.values()), checks=checks)

    def stats() -> Mapping[str, object]:
        return {
            "in_flight": v1.in_flight,
            "exact_cache_entries": services.exact.stats.entries,
            "semantic_namespaces": len(services.semantic.stats()),
        }

    return AdminServices(
        keys=services.keys,
        ledger=services.ledger,
        policies=services.policies,
        switches=services.switches,
        metrics=services.metrics,
        purge=lambda tenant: purge(services, tenant),
        live=lambda: Probe(ok=True),
        ready=ready,
        started=started,
        stats=stats,
        now_us=services.now_us,
        cookie_secret=services.keys.derive("admin cookies"),
        environment=services.settings.environment,
    )


def purge(services: Services, tenant: str | None) -> int:
    """Forget cached answers, of one tenant or of all; how many."""
    if tenant is None:
        return services.exact.delete_where(_any) + services.semantic.delete_where(_any)

    def of_tenant(entry: StoredAnswer) -> bool:
        return entry.tenant_id == tenant

    return services.exact.delete_where(of_tenant) + services.semantic.delete_where(of_tenant)


def _any(entry: StoredAnswer) -> bool:
    return True
