"""What an editor calls right, by the shipped JSON Schema, is what the gateway accepts.

Every option is tried with values of its own, with random spellings of numbers, counts, durations,
shares, money, booleans, words and names, and with values of other kinds.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Settings, load_settings
from gateway.errors import PolicyError
from gateway.policy.load import load_policy
from gateway.policy.reference import options, policy_schema, settings_schema
from gateway.policy.schema import KINDS
from gateway.yaml_documents import Problem, parse_documents, validate
from tests.gateway.policy.policy_texts import NOW_US, Unresolved

PEM = "${env:PEM}"
HASH = "hmac-sha256:" + "0" * 64
BASE: dict[str, dict[str, Any]] = {
    "Models": {
        "metadata": {"name": "m", "owner": "us"},
        "providers": [
            {
                "name": "p",
                "api": "openai",
                "base_url": "https://api.example.com/v1",
                "dialects": ["chat"],
                "auth": {"bearer": "${env:KEY}"},
                "simulated": False,
                "timeouts": {"connect": "2s", "first_byte": "5m", "idle": "5m", "total": "10m"},
                "health": {"window": "30s", "min_requests": 20, "error_rate": "50%", "eject": "1m"},
                "limits": {"concurrent": 8, "per_tenant": "80%"},
                "network": {"proxy": "http://proxy.example:3128"},
            },
            {
                "name": "q",
                "api": "azure",
                "base_url": "https://q.openai.azure.com",
                "api_version": "2024-10-21",
                "auth": {"key": "${env:KEY}"},
            },
            {
                "name": "l",
                "api": "local",
                "runtime": {
                    "model": "smollm2-135m-instruct",
                    "slots": 4,
                    "context": 2048,
                    "device": "cpu",
                    "ends_nonsense": True,
                    "prefix_scope": "key",
                },
            },
            {
                "name": "f",
                "api": "local",
                "runtime": {"path": "/models/x.gguf", "sha256": "0" * 64},
            },
            {
                "name": "h",
                "api": "local",
                "runtime": {"hub": "owner/repo@" + "0" * 40 + "/x.gguf"},
            },
        ],
        "models": [
            {
                "name": "big",
                "provider": "p",
                "upstream_model": "u",
                "vendor_model": "v",
                "price": {
                    "source": "contract",
                    "provider": "x",
                    "contract_id": "C",
                    "currency": "USD",
                    "effective_from": "2026-01-01",
                    "per_mtok": {"input": "1", "output": "2.5"},
                    "per_thousand": {"request": "1"},
                    "tiers": [{"when_input_over": "200k", "multiply": {"input": "2"}}],
                    "service_tiers": [{"name": "flex", "multiply": {"output": "0.5"}}],
                },
                "capabilities": ["chat"],
                "context": "400k",
                "max_output": 1000,
                "limit_field": "max_tokens",
            },
            {
                "name": "small",
                "provider": "l",
                "upstream_model": "smollm2-135m-instruct",
                "price": {
                    "source": "internal",
                    "amortised": {
                        "machine_hour": "0.08",
                        "currency": "USD",
                        "allocate_by": "compute_seconds",
                    },
                },
            },
        ],
    },
    "Routing": {
        "metadata": {"name": "r", "owner": "us"},
        "defaults": {"baseline": "big"},
        "routes": [
            {
                "name": "one",
                "match": {"model": ["x"], "tenant": ["t"], "tags": {"a": "b"}, "when": "true"},
                "to": "big",
                "always_large": {
                    "tools": True,
                    "images": True,
                    "json_schema": True,
                    "prompt_tokens_over": 6000,
                },
                "fallback": [{"on": ["5xx"], "to": ["small"]}],
                "cache": {
                    "exact": {"ttl": "1h", "scope": "tenant", "sampled": "allow"},
                    "semantic": {
                        "ttl": "1h",
                        "max_wrong": "1%",
                        "of": "hits",
                        "skip_when": "request.stream",
                    },
                },
            },
            *(
                {
                    "name": f"by-{aim}",
                    "match": {"model": "auto", "tags": {"aim": aim}},
                    "small": "small",
                    "large": "big",
                    "target": {
                        aim: "90%",
                        "of": "large",
                        "confidence": 0.9,
                        "until_then": "large",
                    },
                }
                for aim in ("quality", "cost", "large_share")
            ),
            {"name": "rest", "match": {}, "to": "big"},
        ],
        "tests": [
            {
                "name": "it goes",
                "given": {
                    "tenant": "t",
                    "model": "big",
                    "tags": {"a": "b"},
                    "messages": [{"role": "user", "content": "hello"}],
                    "tools": 0,
                    "images": 0,
                    "json_schema": False,
                    "stream": False,
                    "temperature": 1.0,
                    "scores": {"p_small": 0.5, "p_large": "50%"},
                },
                "expect": {"route": "rest", "target": "big"},
            }
        ],
    },
    "Tenants": {
        "metadata": {"name": "t", "owner": "us"},
        "tenants": [
            {
                "id": "t",
                "name": "T",
                "cost_center": "1",
                "tags": {"a": "b"},
                "required_tags": ["a"],
                "allow_models": ["big"],
                "limits": {"rpm": 60, "tpm": "1M", "concurrent": 4, "max_output_tokens": "4k"},
                "budgets": [
                    {
                        "name": "m",
                        "amount": "10.00",
                        "currency": "USD",
                        "period": "day",
                        "timezone": "UTC",
                        "enforce": "hard",
                        "on_exceeded": "downgrade",
                        "downgrade_to": "small",
                        "match": {"tags": {"a": "b"}},
                    }
                ],
                "charging": {
                    "markup": "3%",
                    "cache_hits": {"charge": "10%"},
                    "failures": "possible",
                },
                "cors": {"origins": ["https://app.example"]},
                "keys": [
                    {
                        "id": "k",
                        "hash": HASH,
                        "project": "p",
                        "expires": "2027-06-30",
                        "tags": {"a": "b"},
                    }
                ],
            }
        ],
    },
}
# More of the same keys, where one provider cannot have them all.
BASE["Models"]["providers"].append(
    BASE["Models"]["providers"][0]
    | {"name": "c", "network": {"ca_file": "/ca.pem", "client_cert": PEM, "client_key": PEM}}
)
# An editor cannot know these: addresses, and what hangs together with another key.
UNCHECKED = {"redis.url", "workers", "providers[].network.proxy"}

WORDS = [
    "exam",
    "on", "off", "yes", "no", "y", "n", "true", "false", "True", "FALSE", "'true'", "'on'", "'off'",
    "~", "null", "''", "'null'", "auto", "allow", "deny", "large", "prior", "hard", "soft", "chat",
    "day", "calendar_month", "USD", "EUR", "tenant", "user", "text", "json", "debug", "DEBUG",
    "process", "power", "5xx", "429", "'429'", "404", "503", "timeout", "Timeout", "[5xx, 429]",
    "[timeout, '404']", "[429, 429]", "[503]", "[]", "{}", "[a]", "[[]]", "{a: b}", "{a: 1}",
    "{a: {}}", "[1]", "[~]", "*x", "'*'", "gpt-*", "[gpt-*, b]", "a b", "'a\"b'", "-a", "a/b:c",
    "2026-10-01", "12:30", "2026-10-01T00:00:00Z", "https://a.example", "[https://a.example]",
    "['*']", "[HTTPS://A.example]", "[https://a.example/x]", "request.stream",
    HASH, HASH[:-1], "{input: '1', output: '2'}", "{input: 1}", "{reasoning: '1.5'}",
    "{request: '10'}", "{inputs: '1'}", "[chat, tools]", "[chat, smell]", "[messages]", ".inf",
    ".nan", "1e400", "0x10", "0o17", "1_000", "+5", "-1", "0", "007", "65536", "1.", ".5",
]  # fmt: skip
_NUMBER = st.one_of(
    st.integers(-3, 2_000_000).map(str),
    st.floats(0, 3, allow_nan=False).map(lambda number: f"{number:g}"),
    st.sampled_from(["400.0", "1e3", "1e6", "2.5", "0.05", "00", "1,5", "1.50", "10000000000000"]),
)
_UNIT = st.sampled_from(
    ["", "k", "K", "M", "G", "KiB", "MiB", " k", "kB", "ms", "s", "m", "h", "d", "w", " s", "sec",
     "%", " %", "%%", "$", " USD"]
)  # fmt: skip
_QUOTED = st.booleans()


@st.composite
def spellings(draw: st.DrawFn, own: list[str]) -> str:
    """A value as YAML text: one of the option's own, a word, or a number with some unit."""
    if draw(st.booleans()):
        return draw(st.sampled_from([*own, *WORDS]))
    text = draw(_NUMBER) + draw(_UNIT)
    return f"'{text}'" if draw(_QUOTED) or "," in text or "%%" in text else text


def leaves() -> Iterator[tuple[str, str, list[str]]]:
    """Kind, key, and values of its own as YAML, of every option."""
    kinds = {**KINDS, "settings": Settings}
    for kind, model in kinds.items():
        schema = model.model_json_schema()
        for key, prop, _ in options(schema):
            if prop.get("description") != "As in a route.":
                yield kind, key, [json.dumps(value) for value in _own(prop)]


def _own(prop: Any) -> Iterator[Any]:
    """The words that an option takes, a reference where it takes one, and the ends of numbers."""
    if isinstance(prop, dict):
        yield from prop.get("enum", ())
        for end, beyond in (("minimum", -1), ("maximum", 1)):
            if isinstance(prop.get(end), int):
                yield from (prop[end], prop[end] + beyond)
        if "env|file" in str(prop.get("pattern")):
            yield "${env:KEY}"
        for inner in prop.values():
            yield from _own(inner)
    elif isinstance(prop, list):
        for inner in prop:
            yield from _own(inner)


def placed(kind: str, key: str, text: str) -> tuple[str, str]:
    """A document with ``text`` at the option, and the dotted path of that place."""
    base = {"apiVersion": "tollhouse/v1", "kind": kind, **BASE[kind]} if kind in KINDS else {}
    document, path = _place(base, key.split("."), ())
    return json.dumps(document).replace('"@@"', text), ".".join(path)


def _place(value: Any, keys: list[str], path: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    if not keys:
        return "@@", path
    name, rest = keys[0].removesuffix("[]"), keys[1:]
    if not keys[0].endswith("[]"):
        inner, where = _place(value.get(name, {}), rest, (*path, name))
        return {**value, name: inner}, where
    number = next(n for n, entry in enumerate(value[name]) if _has(entry, rest))
    inner, where = _place(value[name][number], rest, (*path, name, str(number)))
    # Of a list no more than the entry in question: the rest is as it is in every example.
    before = value[name][:number]
    return {**value, name: [*before, inner]}, where


def _has(value: Any, keys: list[str]) -> bool:
    if not keys:
        return True
    inner = value.get(keys[0].removesuffix("[]")) if isinstance(value, dict) else None
    if keys[0].endswith("[]"):
        return any(_has(entry, keys[1:]) for entry in inner or ())
    return inner is not None and _has(inner, keys[1:])


def refusals(kind: str, text: str, path: str, folder: Path) -> list[Problem]:
    """What the gateway says of the value at ``path`` or inside it."""
    try:
        if kind == "settings":
            (folder / "tollhouse.yaml").write_text(text)
            load_settings(folder / "tollhouse.yaml", environ={})
        else:
            (document,) = parse_documents(text.encode(), Path("x.yaml"), {"KEY": "k", "PEM": "p"})
            validate(document, KINDS[kind])
    except PolicyError as error:
        return [
            problem
            for problem in error.problems
            if isinstance(problem, Problem) and f"{problem.path}.".startswith(f"{path}.")
        ]
    return []


@pytest.mark.parametrize(
    ("kind", "key", "own"), [*leaves()], ids=lambda part: part if isinstance(part, str) else ""
)
def test_an_editor_and_the_gateway_accept_the_same(
    kind: str, key: str, own: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither refuses what the other takes, but for what depends on another key or on its sum."""
    schema = policy_schema() if kind in KINDS else settings_schema()
    editor = jsonschema.Draft202012Validator(schema)
    folder = tmp_path_factory.mktemp("settings")

    def try_spelling(spelling: str) -> None:
        text, path = placed(kind, key, spelling)
        try:
            (seen,) = parse_documents(text.encode(), Path("x.yaml"), Unresolved())
        except PolicyError:
            return  # no YAML, for either
        red = not editor.is_valid(seen.value)
        refused = refusals(kind, text, path, folder)
        if red:
            assert refused, f"{key}: {spelling} is red in an editor and taken by the gateway"
        elif refused and key not in UNCHECKED:
            amounts = all(
                problem.message.startswith(("must be ", "a count is a whole number"))
                and ", not the text" in problem.message
                for problem in refused
            )
            assert amounts, f"{key}: {spelling} is right in an editor, and refused: {refused}"

    for spelling in own:
        try_spelling(spelling)
    settings(max_examples=12, deadline=None, database=None)(given(spellings(own))(try_spelling))()


def test_what_every_example_begins_with_is_accepted(tmp_path: Path) -> None:
    """By ``policy check``'s loader and by editors: else the comparison would prove nothing."""
    editor = jsonschema.Draft202012Validator(policy_schema())
    models = {**BASE["Models"], "providers": BASE["Models"]["providers"][:-1]}  # no such ca_file
    for kind, base in {**BASE, "Models": models}.items():
        value = {"apiVersion": "tollhouse/v1", "kind": kind, **base}
        editor.validate(value)
        (tmp_path / f"{kind}.yaml").write_text(json.dumps(value))
    environ = {"KEY": "k", "PEM": "p"}
    assert load_policy([tmp_path], environ=environ, now_us=NOW_US).tenants.keys() == {"t"}
