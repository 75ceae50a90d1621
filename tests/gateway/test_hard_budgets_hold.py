"""A hard budget against a provider that bills for all it is sent, as dearly as anybody may."""

import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.gateway.bodies import BODIES, texts_of
from tests.gateway.running import RunningGateway, running_gateway

TENANTS = 60
BUDGET = Decimal("0.2")
FILE_TOKENS = 250_000
PICTURE_TOKENS = 48_169
REFERENCES = frozenset(
    ("file", "file_id", "file_url", "file_data", "input_audio", "audio_url", "video_url")
)
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "responses": "/v1/responses",
}
POLICY = f"""
apiVersion: tollhouse/v1
kind: Models
metadata: {{name: dear}}
providers:
  - name: dear
    api: openai
    base_url: "${{env:TOLLHOUSE_TEST_PROVIDER}}"
    dialects: [chat, messages, responses]
    health: {{min_requests: 100000}}
models:
  - name: m
    provider: dear
    upstream_model: m
    price: {{source: contract, contract_id: T, per_mtok: {{input: "1", output: "10"}}}}
    capabilities: [chat, tools, vision, json_schema, completions]
---
apiVersion: tollhouse/v1
kind: Routing
metadata: {{name: dear}}
routes: [{{name: all, match: {{}}, to: m}}]
---
apiVersion: tollhouse/v1
kind: Tenants
metadata: {{name: dear}}
tenants: [{
    ", ".join(f'{{id: t{n}, budgets: [{{name: b, amount: "{BUDGET}"}}]}}' for n in range(TENANTS))
}]
"""


def bill_for(body: dict[str, Any]) -> tuple[int, int]:
    """(prompt tokens, completion tokens): every byte of text, every picture at full size, a book
    for every reference, and all the output that may be asked for.
    """
    size, pictures = texts_of(body)
    prompt = size + pictures * PICTURE_TOKENS + _references(body) * FILE_TOKENS
    limits = ("max_output_tokens",) if "input" in body else ("max_tokens",)
    output = max((body[name] for name in limits if isinstance(body.get(name), int)), default=9_999)
    return prompt, output * max(body.get("n") or 1, body.get("best_of") or 1)


def _references(value: Any) -> int:
    if isinstance(value, dict):
        named = sum(value.get(name) is not None for name in REFERENCES)
        return named + sum(map(_references, value.values()))
    return sum(map(_references, value)) if isinstance(value, list) else 0


class Dear(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, output = bill_for(body)
        openai = {"prompt_tokens": prompt, "completion_tokens": output}
        typed = {"input_tokens": prompt, "output_tokens": output}
        answer = {
            "choices": [{"index": 0, "text": "x", "finish_reason": "stop",
                         "message": {"role": "assistant", "content": "x"}}],
            "type": "message", "role": "assistant", "content": [{"type": "text", "text": "x"}],
            "output": [], "input_tokens": 1,
            "usage": openai if "messages/" not in self.path and self.path[-1] != "s" else typed,
        }  # fmt: skip
        if self.path.endswith(("/chat/completions", "/completions")):
            answer["usage"] = openai
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def dear_provider() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dear)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder: Path = tmp_path_factory.mktemp("dear")
    with dear_provider() as url, running_gateway(folder, url, policy=POLICY) as running:
        yield running


class Spender:
    """Spends tenant after tenant, and remembers what each was charged."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False, timeout=30
        )
        self.keys = {f"t{n}": gateway.key(f"t{n}") for n in range(TENANTS)}
        self.turns = itertools.cycle(self.keys)
        self.charged: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.statuses: defaultdict[int, int] = defaultdict(int)

    def spend(self, endpoint: str, body: dict[str, Any]) -> httpx.Response:
        tenant = next(self.turns)
        answer = self.client.post(
            PATHS[endpoint],
            content=json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {self.keys[tenant]}",
                "content-type": "application/json",
            },
        )
        self.statuses[answer.status_code] += 1
        self.charged[tenant] += Decimal(answer.headers.get("x-tollhouse-cost-usd", "0"))
        assert self.charged[tenant] <= BUDGET, body
        return answer


@pytest.fixture(scope="module")
def spender(gateway: RunningGateway) -> Iterator[Spender]:
    made = Spender(gateway)
    with made.client:
        yield made


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=BODIES)
def test_no_content_exceeds_a_hard_budget(spender: Spender, drawn: tuple[str, Any]) -> None:
    """Any parts, any fields, any dialect: refused, or charged within what was held for it."""
    answer = spender.spend(*drawn)
    assert answer.status_code in (200, 400, 429), answer.text


def test_the_attack_was_answered_and_refused_both_ways(spender: Spender) -> None:
    """Else it proves nothing."""
    if not spender.statuses:
        pytest.skip("runs after the attack")
    assert spender.statuses[200] > 10
    assert spender.statuses[400] > 10


@pytest.mark.long
@settings(
    max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=BODIES)
def test_no_content_of_very_many_exceeds_a_hard_budget(
    spender: Spender, drawn: tuple[str, Any]
) -> None:
    """Very many contents, drawn at random, are each refused or charged within the sum held."""
    spender.spend(*drawn)


def test_a_limit_reaches_a_provider_that_knows_the_older_name_alone(spender: Spender) -> None:
    """Else it would write as much as it likes, and only what was asked for is held."""
    said = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": said, "max_completion_tokens": 1}
    answer = spender.spend("chat", body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 1


def test_text_that_a_tokenizer_spells_out_is_held_as_such(spender: Spender) -> None:
    """19,800 bytes may be 217,800 tokens, which this budget does not hold."""
    said = [{"role": "user", "content": "\ufdfa" * 6_600}]
    answer = spender.spend("chat", {"model": "m", "messages": said, "max_tokens": 1})
    assert answer.status_code == 429


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        ("chat",
         {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
         "messages[0].content[0].file.file_id"),
        ("chat",
         {"messages": [{"role": "user", "content": [
             {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}]}]},
         "messages[0].content[0].file"),
        ("messages",
         {"messages": [{"role": "user", "content": [
             {"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}]}]},
         "messages[0].content[0].source"),
        ("responses",
         {"input": [{"role": "user", "content": [
             {"type": "input_file", "file_url": "https://a/b.pdf"}]}]},
         "input[0].content[0].file_url"),
    ],
)  # fmt: skip
def test_a_file_of_unknown_size_is_refused_by_name(
    spender: Spender, endpoint: str, body: dict[str, Any], param: str
) -> None:
    """Its tokens cannot be foreseen, and the 400 names the field that brings it."""
    answer = spender.spend(endpoint, {"model": "m", "max_tokens": 1, **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param in error["message"]
    assert error.get("param", param) == param
