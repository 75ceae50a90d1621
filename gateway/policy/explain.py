"""``tollhouse policy explain``: which route, why not the others, and all that holds there.

A value for the terminal and for ``--json``. Works on a loaded policy alone, without a gateway.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.money import exact_usd
from gateway.policy.evaluate import Judge, evaluate, unjudged
from gateway.policy.snapshot import Policy, RequestFacts, Route, Tenant
from gateway.policy.targets import nothing_refused


class Step(msgspec.Struct, frozen=True):
    """One route that was looked at."""

    route: str
    where: str
    verdict: str  # "taken", or why it was passed over


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one request, and why."""

    version: str
    steps: tuple[Step, ...]
    route: str | None
    targets: tuple[str, ...]  # in the order they are tried
    decided: bool  # False: the difficulty chooses between the first two
    reason: str
    baseline: str | None
    settings: dict[str, Any]  # of the route, defaults merged in
    limits: dict[str, Any]  # of the tenant
    budgets: tuple[str, ...]


def explain(
    policy: Policy,
    facts: RequestFacts,
    judge: Judge = unjudged,
    *,
    local_refusal: Callable[[], str | None] = nothing_refused,
) -> Explanation:
    """Explain one request; arguments and errors as ``evaluate``."""
    tenant = policy.tenants[facts.tenant]
    outcome = evaluate(policy, facts, judge, local_refusal=local_refusal)
    route = outcome.route
    return Explanation(
        version=policy.version,
        steps=tuple(_steps(policy, facts)) if policy.knows(facts.model) else (),
        route=route.name if route is not None else None,
        targets=tuple(model.name for model in outcome.targets),
        decided=outcome.decided,
        reason=outcome.reason,
        baseline=policy.baseline.name if policy.baseline is not None else None,
        settings=_settings(route) if route is not None else {},
        limits=msgspec.to_builtins(tenant.limits),
        budgets=tuple(_budgets(tenant)),
    )


def as_text(found: Explanation) -> str:
    """The explanation for a person."""
    lines = [f"policy {found.version}", ""]
    lines += [f"  {step.where}  {step.route}: {step.verdict}" for step in found.steps]
    lines += ["", f"route     {found.route or 'none'}"]
    choice = " or " if not found.decided else ", then "
    lines.append(f"targets   {choice.join(found.targets[:2]) or 'none'}")
    lines += [f"          then {name}" for name in found.targets[2:]]
    lines.append(f"because   {found.reason}")
    lines.append(f"baseline  {found.baseline or 'none: savings are not computed'}")
    lines += [f"{name:9} {_shown(value)}" for name, value in found.settings.items()]
    lines.append(f"limits    {_shown(found.limits)}")
    lines += [f"budget    {budget}" for budget in found.budgets]
    return "\n".join(lines)


def _steps(policy: Policy, facts: RequestFacts) -> list[Step]:
    steps: list[Step] = []
    for route in policy.routes:
        verdict = _verdict(route, facts)
        steps.append(Step(route.name, route.where, verdict))
        if verdict == "taken":
            break
    return steps


def _verdict(route: Route, facts: RequestFacts) -> str:
    if not route.names(facts.model):
        return f"not for model: {facts.model}; its models: {', '.join(route.matches.models)}"
    failing = route.matches.first_failing(facts)
    return "taken" if failing is None else f"does not hold: {failing}"


def _settings(route: Route) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if route.small is not None:
        settings["target"] = msgspec.to_builtins(route.target)
        settings["large if"] = msgspec.to_builtins(route.always_large)
    if route.fallback:
        settings["fallback"] = {
            "on": sorted(route.fallback_on), "to": [model.name for model in route.fallback],
        }  # fmt: skip
    settings["exact"] = "off" if route.exact is None else msgspec.to_builtins(route.exact)
    semantic = route.semantic
    settings["semantic"] = (
        "off"
        if semantic is None
        else {
            "ttl_seconds": semantic.ttl_seconds,
            "max_wrong": semantic.max_wrong,
            "skip_when": "given" if semantic.skip_when is not None else "never",
        }
    )
    return settings


def _budgets(tenant: Tenant) -> list[str]:
    return [
        f"{budget.name}: {exact_usd(budget.amount_pico)} USD per {budget.period} in"
        f" {budget.timezone}, {budget.enforce}, then {budget.on_exceeded}"
        + (f", for {_shown(dict(budget.tags))}" if budget.tags else "")
        for budget in tenant.budgets
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{k}: {_shown(v)}" for k, v in value.items() if v is not None)
        return ", ".join(pairs) or "none"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
