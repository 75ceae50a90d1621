"""A whole small policy as text, and how a test changes one place of it."""

from collections.abc import Mapping
from pathlib import Path

from gateway.errors import PolicyError
from gateway.policy.load import load_policy
from gateway.policy.snapshot import Policy, RequestFacts
from gateway.yaml_documents import Problem

NOW_US = 1_790_000_000_000_000
ENVIRON: Mapping[str, str] = {"KEY": "canary-secret-of-the-provider"}

POLICY = """\
apiVersion: tollhouse/v1
kind: Models
metadata: {name: catalogue}
providers:
  - name: big
    api: openai
    base_url: https://api.example.com/v1
    auth: {bearer: "${env:KEY}"}
  - name: onbox
    api: local
models:
  - name: large
    provider: big
    upstream_model: big-1
    price: {source: contract, contract_id: C-1, per_mtok: {input: "2.50", output: "10"}}
    capabilities: [chat, tools]
    context: 400k
  - name: small
    provider: onbox
    upstream_model: smollm2-135m-instruct
    price: {source: internal, amortised: {machine_hour: "0.08"}}
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {name: routing}
defaults: {baseline: large}
routes:
  - name: support
    match: {model: auto, tenant: [acme, "team-*"], tags: {feature: support}}
    small: small
    large: large
    target: {quality: 95%, of: large, until_then: prior}
    cache: {exact: on, semantic: {ttl: 6h, max_wrong: 1%}}
  - name: alias
    match: {model: [gpt-x]}
    to: large
    fallback: [{on: [timeout, 429], to: small}]
  - name: rest
    match: {}
    to: large
tests:
  - name: an easy question may go small
    given:
      {tenant: acme, model: auto, tags: {feature: support}, scores: {p_small: 0.97, p_large: 0.98}}
    expect: {route: support, target: small}
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {name: tenants}
tenants:
  - id: acme
    tags: {unit: care}
    allow_models: [auto, large, gpt-x]
    limits: {rpm: 600, tpm: 400k}
    budgets:
      - {name: monthly, amount: "12.50", timezone: Europe/Berlin}
    charging: {markup: "3%", cache_hits: {charge: 10%}}
"""


class Unresolved(dict[str, str]):
    """An environment that leaves a reference recognisable as one, as an editor sees it."""

    def get(self, name: str, default: object = None) -> str:
        """The reference itself."""
        return f"${{env:{name}}}"


def changed(old: str, new: str, text: str = POLICY) -> str:
    """``text`` with one place changed, which must be there exactly once."""
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)


def load(folder: Path, text: str = POLICY, environ: Mapping[str, str] = ENVIRON) -> Policy:
    """Load a policy of one file, policy.yaml."""
    path = folder / "policy.yaml"
    path.write_text(text)
    return load_policy([path], environ=environ, now_us=NOW_US)


def problems(folder: Path, text: str, environ: Mapping[str, str] = ENVIRON) -> list[str]:
    """The problems of a policy, each as ``line:column: path: message``; [] if it loads."""
    try:
        load(folder, text, environ)
    except PolicyError as error:
        return [_without_file(problem) for problem in error.problems]
    return []


def _without_file(problem: str) -> str:
    assert isinstance(problem, Problem), problem
    return problem.removeprefix(problem.file + ":")


def facts(**changes: object) -> RequestFacts:
    """A short chat request of acme's to ``auto``, varied."""
    ordinary: dict[str, object] = {
        "tenant": "acme", "key": "key_1", "model": "auto", "endpoint": "chat",
        "tags": {"feature": "support"}, "input_tokens": 10, "has_tools": False,
        "has_images": False, "stream": False, "temperature": 1.0,
    }  # fmt: skip
    return RequestFacts(**(ordinary | changes))  # type: ignore[arg-type]  # names and types as above
