"""A loaded policy says what its files say: routes, prices, budgets, digests."""

from pathlib import Path

import pytest

from gateway.errors import PolicyError
from gateway.money import PICO_PER_USD
from gateway.policy.evaluate import evaluate
from gateway.policy.lane import make_lane
from gateway.policy.load import load_policy
from gateway.policy.snapshot import Policy, RequestFacts, Tenant
from tests.gateway.policy.policy_texts import (
    ENVIRON,
    NOW_US,
    POLICY,
    changed,
    facts,
    load,
    problems,
)


def route_of(policy: Policy, request: RequestFacts) -> str:
    """The name of the route that takes a request, whatever its tenant may use."""
    lane = make_lane(
        policy, Tenant(id=request.tenant), key_id=request.key, endpoint=request.endpoint,
        model=request.model, tags=request.tags,
    )  # fmt: skip
    return lane.find(request).route.name


def test_every_part_of_the_files_arrives(tmp_path: Path) -> None:
    """Units are converted, references resolved, defaults filled in."""
    policy = load(tmp_path)
    provider = policy.providers["big"]
    assert provider.authorization is not None
    assert provider.authorization.reveal() == f"Bearer {ENVIRON['KEY']}"
    large = policy.models["large"]
    assert large.context_tokens == 400_000
    assert large.prices is not None
    price = large.prices.at(NOW_US, 10)
    assert price is not None
    assert price.rates.input == 2.5 * PICO_PER_USD / 1_000_000
    support, alias, rest = policy.routes
    assert support.exact is not None
    assert support.semantic is not None
    assert (support.exact.ttl_seconds, support.semantic.ttl_seconds) == (86_400.0, 21_600.0)
    assert support.target.quality == 0.95
    assert [model.name for model in alias.fallback] == ["small"]
    assert alias.fallback_on == {"timeout", "429"}
    assert (rest.exact, rest.semantic, rest.fallback) == (None, None, ())
    acme = policy.tenants["acme"]
    assert acme.limits.tokens_per_minute == 400_000
    assert acme.budgets[0].amount_pico == 12_500_000_000_000
    assert (acme.charging.markup_ppm, acme.charging.cache_hits_ppm) == (30_000, 100_000)
    assert policy.known_models == {"auto", "large", "small", "gpt-x"}
    assert policy.baseline is large


def test_the_first_route_that_matches_wins(tmp_path: Path) -> None:
    """Tenants by id or glob, tags, and the model's name."""
    policy = load(tmp_path)

    def route(**changes: object) -> str:
        return route_of(policy, facts(**changes))

    assert route() == "support"
    assert route(tenant="team-9") == "support"
    assert route(tenant="teams") == "rest"
    assert route(tags={}) == "rest"
    assert route(model="gpt-x") == "alias"
    assert route(model="large") == "rest"


WILD = changed("match: {model: [gpt-x]}", 'match: {model: ["claude-*", gpt-x]}').replace(
    "allow_models: [auto, large, gpt-x]", 'allow_models: [auto, large, "claude-*"]'
)


def test_a_wildcard_takes_the_names_that_vendors_change(tmp_path: Path) -> None:
    """Beside exact names, for tenants too; it is no name itself, and lists none."""
    policy = load(tmp_path, WILD)
    assert policy.known_models == {"auto", "large", "small", "gpt-x"}
    acme = policy.tenants["acme"]
    for name, known, allowed in (
        ("claude-unheard-of-5", True, True),
        ("gpt-x", True, False),
        ("my-claude-5", False, False),
        ("large", True, True),
        ("claude-" + "5" * 200, False, False),
    ):
        assert (policy.knows(name), acme.may_use(name)) == (known, allowed), name
    assert route_of(policy, facts(model="claude-unheard-of-5")) == "alias"


def test_a_wildcard_takes_no_model_of_the_catalogue_from_itself(tmp_path: Path) -> None:
    """Only a route that writes its name may answer it by another."""
    text = changed("match: {model: [gpt-x]}", 'match: {model: ["sm*"]}')
    text = text.replace("large, gpt-x]", "large, small]")
    outcome = evaluate(load(tmp_path, text), facts(model="small"))
    assert outcome.route is not None
    assert (outcome.route.name, outcome.targets[0].name) == ("alias", "small")


def test_an_exact_name_after_its_wildcard_is_never_reached(tmp_path: Path) -> None:
    """Routes are asked in their order."""
    later = "  - {name: late, match: {model: claude-5}, to: large}\n  - name: rest\n"
    (problem,) = problems(tmp_path, changed("  - name: rest\n", later, WILD))
    assert problem.endswith("route never reached: 'alias' before it takes every such request")


def test_a_tenant_may_be_allowed_only_what_some_route_takes(tmp_path: Path) -> None:
    """A name that a wildcard covers exists; another does not."""
    sound = changed('large, "claude-*"]', "large, claude-5]", WILD)
    assert problems(tmp_path, sound) == []
    (problem,) = problems(tmp_path, changed('large, "claude-*"]', "large, cloud-5]", WILD))
    assert "there is no model 'cloud-5'" in problem


def test_what_a_hard_budget_shuts_out_is_said(tmp_path: Path) -> None:
    """A model without a price: refused to such tenants whenever they ask, so said beforehand."""
    unpriced = "  - {name: preview, provider: big, upstream_model: p, price: {source: unpriced}}\n"
    text = changed("---\napiVersion: tollhouse/v1\nkind: Routing", f"{unpriced}---\napiVersion:"
                   " tollhouse/v1\nkind: Routing")  # fmt: skip
    for old, new, said in (
        ("allow_models: [auto, large, gpt-x]", "name: Acme", True),
        ("auto, large, gpt-x", "auto, preview", True),
        ("auto, large, gpt-x", "auto, large", False),
        ("    allow_models: [auto, large, gpt-x]\n", "", True),
    ):
        warnings = [w for w in load(tmp_path, changed(old, new, text)).warnings if "preview" in w]
        assert len(warnings) == said, new
        assert all("no use of 'preview' by acme" in warning for warning in warnings)
    soft = changed("timezone: Europe/Berlin", "enforce: soft", text).replace(
        "    allow_models: [auto, large, gpt-x]\n", ""
    )
    assert not [warning for warning in load(tmp_path, soft).warnings if "preview" in warning]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://api.example.com/v1", ""),
        ("http://localhost:8000/v1", ""),
        ("http://10.0.0.7:8000/v1", ""),
        ("http://api.example.com/v1", "over http:// everybody on the way can read the key"),
        ("http://93.184.216.34/v1", "over http:// everybody on the way can read the key"),
        ("https://api.example.com", "is /v1 missing?"),
        ("https://api.example.com/", "is /v1 missing?"),
    ],
)
def test_an_address_that_may_not_be_meant_is_said(tmp_path: Path, url: str, said: str) -> None:
    """Accepted all the same: a network may be ours, and a server may have no /v1."""
    warnings = load(tmp_path, changed("https://api.example.com/v1", url)).warnings
    found = [line for line in warnings if "providers.0.base_url" in line]
    assert [said in line for line in found] == ([True] if said else [])


def test_defaults_hold_for_routes_that_say_nothing(tmp_path: Path) -> None:
    """Key by key: a route's own word replaces the default whole."""
    text = changed(
        "defaults: {baseline: large}",
        "defaults: {baseline: large, cache: {exact: {ttl: 5m}}, fallback: [{to: small}]}",
    )
    support, alias, rest = load(tmp_path, text).routes
    assert rest.exact is not None
    assert rest.exact.ttl_seconds == 300.0
    assert rest.fallback_on == {"timeout", "429", "5xx", "overloaded"}
    assert support.exact is not None
    assert support.exact.ttl_seconds == 86_400.0
    assert alias.fallback_on == {"timeout", "429"}


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("gpt-5.4-mini", True),
        ("openai/o3", True),
        ("gemini-2.5-pro", True),
        ("grok-4", True),
        ("prod, vendor_model: o3", True),
        ("gpt-4o", False),
        ("gpt-5-chat-latest", False),
        ("grok-4-fast-non-reasoning", False),
        ("gemini-2.5-flash-image", False),
        ("claude-sonnet-4-5", False),
    ],
)
def test_models_that_think_unseen_are_known_by_name(
    tmp_path: Path, model: str, thinks: bool
) -> None:
    """Whoever leaves them before the first word pays for the time that they thought."""
    text = changed(
        "---\napiVersion: tollhouse/v1\nkind: Routing",
        f"  - {{name: new, provider: big, upstream_model: {model}, price: {{source: unpriced}}}}\n"
        "---\napiVersion: tollhouse/v1\nkind: Routing",
    )
    assert load(tmp_path, text).models["new"].thinks is thinks


@pytest.mark.parametrize(
    ("provider", "model", "field"),
    [
        ("api: azure, base_url: https://x.openai.azure.com", "prod-assistant", "completion"),
        ("api: azure, base_url: https://x.y, api_version: 2024-10-21", "prod", "completion"),
        ("api: azure, base_url: https://x.y, api_version: 2024-02-01", "prod", ""),
        ("api: openai, base_url: https://api.openai.com/v1", "gpt-4o", "completion"),
        ("api: openai, base_url: https://proxy.example/v1", "gpt-5.4-mini", "completion"),
        ("api: openai, base_url: https://proxy.example/v1", "openai/o4-mini", "completion"),
        ("api: openai, base_url: https://proxy.example/v1", "ft:o4-mini-2025:acme", "completion"),
        ("api: openai, base_url: https://proxy.example/v1", "gpt-4o", ""),
        ("api: openai, base_url: https://proxy.example/v1", "prod", ""),
        ("api: openai, base_url: https://proxy.example/v1", "prod, vendor_model: o3", "completion"),
        ("api: openai, base_url: https://proxy.example/v1",
         "gpt-5, limit_field: max_tokens", ""),
    ],
)  # fmt: skip
def test_a_limit_of_ours_goes_into_the_field_that_the_model_takes(
    tmp_path: Path, provider: str, model: str, field: str
) -> None:
    """A deployment's name says nothing: the vendor, the model's own name or the policy does."""
    text = changed(
        "    api: openai\n    base_url: https://api.example.com/v1\n"
        '    auth: {bearer: "${env:KEY}"}\n',
        "".join(f"    {part}\n" for part in provider.split(", ")),
    )
    parts = f"upstream_model: {model}".split(", ")
    text = changed("    upstream_model: big-1\n", "".join(f"    {p}\n" for p in parts), text)
    expected = "max_completion_tokens" if field else "max_tokens"
    assert load(tmp_path, text).models["large"].limit_field == expected


def test_a_list_price_is_found_by_the_model_s_own_name(tmp_path: Path) -> None:
    """Provider and deployment may be called anything; Azure's models are sold by Azure."""
    azure = changed(
        "    api: openai\n    base_url: https://api.example.com/v1\n"
        '    auth: {bearer: "${env:KEY}"}\n',
        "    api: azure\n    base_url: https://x.openai.azure.com\n",
    )
    contract = (
        'price: {source: contract, contract_id: C-1, per_mtok: {input: "2.50", output: "10"}}'
    )
    listed = changed(contract, "price: {source: genai-prices}", azure)
    (problem,) = problems(tmp_path, listed)
    assert "no model 'big-1' of 'big'" in problem
    assert "vendor_model" in problem
    text = changed(
        "upstream_model: big-1", "upstream_model: big-1\n    vendor_model: gpt-4o", listed
    )
    prices = load(tmp_path, text).models["large"].prices
    assert prices is not None
    price = prices.at(NOW_US, 10)
    assert price is not None
    assert price.rates.input == 2.5 * PICO_PER_USD / 1_000_000


def test_a_provider_that_thinks_may_be_silent_for_minutes(tmp_path: Path) -> None:
    """One that is away is found out within seconds; our own model process within half a minute."""
    policy = load(tmp_path)
    paid, own = policy.providers["big"].timeouts, policy.providers["onbox"].timeouts
    assert paid.connect_seconds <= 5.0
    assert paid.first_byte_seconds >= 300.0
    assert paid.idle_seconds >= 120.0
    assert paid.total_seconds >= paid.first_byte_seconds
    assert (own.first_byte_seconds, own.idle_seconds) == (30.0, 30.0)


def test_the_version_follows_meaning_not_form(tmp_path: Path) -> None:
    """Comments, quotes and the secret's value do not change it; a budget does."""
    version = load(tmp_path).version
    assert len(version) == 12
    assert load(tmp_path, "# a comment\n" + POLICY).version == version
    assert load(tmp_path, changed("rpm: 600", "rpm:   600 ")).version == version
    assert load(tmp_path, environ={"KEY": "another"}).version == version
    assert load(tmp_path, changed('"12.50"', '"12.51"')).version != version


@pytest.mark.parametrize(
    ("old", "new", "flushes"),
    [
        ('"12.50"', '"99.00"', False),
        ('{input: "2.50", output: "10"}', '{input: "3", output: "10"}', False),
        ("rpm: 600", "rpm: 60", False),
        ("    api: local", "    api: local\n    health: {window: 5s}", False),
        ("upstream_model: big-1", "upstream_model: big-2", True),
        ("https://api.example.com/v1", "https://other.example.com/v1", True),
        ("ttl: 6h", "ttl: 7h", True),
    ],
)
def test_a_route_s_caches_live_as_long_as_what_decides_its_answers(
    tmp_path: Path, old: str, new: str, flushes: bool
) -> None:
    """The identity is part of every cache key: an edited budget or price flushes nothing."""
    before = load(tmp_path).routes[0].identity
    assert (load(tmp_path, changed(old, new)).routes[0].identity != before) is flushes


def test_a_model_that_any_route_may_answer_is_part_of_that_route_s_identity(
    tmp_path: Path,
) -> None:
    """``small`` by its own name is answered under the route ``rest``, which does not name it."""
    before = load(tmp_path).routes
    text = changed("  - name: onbox", "  - name: onbox\n    runtime: {model: another}")
    after = load(tmp_path, text).routes
    assert after[2].identity != before[2].identity


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        (f'hub: "a/b@{"0" * 40}/../x.gguf"', "a file within its repository"),
        (f'hub: "a/b@{"0" * 40}//x.gguf"', "a file within its repository"),
        (f'hub: "a/b@{"0" * 40}/x\\0.gguf"', "printable characters only"),
        ('path: "/srv/x\\0.gguf"', "printable characters only"),
        ("path: /srv/x.gguf, model: default", "one of model, path and hub"),
    ],
)
def test_a_model_that_its_process_would_refuse_is_refused_by_the_check(
    tmp_path: Path, reference: str, complaint: str
) -> None:
    """Before a gateway runs with it: the process would only say so in its log."""
    text = changed("  - name: onbox", f"  - name: onbox\n    runtime: {{{reference}}}")
    with pytest.raises(PolicyError, match=complaint):
        load(tmp_path, text)


def test_a_folder_is_its_yaml_files_in_order(tmp_path: Path) -> None:
    """What else lies there, or in folders below, is not looked at."""
    for number, part in enumerate(POLICY.split("---\n")):
        (tmp_path / f"{number}.yml").write_text(part)
    (tmp_path / "notes.txt").write_text("not a policy")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "models.yaml").write_text("neither")
    policy = load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US)
    assert policy.version == load(tmp_path / "old").version


def test_a_secret_does_not_print_itself(tmp_path: Path) -> None:
    """Neither the policy nor any part of it, in any format."""
    policy = load(tmp_path)
    authorization = policy.providers["big"].authorization
    assert ENVIRON["KEY"] not in f"{policy!r} {authorization} {authorization!r} {authorization:>9}"


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    """As orchestrators mount them, with a newline at the end."""
    (tmp_path / "key").write_text("from-a-file\n")
    text = changed("${env:KEY}", f"${{file:{tmp_path}/key}}")
    authorization = load(tmp_path, text).providers["big"].authorization
    assert authorization is not None
    assert authorization.reveal() == "Bearer from-a-file"
