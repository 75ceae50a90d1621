"""What a policy would do with a request, without sending one: its tests, and ``policy explain``.

Asks the same functions as the stages. What a router and an exam would say comes from the caller.
"""

from collections.abc import Callable, Mapping

import msgspec

from gateway.errors import GatewayError
from gateway.policy import schema
from gateway.policy.capability import unfit
from gateway.policy.lane import make_lane, permit
from gateway.policy.snapshot import Model, Policy, RequestFacts, Route
from gateway.policy.targets import (
    Decision,
    IsThrown,
    ShowStanding,
    Targets,
    all_well,
    must_be_large,
    nothing_refused,
    nothing_thrown,
    targets,
    unmeasured_reason,
)
from gateway.wire.tokens import BYTES_PER_TOKEN
from gateway.yaml_documents import Document, Where, suggest

Judge = Callable[[Route], Decision | None]


class Outcome(msgspec.Struct, frozen=True):
    """The route a request takes and the targets it may reach."""

    route: Route | None
    targets: tuple[Model, ...]  # first is tried first; small, large where the difficulty decides
    reason: str
    decided: bool = True  # False: the difficulty decides between the first two


class Scores(msgspec.Struct, frozen=True):
    """Probabilities of a good answer, taken as certain."""

    p_small: float
    p_large: float


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """How a gateway stands; without one, nothing is switched and every provider is well."""

    thrown: IsThrown = nothing_thrown
    now_us: int = 0
    standing: ShowStanding = all_well


_AS_WRITTEN = Situation()


def unjudged(route: Route, exam: str = "no exam proves this") -> Decision | None:
    """Decide what a policy alone decides: large while a quality is promised and none measured.

    exam: why no exam lets the small model answer.
    """
    if not route.target.unmeasured:
        return None
    reason = unmeasured_reason(route.target, exam)
    return Decision(small=False, difficulty=0.0, threshold=0.0, reason=reason)


def by_scores(scores: Scores) -> Judge:
    """Decide by scores that are taken as certain."""

    def judge(route: Route) -> Decision | None:
        quality = route.target.quality
        if route.target.unmeasured or quality is None:
            return unjudged(route)
        small = scores.p_small >= quality * scores.p_large
        return Decision(
            small=small,
            difficulty=scores.p_large - scores.p_small,
            threshold=scores.p_large * (1.0 - quality),
            reason=f"small is {'' if small else 'not '}good enough: {scores.p_small:.2f} of"
            f" {scores.p_large:.2f} against a target of {quality:.0%}",
        )

    return judge


def evaluate(
    policy: Policy,
    facts: RequestFacts,
    judge: Judge = unjudged,
    *,
    local_refusal: Callable[[], str | None] = nothing_refused,
    situation: Situation = _AS_WRITTEN,
) -> Outcome:
    """Which route and targets a request gets. Raises KeyError for a tenant that is not there.

    judge: what a router or an exam says of the request in a route; None: it is left open.
    local_refusal: why the local model cannot serve its body.
    """
    tenant = policy.tenants[facts.tenant]
    if not policy.knows(facts.model):
        hint = suggest(facts.model, policy.known_models)
        return Outcome(None, (), f"the model '{facts.model}' is not known{hint}")
    if not tenant.may_use(facts.model):
        reason = f"the tenant '{tenant.id}' may not use the model '{facts.model}'"
        return Outcome(None, (), reason)
    route: Route | None = None
    try:
        permit(policy, tenant, facts.model, facts.tags)
        lane = make_lane(
            policy,
            tenant,
            key_id=facts.key,
            endpoint=facts.endpoint,
            model=facts.model,
            tags=facts.tags,
        )
        way = lane.find(facts)
        route = way.route
        decision, forced = None, None
        if way.pinned is None:
            forced = must_be_large(
                way,
                facts,
                thrown=situation.thrown,
                now_us=situation.now_us,
                standing=situation.standing,
                local_refusal=local_refusal,
            )
            decision = judge(route) if forced is None else None
            if forced is None and decision is None:
                return Outcome(route, way.small_first, _open_reason(route), decided=False)
        found: Targets = targets(
            lane, way, decision=decision, forced=forced, standing=situation.standing
        )
        refusal = unfit(found.candidates[0], facts)
        if refusal is not None:
            raise refusal
    except GatewayError as error:
        return Outcome(route, (), error.message)
    return Outcome(route, found.candidates, found.reason)


def _open_reason(route: Route) -> str:
    if route.target.quality is None:
        return "a share of the traffic is no one request's"
    return "the difficulty decides"


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
    judge: Judge = unjudged
    if given.scores is not None:
        judge = by_scores(Scores(given.scores.p_small, given.scores.p_large))
    tags = {**policy.tenants[given.tenant].tags, **given.tags}
    outcome = evaluate(policy, _facts(given, tags), judge)
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
        prompt_bytes=size,
        has_tools=given.tools > 0,
        has_images=given.images > 0,
        has_json=given.json_schema,
        stream=given.stream,
        temperature=given.temperature,
        ends_with_user_text=not given.messages or given.messages[-1].role == "user",
    )
