"""plan: which targets, in which order, and why. The last decision before money is held."""

from msgspec.structs import replace

from gateway.booking import plan_charge_pico
from gateway.errors import InvalidRequest
from gateway.exchange import LARGE_AWAY, Exchange, Plan
from gateway.plans import downgraded, make_plan
from gateway.policy.snapshot import AUTO, Budget, Model
from gateway.services import Services
from gateway.wire.dialects import DIALECTS


def plan(exchange: Exchange, services: Services) -> None:
    """Set ``plan``. Raises ContextTooLong, InvalidRequest or BudgetExhausted."""
    route, pinned, decision = exchange.route, exchange.pinned, exchange.decision
    first: Model
    stand_in: Model | None = None
    if pinned is not None:
        first, others, kind = pinned, route.fallback, "pinned"
        asked = exchange.request.model
        means = "was asked for by name" if asked == pinned.name else f"is {pinned.name}"
        reason = f"route {route.name}: {asked} {means}"
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
            elif decision is not None and decision.easy:
                stand_in = route.small
                others = (*others, stand_in)
            reason = exchange.forced or (decision.reason if decision is not None else "")
    speaking = _speaking(exchange, _distinct((first, *others)))
    candidates = _reachable(services, speaking)
    ejected = speaking[0] if speaking[0] is not candidates[0] else None
    if stand_in is not None and candidates[0] is stand_in:
        exchange.degraded = LARGE_AWAY
        kind, reason = "fallback", f"{first.name} is away, and the prior calls the request easy"
    elif ejected is not None:
        reason = f"{reason}; {ejected.name} is ejected: {candidates[0].name} instead"
    made = make_plan(exchange, candidates, kind, reason)
    if ejected is not None:
        made = replace(made, instead=f"fallback; from={ejected.name}; because=ejected")
    elif decision is not None and decision.exam and candidates[0] is route.small:
        made = replace(made, instead=f"exam; kind={decision.exam}")
    if stand_in is not None and candidates[-1] is stand_in:
        made = replace(made, stand_in=stand_in)
    budget = _used_up(exchange, services, made)
    exchange.plan = made if budget is None else downgraded(exchange, budget, first)


def _used_up(exchange: Exchange, services: Services, made: Plan) -> Budget | None:
    """The budget in which a plan does not fit, where it sends its tenant to another model."""
    if not exchange.tenant.budgets:
        return None
    budget = services.ledger.budgets.exceeded(
        exchange.tenant,
        exchange.tags,
        plan_charge_pico(exchange, made.worst_pico),
        exchange.started_us,
    )
    return budget if budget is not None and budget.on_exceeded == "downgrade" else None


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
    if exchange.request.model == AUTO:
        raise InvalidRequest(
            f"None of the models that '{AUTO}' may choose from can be asked at /v1{dialect.path}:"
            f" no provider of {', '.join(model.name for model in models)} speaks {dialect.name},"
            " and this gateway does not translate. Ask at /v1/chat/completions, or name a model"
            f" of a provider that speaks {dialect.name}.",
            param="model",
        )
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
