"""What the policy decides about a request before anybody is asked, on a real worker's parts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.app import Gateway
from gateway.config import load_settings
from gateway.errors import InvalidRequest
from gateway.exchange import Exchange
from gateway.stages.assess import assess
from gateway.stages.exact import exact
from gateway.stages.plan import plan
from gateway.stages.reserve import reserve
from gateway.stages.resolve import resolve
from gateway.stores.keys import KeyRecord
from gateway.wire.openai import Endpoint

POLICY = """
apiVersion: tollhouse/v1
kind: Models
metadata: {name: test}
providers:
  - {name: provider, api: openai, base_url: "http://127.0.0.1:9/v1"}
models:
  - name: large
    provider: provider
    upstream_model: a
    price: {source: contract, contract_id: C, per_mtok: {input: "0", output: "1"}}
  - name: small
    provider: provider
    upstream_model: b
    price: {source: contract, contract_id: C, per_mtok: {input: "0", output: "0"}}
  - {name: preview, provider: provider, upstream_model: c, price: {source: unpriced}}
  - name: searching
    provider: provider
    upstream_model: gpt-4o-search-preview
    price: {source: contract, contract_id: C, per_mtok: {input: "0", output: "0"}}
  - name: searching-at-a-fee
    provider: provider
    upstream_model: sonar
    price:
      source: contract
      contract_id: C
      per_mtok: {input: "0", output: "0"}
      per_thousand: {request: "0.00001"}
  - name: drawing
    provider: provider
    upstream_model: gemini-2.5-flash-image
    price: {source: contract, contract_id: C, per_mtok: {input: "0", output: "0"}}
  - name: drawing-at-a-price
    provider: provider
    upstream_model: gemini-2.5-flash-image
    price:
      source: contract
      contract_id: C
      per_mtok: {input: "0", output: "0", output_image: "0.000001"}
      service_tiers: [{name: priority, multiply: {output: "2"}}]
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: test}
routes:
  - name: private-alias
    match: {model: fast, tenant: acme}
    to: small
  - name: routed
    match: {model: auto}
    small: small
    large: large
    cache: {semantic: {skip_when: 'request.tags.kind == "legal" || request.input_tokens > 50'}}
  - name: fresh
    match: {model: fresh}
    to: large
    cache: {exact: {sampled: deny}}
  - name: unpriced-fallback
    match: {model: unpriced-fallback}
    to: small
    fallback: [{to: preview}]
  - name: rest
    match: {}
    to: large
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: test}
tenants:
  - {id: acme}
  - {id: globex}
  - id: thrifty
    charging: {markup: 50%}
    budgets:
      - {name: daily, amount: "0.00013", period: day, on_exceeded: downgrade, downgrade_to: small}
"""


class NoClient:
    """Nobody listens: these stages send nothing."""

    gone = False

    def start(self, exchange: Exchange, status: int, content_type: bytes) -> None: ...

    def write(self, data: bytes) -> None: ...

    def watch(self, task: object) -> None: ...


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "policy.yaml").write_text(POLICY)
    config = tmp_path / "tollhouse.yaml"
    config.write_text('policies: [policy.yaml]\nstate_dir: state\nlocal: {enabled: "off"}\n')
    made = Gateway(load_settings(config, environ={}), None)
    yield made
    made.services.ledger.close()
    made.keys.close()


def resolved(
    gateway: Gateway,
    model: str,
    *,
    tenant: str = "acme",
    text: str = "Hello",
    tags: bytes = b"",
    max_tokens: int = 16,
    endpoint: Endpoint = "chat",
    fields: Mapping[str, object] = {},
) -> Exchange:
    message = {"role": "user", "content": text}
    body = {"model": model, "messages": [message], "max_tokens": max_tokens, **fields}
    exchange = Exchange(
        request_id="01J",
        endpoint=endpoint,
        headers={b"x-tollhouse-tags": tags} if tags else {},
        raw=orjson.dumps(body),
        client=NoClient(),
        policy=gateway.policies.current,
        started=0.0,
        started_us=1,
    )
    exchange.key = KeyRecord(id="key_1", kind="api", tenant_id=tenant, created_us=0)
    exchange.tenant = gateway.policies.current.tenants[tenant]
    resolve(exchange, gateway.services)
    return exchange


def test_an_alias_answers_as_its_own_route_says(gateway: Gateway) -> None:
    """The name fast takes a tenant's private route and is pinned to that route's small model."""
    exchange = resolved(gateway, "fast")
    assert exchange.route.name == "private-alias"
    assert exchange.way.pinned is gateway.policies.current.models["small"]


def test_an_alias_of_others_goes_where_the_rest_goes(gateway: Gateway) -> None:
    """A name that only another tenant's route lists still has a target: that of the open route."""
    exchange = resolved(gateway, "fast", tenant="globex")
    assert exchange.route.name == "rest"
    assert exchange.way.pinned is gateway.policies.current.models["large"]


def test_a_model_named_explicitly_is_the_one_that_is_asked(gateway: Gateway) -> None:
    """The router must not replace it: the request is pinned and takes the general route."""
    exchange = resolved(gateway, "small")
    assert exchange.route.name == "rest"
    assert exchange.way.pinned is gateway.policies.current.models["small"]


async def test_who_asks_for_another_sample_gets_one_where_sampled_answers_are_denied(
    gateway: Gateway,
) -> None:
    """Only temperature 0 asks for the same again; of vectors there is nothing to sample."""
    asked: tuple[tuple[dict[str, object], bool], ...] = (
        ({}, False),
        ({"temperature": 1}, False),
        ({"temperature": 0}, True),
    )
    for fields, cached in asked:
        exchange = resolved(gateway, "fresh", fields=fields)
        exact(exchange, gateway.services)
        assert (exchange.bypass is None) is cached, fields
    exchange = resolved(gateway, "fresh", endpoint="embeddings", fields={"input": "x"})
    exact(exchange, gateway.services)
    assert exchange.bypass is None


@pytest.mark.parametrize(
    ("text", "tags"), [("Hello", b"kind=legal"), ("What is the law? " * 20, b"kind=other")]
)
def test_the_semantic_cache_is_skipped_where_skip_when_holds(
    gateway: Gateway, text: str, tags: bytes
) -> None:
    """A tag or a long prompt keeps a request out, and its trace says that the route did so."""
    exchange = resolved(gateway, "auto", text=text, tags=tags)
    assess(exchange, gateway.services)
    assert exchange.semantic_reason == "the route's skip_when holds"
    assert exchange.partition is None


def test_the_semantic_cache_is_asked_where_skip_when_does_not_hold(gateway: Gateway) -> None:
    """Only the embedding is missing here."""
    exchange = resolved(gateway, "auto", text="What is a prime number?", tags=b"kind=faq")
    assess(exchange, gateway.services)
    assert exchange.semantic_reason == "no embedding model is ready"


def test_deciding_is_timed_where_there_was_something_to_decide(gateway: Gateway) -> None:
    """A pinned model shows zero microseconds, so routing overhead is honestly measured."""
    exchange = resolved(gateway, "auto", text="What is a prime number?")
    assess(exchange, gateway.services)
    assert exchange.deciding_us > 0
    pinned = resolved(gateway, "large")
    assess(pinned, gateway.services)
    assert pinned.deciding_us == 0


@pytest.mark.parametrize(
    ("output_tokens", "target"), [(86, "large"), (87, "small"), (110, "small")]
)
def test_a_budget_downgrades_exactly_what_it_would_refuse(
    gateway: Gateway, output_tokens: int, target: str
) -> None:
    """With its markup, and with every target that may be tried: 87 tokens cost 0.0001305."""
    exchange = resolved(gateway, "large", tenant="thrifty", max_tokens=output_tokens)
    plan(exchange, gateway.services)
    assert exchange.plan is not None
    assert [model.name for model in exchange.plan.candidates] == [target]
    reserve(exchange, gateway.services)
    assert exchange.hold is not None


def test_a_fallback_without_a_price_is_left_out_where_a_hard_budget_covers(
    gateway: Gateway,
) -> None:
    """The request is answered by what has one; without such a budget nothing is left out."""
    for tenant, names in (("thrifty", ["small"]), ("globex", ["small", "preview"])):
        exchange = resolved(gateway, "unpriced-fallback", tenant=tenant)
        plan(exchange, gateway.services)
        reserve(exchange, gateway.services)
        assert exchange.plan is not None
        assert [target.name for target in exchange.plan.candidates] == names
        assert len(exchange.plan.worst_pico) == len(names)


@pytest.mark.parametrize(
    ("model", "fields", "unbounded"),
    [
        ("searching", {}, "what the model 'searching' does of its own accord"),
        ("searching-at-a-fee", {}, None),
        ("small", {"web_search_options": {}}, "'web_search_options'"),
        ("small", {"tools": [{"type": "web_search"}]}, "'web_search'"),
        ("small", {"tools": [{"type": "function", "function": {"name": "f"}}]}, None),
        ("drawing", {}, "'output_image', for which the model 'drawing' has no price,"),
        ("drawing-at-a-price", {}, None),
        ("small", {"modalities": ["text", "audio"]}, "'output_audio', for which the model 'small'"),
        ("small", {"service_tier": "priority"}, "'service_tier'"),
        ("small", {"models": ["large"]}, "'models'"),
        ("small", {"provider": {"order": ["dear"]}}, "'provider'"),
        ("drawing-at-a-price", {"service_tier": "priority"}, None),
    ],
)
def test_a_hard_budget_refuses_what_nothing_bounds(
    gateway: Gateway, model: str, fields: dict[str, Any], unbounded: str | None
) -> None:
    """What has no rate, by the request's fields or by the model's name; without a budget it may."""
    for tenant in ("thrifty", "acme"):
        exchange = resolved(gateway, model, tenant=tenant, fields=fields)
        plan(exchange, gateway.services)
        if unbounded is None or tenant == "acme":
            reserve(exchange, gateway.services)
            assert exchange.hold is not None
            continue
        with pytest.raises(InvalidRequest) as refused:
            reserve(exchange, gateway.services)
        assert unbounded in refused.value.message
        assert not exchange.attempts
