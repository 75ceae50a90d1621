"""`until_then: exam`: the small model answers what an exam of its very file proves, and says so."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.policy.snapshot import LocalRuntime, Match, Model, Provider, QualityTarget, Route
from gateway.policy.targets import Decision
from gateway.upstreams.local_evidence import (
    Proven,
    decide_by_exam,
    kinds_proven,
    named_sha256,
    proven,
)
from gateway.wire.openai import parse_request
from local_models.catalogue import ensure, load_catalogue
from local_models.exam.detect import detect_text
from local_models.exam.evidence import evidence
from local_models.exam.forms import engine_constraint
from local_models.exam.generate import tasks
from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway

MODEL = "smollm2-135m-instruct"
OTHER = "Write two lines about the sea."
# Far below what anybody should ask of a model: a figure that this one is proven to reach somewhere.
QUALITY = 0.2
EXAM_POLICY = POLICY.replace(
    "- {name: onbox, api: local}", f"- {{name: onbox, api: local, runtime: {{model: {MODEL}}}}}"
).replace(
    "target: {quality: 95%, until_then: prior}",
    f"target: {{quality: {QUALITY:.0%}, until_then: exam}}",
)
TARGET = QualityTarget(quality=QUALITY, until_then="exam")
SHA256 = load_catalogue()[MODEL].files["model.gguf"].sha256


def local_model(model: str = "", path: str = "", sha256: str = "") -> Model:
    """A model of a local provider."""
    runtime = LocalRuntime(model=model, path=path, sha256=sha256)
    provider = Provider(name="onbox", api="local", runtime=runtime)
    return Model(name="small", provider=provider, upstream_model=MODEL, prices=None)


def easy_prompt() -> tuple[str, Proven]:
    """A task of the kind that this model's exam proves best, and the proof."""
    kinds = kinds_proven(SHA256, TARGET)
    assert kinds, "the shipped exam proves some kind to a fifth"
    for task in tasks(kinds[0], 50):
        if detect_text(task.prompt) == kinds[0]:
            messages = [{"role": "user", "content": task.prompt}]
            found = proven(SHA256, TARGET, messages, constrained=False)
            assert found is not None
            return task.prompt, found
    raise AssertionError(f"no task of {kinds[0]} is detected")


def ask(gateway: RunningGateway, text: str) -> httpx.Response:
    """Ask auto, as one message."""
    return httpx.post(
        f"{gateway.base_url}/chat/completions",
        json={
            "model": "auto",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 12,
            "temperature": 0,
        },
        headers={"authorization": f"Bearer {gateway.key('globex')}"},
        trust_env=False,
        timeout=30.0,
    )


@pytest.mark.slow
def test_a_proven_kind_goes_small_and_everything_else_large(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """The header names the exam and the kind; the other answer has no such header."""
    prompt, found = easy_prompt()
    with running_gateway(tmp_path, provider.base_url, local=True, policy=EXAM_POLICY) as gateway:
        small, large = ask(gateway, prompt), ask(gateway, OTHER)
    assert small.status_code == large.status_code == 200
    assert small.headers["x-tollhouse-model"] == "small"
    assert small.headers["x-tollhouse-decision"] == f"exam; kind={found.kind}"
    assert large.headers["x-tollhouse-model"] == "large"
    assert "x-tollhouse-decision" not in large.headers


def test_the_reason_says_by_exam_and_never_by_your_traffic() -> None:
    """An admin reads the kind, the bound and how many tasks it rests on."""
    _, found = easy_prompt()
    proof = evidence(SHA256)[found.kind]
    assert found.reason == (
        f"by exam: {found.kind}, at least {proof.bound:.1%} right of {proof.tasks} tasks"
    )
    assert "traffic" not in found.reason


@pytest.mark.parametrize(
    ("sha256", "target"),
    [
        ("", TARGET),  # not known, or not yet
        ("0" * 64, TARGET),
        (SHA256, QualityTarget(quality=0.999, until_then="exam")),
        (SHA256, QualityTarget(quality=QUALITY, confidence=1.0)),
        (SHA256, QualityTarget(cost=0.5)),
    ],
)
def test_a_file_without_an_exam_and_a_target_beyond_it_prove_nothing(
    sha256: str, target: QualityTarget
) -> None:
    """The exam is of one file; no other model, and no higher figure, borrows its counts."""
    prompt, _ = easy_prompt()
    messages = [{"role": "user", "content": prompt}]
    assert proven(sha256, target, messages, constrained=False) is None


@pytest.mark.parametrize(
    ("model", "sha256"),
    [
        (local_model(model=MODEL), SHA256),
        (local_model(path="/models/mine.gguf", sha256="0" * 64), "0" * 64),
        (local_model(path="/models/mine.gguf"), ""),
        (local_model(model="default"), None),
        (local_model(), None),  # whichever tollhouse.yaml names
    ],
)
def test_only_the_process_knows_which_file_a_policy_does_not_pin(
    model: Model, sha256: str | None
) -> None:
    """A pinned file has its digest, an own file without one none, and a default is left open."""
    assert named_sha256(model) == sha256


@pytest.mark.slow
def test_of_the_default_model_the_file_that_its_process_serves_counts(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Here SmolLM2, for nothing else is on the machine; the policy names no file."""
    for name in (MODEL, "all-minilm-l6-v2"):
        for file in load_catalogue()[name].files:
            link = tmp_path / "models" / name / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(ensure(name) / file)
    policy = EXAM_POLICY.replace(f"runtime: {{model: {MODEL}}}", "runtime: {model: default}")
    assert policy != EXAM_POLICY
    prompt, found = easy_prompt()
    with running_gateway(
        tmp_path,
        provider.base_url,
        local=True,
        policy=policy,
        settings="models_dir: models\nmodels: {sources: []}\n",
    ) as gateway:
        answer = ask(gateway, prompt)
        assert f"default: {MODEL} runs on cpu" in gateway.log.read_text()
    assert answer.status_code == 200
    assert answer.headers["x-tollhouse-decision"] == f"exam; kind={found.kind}"
    assert answer.headers["x-tollhouse-model"] == "small"


@pytest.mark.parametrize("messages", [None, "text", [], [None], [{"role": "user"}]])
def test_messages_of_any_shape_are_no_proof(messages: object) -> None:
    """What the client sent is looked at, never trusted."""
    assert proven(SHA256, TARGET, messages, constrained=False) is None


def _form(schema: object) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


@pytest.mark.parametrize(
    ("change", "small"),
    [
        ({"temperature": 0}, True),
        ({}, False),
        ({"temperature": 1}, False),
        ({"temperature": 0, "frequency_penalty": 1}, False),
        ({"temperature": 0, "tools": [{"type": "function", "function": {"name": "f"}}]}, False),
        ({"temperature": 0, "response_format": {"type": "json_object"}}, False),
        ({"temperature": 0, **_form({"type": "object", "properties": {}})}, False),
    ],
)
def test_an_exam_proves_nothing_of_requests_that_it_did_not_ask(
    change: dict[str, Any], small: bool
) -> None:
    """It asked at temperature 0, and with a schema of its own or none."""
    prompt, found = easy_prompt()
    decision = _decided(SHA256, TARGET, {**_body(prompt), **change})
    assert (decision is not None) is small
    if decision is not None:
        assert (decision.exam, decision.reason) == (found.kind, found.reason)


def test_a_form_is_proven_apart() -> None:
    """0.5B, held to a field for the number that is to be copied, is right nearly always."""
    sha256 = load_catalogue()["qwen2.5-coder-0.5b-instruct"].files["model.gguf"].sha256
    target = QualityTarget(quality=0.9, until_then="exam")
    assert "extract_number" in kinds_proven(sha256, target, constrained=True)
    task = next(task for task in tasks("extract_number", 9) if detect_text(task.prompt))
    schema = json.loads(engine_constraint(task.constraint).source)
    decision = _decided(sha256, target, {**_body(task.prompt), "temperature": 0, **_form(schema)})
    assert decision is not None
    assert decision.exam == "extract_number"
    schema["properties"]["reason"] = {"type": "string"}
    asked = {**_body(task.prompt), "temperature": 0, **_form(schema)}
    assert _decided(sha256, target, asked) is None


def _body(prompt: str) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": prompt}]}


def _decided(sha256: str, target: QualityTarget, body: dict[str, Any]) -> Decision | None:
    route = Route(
        name="auto", where="policy.yaml:1", matches=Match(), models=frozenset(), target=target
    )
    return decide_by_exam(sha256, route, parse_request("chat", json.dumps(body).encode()))


def test_policy_explain_says_by_exam(tmp_path: Path) -> None:
    """For the request it is given; and why not, for another one."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(EXAM_POLICY)
    prompt, found = easy_prompt()
    for text, because in (
        (prompt, found.reason),
        (OTHER, "no quality is measured yet, and no exam proves this: large until then"),
    ):
        request = tmp_path / "request.json"
        messages = [{"role": "user", "content": text}]
        body = {"model": "auto", "messages": messages, "temperature": 0}
        request.write_text(json.dumps(body))
        command = ["policy", "explain", str(policy), "--tenant", "globex"]
        shown = CliRunner().invoke(cli, [*command, "--request", str(request)])
        assert shown.exit_code == 0, shown.output
        assert f"because   {because}" in shown.output


def test_policy_explain_says_that_it_cannot_know_which_file_answers(tmp_path: Path) -> None:
    """One sentence, with and without a request."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(EXAM_POLICY.replace(f"runtime: {{model: {MODEL}}}", "runtime: {}"))
    shown = CliRunner().invoke(cli, ["policy", "explain", str(policy), "--tenant", "globex"])
    assert shown.exit_code == 0, shown.output
    assert (
        "because   no quality is measured yet, and which file answers for the small model only its"
        " process knows, so no exam counts here: large until then"
    ) in shown.output
