"""What is wrong in a policy is said in words, at its line and column, all at once."""

# ruff: noqa: E501 - the table shows messages whole, as people see them

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import PolicyError
from gateway.policy.load import SourceFile, compile_files, load_policy
from tests.gateway.policy.policy_texts import ENVIRON, NOW_US, POLICY, changed, load, problems

MISTAKES = [
    # keys
    ("    context: 400k", "    «contxt: 400k", "models.0.contxt: unknown key 'contxt'; did you mean 'context'?"),
    ("    api: local", "    «apis: local", "providers.1.apis: unknown key 'apis'; did you mean 'api'?"),
    ("  - name: large\n    provider: big\n", "  - «name: large\n", "models.0: the key 'provider' is missing"),
    ("kind: Routing", "kind: «Ruting", "kind: a document has a kind: one of Models, Routing, Tenants; did you mean 'Routing'?"),
    ("apiVersion: tollhouse/v1\nkind: Models", "apiVersion: «v2\nkind: Models", "apiVersion: expected 'tollhouse/v1', not the text 'v2'"),
    # types and values
    ("context: 400k", "context: «many", "models.0.context: a count reads 400, 400k or 2M, not the text 'many'"),
    ("context: 400k", "context: «true", "models.0.context: expected a whole number, not true"),
    ("context: 400k", "context: «0", "models.0.context: must be at least 1, not the number 0"),
    ("rpm: 600", "rpm: «[600]", "tenants.0.limits.rpm: expected a whole number, not a list"),
    ("rpm: 600", "rpm: «12:30", "tenants.0.limits.rpm: a count reads 400, 400k or 2M, not the text '12:30'"),
    ("limits: {rpm: 600, tpm: 400k}", "limits: «no", "tenants.0.limits: expected a mapping of keys, not the text 'no'"),
    ("ttl: 6h", "ttl: «6", "routes.0.cache.semantic.ttl: a duration reads 250ms, 30s, 10m, 6h or 7d, not the number 6"),
    ("max_wrong: 1%", "max_wrong: «30%", "routes.0.cache.semantic.max_wrong: must be at most 0.2, not the text '30%'"),
    ("quality: 95%", "quality: «195%", "routes.0.target.quality: must be at most 1, not the text '195%'"),
    ('amount: "12.50"', "amount: «12.50", 'tenants.0.budgets.0.amount: money is a text in quotes, such as "12.50", so that it stays exact, not the number 12.5'),
    ('amount: "12.50"', 'amount: «"1e9"', "tenants.0.budgets.0.amount: money is a plain decimal number in quotes, such as \"12.50\", of 12 decimals at most, not the text '1e9'"),
    ('amount: "12.50"', 'amount: «"-1"', "tenants.0.budgets.0.amount: money is not negative, not the text '-1'"),
    ("capabilities: [chat, tools]", "capabilities: [chat, «tols]", "models.0.capabilities.1: expected 'chat', 'tools', 'vision', 'json_schema', 'embeddings' or 'completions', not the text 'tols'; did you mean 'tools'?"),
    ("Europe/Berlin", "«Europe/Berln", "tenants.0.budgets.0.timezone: no time zone 'Europe/Berln'"),
    ("https://api.example.com/v1", "«https://user@api.example.com/v1", "providers.0.base_url: a base_url reads https://host[:port]/v1, without user, query or fragment"),
    ("https://api.example.com/v1", "«file:///etc/passwd", "providers.0.base_url: a base_url reads https://host[:port]/v1, without user, query or fragment"),
    ('{name: monthly, amount: "12.50", timezone: Europe/Berlin}', '«{name: monthly, amount: "12.50", enforce: soft, on_exceeded: downgrade, downgrade_to: small}', "tenants.0.budgets.0: on_exceeded: downgrade needs enforce: hard; soft only counts"),
    # secrets
    ('"${env:KEY}"', "«plain-text", "providers.0.auth.bearer: a secret is a reference, ${env:NAME} or ${file:/path}, never in the file itself"),
    ('"${env:KEY}"', "«sk-abcdefghijklmnop1234", "this looks like a key: write a reference, ${env:NAME} or ${file:/path}, never the secret itself"),
    ('"${env:KEY}"', '«"${env:KYE}"', "the environment variable KYE is not set; set it, or give a default: ${env:KYE:-default}"),
    ('"${env:KEY}"', '«"${vault:KEY}"', "a reference reads ${env:NAME}, ${env:NAME:-default} or ${file:/path}"),
    ('"${env:KEY}"', '«"${file:/nowhere/key}"', "the file /nowhere/key cannot be read: No such file or directory"),
    # names
    ("    provider: big", "    provider: «bigg", "models.0.provider: there is no provider 'bigg'; did you mean 'big'?"),
    ("    small: small", "    small: «smal", "routes.0.small: there is no model 'smal'; did you mean 'small'?"),
    ("baseline: large", "baseline: «lrge", "defaults.baseline: there is no model 'lrge'; did you mean 'large'?"),
    ("tenant: [acme,", "tenant: [«amce,", "routes.0.match.tenant.0: there is no tenant 'amce'; did you mean 'acme'?"),
    ("to: small}]", "to: «smal}]", "routes.1.fallback.0.to: there is no model 'smal'; did you mean 'small'?"),
    ("[auto, large, gpt-x]", "[auto, large, «gpt-y]", "tenants.0.allow_models.2: there is no model 'gpt-y'; did you mean 'gpt-x'?"),
    ("  - name: small\n", "  - «name: large\n", "models.1: the model 'large' is defined twice"),
    ("  - name: alias", "  - «name: support", "routes.1: the route 'support' is defined twice"),
    # routes
    ("match: {model: [gpt-x]}\n    to: large\n    fallback: [{on: [timeout, 429], to: small}]\n  - name", "match: {}\n    to: large\n  - «name", "routes.2: route never reached: 'alias' before it takes every such request"),
    ("  - name: support", "  - {name: all, match: {model: auto, tenant: acme*}, to: large}\n  - «{name: one, match: {model: auto, tenant: [acme]}, to: large}\n  - name: support", "routes.1: route never reached: 'all' before it takes every such request"),
    ("  - name: support\n    match: {model: auto, tenant: [acme, \"team-*\"], tags: {feature: support}}\n    small: small\n", "  - «name: support\n    match: {}\n", "routes.0: a route has either 'to', or both 'small' and 'large'"),
    ("fallback: [{on: [timeout, 429], to: small}]", "fallback: «[{to: small}, {to: large}]", "routes.1.fallback: takes at most 1 entries, not a list"),
    # conditions
    ("tags: {feature: support}}\n    small", "when: «'request.inputs > 1'}\n    small", "routes.0.match.when: unknown name 'request.inputs'; did you mean 'input_tokens'?"),
    ("tags: {feature: support}}\n    small", "when: «'request.model > 1'}\n    small", "routes.0.match.when: the condition fails on a sample: both sides of an operator need one type"),
    ("tags: {feature: support}}\n    small", "when: «'request.model +'}\n    small", "routes.0.match.when: not a valid condition: something is missing at its end"),
    ("max_wrong: 1%", "max_wrong: 1%, skip_when: «'request.input_tokens'", "routes.0.cache.semantic.skip_when: a condition is true or false, and this one is of type int"),
    ("max_wrong: 1%", "max_wrong: 1%, skip_when: «'[1].all(x, [x].all(y, [y].all(z, true)))'", "routes.0.cache.semantic.skip_when: a condition has at most 2 loops in each other"),
    ("tags: {feature: support}}\n    small", "when: «'request.stream and true'}\n    small", "routes.0.match.when: not a valid condition: "),
    ("exact: on", "exact: «no", "routes.0.cache.exact: expected off, on, or a mapping of keys, not the text 'no': write off"),
    ("exact: on", "exact: «Yes", "routes.0.cache.exact: expected off, on, or a mapping of keys, not the text 'Yes': write on"),
    ('markup: "3%"', "markup: «3", "tenants.0.charging.markup: must be at most 1: write 3%, not the number 3"),
    ("https://api.example.com/v1", "«http://169.254.169.254/v1", "providers.0.base_url: the gateway never connects to 169.254.169.254: addresses of cloud metadata"),
    ("https://api.example.com/v1", "«http://[fd00:ec2::254]/v1", "providers.0.base_url: the gateway never connects to fd00:ec2::254"),
    ("https://api.example.com/v1", "«http://2852039166/v1", "providers.0.base_url: the gateway never connects to 169.254.169.254"),
    ("https://api.example.com/v1", "«http://0xa9.254.43518/v1", "providers.0.base_url: the gateway never connects to 169.254.169.254"),
    ("https://api.example.com/v1", "«http://metadata.google.internal/v1", "providers.0.base_url: the gateway never connects to metadata.google.internal"),
    ("upstream_model: big-1", 'upstream_model: «"${env:KEY}"', "models.0.upstream_model: a reference is for secrets alone, in bearer, key, proxy, client_cert, client_key"),
    ("https://api.example.com/v1", '«"https://${file:/etc/hostname}/v1"', "providers.0.base_url: a reference to a file is for secrets alone"),
    ("[{on: [timeout, 429]", "[«{on: [timeout], when_failing: [429]", "routes.1.fallback.0: 'on' and 'when_failing' are the same key; write one"),
    # not yet
    ("  - name: rest\n", "  - name: rest\n    cascade: «{enabled: true}\n", "routes.2.cascade: not supported yet; remove it"),
    ("    large: large", "    large: «{split: {large: 90, small: 10}}", "routes.0.large: a split of the traffic is not supported yet; name one model"),
    # dialects
    ("  - name: onbox\n    api: local", "  - «name: onbox\n    api: azure", "providers.1: a provider with api: azure needs a base_url"),
    ("  - name: onbox\n    api: local", "  - «name: onbox\n    api: local\n    dialects: [messages]", "providers.1: a local provider speaks chat and decisions, and has no dialects to set"),
    ("  - name: big\n    api: openai", "  - «name: big\n    api: openai\n    api_version: 2024-10-21", "providers.0: only a provider with api: azure has an api_version"),
    ("auth: {bearer: \"${env:KEY}\"}", "auth: «{bearer: \"${env:KEY}\", key: \"${env:KEY}\"}", "providers.0.auth: give either bearer or key"),
    ("  - name: big\n    api: openai\n    base_url: https://api.example.com/v1\n    auth: {bearer:", "  - «name: big\n    api: openai\n    base_url: https://api.example.com/v1\n    auth: {key:", "providers.0: a provider with api: openai takes auth: {bearer: ...}"),
    # the policy's own tests
    ("expect: {route: support, target: small}", "expect: {route: «rest}", "tests.0.expect.route: the test 'an easy question may go small' expects rest and gets support: small is good enough: 0.97 of 0.98 against a target of 95%"),
    ("{tenant: acme, model: auto", "{tenant: «acne, model: auto", "tests.0.given.tenant: there is no tenant 'acne'; did you mean 'acme'?"),
    # YAML
    ("rpm: 600", "rpm: 600, «rpm: 700", "the key 'rpm' is given twice"),
    ("rpm: 600", "rpm: «&x 600", "a YAML anchor &x is not accepted; write the value out"),
    ("rpm: 600", "rpm: «*x", "a YAML alias *x is not accepted; write the value out"),
    ("rpm: 600", "rpm: «!!python/object:os.system 600", "a YAML tag tag:yaml.org,2002:python/object:os.system is not accepted; write the value out"),
    ("limits: {rpm: 600, tpm: 400k}", "limits: {«{a: b}: c}", "a key is a plain word"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_is_named_at_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    """« stands before the place, and is no part of the policy."""
    before, _, after = changed(old, new).partition("«")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    found = problems(tmp_path, before + after)
    assert any(problem.startswith(f"{line}:{column}: {message}") for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  - name: alias\n", " - name: alias\n", "is this line indented like"),
        ("    to: large\n    fallback", "   to: large\n    fallback", "is this line indented like"),
        ("rpm: 600, tpm: 400k}", "rpm: 600, tpm: 400k", "a bracket or a comma is missing before"),
        ("    tags: {unit: care}\n", "\ttags: {unit: care}\n", "indent with spaces"),
        ("name: rest", "name: rest: late", "a text with ': ' not in quotes"),
        ("{feature: support}}\n    small", "{}, when: 'request.stream and true'}\n    small",
         "at column 16 write && instead of 'and'"),
        ("{feature: support}}\n    small", "{}, when: 'request.model = \"x\"'}\n    small",
         "at column 15 write == instead of '='"),
        ('timezone: Europe/Berlin', 'timezone: berlin', "did you mean 'Europe/Berlin'?"),
        ('timezone: Europe/Berlin', 'timezone: Europe/Berlln', "did you mean 'Europe/Berlin'?"),
        ('timezone: Europe/Berlin', 'on_exceeded: downgrade, downgrade_to: auto',
         "it is the router's own name; write the model that is to answer"),
        ("{feature: support}}\n    small", "{}, when: '(request.stream'}\n    small",
         "not a valid condition: ')' is missing at its end"),
        ("{feature: support}}\n    small", "{}, when: 'request.stream true'}\n    small",
         "not a valid condition: 'true' is not expected there"),
        ("{feature: support}}\n    small", "{}, when: 'request.model > 1'}\n    small",
         "both sides of an operator need one type"),
    ],
)  # fmt: skip
def test_a_parser_s_words_come_with_what_to_do(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    """Who writes YAML or CEL for the first time knows neither's grammar."""
    found = problems(tmp_path, changed(old, new))
    assert any(said in problem for problem in found), found


def test_a_name_defined_twice_says_where_it_is_first(tmp_path: Path) -> None:
    """Also in another file."""
    models, routing, tenants = POLICY.split("---\n")
    for name, text in (("a", models + "---\n" + routing), ("b", tenants), ("c", tenants)):
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US)
    (problem,) = caught.value.problems
    assert problem.startswith(
        f"{tmp_path}/c.yaml:5:5: tenants.0: the tenant 'acme' is defined twice"
    )
    assert problem.endswith(f"first at {tmp_path}/b.yaml:5:5")


def test_an_empty_file_is_named_where_something_is_missing(tmp_path: Path) -> None:
    """Mostly a file that was not written to its end."""
    models, _, tenants = POLICY.split("---\n")
    (tmp_path / "a.yaml").write_text(models + "---\n" + tenants)
    (tmp_path / "routing.yaml").write_text("# nothing yet\n")
    with pytest.raises(PolicyError) as caught:
        load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US)
    expected = f"there is no document of kind: Routing; empty: {tmp_path}/routing.yaml"
    assert expected in caught.value.problems


def test_a_fallback_to_the_model_that_failed_is_a_warning(tmp_path: Path) -> None:
    """It is accepted, and does nothing."""
    text = changed(
        "fallback: [{on: [timeout, 429], to: small}]", "fallback: [{to: [small, large]}]"
    )
    found = [warning for warning in load(tmp_path, text).warnings if "as a fallback" in warning]
    assert [warning.rpartition(": ")[2] for warning in found] == [
        "'large' is asked by this route anyway, and not once more as a fallback"
    ]


def test_fallbacks_that_lead_in_a_circle_are_a_warning(tmp_path: Path) -> None:
    """Over however many routes, and once: whoever writes them expects them to be followed."""
    spare = """\
  - name: spare
    provider: big
    upstream_model: big-2
    price: {source: unpriced}
---
apiVersion: tollhouse/v1
kind: Routing
"""
    text = changed("---\napiVersion: tollhouse/v1\nkind: Routing\n", spare)
    circle = """\
  - {name: second, match: {model: [gpt-y]}, to: small, fallback: [{to: spare}]}
  - {name: third, match: {model: [gpt-z]}, to: spare, fallback: [{to: [large, small]}]}
"""
    for routes, warned in ((circle, True), (circle.replace("[large, small]", "big"), False)):
        changing = changed("  - name: rest\n", routes + "  - name: rest\n", text)
        changing = changing.replace("[{to: big}]", "[]")
        found = [warning for warning in load(tmp_path, changing).warnings if "circle" in warning]
        assert [warning.rpartition(": routes.")[2] for warning in found] == [
            "1.fallback.0.to: the fallbacks of 'large', 'small', 'spare' lead in a circle: a request"
            " follows its own route's fallback alone, and fails where that fails"
        ] * warned


def test_routes_behind_one_that_takes_everything_are_one_problem(tmp_path: Path) -> None:
    """It is one mistake: the route that hides them stands too early."""
    early = "routes:\n  - {name: all, match: {}, to: large}\n"
    (problem,) = problems(tmp_path, changed("routes:\n", early))
    assert problem == (
        "29:5: routes.1: route never reached: 'all' before it takes every such request, and those"
        " of 'alias', 'rest': move 'all' behind them"
    )


def test_what_tools_of_yaml_1_1_write_back_is_understood(tmp_path: Path) -> None:
    """They read on and off as booleans, in values and in keys; a key that they leave alone exists."""
    plain = load(tmp_path)
    for old, new in (
        ("on: [timeout, 429]", "true: [timeout, 429]"),
        ("on: [timeout, 429]", "True: [timeout, '429']"),
        ("on: [timeout, 429]", "when_failing: [timeout, 429]"),
        ("exact: on", "exact: true"),
    ):
        assert load(tmp_path, changed(old, new)).version == plain.version, new
    off = changed("semantic: {ttl: 6h, max_wrong: 1%}", "semantic: false")
    assert load(tmp_path, off).routes[0].semantic is None


def test_a_reference_to_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe would keep the check, and a reload, waiting for whoever writes to it."""
    os.mkfifo(tmp_path / "pipe")
    text = changed("${env:KEY}", f"${{file:{tmp_path}/pipe}}")
    began = time.perf_counter()
    (problem,) = problems(tmp_path, text)
    assert problem.endswith("pipe cannot be read: it is no regular file")
    assert time.perf_counter() - began < 5.0


@pytest.mark.parametrize(
    ("after", "added"),
    [
        ("metadata: {name: routing}\n", "rollout: {steps: []}\n"),
        ("    target: {quality: 95%, of: large, until_then: prior}\n", "    learn: {shadow: 2%}\n"),
        ("    target: {quality: 95%, of: large, until_then: prior}\n", "    hedge: off\n"),
        ("    target: {quality: 95%, of: large, until_then: prior}\n", "    sticky: tenant\n"),
        ("    tags: {unit: care}\n", "    privacy: {log_bodies: never}\n"),
    ],
)
def test_what_this_version_does_not_honour_is_refused_by_name(
    tmp_path: Path, after: str, added: str
) -> None:
    """A key of the language is never ignored silently."""
    (problem,) = problems(tmp_path, changed(after, after + added))
    assert problem.endswith("not supported yet; remove it")
    assert added.split(":")[0].strip() in problem


def test_every_problem_of_every_file_is_reported_at_once(tmp_path: Path) -> None:
    """An admin fixes a policy in one go."""
    parts = POLICY.split("---\n")
    parts[0] = changed("context: 400k", "context: many", parts[0])
    parts[2] = changed("rpm: 600", "rpm: few", parts[2])
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.yaml").write_text(part)
    with pytest.raises(PolicyError) as caught:
        load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US)
    places = [problem.rsplit("/", 1)[-1].split(": ")[0] for problem in caught.value.problems]
    assert places == ["0.yaml:17:14", "2.yaml:8:19"]


def test_a_policy_with_a_thousand_mistakes_reports_a_hundred(tmp_path: Path) -> None:
    """Nobody reads more, and a log must not fill."""
    tenants = "".join(f"  - {{id: t{number}, limit: 1}}\n" for number in range(1000))
    found = problems(tmp_path, POLICY + tenants)
    assert len(found) == 101
    assert found[-1] == "and 900 more problems"


def test_no_problem_shows_a_secret(tmp_path: Path) -> None:
    """Not even when the secret itself is what is wrong."""
    for secret in ("two words", "line\nbreak", "nul\0"):
        (problem,) = problems(tmp_path, POLICY, {"KEY": secret})
        assert "characters that an authorization header cannot carry" in problem
        assert secret not in problem
    for misplaced in ("api: openai", "provider: onbox", "baseline: large", '"12.50"'):
        key, _, _ = misplaced.rpartition(" ")
        text = changed(misplaced, f'{key} "${{env:KEY}}"')
        (problem,) = problems(tmp_path, text)
        assert ENVIRON["KEY"] not in problem


@pytest.mark.parametrize(
    "bomb",
    [b"[" * 1_000_000, b"{a: " * 250_000, b"- " * 500_000, b"? " * 500_000, b"---\n" * 250_000,
     b"a: &a [x]\nb: [*a, *a, *a]", b"\xff\xfe\x00", b"a: \x00", b'"',
     b"*a " * 300_000],
    ids=lambda text: text[:6].decode("latin-1"),
)  # fmt: skip
def test_a_hostile_file_is_refused_within_a_tenth_of_a_second(bomb: bytes) -> None:
    """libyaml alone takes minutes over a megabyte of brackets."""
    began = time.perf_counter()
    with pytest.raises(PolicyError):
        compile_files([SourceFile(Path("bomb.yaml"), bomb)], environ={}, now_us=NOW_US)
    assert time.perf_counter() - began < 0.1


_LINES = st.sampled_from(
    [*POLICY.splitlines(), "- a", "a: b", "? x", "&a *a", "${env:KEY}", "---", "\t", "'", "|", "{", "]"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=300), st.lists(_LINES, max_size=30).map("\n".join)))
def test_any_text_loads_or_is_a_policy_error(text: str) -> None:
    """Whatever is in the file: no other exception leaves the loader."""
    content = text.encode("utf-8", "surrogatepass")
    with contextlib.suppress(PolicyError):
        compile_files([SourceFile(Path("any.yaml"), content)], environ=ENVIRON, now_us=NOW_US)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([line for line in POLICY.splitlines() if ": " in line]),
    st.sampled_from(["", "x", "-1", "[]", "{}", "[1, {}]", "~", "1e400", "''", "{a: {b: c}}", "true"]),
)  # fmt: skip
def test_any_value_anywhere_loads_or_is_a_policy_error(line: str, value: str) -> None:
    """Each value of a sound policy replaced by something of another type."""
    key = line.split(": ")[0]
    text = POLICY.replace(line, f"{key}: {value}", 1)
    with contextlib.suppress(PolicyError):
        compile_files([SourceFile(Path("any.yaml"), text.encode())], environ=ENVIRON, now_us=NOW_US)


def test_a_large_file_is_refused_by_name_with_its_limit_and_the_setting(tmp_path: Path) -> None:
    """At one byte more than the setting says, and before it is read."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    size = len(POLICY.encode())
    load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US, file_bytes_max=size)
    with pytest.raises(PolicyError) as caught:
        load_policy([tmp_path], environ=ENVIRON, now_us=NOW_US, file_bytes_max=size - 1)
    (problem,) = caught.value.problems
    assert problem == (
        f"{tmp_path}/policy.yaml: has {size} bytes and a policy file may have {size - 1}: split it,"
        " or raise limits.policy_file_bytes_max in tollhouse.yaml"
    )


def test_mistakes_among_ten_thousand_tenants_are_named_at_their_places(tmp_path: Path) -> None:
    """The list is validated in slices, and nobody can tell."""
    tenants = "".join(f"  - {{id: t{number}, limits: {{rpm: 1}}}}\n" for number in range(10_000))
    text = POLICY + tenants
    policy = load(tmp_path, text)
    assert list(policy.tenants) == ["acme", *(f"t{number}" for number in range(10_000))]
    text = text.replace("{id: t9876, limits: {rpm: 1}}", "{id: t9876, limits: {rpm: few}}")
    text = text.replace("{id: t123, limits", "{id: t123, limit")
    first, second = problems(tmp_path, text)
    start = POLICY.count("\n") + 1
    assert first.startswith(f"{start + 123}:16: tenants.124.limit: unknown key 'limit'")
    assert second.startswith(f"{start + 9876}:31: tenants.9877.limits.rpm: a count reads")


def test_six_thousand_lines_load_in_less_than_a_second(tmp_path: Path) -> None:
    """One route, tenant and test for each of a thousand teams."""
    models, routing, tenants = POLICY.split("---\n")
    head, rest = routing.split("  - name: alias")
    routes = "".join(
        f"  - name: team-{n}\n    match:\n      model: auto\n      tenant: team-{n}\n"
        "    small: small\n    large: large\n"
        for n in range(500)
    )
    many = "".join(
        f"  - id: team-{n}\n    limits:\n      rpm: 60\n    budgets:\n"
        '      - name: monthly\n        amount: "10.00"\n'
        for n in range(500)
    )
    text = "---\n".join([models, f"{head}{routes}  - name: alias{rest}", tenants + many])
    assert text.count("\n") > 6_000
    load(tmp_path)  # prices and CEL are imported
    began = time.perf_counter()
    policy = load(tmp_path, text)
    assert time.perf_counter() - began < 1.0
    assert len(policy.tenants) == 501
