"""Which models a request may reach, in which order, and why: one judgement for all who ask.

The stages ask with the state of the gateway, ``policy explain`` and a policy's tests with a policy
alone. What a router or an exam says of a request comes as a ``Decision``. Pure functions.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.errors import InvalidRequest
from gateway.policy.capability import not_for_small
from gateway.policy.lane import Lane, Way
from gateway.policy.snapshot import AUTO, Model, Provider, QualityTarget, RequestFacts
from gateway.wire.dialects import DIALECTS

LARGE_AWAY = "large-away"  # in x-tollhouse-degraded


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Small or large, and the sentence that explains it to an admin."""

    small: bool
    difficulty: float  # the gap p_large - p_small
    threshold: float  # the largest gap that may go small; -2 means none, 2 means all
    reason: str
    easy: bool = False  # large only because nothing is measured: small may stand in for it
    exam: str = ""  # the kind of request that an exam proves the small model to answer rightly


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """Models in the order in which they are tried. Empty where one would have to know more."""

    candidates: tuple[Model, ...]
    meant: Model  # the one that would be tried first if all could be asked
    kind: str  # easy | hard | pinned | fallback
    reason: str  # shown to admins verbatim
    instead: str = ""  # why not the policy's first or large one is tried first, for a header
    stand_in: Model | None = None  # the last candidate, asked only where the large one is away
    degraded: str = ""


class Standing(Protocol):
    """How a provider is at the moment."""

    @property
    def healthy(self) -> bool:
        """Whether it may be asked."""


class _Well:
    healthy = True


_WELL = _Well()
ShowStanding = Callable[[Provider], Standing]
IsThrown = Callable[[str, int], bool]  # switch, UTC microseconds


def all_well(provider: Provider) -> Standing:
    """Take every provider as healthy: nothing runs that could say otherwise."""
    return _WELL


def nothing_thrown(switch: str, now_us: int) -> bool:
    """Take every switch as the policy has it."""
    return False


def nothing_refused() -> str | None:
    """Take the local model as able to serve the body: there is none to look at."""
    return None


def must_be_large(
    way: Way,
    facts: RequestFacts,
    *,
    thrown: IsThrown = nothing_thrown,
    now_us: int = 0,
    standing: ShowStanding = all_well,
    local_refusal: Callable[[], str | None] = nothing_refused,
) -> str | None:
    """Why the small model of a route is not even considered; None if it is.

    local_refusal: why the local model cannot serve the body, asked last.
    """
    small = way.route.small
    assert small is not None, "a route without a fixed target names small and large"
    local = small.provider.api == "local"
    if thrown("all-large", now_us):
        return "the switch all-large is on"
    if local and thrown("local", now_us):
        return "the local model is switched off"
    if local and not standing(small.provider).healthy:
        return "the local model is not ready"
    if facts.endpoint not in small.paths:
        return f"the small model's provider does not speak {facts.endpoint}"
    if not facts.ends_with_user_text:
        return "the request does not end with a user's text"
    reason = not_for_small(way.route.always_large, small, facts)
    if reason is None and local:
        return local_refusal()
    return reason


def targets(
    lane: Lane,
    way: Way,
    *,
    decision: Decision | None = None,
    forced: str | None = None,
    standing: ShowStanding = all_well,
) -> Targets:
    """Who is asked. ``decision`` and ``forced`` are None where the target is pinned.

    Unhealthy targets are left out; if none is healthy, all are asked: the last is never ejected.
    Raises InvalidRequest where no provider speaks the endpoint's dialect.
    """
    stand_in: Model | None = None
    candidates, kind, reason = way.usual, "pinned", way.pinned_reason
    if way.pinned is None:
        kind, reason = "hard", forced or (decision.reason if decision is not None else "")
        if decision is not None and decision.small:
            candidates, kind = way.small_first, "easy"
        elif decision is not None and decision.easy and lane.endpoint in way.meant[0].paths:
            candidates, stand_in = way.with_stand_in, way.route.small
    meant = way.small_first[0] if kind == "easy" else way.meant[0]
    if not candidates:
        raise _unspoken(lane, way.meant)
    if kind == "hard" and lane.endpoint not in meant.paths:
        reason = f"{meant.name} does not speak {lane.endpoint}: {candidates[0].name} instead"
    instead, degraded, remaining = "", "", candidates
    if decision is not None and decision.exam:
        instead = f"exam; kind={decision.exam}"
    for model in candidates:
        if not standing(model.provider).healthy:
            remaining = _healthy(candidates, standing)
            break
    first = candidates[0]
    if remaining[0] is not first:
        instead = f"fallback; from={first.name}; because=ejected"
        if remaining[0] is stand_in:
            degraded, kind = LARGE_AWAY, "fallback"
            reason = f"{first.name} is away, and the prior calls the request easy"
        else:
            reason = f"{reason}; {first.name} is ejected: {remaining[0].name} instead"
    return Targets(
        candidates=remaining,
        meant=meant,
        kind=kind,
        reason=reason,
        instead=instead,
        stand_in=stand_in if remaining[-1] is stand_in else None,
        degraded=degraded,
    )


def _healthy(candidates: tuple[Model, ...], standing: ShowStanding) -> tuple[Model, ...]:
    """The healthy ones in their order; if none is, all."""
    healthy = tuple(model for model in candidates if standing(model.provider).healthy)
    return healthy or candidates


def unmeasured_reason(target: QualityTarget, exam: str = "no exam proves this") -> str:
    """Why the large model answers where no quality is measured; ``exam``: nor by an exam."""
    if target.until_then == "exam":
        return f"no quality is measured yet, and {exam}: large until then"
    return "no quality is measured yet: large until then"


def _unspoken(lane: Lane, meant: tuple[Model, ...]) -> InvalidRequest:
    lacking, dialect = meant[0], DIALECTS[lane.endpoint]
    if lane.model == AUTO:
        return InvalidRequest(
            f"None of the models that '{AUTO}' may choose from can be asked at /v1{dialect.path}:"
            f" no provider of {', '.join(model.name for model in meant)} speaks {dialect.name},"
            " and this gateway does not translate. Ask at /v1/chat/completions, or name a model"
            f" of a provider that speaks {dialect.name}.",
            param="model",
        )
    return InvalidRequest(
        f"The model '{lacking.name}' cannot be asked at /v1{dialect.path}: its provider"
        f" '{lacking.provider.name}' speaks {', '.join(lacking.provider.dialects)} and not"
        f" {dialect.name}, and this gateway does not translate.",
        param="model",
    )
