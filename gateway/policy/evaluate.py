"""What a policy would do with a request, without sending one: its tests, and ``policy explain``."""

from typing import Any

import msgspec

from gateway.policy import schema
from gateway.policy.compile import AUTO
from gateway.policy.snapshot import Model, Policy, RequestFacts, Route
from gateway.yaml_documents import Document


class Outcome(msgspec.Struct, frozen=True):
    """The route a request takes and the targets it may reach."""

    route: Route | None
    targets: tuple[Model, ...]  # first is tried first; both models where the score decides
    reason: str


def evaluate(policy: Policy, facts: RequestFacts, p_small: float | None = None) -> Outcome:
    """Which route and target. p_small: what the router would say; None leaves both targets."""
    if facts.model not in policy.known_models:
        return Outcome(None, (), f"the model '{facts.model}' is not known")
    route = policy.resolve(facts)
    if route is None:
        return Outcome(None, (), "no route matches")
    if facts.model != AUTO and facts.model not in route.models:
        model = policy.models[facts.model]
        return Outcome(route, (model, *route.fallback), "an explicit model is never rerouted")
    if route.to is not None:
        return Outcome(route, (route.to, *route.fallback), "the route has one target")
    assert route.small is not None, "compile.py checks routes"
    assert route.large is not None, "compile.py checks routes"
    if facts.has_tools and route.always_large.tools:
        return Outcome(route, (route.large, *route.fallback), "tools go to the large model")
    if facts.has_images and route.always_large.images:
        return Outcome(route, (route.large, *route.fallback), "images go to the large model")
    limit = route.always_large.prompt_tokens_over
    if limit is not None and facts.input_tokens > limit:
        return Outcome(route, (route.large, *route.fallback), "the prompt is long")
    if p_small is None:
        return Outcome(route, (route.small, route.large), "the difficulty decides")
    wanted = route.target.quality if route.target.quality is not None else 0.5
    first = route.small if p_small >= wanted else route.large
    return Outcome(route, (first, *route.fallback), f"p(small is good) = {p_small:.2f}")


def run_tests(
    policy: Policy, documents: list[tuple[Document, schema.RoutingDocument]]
) -> list[str]:
    """Run every test of the policy; what failed, each at its place."""
    failed: list[str] = []
    for document, routing in documents:
        for index, test in enumerate(routing.tests):
            outcome = evaluate(
                policy,
                _facts(test.given),
                test.given.scores.p_small if test.given.scores is not None else None,
            )
            got: dict[str, Any] = {
                "route": outcome.route.name if outcome.route is not None else None,
                "target": outcome.targets[0].name if outcome.targets else None,
            }
            for what, expected in (("route", test.expect.route), ("target", test.expect.target)):
                if expected is not None and got[what] != expected:
                    failed.append(
                        document.problem(
                            ("tests", index),
                            f"test '{test.name}' expects {what} {expected} and gets {got[what]}"
                            f" ({outcome.reason})",
                        )
                    )
    return failed


def _facts(given: schema.GivenSection) -> RequestFacts:
    size = sum(len(message.content.encode()) for message in given.messages)
    return RequestFacts(
        tenant=given.tenant,
        key="test",
        model=given.model,
        endpoint="chat",
        tags=given.tags,
        input_tokens=size // 4 + 1,
        has_tools=given.tools > 0,
        has_images=given.images > 0,
        stream=given.stream,
        temperature=given.temperature,
    )
