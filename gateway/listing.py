"""``GET /v1/models``: what a key may ask for, what it holds, and what it costs this tenant.

In OpenAI's shape or in Anthropic's, with fields of ours beside theirs. Rates are the tenant's own
tariff, mark-up included: what we pay is not told here. Knows no socket.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from gateway.errors import ModelNotFound
from gateway.money import divide_half_even, format_usd
from gateway.policy.lane import make_lane
from gateway.policy.snapshot import Model, Policy, RequestFacts, Tenant
from gateway.prices import BUCKETS, Price, Rates

_PPM = 1_000_000


def model_list(
    policy: Policy, tenant: Tenant, *, created: int, now_us: int, anthropic: bool
) -> dict[str, Any]:
    """Every model that this tenant may ask for. created: Unix time of what has none of its own."""
    listed = [
        _document(policy, tenant, name, created, now_us, anthropic)
        for name in _permitted(policy, tenant)
    ]
    if not anthropic:
        return {"object": "list", "data": listed}
    names = [model["id"] for model in listed] or [None]
    return {"data": listed, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def one_model(
    policy: Policy, tenant: Tenant, name: str, *, created: int, now_us: int, anthropic: bool
) -> dict[str, Any]:
    """One of them. Raises ModelNotFound."""
    if not (policy.knows(name) and tenant.may_use(name)):
        raise ModelNotFound(f"The model '{name[:200]}' does not exist.", param="model")
    return _document(policy, tenant, name, created, now_us, anthropic)


def _permitted(policy: Policy, tenant: Tenant) -> list[str]:
    return sorted(name for name in policy.known_models if tenant.may_use(name))


def _document(
    policy: Policy, tenant: Tenant, name: str, created: int, now_us: int, anthropic: bool
) -> dict[str, Any]:
    document: dict[str, Any]
    if anthropic:
        moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        document = {"type": "model", "id": name, "display_name": name, "created_at": moment}
    else:
        document = {"id": name, "object": "model", "created": created, "owned_by": "tollhouse"}
    answering = _answering(policy, tenant, name)
    if answering is None:
        return document
    document |= {
        "context_length": answering.context_tokens,
        "max_output_tokens": answering.output_tokens_max,
    }
    if anthropic:
        document["max_input_tokens"] = answering.context_tokens
        document["max_tokens"] = answering.output_tokens_max
    else:
        document["capabilities"] = sorted(answering.capabilities)
    if answering.prices is not None:
        active = [price for price in answering.prices.prices if price.active(now_us)]
        document["tariff"] = tariff(active, tenant.charging.markup_ppm)
        for name, schedule in answering.prices.service_tiers:
            active = [price for price in schedule.prices if price.active(now_us)]
            document["tariff"].setdefault("service_tiers", {})[name] = tariff(
                active, tenant.charging.markup_ppm
            )
    return document


def _answering(policy: Policy, tenant: Tenant, name: str) -> Model | None:
    """Who answers a plain request for this name; None where its difficulty decides, or nobody."""
    facts = RequestFacts(tenant=tenant.id, key="", model=name, endpoint="chat", tags=tenant.tags)
    lane = make_lane(policy, tenant, key_id="", endpoint="chat", model=name, tags=tenant.tags)
    try:
        return lane.find(facts).pinned
    except ModelNotFound:
        return None


def tariff(prices: Iterable[Price], markup_ppm: int) -> dict[str, Any]:
    """What a tenant with this mark-up is charged: dollars, as exact decimal text.

    prices: those in force, as ``PriceSchedule`` orders them. Prompts from ``min_input_tokens`` on
    are charged by their tier alone.
    """
    tiers: dict[int, dict[str, Any]] = {}
    for price in prices:
        tiers.setdefault(price.min_input_tokens, _charged(price.rates, markup_ppm))
    first, *others = sorted(tiers.items()) or [(0, {})]
    found = {"currency": "USD", **first[1]}
    if others:
        found["tiers"] = [{"min_input_tokens": tokens, **rates} for tokens, rates in others]
    return found


def _charged(rates: Rates, markup_ppm: int) -> dict[str, Any]:
    factor = _PPM + markup_ppm
    # A pico-dollar per token is a millionth of a dollar per million tokens: exact, whatever comes.
    # A rate that is unset is not known: such tokens are unpriced.
    per_mtok = {
        name: format_usd(getattr(rates, name) * factor)
        for name in BUCKETS
        if isinstance(getattr(rates, name), int)
    }
    found: dict[str, Any] = {"per_mtok": per_mtok}
    if rates.compute_pico_per_second:
        found["per_second"] = _marked_up(rates.compute_pico_per_second, factor)
    if rates.request_pico:
        found["per_request"] = _marked_up(rates.request_pico, factor)
    if isinstance(rates.web_search_pico, int):
        found["per_web_search"] = _marked_up(rates.web_search_pico, factor)
    return found


def _marked_up(pico: int, factor: int) -> str:
    return format_usd(divide_half_even(pico * factor, _PPM))
