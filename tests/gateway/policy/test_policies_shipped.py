"""What is shipped for admins: policies that load, tables and schemas that match the code."""

import textwrap
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import orjson
import pytest

from gateway.config import DEFAULT_POLICIES, load_settings
from gateway.policy.load import load_policy
from gateway.policy.reference import option_tables, options, policy_schema, settings_schema
from gateway.policy.schema import KINDS, RouteSection, Section, TenantSection
from gateway.yaml_documents import parse_documents, read_documents, validate
from tests.gateway.policy.policy_texts import Unresolved

ROOT = Path(__file__).resolve().parents[3]
POLICIES = ROOT / "policies"
ENVIRON = {"OPENAI_API_KEY": "x", "TOLLHOUSE_DEMO_BASE_URL": "http://127.0.0.1:9/v1"}
YAML_FILES = sorted(POLICIES.glob("*/*.yaml"))
SETTINGS_FILES = [ROOT / "deploy" / "tollhouse.yaml", ROOT / "deploy" / "one-upstream.yaml"]


@pytest.mark.parametrize(
    "paths",
    [
        ["default"],
        ["one-upstream"],
        ["demo/models-simulated.yaml", "demo/routing.yaml", "demo/tenants.yaml"],
        ["demo/models-openai.yaml", "demo/routing.yaml", "demo/tenants.yaml"],
        ["demo/models-pair.yaml", "demo/routing.yaml", "demo/tenants.yaml"],
    ],
    ids=lambda paths: paths[0],
)
def test_every_shipped_policy_loads_and_passes_its_tests(paths: list[str]) -> None:
    """And has a price for every model, so that no demo shows a cost of nothing."""
    policy = load_policy([POLICIES / path for path in paths], environ=ENVIRON, now_us=1)
    assert all(model.prices is not None for model in policy.models.values())
    assert policy.baseline is not None


@pytest.mark.parametrize("name", ["default/models.yaml", "demo/models-openai.yaml"])
def test_the_shipped_large_model_may_think_and_write_as_much_as_it_can(name: str) -> None:
    """Silent for minutes, and 128,000 tokens long; the small one's limits are its own."""
    rest = ["demo/routing.yaml", "demo/tenants.yaml"] if "demo" in name else ["default"]
    paths = [POLICIES / path for path in ({*rest, name} if "demo" in name else rest)]
    policy = load_policy(sorted(paths), environ=ENVIRON, now_us=1)
    large, timeouts = policy.models["large"], policy.models["large"].provider.timeouts
    assert large.output_tokens_max == 128_000
    assert large.limit_field == "max_completion_tokens"
    assert min(timeouts.first_byte_seconds, timeouts.idle_seconds) >= 300.0
    assert timeouts.connect_seconds <= 2.0
    for tenant in policy.tenants.values():
        if tenant.limits.max_output_tokens is not None:
            continue  # it says itself how much an answer may be
        for budget in tenant.budgets:
            price = large.prices.at(1, 1) if large.prices is not None else None
            assert price is not None
            worst_pico = price.rates.output * large.output_tokens_max
            assert budget.amount_pico > 20 * worst_pico, "a few requests must not use it up"


def test_the_simulated_provider_is_labelled() -> None:
    """Wherever its name is shown, it says what it is."""
    paths = [POLICIES / "demo" / f"{n}.yaml" for n in ("models-simulated", "routing", "tenants")]
    policy = load_policy(paths, environ=ENVIRON, now_us=1)
    assert policy.providers["simulated"].simulated
    assert set(policy.tenants) == {"acme", "globex", "initech"}


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: path.name)
def test_every_shipped_settings_file_loads(path: Path) -> None:
    """And names policies that exist, and the schema by which an editor accepts it."""
    settings = load_settings(path, environ={})
    assert all(policy.exists() for policy in settings.policies)
    first = "# yaml-language-server: $schema=../policies/schema/settings.v1.json\n"
    assert path.read_text().startswith(first)
    (document,) = read_documents(path, {})
    jsonschema.Draft202012Validator(settings_schema()).validate(document.value)


def test_without_settings_the_default_policy_is_used() -> None:
    """A fresh clone serves it."""
    assert DEFAULT_POLICIES.is_dir()
    load_policy([DEFAULT_POLICIES], environ=ENVIRON, now_us=1)


@pytest.mark.parametrize(
    ("name", "schema"),
    [("tollhouse.v1.json", policy_schema()), ("settings.v1.json", settings_schema())],
)
def test_the_shipped_json_schema_is_the_generated_one(name: str, schema: dict[str, Any]) -> None:
    """Regenerate with ``tollhouse policy schema [--of settings]``."""
    assert orjson.loads((POLICIES / "schema" / name).read_bytes()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_editor_accepts_what_the_gateway_accepts(path: Path) -> None:
    """By the schema that the file's first line names."""
    assert path.read_text().startswith(
        "# yaml-language-server: $schema=../schema/tollhouse.v1.json\n"
    )
    validator = jsonschema.Draft202012Validator(policy_schema())
    # As an editor sees it: with references unresolved.
    for document in read_documents(path, Unresolved()):
        validator.validate(document.value)


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        ("Routing", "fallback: [{on: [5xx, timeout, 429, 404], to: other}]"),
        ("Routing", "fallback: [{when_failing: ['429'], to: [other]}]"),
        ("Routing", "fallback: [{true: [5xx], to: other}]"),
        *(("Routing", f"cache: {{exact: {word}, semantic: {word}}}")
          for word in ("on", "off", "true", "false", "~", "{}")),
        ("Routing", "always_large: {prompt_tokens_over: ~}"),
        ("Routing", "match: {model: 'gpt-*', tenant: [a, 'b-*'], tags: {x: '*'}}"),
        ("Tenants", "limits: {rpm: 400, tpm: 1.5M, concurrent: ~}"),
        ("Tenants", "charging: {markup: 0.03, cache_hits: {charge: 100%}}"),
        ("Tenants", "charging: {markup: 1}"),
        ("Tenants", "allow_models: ~"),
        ("Tenants", "budgets: [{name: b, amount: '0.000000000001', period: day}]"),
        ("Models", "context: 400k"),
        ("Models", "max_output: 1.5k"),
        ("Models", "limit_field: ~"),
    ],
)  # fmt: skip
def test_an_editor_accepts_every_way_to_write_a_value(kind: str, section: str) -> None:
    """What ``policy check`` takes is not red in an editor."""
    heads = {
        "Routing": "routes: [{name: r, to: m, match: {}, %s}]",
        "Tenants": "tenants: [{id: t, %s}]",
        "Models": "models: [{name: m, provider: p, upstream_model: u, price: {source: unpriced},"
        " %s}]",
    }
    if section.startswith("match"):
        heads["Routing"] = "routes: [{name: r, to: m, %s}]"
    head = f"apiVersion: tollhouse/v1\nkind: {kind}\nmetadata: {{name: x}}\n"
    text = head + heads[kind] % section
    (document,) = parse_documents(text.encode(), Path("x.yaml"), {})
    validate(document, KINDS[kind])
    jsonschema.Draft202012Validator(policy_schema()).validate(document.value)


def test_an_editor_refuses_a_misspelt_key() -> None:
    """And a secret, money without quotes, and a key that is not supported yet."""
    validator = jsonschema.Draft202012Validator(policy_schema())
    (document,) = read_documents(POLICIES / "default" / "tenants.yaml", {})
    for path, value in (
        (("tenants", 0, "limit"), {}),
        (("tenants", 0, "privacy"), {}),
        (("tenants", 0, "budgets", 0, "amount"), 12.5),
        (("tenants", 0, "limits", "rpm"), "many"),
    ):
        changed = _with(document.value, path, value)
        assert not validator.is_valid(changed), path


def _with(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [_with(v, path[1:], new) if n == path[0] else v for n, v in enumerate(value)]
    inner = value.get(path[0], {}) if isinstance(value, dict) else {}
    return {**value, path[0]: _with(inner, path[1:], new)}


def test_the_readme_s_tables_are_the_generated_ones() -> None:
    """Every option with its default, unit and range; regenerate with ``schema --markdown``."""
    readme = (POLICIES / "README.md").read_text()
    _, _, rest = readme.partition("<!-- options: tollhouse policy schema --markdown -->\n")
    tables, _, _ = rest.partition("<!-- end of options -->")
    assert tables == option_tables()


def test_every_option_says_what_it_means() -> None:
    """None is left without a description."""
    schemas = [kind.model_json_schema() for kind in KINDS.values()] + [settings_schema()]
    for schema in schemas:
        for key, prop, _ in options(schema):
            assert prop.get("description"), key


def test_the_readme_s_examples_are_accepted() -> None:
    """What stands under Routes, Caches and Budgets is the language, not something like it."""
    readme = (POLICIES / "README.md").read_text()
    route: dict[str, Any] = {"name": "x", "match": {}, "to": "y"}
    examples: tuple[tuple[str, type[Section], dict[str, Any]], ...] = (
        ("Routes", RouteSection, {}),
        ("Caches", RouteSection, route),
        ("Budgets and charges", TenantSection, {"id": "x"}),
    )
    for heading, section, rest in examples:
        _, _, text = readme.partition(f"### {heading}\n\n")
        example = textwrap.dedent(text[: text.index("\n\n") + 1])
        (document,) = parse_documents(example.encode(), POLICIES / "README.md", {})
        value = document.value[0] if isinstance(document.value, list) else document.value
        section.model_validate(rest | value)
