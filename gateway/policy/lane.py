"""``Lane``: all that tenant, key, tags, endpoint and model name decide under one policy.

A request looks its lane up and asks the policy only what is left open. The stages, ``policy
explain`` and a policy's own tests find a request's route here. Knows no traffic and no body.
"""

from collections.abc import Mapping

import msgspec

from gateway.errors import MissingTags, ModelNotFound
from gateway.policy.snapshot import AUTO, Condition, Model, Policy, RequestFacts, Route, Tenant
from gateway.wire.openai import Endpoint, shown

LANES_MAX = 10_000


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One route, as one endpoint and one model name meet it."""

    route: Route
    when: Condition | None = None  # what must hold of the request; None: nothing more
    pinned: Model | None = None  # the one target; None: small or large
    pinned_reason: str = ""
    # Which models are asked, in this order; all speak the endpoint's dialect. Empty: none may be.
    usual: tuple[Model, ...] = ()  # the pinned target or the large one, then the fallbacks
    small_first: tuple[Model, ...] = ()  # small, large, then the fallbacks
    with_stand_in: tuple[Model, ...] = ()  # as usual, and small where large is away
    meant: tuple[Model, ...] = ()  # as usual, whatever the providers speak


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """What is settled before a request of this key, endpoint and model says a word."""

    policy: Policy
    tenant: Tenant
    key_id: str
    endpoint: Endpoint
    model: str
    tags: Mapping[str, str]
    ways: tuple[Way, ...]  # that may take the request, in the policy's order
    way: Way | None  # the one that takes it, whatever the request says; None: it decides

    def find(self, facts: RequestFacts) -> Way:
        """The first way whose condition holds. Raises ModelNotFound."""
        for way in self.ways:
            if way.when is None or way.when(facts):
                return way
        raise ModelNotFound(
            f"No route of the policy takes the model '{shown(self.model)}'.", param="model"
        )


def permit(policy: Policy, tenant: Tenant, model: str, tags: Mapping[str, str]) -> None:
    """Let a tenant ask for a model with these tags, or raise MissingTags or ModelNotFound.

    ModelNotFound does not tell a name that is unknown from one that is not for this tenant.
    """
    missing = [tag for tag in tenant.required_tags if tag not in tags]
    if missing:
        raise MissingTags(
            f"The tenant '{tenant.id}' requires the tags {', '.join(missing)}:"
            " send them as 'x-tollhouse-tags: name=value,...'."
        )
    if not policy.knows(model) or not tenant.may_use(model):
        raise ModelNotFound(
            f"The model '{shown(model)}' does not exist or you do not have access to it.",
            param="model",
        )


def make_lane(
    policy: Policy,
    tenant: Tenant,
    *,
    key_id: str,
    endpoint: Endpoint,
    model: str,
    tags: Mapping[str, str],
) -> Lane:
    """Settle what can be settled of permitted requests. tags: of tenant, key and request."""
    known = RequestFacts(tenant=tenant.id, key=key_id, model=model, endpoint=endpoint, tags=tags)
    ways: list[Way] = []
    for route in policy.routes:
        if route.names(model) and all(holds(known) for _, holds in route.matches.fixed):
            ways.append(make_way(policy, route, endpoint, model))
            if route.matches.when is None:
                break  # it takes all that come so far
    return Lane(
        policy=policy,
        tenant=tenant,
        key_id=key_id,
        endpoint=endpoint,
        model=model,
        tags=tags,
        ways=tuple(ways),
        way=ways[0] if ways and ways[0].when is None else None,
    )


def make_way(policy: Policy, route: Route, endpoint: Endpoint, model: str) -> Way:
    """Settle whom a route would ask for this endpoint and name."""
    when = route.matches.when[1] if route.matches.when is not None else None
    pinned = fixed_target(policy, route, model)
    if pinned is not None:
        means = "was asked for by name" if model == pinned.name else f"is {pinned.name}"
        meant = _distinct(pinned, *route.fallback)
        return Way(
            route=route,
            when=when,
            pinned=pinned,
            pinned_reason=f"route {route.name}: {model} {means}",
            usual=_speaking(endpoint, model, meant),
            meant=meant,
        )
    small, large = route.small, route.large
    assert small is not None, "compile.py checks routes"
    assert large is not None, "compile.py checks routes"
    meant = _distinct(large, *route.fallback)
    if endpoint not in large.paths:
        meant = _distinct(large, *route.fallback, small)  # rather than none
    usual = _speaking(endpoint, model, meant)
    return Way(
        route=route,
        when=when,
        usual=usual,
        small_first=_speaking(endpoint, model, _distinct(small, large, *route.fallback)),
        with_stand_in=_distinct(*usual, small) if endpoint in small.paths else usual,
        meant=meant,
    )


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


def _speaking(endpoint: Endpoint, model: str, meant: tuple[Model, ...]) -> tuple[Model, ...]:
    """Those whose provider speaks the endpoint's dialect. A model that was asked for by name is
    never replaced by another one that does.
    """
    spoken = tuple(target for target in meant if endpoint in target.paths)
    return spoken if spoken and (spoken[0] is meant[0] or model == AUTO) else ()


def _distinct(*models: Model) -> tuple[Model, ...]:
    return tuple({model.name: model for model in models}.values())


class Lanes:
    """The lanes of the policy in force, made when the first request of each comes.

    Bounded by ``LANES_MAX``: beyond it the oldest goes. A lane goes with its policy, and is made
    anew where its tenant or the tags of its key have changed.
    """

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._lanes: dict[tuple[str, Endpoint, str], Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def get(
        self,
        policy: Policy,
        tenant: Tenant,
        *,
        key_id: str,
        key_tags: Mapping[str, str],
        endpoint: Endpoint,
        model: str,
    ) -> Lane:
        """The lane of requests without tags of their own. Raises as ``permit`` does."""
        if policy is not self._policy:
            self._lanes.clear()
            self._policy = policy
        at = (key_id, endpoint, model)
        lane = self._lanes.get(at)
        tags = {**tenant.tags, **key_tags} if key_tags else tenant.tags
        if lane is not None and lane.tenant is tenant and lane.tags == tags:
            return lane
        permit(policy, tenant, model, tags)
        lane = make_lane(policy, tenant, key_id=key_id, endpoint=endpoint, model=model, tags=tags)
        if len(self._lanes) >= LANES_MAX:
            del self._lanes[next(iter(self._lanes))]
        self._lanes[at] = lane
        return lane
