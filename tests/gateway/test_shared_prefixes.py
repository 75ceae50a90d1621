"""A local model reads what the prompts of one scope have in common once, and of no other scope."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.running import POLICY, ProviderThread, RunningGateway, running_gateway

SYSTEM = "You answer for a library. " + "Books are lent for four weeks, films for one. " * 12
SCOPES = ("tenant", "key", "user", "none")


def policy() -> str:
    """One model under four names: its providers differ in whose requests share."""
    model = POLICY[POLICY.index("  - name: small\n") : POLICY.index("  - name: embedder\n")]
    providers = models = ""
    for scope in SCOPES:
        runtime = f"{{prefix_scope: {scope}}}"
        providers += f"  - {{name: by-{scope}, api: local, runtime: {runtime}}}\n"
        models += model.replace("name: small", f"name: of-{scope}").replace("onbox", f"by-{scope}")
    made = POLICY.replace("models:\n", f"{providers}models:\n", 1)
    made = made.replace("  - name: embedder\n", f"{models}  - name: embedder\n")
    return made.replace("    cache: {exact: {ttl: 1h}}\n", "") + "  - {id: reader}\n"


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """A gateway with SmolLM2 under four names."""
    folder = tmp_path_factory.mktemp("prefixes")
    with running_gateway(folder, provider.base_url, local=True, policy=policy()) as running:
        yield running


def ask(gateway: RunningGateway, key: str, body: dict[str, Any]) -> httpx.Response:
    answer = httpx.post(
        f"{gateway.base_url}/chat/completions",
        json={
            "temperature": 0,
            "max_tokens": 6,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": "When is it open?"},
            ],
            **body,
        },
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


def cached(answer: httpx.Response) -> int:
    tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


@pytest.mark.slow
def test_a_repeated_system_prompt_is_read_once_within_each_scope(gateway: RunningGateway) -> None:
    """Tenant, key, user or nobody: as the policy of the model's provider says."""
    keys = {"red": gateway.key("acme"), "dark": gateway.key("acme"), "blue": gateway.key("globex")}
    asked: dict[str, dict[tuple[str, str | None], bool]] = {
        # (key, user): who shares with the first request
        "tenant": {("red", None): True, ("dark", None): True, ("blue", None): False},
        "key": {("red", None): True, ("dark", None): False, ("blue", None): False},
        "user": {("red", "u"): True, ("red", "v"): False, ("dark", "u"): False},
        "none": {("red", None): False, ("red", "u"): False, ("blue", None): False},
    }
    contents = set()
    for scope, expected in asked.items():
        who = next(iter(expected))
        for (key, user), shares in [(who, False), *expected.items()]:
            body = {"model": f"of-{scope}"} | ({"user": user} if user else {})
            answer = ask(gateway, keys[key], body)
            assert (cached(answer) > 100) is shares, (scope, key, user)
            assert shares or cached(answer) == 0
            contents.add(answer.json()["choices"][0]["message"]["content"])
    assert len(contents) == 1


@pytest.mark.slow
def test_who_names_no_user_shares_with_nobody(gateway: RunningGateway) -> None:
    """Where the scope is the user."""
    key = gateway.key("limited")
    assert [cached(ask(gateway, key, {"model": "of-user"})) for _ in range(2)] == [0, 0]


@pytest.mark.slow
def test_what_was_read_before_is_told_and_booked(gateway: RunningGateway) -> None:
    """In a stream's usage and in the ledger, as a part of the prompt's tokens."""
    key = gateway.key("reader")
    first = ask(gateway, key, {"model": "of-tenant"}).json()["usage"]
    streamed = ask(
        gateway,
        key,
        {"model": "of-tenant", "stream": True, "stream_options": {"include_usage": True}},
    )
    (event,) = gateway.events(streamed.headers["x-request-id"])
    assert event.prompt_tokens == first["prompt_tokens"]
    assert 100 < event.cached_tokens < first["prompt_tokens"]
    assert f'"cached_tokens":{event.cached_tokens}' in streamed.text
