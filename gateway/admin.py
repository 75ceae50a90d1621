"""What the admin application may ask of a worker: probes, purging, numbers. Thin, no decisions."""

import asyncio
from collections.abc import Mapping

from gateway.bookkeeping import Bookkeeping
from gateway.caches.entry import StoredAnswer
from gateway.endpoints import V1
from gateway.errors import Overloaded
from gateway.node.messages import serves
from gateway.policy.holder import PolicyHolder
from gateway.services import Services
from gateway.stores.redis import RedisUnavailable
from gateway.web.services import AdminServices, Probe


def admin_services(services: Services, v1: V1, bookkeeping: Bookkeeping) -> AdminServices:
    """Everything the admin application needs, from the parts of a worker."""

    loop = asyncio.get_running_loop()
    books, policies = bookkeeping.books, services.policies
    assert books is not None, "a worker with its own admin port keeps the books"
    assert isinstance(policies, PolicyHolder), "and the policy files"

    def ready() -> Probe:
        healthy = bookkeeping.healthy
        checks = {
            "policy": services.policies.current.version,
            "ledger": bookkeeping.state,
            "traffic": "draining" if v1.stopping else "ok",
        }
        if services.redis is not None:  # told, not required: we serve without it
            checks["redis"] = "ok" if services.redis.healthy else "away"
        return Probe(ok=healthy and not v1.stopping, checks=checks)

    def started() -> Probe:
        checks = dict(services.local_states())
        return Probe(ok=all(map(serves, checks.values())), checks=checks)

    def stats() -> Mapping[str, object]:
        return {
            "in_flight": v1.in_flight,
            "exact_cache_entries": services.exact.stats.entries,
            "semantic_namespaces": len(services.semantic.stats()),
        }

    return AdminServices(
        keys=services.keys,
        ledger=books,
        budgets_used=bookkeeping.budgets_used,
        policies=policies,
        switches=services.switches,
        metrics=services.metrics.exposition,
        purge=lambda tenant: purge(services, tenant, loop),
        live=lambda: Probe(ok=True),
        ready=ready,
        started=started,
        stats=stats,
        now_us=services.now_us,
        cookie_secret=services.keys.derive("admin cookies"),
        environment=services.settings.environment,
    )


def purge(services: Services, tenant: str | None, loop: asyncio.AbstractEventLoop) -> int:
    """Forget cached answers, of one tenant or of all; how many. Not on ``loop``: waits for it.

    Raises Overloaded where Redis is away: what it holds would come back.
    """

    def doomed(entry: StoredAnswer) -> bool:
        return tenant is None or entry.tenant_id == tenant

    shared = 0
    if services.shared_exact is not None:
        purging = asyncio.run_coroutine_threadsafe(services.shared_exact.purge(tenant), loop)
        try:
            shared = purging.result()
        except RedisUnavailable as error:
            raise Overloaded(f"Not purged: {error}. Try again when Redis is back.") from None
    here = services.exact.delete_where(doomed) + services.semantic.delete_where(doomed)
    return shared + here
