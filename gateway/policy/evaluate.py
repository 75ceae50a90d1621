"""What a policy would do with a request, without sending one: its tests, and ``policy explain``.

Takes the router's scores as given. Knows no prompt, no model and no traffic.
"""

from collections.abc import Callable, Mapping

import msgspec

from gateway.policy import schema
from gateway.policy.capability import Needs, not_for_small
from gateway.policy.snapshot import AUTO, Model, Policy, RequestFacts, Route
from gateway.yaml_documents import Document, Where, suggest

BYTES_PER_TOKEN = 4  # assumed, as long as no tokenizer has looked


class Outcome(msgspec.Struct, frozen=True):
    """The route a request takes and the targets it may reach."""

    route: Route | None
    targets: tuple[Model, ...]  # first is tried first; small, large where the score decides
    reason: str
    decided: bool = True  # False: the difficulty decides between the first two


class Scores(msgspec.Struct, frozen=True):
    """Probabilities of a good answer, taken as certain."""

    p_small: float
    p_large: float


class Examined(msgspec.Struct, frozen=True):
    """Whether an exam sends a request to the small model, and why or why not, for admins."""

    small: bool
    reason: str


NOT_EXAMINED = Examined(False, "no exam proves this")
NOT_KNOWN = Examined(
    False, "which file answers for the small model only its process knows, so no exam counts here"
)


def evaluate(
    policy: Policy,
    facts: RequestFacts,
    scores: Scores | None = None,
    *,
    has_json: bool = False,
    by_exam: Callable[[Route], Examined] = lambda route: NOT_EXAMINED,
) -> Outcome:
    """Which route and targets a request gets; ``has_json``: it asks for structured output.

    by_exam: whether an exam sends the request to the small model of a route that may ask it.
    """
    if not policy.knows(facts.model):
        hint = suggest(facts.model, policy.known_models)
        return Outcome(None, (), f"the model '{facts.model}' is not known{hint}")
    route = policy.resolve(facts)
    if route is None:
        return Outcome(None, (), "no route matches")
    fixed = fixed_target(policy, route, facts.model)
    if fixed is not None:
        reason = (
            "the route has one target"
            if fixed is route.to
            else "a model that is named is not routed"
        )
        return Outcome(route, _distinct(fixed, *route.fallback), reason)
    assert route.small is not None, "compile.py checks routes"
    assert route.large is not None, "compile.py checks routes"
    needs = Needs(facts.has_tools, facts.has_images, has_json, facts.input_tokens)
    forced = not_for_small(route.always_large, route.small, needs)
    if forced is not None:
        return Outcome(route, _distinct(route.large, *route.fallback), forced)
    examined = by_exam(route) if route.target.until_then == "exam" else None
    if examined is not None and examined.small:
        return Outcome(route, _distinct(route.small, route.large, *route.fallback), examined.reason)
    if route.target.unmeasured:
        reason = "no quality is measured yet: large until then (until_then)"
        if examined is not None:
            reason = f"no quality is measured yet, and {examined.reason}: large (until_then)"
        return Outcome(route, _distinct(route.large, *route.fallback), reason)
    both = _distinct(route.small, route.large, *route.fallback)
    if scores is None:
        return Outcome(route, both, "the difficulty decides", decided=False)
    quality = route.target.quality
    if quality is None:
        return Outcome(route, both, "a share of the traffic is no one request's", decided=False)
    ratio = f"{scores.p_small:.2f} of {scores.p_large:.2f} against a target of {quality:.0%}"
    if scores.p_small >= quality * scores.p_large:
        return Outcome(route, both, f"small is good enough: {ratio}")
    return Outcome(route, both[1:], f"small is not good enough: {ratio}")


def fixed_target(policy: Policy, route: Route, model: str) -> Model | None:
    """The one target of a request for ``model``; None: small or large, by difficulty.

    A model of the catalogue answers itself, except where the route names it, not by a wildcard, and
    says ``to``.
    """
    if model == AUTO:
        return route.to
    if model in route.models and route.to is not None:
        return route.to
    return policy.models.get(model) or route.to


def _distinct(*models: Model) -> tuple[Model, ...]:
    return tuple({model.name: model for model in models}.values())


def run_tests(policy: Policy, document: Document, routing: schema.RoutingDocument) -> list[str]:
    """Run every test of a routing document; what failed, each at its place."""
    return [
        problem
        for index, test in enumerate(routing.tests)
        for problem in _run_test(policy, document, ("tests", index), test)
    ]


def _run_test(
    policy: Policy, document: Document, where: Where, test: schema.TestSection
) -> list[str]:
    given, expect = test.given, test.expect
    routes = {route.name for route in policy.routes}
    problems: list[str] = []
    for place, kind, name, known in (
        (("given", "tenant"), "tenant", given.tenant, set(policy.tenants)),
        (("expect", "route"), "route", expect.route, routes),
        (("expect", "target"), "model", expect.target, set(policy.models)),
    ):
        if name is not None and name not in known:
            message = f"there is no {kind} '{name}'{suggest(name, known)}"
            problems.append(document.problem((*where, *place), message))
    if problems:
        return problems
    scores = None
    if given.scores is not None:
        scores = Scores(given.scores.p_small, given.scores.p_large)
    tags = {**policy.tenants[given.tenant].tags, **given.tags}
    outcome = evaluate(policy, _facts(given, tags), scores, has_json=given.json_schema)
    route = outcome.route.name if outcome.route is not None else "none"
    target = outcome.targets[0].name if outcome.targets and outcome.decided else "none for certain"
    for what, expected, got in (("route", expect.route, route), ("target", expect.target, target)):
        if expected is not None and expected != got:
            message = f"the test '{test.name}' expects {expected} and gets {got}: {outcome.reason}"
            problems.append(document.problem((*where, "expect", what), message))
    return problems


def _facts(given: schema.GivenSection, tags: Mapping[str, str]) -> RequestFacts:
    size = sum(len(message.content.encode()) for message in given.messages)
    return RequestFacts(
        tenant=given.tenant,
        key="test",
        model=given.model,
        endpoint="chat",
        tags=tags,
        input_tokens=size // BYTES_PER_TOKEN + 1,
        has_tools=given.tools > 0,
        has_images=given.images > 0,
        stream=given.stream,
        temperature=given.temperature,
    )
