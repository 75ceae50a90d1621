"""plan: which targets, in which order, and why. The last decision before money is held."""

from gateway.booking import worst_charge_pico
from gateway.errors import ContextTooLong, InvalidRequest
from gateway.exchange import Exchange, Plan
from gateway.policy.snapshot import Model
from gateway.services import Services


def plan(exchange: Exchange, services: Services) -> None:
    """Set ``plan``. Raises ContextTooLong or InvalidRequest."""
    route, pinned, decision = exchange.route, exchange.pinned, exchange.decision
    first: Model
    if pinned is not None:
        first, others, kind = pinned, route.fallback, "pinned"
        reason = f"route {route.name}: {exchange.request.model} is {pinned.name}"
    else:
        assert route.small is not None, "compile.py checks routes"
        assert route.large is not None, "compile.py checks routes"
        if decision is not None and decision.small:
            first, others, kind = route.small, (route.large, *route.fallback), "easy"
            reason = decision.reason
        else:
            first, others, kind = route.large, route.fallback, "hard"
            reason = exchange.forced or (decision.reason if decision is not None else "")
    candidates = _reachable(services, _distinct((first, *others)))
    cheaper = _downgrade(exchange, services, candidates)
    if cheaper is not None:
        reason = f"budget used up: {cheaper.name} instead of {first.name}"
        candidates, kind = (cheaper,), "downgraded"
    _check(exchange, candidates)
    exchange.plan = Plan(
        candidates=candidates,
        decision=kind,
        reason=reason,
        output_tokens_max=_worst_output(exchange, candidates),
    )


def _downgrade(
    exchange: Exchange, services: Services, candidates: tuple[Model, ...]
) -> Model | None:
    """Where a budget in which these do not fit sends its tenant instead of refusing it."""
    if not exchange.tenant.budgets:
        return None
    budget = services.ledger.budgets.exceeded(
        exchange.tenant,
        exchange.tags,
        worst_charge_pico(exchange, candidates, _worst_output(exchange, candidates)),
        exchange.started_us,
    )
    if budget is None or budget.on_exceeded != "downgrade":
        return None
    return budget.downgrade_to


def _distinct(models: tuple[Model, ...]) -> tuple[Model, ...]:
    return tuple({model.name: model for model in models}.values())


def _reachable(services: Services, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Healthy targets first in their order; if none is healthy, all: the last is never ejected."""
    healthy = tuple(model for model in models if services.upstream(model.provider).healthy)
    return healthy or models


def _check(exchange: Exchange, candidates: tuple[Model, ...]) -> None:
    request, first = exchange.request, candidates[0]
    if exchange.endpoint == "embeddings" and "embeddings" not in first.capabilities:
        raise InvalidRequest(f"The model '{first.name}' makes no embeddings.", param="model")
    if exchange.endpoint != "embeddings" and first.capabilities == {"embeddings"}:
        raise InvalidRequest(f"The model '{first.name}' only makes embeddings.", param="model")
    window = first.context_tokens
    # A token is at most a handful of bytes: this refuses only what cannot fit.
    if window is not None and request.prompt_bytes > window * 16:
        raise ContextTooLong(
            f"This model's maximum context length is {window} tokens and your prompt has"
            f" {request.prompt_bytes} bytes.",
            param="messages",
        )


def _worst_output(exchange: Exchange, candidates: tuple[Model, ...]) -> int:
    if exchange.endpoint == "embeddings":
        return 0
    asked = exchange.request.max_output_tokens
    if asked is not None:
        return asked
    limit = max(model.output_tokens_max for model in candidates)
    tenant_max = exchange.tenant.limits.max_output_tokens
    return min(limit, tenant_max) if tenant_max is not None else limit
