"""`until_then: exam`: the small model answers what an exam of its very file proves, and says so."""

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from gateway.cli import cli
from gateway.policy.snapshot import LocalRuntime, Model, Provider, QualityTarget
from gateway.upstreams.local_evidence import Proven, kinds_proven, proven
from local_models.catalogue import load_catalogue
from local_models.exam.detect import detect_text
from local_models.exam.evidence import evidence
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


def local_model(model: str = "", path: str = "", sha256: str = "") -> Model:
    """A model of a local provider."""
    runtime = LocalRuntime(model=model, path=path, sha256=sha256)
    provider = Provider(name="onbox", api="local", runtime=runtime)
    return Model(name="small", provider=provider, upstream_model=MODEL, prices=None)


def easy_prompt() -> tuple[str, Proven]:
    """A task of the kind that this model's exam proves best, and the proof."""
    kinds = kinds_proven(local_model(model=MODEL), TARGET)
    assert kinds, "the shipped exam proves some kind to a fifth"
    for task in tasks(kinds[0], 50):
        if detect_text(task.prompt) == kinds[0]:
            messages = [{"role": "user", "content": task.prompt}]
            found = proven(local_model(model=MODEL), TARGET, messages, constrained=False)
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
    proof = evidence(load_catalogue()[MODEL].files["model.gguf"].sha256)[found.kind]
    assert found.reason == (
        f"by exam: {found.kind}, at least {proof.bound:.1%} right of {proof.tasks} tasks"
    )
    assert "traffic" not in found.reason


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (local_model(), TARGET),  # whichever tollhouse.yaml names: only its process knows
        (local_model(path="/models/mine.gguf"), TARGET),
        (local_model(path="/models/mine.gguf", sha256="0" * 64), TARGET),
        (local_model(model="all-minilm-l6-v2"), TARGET),
        (local_model(model=MODEL), QualityTarget(quality=0.999, until_then="exam")),
        (local_model(model=MODEL), QualityTarget(quality=QUALITY, confidence=1.0)),
        (local_model(model=MODEL), QualityTarget(cost=0.5)),
    ],
)
def test_a_file_without_an_exam_and_a_target_beyond_it_prove_nothing(
    model: Model, target: QualityTarget
) -> None:
    """The exam is of one file; no other model, and no higher figure, borrows its counts."""
    prompt, _ = easy_prompt()
    messages = [{"role": "user", "content": prompt}]
    assert proven(model, target, messages, constrained=False) is None


@pytest.mark.parametrize("messages", [None, "text", [], [None], [{"role": "user"}]])
def test_messages_of_any_shape_are_no_proof(messages: object) -> None:
    """What the client sent is looked at, never trusted."""
    assert proven(local_model(model=MODEL), TARGET, messages, constrained=False) is None


def test_policy_explain_says_by_exam(tmp_path: Path) -> None:
    """For the request it is given; and why not, for another one."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(EXAM_POLICY)
    prompt, found = easy_prompt()
    for text, because in (
        (prompt, found.reason),
        (OTHER, "no quality is measured yet, and no exam proves this: large (until_then)"),
    ):
        request = tmp_path / "request.json"
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        request.write_text(json.dumps(body))
        command = ["policy", "explain", str(policy), "--tenant", "globex"]
        shown = CliRunner().invoke(cli, [*command, "--request", str(request)])
        assert shown.exit_code == 0, shown.output
        assert f"because   {because}" in shown.output
