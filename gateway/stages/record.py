"""record: metrics and the access log. The last stage; it never fails a request."""

import logging
from collections.abc import Mapping

import orjson

from gateway.errors import BudgetExhausted, GatewayError
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.telemetry import Metrics

_PATH_LENGTH_MAX = 200
_NO_FAULT = ("none",)
_log = logging.getLogger("tollhouse.access")


def record(exchange: Exchange, services: Services) -> None:
    """Count the request and, where it is on, write one line of JSON about it."""
    now = services.monotonic()
    _count(exchange, services, now)
    if _log.isEnabledFor(logging.INFO):
        _tell(_line(exchange, now))


def _tell(line: Mapping[str, object]) -> None:
    """As JSON in a line of text; a line of JSON has it as ``fields``."""
    _log.info("%s", orjson.dumps(line).decode(), extra={"fields": line})


def record_other(
    services: Services,
    *,
    what: str,
    request_id: str,
    method: str,
    path: str,
    status: int,
    error: GatewayError | None,
    tenant: str | None,
) -> None:
    """Count and log a request that asks no model. what: one of a few, it becomes a label."""
    services.metrics.other_requests_total.inc((what, str(status)))
    if error is not None:
        _count_fault(services.metrics, error)
    if _log.isEnabledFor(logging.INFO):
        line = {
            "request_id": request_id,
            "tenant": tenant,
            "endpoint": what,
            "method": method,
            "path": path[:_PATH_LENGTH_MAX],
            "status": status,
            "error": (error.code or error.type) if error is not None else None,
        }
        _tell(line)


def _count(exchange: Exchange, services: Services, now: float) -> None:
    metrics = services.metrics
    route, target = _route(exchange), _target(exchange)
    error = exchange.error
    if error is None:
        outcome: str = exchange.cache_status if exchange.hit is not None else "ok"
        metrics.request_faults_total.inc(_NO_FAULT)
    else:
        outcome = error.outcome
        _count_fault(metrics, error)
        if isinstance(error, BudgetExhausted):
            metrics.budget_refusals_total.inc((exchange.tenant.id, error.budget_name or "none"))
    metrics.requests_total.inc((route, target, outcome))
    total = now - exchange.started
    metrics.request_duration_seconds.observe(total, (route, target))
    waited = 0.0
    for attempt in exchange.attempts:
        waited += attempt.ended_monotonic - attempt.started_monotonic
    metrics.overhead_seconds.observe(max(0.0, total - waited), (route,))
    if exchange.first_byte is not None and exchange.request.stream:
        metrics.ttft_seconds.observe(exchange.first_byte - exchange.started, (route, target))
    usage = exchange.usage
    if usage is None:
        return
    fresh = usage.prompt_tokens - usage.cached_tokens
    metrics.tokens_total.inc(("input", "none", target), fresh)
    if usage.cached_tokens:
        metrics.tokens_total.inc(("input", "read", target), usage.cached_tokens)
    metrics.tokens_total.inc(("output", "none", target), usage.completion_tokens)
    if usage.source == "unclear":
        metrics.usage_unclear_total.inc((target,))
    if exchange.cost_pico is None:
        metrics.unpriced_requests_total.inc((target,))
    else:
        metrics.cost_usd_total.inc((exchange.tenant.id, target), exchange.cost_pico)
    if exchange.saved_pico:
        reason = "routing" if exchange.hit is None else exchange.cache_status.removeprefix("hit-")
        metrics.book_saving(exchange.tenant.id, reason, exchange.saved_pico)


def _count_fault(metrics: Metrics, error: GatewayError) -> None:
    """Count a request that failed, by whose fault it was."""
    metrics.request_faults_total.inc((error.fault,))


def _line(exchange: Exchange, now: float) -> dict[str, object]:
    usage = exchange.usage
    return {
        "request_id": exchange.request_id,
        "tenant": exchange.tenant.id if hasattr(exchange, "tenant") else None,
        "endpoint": exchange.endpoint,
        "status": exchange.status,
        "error": (exchange.error.code or exchange.error.type) if exchange.error else None,
        "route": _route(exchange),
        "target": _target(exchange),
        "cache": exchange.cache_status,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cost_pico": exchange.cost_pico,
        "duration_ms": round((now - exchange.started) * 1e3, 3),
    }


def _route(exchange: Exchange) -> str:
    return exchange.route.name if hasattr(exchange, "route") else "none"


def _target(exchange: Exchange) -> str:
    if exchange.hit is not None:
        return exchange.hit.served_model
    return exchange.attempts[-1].target.name if exchange.attempts else "none"
