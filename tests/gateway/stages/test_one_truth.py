"""``policy explain`` and a policy's tests say what the stages do: one judgement, asked twice.

Random policies, bodies, switches and states of providers go through the stages of a real worker
and through ``explain``'s functions.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.config import load_settings
from gateway.errors import GatewayError, PolicyError
from gateway.exchange import Exchange
from gateway.policy.evaluate import Outcome, Situation, evaluate
from gateway.policy.facts import facts_of
from gateway.policy.load import load_policy
from gateway.policy.snapshot import Policy, Provider, Route
from gateway.policy.targets import Decision
from gateway.stages.assess import assess
from gateway.stages.plan import plan
from gateway.stages.resolve import resolve
from gateway.stores.keys import KeyRecord
from gateway.upstreams.local_evidence import decide_by_exam
from gateway.upstreams.local_openai import refusal
from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import Endpoint
from local_models.catalogue import load_catalogue
from tests.gateway.stages.test_deciding_stages import POLICY, NoClient

SHA256 = load_catalogue()["smollm2-135m-instruct"].files["model.gguf"].sha256
NOW_US = 1_790_000_000_000_000
MODELS = ("local-one", "hosted", "claude", "embedder", "seeing")
NAMES = ("auto", "auto", "auto", "auto", "alias", "gpt-9", "nothing", *MODELS)
BASE: dict[str, Any] = {
    "providers": [
        {"name": "here", "api": "local", "runtime": {"model": "smollm2-135m-instruct"}},
        {"name": "chatty", "api": "openai", "base_url": "http://127.0.0.1:9/v1"},
        {
            "name": "other",
            "api": "anthropic",
            "base_url": "http://127.0.0.1:9/v1",
            "auth": {"key": "${env:KEY}"},
        },
    ],
    "models": [
        {
            "name": name,
            "provider": provider,
            "upstream_model": "smollm2-135m-instruct" if provider == "here" else name,
            "price": {"source": "unpriced"},
        }
        for name, provider in zip(
            MODELS, ("here", "chatty", "other", "chatty", "chatty"), strict=True
        )
    ],
}

capabilities = st.lists(
    st.sampled_from(["chat", "tools", "vision", "json_schema"]), min_size=1, max_size=4, unique=True
)


@st.composite
def policies(draw: st.DrawFn) -> bytes:
    """Documents of a policy that may be refused at load: then the example is skipped."""
    models = [dict(model) for model in BASE["models"]]
    for model in models:
        model["capabilities"] = draw(capabilities)
        if draw(st.booleans()):
            model["context"] = draw(st.sampled_from([20, 100, 4096]))
    models[3]["capabilities"] = ["embeddings"]
    target = st.sampled_from(
        [
            {"quality": "95%", "of": "large", "until_then": "prior"},
            {"quality": "95%", "of": "large"},
            {"quality": "50%", "of": "large", "until_then": "exam"},
            {"quality": "0%", "of": "large"},
        ]
    )
    routes = []
    narrow = draw(st.lists(matches, max_size=2))
    for number, match in enumerate([*narrow, {}]):
        route: dict[str, Any] = {"name": f"r{number}", "match": match}
        if draw(st.integers(0, 3)) == 0:
            route["to"] = draw(st.sampled_from(MODELS))
        else:
            route["small"], route["large"] = draw(
                st.sampled_from(
                    [("local-one", "hosted"), ("local-one", "claude"), ("hosted", "seeing")]
                )
            )
            route["target"] = draw(target)
            route["always_large"] = {
                key: draw(st.booleans()) for key in ("tools", "images", "json_schema")
            }
        if draw(st.booleans()):
            route["fallback"] = [
                {"on": ["5xx"], "to": draw(st.sampled_from([["hosted"], ["claude", "local-one"]]))}
            ]
        routes.append(route)
    tenant: dict[str, Any] = {"id": "acme", "tags": draw(tags)}
    if draw(st.booleans()):
        tenant["allow_models"] = [*draw(st.lists(st.sampled_from(MODELS), min_size=1)), "auto"]
    if draw(st.integers(0, 5)) == 0:
        tenant["required_tags"] = ["team"]
    documents = [
        {"kind": "Models", "providers": BASE["providers"], "models": models},
        {"kind": "Routing", "routes": routes},
        {"kind": "Tenants", "tenants": [tenant, {"id": "globex"}]},
    ]
    meta = {"apiVersion": "tollhouse/v1", "metadata": {"name": "random"}}
    return b"\n---\n".join(orjson.dumps(meta | document) for document in documents)


tags = st.dictionaries(
    st.sampled_from(["team", "env"]), st.sampled_from(["red", "blue"]), max_size=2
)
matches = st.fixed_dictionaries(
    {"model": st.sampled_from([["auto"], ["auto", "hosted"], ["alias", "auto"], ["gpt-*"]])},
    optional={
        "tenant": st.sampled_from([["acme"], ["globex"], ["a*"]]),
        "tags": st.sampled_from([{"team": "red"}, {"env": "*"}]),
        "when": st.sampled_from(
            [
                "request.input_tokens > 10",
                "!request.has_tools",
                'request.tags.team == "red"',
                'request.endpoint == "chat"',
            ]
        ),
    },
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}
bodies = st.fixed_dictionaries(
    {
        "model": st.sampled_from(NAMES),
        "messages": st.sampled_from(
            [
                [{"role": "user", "content": "What is the capital of France?"}],
                [{"role": "user", "content": "Prove that the primes are infinite. " * 9}],
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
                [{"role": "user", "content": [{"type": "text", "text": "See"}, IMAGE]}],
                [{"role": "user", "content": "word " * 3_000}],
            ]
        ),
        "max_tokens": st.sampled_from([1, 60, 5_000]),
    },
    optional={
        "tools": st.just([TOOL]),
        "n": st.sampled_from([1, 3, 120]),
        "response_format": st.just({"type": "json_object"}),
        "logit_bias": st.just({"5": 1}),
        "stream": st.just(True),
        "temperature": st.sampled_from([0, 0.5]),
    },
)
SWITCH_SETS = st.sets(st.sampled_from(["all-large", "local"]))
EJECTED = st.sets(st.sampled_from(["here", "chatty", "other"]))
ENDPOINTS: st.SearchStrategy[Endpoint] = st.sampled_from(
    ["chat", "chat", "messages", "completions"]
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "policy.yaml").write_text(POLICY)
    config = folder / "tollhouse.yaml"
    config.write_text('policies: [policy.yaml]\nstate_dir: state\nlocal: {enabled: "off"}\n')
    made = Gateway(load_settings(config, environ={}), None)
    yield made
    made.services.ledger.close()
    made.keys.close()


class Standing(msgspec.Struct):
    """A provider that is said to be well, or not."""

    healthy: bool


def by_stages(
    exchange: Exchange, gateway: Gateway, thrown: set[str], ejected: set[str]
) -> tuple[str | None, tuple[str, ...], str]:
    """Route, targets and reason as the stages have them; of a refusal, its message."""
    services = msgspec.structs.replace(
        gateway.services,
        upstream=lambda provider: Standing(provider.name not in ejected),
        embed=None,
        local_sha256=lambda provider: SHA256,
    )
    for name in ("all-large", "local"):
        if name in thrown:
            services.switches.throw(name, None)
        else:
            services.switches.reset(name)
    try:
        for stage in (resolve, assess, plan):
            assert stage(exchange, services) is None
    except GatewayError as error:
        route = exchange.route.name if hasattr(exchange, "route") else None
        return route, (), error.message
    assert exchange.plan is not None
    candidates = tuple(model.name for model in exchange.plan.candidates)
    return exchange.route.name, candidates, exchange.plan.reason


def explained(
    policy: Policy, exchange: Exchange, gateway: Gateway, thrown: set[str], ejected: set[str]
) -> Outcome:
    """The same request, as ``policy explain`` looks at it, told how the gateway stands."""
    endpoint = exchange.endpoint
    request = DIALECTS[endpoint].parse(endpoint, exchange.raw, None)
    header = exchange.headers.get(b"x-tollhouse-tags", b"").decode()
    asked = dict(pair.split("=") for pair in header.split(",") if pair)
    facts = facts_of(
        request, tenant_id="acme", key_id="key_1", tags={**asked, **policy.tenants["acme"].tags}
    )

    def judge(route: Route) -> Decision | None:
        router = gateway.services.router
        assert route.small is not None
        local = route.small.provider.api == "local"
        found = decide_by_exam(SHA256, route, request) if local else None
        if found is not None:
            return found
        score = router.score(request.last_user_text or "", uncertain_around=route.target)
        return router.decide(score, route.target)

    def standing(provider: Provider) -> Standing:
        return Standing(provider.name not in ejected)

    return evaluate(
        policy,
        facts,
        judge,
        local_refusal=lambda: refusal(request.body, chat=endpoint == "chat"),
        situation=Situation(thrown=lambda name, _: name in thrown, standing=standing),
    )


def asked(
    policy: Policy, body: Mapping[str, Any], endpoint: Endpoint, header: Mapping[str, str]
) -> Exchange:
    """A request of acme's, before its body was looked at."""
    line = ",".join(f"{name}={value}" for name, value in header.items())
    exchange = Exchange(
        request_id="01J",
        endpoint=endpoint,
        headers={b"x-tollhouse-tags": line.encode()} if header else {},
        raw=orjson.dumps(body),
        client=NoClient(),
        policy=policy,
        started=0.0,
        started_us=NOW_US,
    )
    exchange.key = KeyRecord(id="key_1", kind="api", tenant_id="acme", created_us=0)
    exchange.tenant = policy.tenants["acme"]
    return exchange


def test_explain_says_what_the_stages_do(gateway: Gateway, tmp_path: Path) -> None:
    """Route, targets in their order and the reason, for whatever policy, body and state."""
    path, kinds = tmp_path / "policy.yaml", Counter[str]()

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        text=policies(),
        requests=st.lists(st.tuples(bodies, ENDPOINTS, tags), min_size=1, max_size=5),
        thrown=SWITCH_SETS,
        ejected=EJECTED,
    )
    def compare(
        text: bytes,
        requests: list[tuple[dict[str, Any], Endpoint, dict[str, str]]],
        thrown: set[str],
        ejected: set[str],
    ) -> None:
        path.write_bytes(text)
        try:
            policy = load_policy([path], environ={"KEY": "k"}, now_us=NOW_US)
        except PolicyError:
            return
        kinds.update(compared(gateway, policy, requests, thrown, ejected))

    compare()
    # Were nearly all policies refused at load, nothing would have been compared.
    assert kinds["routed"] > 40, kinds
    assert kinds["pinned"] > 40, kinds
    assert kinds["refused"] > 20, kinds


def compared(
    gateway: Gateway,
    policy: Policy,
    requests: list[tuple[dict[str, Any], Endpoint, dict[str, str]]],
    thrown: set[str],
    ejected: set[str],
) -> Iterator[str]:
    """Compare every request; yields how each was decided."""
    for body, endpoint, header in requests:
        if endpoint == "completions":
            body = {"model": body["model"], "prompt": "Say this", "max_tokens": 9}
        exchange = asked(policy, body, endpoint, header)
        try:
            DIALECTS[endpoint].parse(endpoint, exchange.raw, None)
        except GatewayError:
            continue
        route, candidates, reason = by_stages(exchange, gateway, thrown, ejected)
        outcome = explained(policy, exchange, gateway, thrown, ejected)
        said = tuple(model.name for model in outcome.targets)
        assert outcome.decided
        assert said == candidates, (reason, outcome.reason)
        if route is not None:  # a name that is unknown, or not the tenant's, is told otherwise
            assert outcome.route is not None
            assert (outcome.route.name, outcome.reason) == (route, reason)
        else:
            assert outcome.route is None
        if not candidates:
            yield "refused"
        else:
            yield "routed" if exchange.way.pinned is None else "pinned"
