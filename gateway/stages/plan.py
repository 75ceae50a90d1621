"""plan: which targets, in which order, and why. The last decision before money is held."""

from gateway.booking import charge_pico, worst_cases_pico
from gateway.errors import BudgetExhausted, ContextTooLong, InvalidRequest
from gateway.exchange import Exchange, Plan
from gateway.policy.snapshot import AUTO, Model
from gateway.services import Services
from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import WITHOUT_OUTPUT


def plan(exchange: Exchange, services: Services) -> None:
    """Set ``plan``. Raises ContextTooLong, InvalidRequest or BudgetExhausted."""
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
            if exchange.endpoint not in first.paths:
                others = (*others, route.small)  # rather than nobody
            reason = exchange.forced or (decision.reason if decision is not None else "")
    candidates = _reachable(services, _speaking(exchange, _distinct((first, *others))))
    output_tokens = _worst_output(exchange, candidates)
    worst_pico = worst_cases_pico(exchange, candidates, output_tokens)
    cheaper = _downgrade(exchange, services, sum(worst_pico))
    if cheaper is not None:
        reason = f"budget used up: {cheaper.name} instead of {first.name}"
        candidates, kind = (cheaper,), "downgraded"
        output_tokens = _worst_output(exchange, candidates)
        worst_pico = worst_cases_pico(exchange, candidates, output_tokens)
    _check(exchange, candidates)
    exchange.plan = Plan(
        candidates=candidates,
        decision=kind,
        reason=reason,
        output_tokens_max=output_tokens,
        worst_pico=worst_pico,
    )


def _downgrade(exchange: Exchange, services: Services, worst_pico: int) -> Model | None:
    """Where a budget in which this cost does not fit sends its tenant instead of refusing it."""
    if not exchange.tenant.budgets:
        return None
    budget = services.ledger.budgets.exceeded(
        exchange.tenant,
        exchange.tags,
        charge_pico(exchange, worst_pico) or 0,
        exchange.started_us,
    )
    if budget is None or budget.on_exceeded != "downgrade":
        return None
    cheaper = budget.downgrade_to
    if cheaper is not None and exchange.endpoint not in cheaper.paths:
        raise BudgetExhausted(
            f"tenant {exchange.tenant.id}: the budget '{budget.name}' is used up, and the model"
            f" '{cheaper.name}' that it leaves does not speak {exchange.endpoint}"
        )
    return cheaper


def _speaking(exchange: Exchange, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Those whose provider speaks the request's dialect. A model that was asked for by name is
    never replaced by another one that does.
    """
    endpoint = exchange.endpoint
    for model in models:
        if endpoint not in model.paths:
            break
    else:
        return models  # nearly always
    spoken = tuple(model for model in models if endpoint in model.paths)
    if spoken and (spoken[0] is models[0] or exchange.request.model == AUTO):
        return spoken
    lacking = models[0]
    dialect = DIALECTS[endpoint]
    raise InvalidRequest(
        f"The model '{lacking.name}' cannot be asked at /v1{dialect.path}: its provider"
        f" '{lacking.provider.name}' speaks {', '.join(lacking.provider.dialects)} and not"
        f" {dialect.name}, and this gateway does not translate.",
        param="model",
    )


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
    if exchange.endpoint in WITHOUT_OUTPUT:
        return 0
    asked = exchange.request.max_output_tokens
    if asked is not None:
        return asked
    limit = max(model.output_tokens_max for model in candidates)
    tenant_max = exchange.tenant.limits.max_output_tokens
    return min(limit, tenant_max) if tenant_max is not None else limit
