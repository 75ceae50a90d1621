"""assess: how hard is it? Text features first; one embedding only where something needs it.

The same vector serves the difficulty and the semantic lookup.
"""

from collections.abc import Awaitable

from gateway.caches.semantic import eligible, partition_key
from gateway.errors import UpstreamError
from gateway.exchange import Exchange
from gateway.policy.targets import Decision, must_be_large
from gateway.routing import Score
from gateway.services import Services
from gateway.upstreams.local_evidence import decide_by_exam
from gateway.upstreams.local_openai import refusal


def assess(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Set ``decision`` (or ``forced``), and ``partition`` and ``vector`` for the semantic tier."""
    exchange.semantic_reason = _semantic_refusal(exchange, services)
    if exchange.semantic_reason is None:
        rule = exchange.route.exact
        exchange.partition = partition_key(
            tenant_secret=services.keys.tenant_secret(exchange.tenant.id),
            scope=exchange.tenant.id
            if rule is None or rule.scope == "tenant"
            else f"{exchange.tenant.id}\0{exchange.key.id}\0{exchange.request.user}",
            route_identity=exchange.route.identity,
            parsed=exchange.request,
        )
    score: Score | None = None
    if exchange.way.pinned is None:
        request = exchange.request
        exchange.forced = must_be_large(
            exchange.way,
            exchange.facts,
            thrown=services.switches.thrown,
            now_us=exchange.started_us,
            standing=services.upstream,
            local_refusal=lambda: refusal(request.body, chat=exchange.endpoint == "chat"),
        )
        if exchange.forced is None:
            exchange.decision = _by_exam(exchange, services)
        if exchange.forced is None and exchange.decision is None:
            score = services.router.score(
                exchange.request.last_user_text or "", uncertain_around=exchange.route.target
            )
    needed = exchange.partition is not None or (score is not None and score.uncertain)
    if needed and services.embed is not None and services.embedding_ready():
        return _assess_with_vector(exchange, services, score)
    if exchange.partition is not None:
        exchange.partition, exchange.semantic_reason = None, "no embedding model is ready"
    if score is not None:
        _decide(exchange, services, score, 0)
    return None


async def _assess_with_vector(exchange: Exchange, services: Services, score: Score | None) -> None:
    text = exchange.request.last_user_text
    assert services.embed is not None, "asked only where there is an embedder"
    assert text is not None, "an eligible request ends with a text"
    began, compute_us = services.monotonic(), 0
    try:
        vectors, _, compute_us = await services.embed([text])
    except UpstreamError:
        # The embedding is a help, not a condition: without it features decide.
        exchange.partition, exchange.semantic_reason = None, "the embedding failed"
    else:
        exchange.vector = vectors[0]
    # The time in which the other process worked, or others were served, is not ours.
    not_ours_us = round((services.monotonic() - began) * 1e6) - compute_us
    if exchange.vector is not None and score is not None and score.uncertain:
        score = services.router.refine(score, text, exchange.vector)
    if score is not None:
        _decide(exchange, services, score, not_ours_us)
    else:
        exchange.deciding_us = compute_us


def _decide(exchange: Exchange, services: Services, score: Score, not_ours_us: int) -> None:
    """Set ``decision``. not_ours_us: spent in this stage without computing."""
    exchange.decision = services.router.decide(score, exchange.route.target)
    began = exchange.marks[-1][1] if exchange.marks else exchange.started
    took = services.monotonic() - began
    exchange.deciding_us = max(0, round(took * 1e6) - not_ours_us)
    services.metrics.classifier_duration_seconds.observe(took)
    services.metrics.difficulty.observe(exchange.decision.difficulty, (exchange.route.name,))


def _by_exam(exchange: Exchange, services: Services) -> Decision | None:
    small = exchange.route.small
    assert small is not None, "a route without a fixed target names small and large"
    if small.provider.api != "local":
        return None
    sha256 = services.local_sha256(small.provider)
    return decide_by_exam(sha256, exchange.route, exchange.request)


def _semantic_refusal(exchange: Exchange, services: Services) -> str | None:
    """Why the semantic tier is not asked; None if it may be."""
    rule = exchange.route.semantic
    if rule is None:
        return "off in this route"
    if exchange.bypass is not None:
        return exchange.bypass
    if services.switches.thrown("semantic", exchange.started_us):
        return "switched off"
    if rule.skip_when is not None and rule.skip_when(exchange.facts):
        return "the route's skip_when holds"
    return eligible(exchange.request)
