"""The gateway's side of the model process: real process, real models, OpenAI's own types."""

import asyncio
import base64
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import (
    GatewayError,
    UpstreamNonsense,
    UpstreamOverloaded,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.upstreams.base import COMPUTE_HEADER, Upstream, UpstreamRequest, UpstreamResponse
from gateway.upstreams.local import LocalUpstream, ModelProcessClient
from gateway.upstreams.local_labels import score_labels
from gateway.upstreams.local_openai import read_call, refusal
from local_models.catalogue import ensure
from local_models.embedder import Embedder
from local_models.messages import Delta, Finished, GenerationRequest, SamplingParams

GENERATION, EMBEDDING = "smollm2-135m-instruct", "all-minilm-l6-v2"
CHAT = {"messages": [{"role": "user", "content": "Name three rivers."}], "temperature": 0}
ENDLESS = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"


def start(path: Path, *, models: bool = True) -> subprocess.Popen[bytes]:
    """A model process; without models it is there at once."""
    command = [sys.executable, "-m", "local_models.server", "--socket", str(path), "--threads", "1"]
    if models:
        command += ["--generation", GENERATION, "--embedding", EMBEDDING]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM must suffice."""
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Socket of a process that all tests of this file share."""
    ensure(GENERATION)
    Embedder.load(ensure(EMBEDDING))
    path = tmp_path_factory.mktemp("local") / "p.sock"
    process = start(path)
    yield path
    end(process)


@pytest.fixture
async def client(path: Path) -> AsyncIterator[ModelProcessClient]:
    """Connected, with both models ready."""
    client = ModelProcessClient(path, "worker-0")
    client.start()
    await client.until_ready("embedding", timeout_seconds=30)
    await client.until_ready("generation", timeout_seconds=30)
    yield client
    await client.close()


@pytest.fixture
def upstream(client: ModelProcessClient) -> Upstream:
    """The generation model as the gateway sees it."""
    return LocalUpstream("local", client, GENERATION)


@pytest.fixture
def embeddings(client: ModelProcessClient) -> Upstream:
    """The embedding model as the gateway sees it."""
    return LocalUpstream("local", client, EMBEDDING)


def request(path: str, body: Any, *, seconds: float = 30.0) -> UpstreamRequest:
    """One attempt with all deadlines ``seconds`` away."""
    deadline = time.monotonic() + seconds
    return UpstreamRequest(
        request_id="r1",
        path=path,
        body=body if isinstance(body, bytes) else orjson.dumps(body),
        stream=isinstance(body, dict) and bool(body.get("stream")),
        first_byte_deadline=deadline,
        idle_seconds=seconds,
        deadline=deadline,
    )


async def read(response: UpstreamResponse) -> bytes:
    """All bytes of an answer."""
    received = b""
    while chunk := await response.receive():
        received += chunk
    return received


async def document(upstream: Upstream, path: str, **body: Any) -> Any:
    """The JSON of an answer that does not stream."""
    return orjson.loads(await read(await upstream.send(request(path, body))))


def events(stream: bytes) -> list[Any]:
    """The data of each event; the last one must be the end mark."""
    blocks = stream.split(b"\n\n")
    assert blocks[-2:] == [b"data: [DONE]", b""]
    assert all(block.startswith(b"data: ") for block in blocks[:-1])
    return [orjson.loads(block[6:]) for block in blocks[:-2]]


async def until(condition: Any) -> None:
    """Poll an async condition; fail after 20 seconds."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the state is another process's
            await asyncio.sleep(0.01)


def endless(max_tokens: int = 1000) -> GenerationRequest:
    """A generation that goes on until it is cancelled or has its tokens."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    return GenerationRequest(request_id="endless", params=params, prompt=ENDLESS)


async def test_a_chat_completion_is_what_openai_s_types_expect(upstream: Upstream) -> None:
    """Parsed strictly by the official client's model; a header carries the processor time."""
    response = await upstream.send(request("/chat/completions", {**CHAT, "max_tokens": 8}))
    raw = await read(response)
    answer = ChatCompletion.model_validate_json(raw, strict=True)
    headers = dict(response.headers)
    assert (response.status, headers[b"content-type"]) == (200, b"application/json")
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert int(headers[COMPUTE_HEADER]) > 0


async def test_a_stream_has_the_same_text_as_the_document(upstream: Upstream) -> None:
    """Role first, text, reason, usage, end mark; each chunk parses in the official client."""
    body = {**CHAT, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = await document(upstream, "/chat/completions", **body)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await upstream.send(request("/chat/completions", {**body, **options}))
    assert dict(response.headers)[b"content-type"].startswith(b"text/event-stream")
    chunks = events(await read(response))
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(orjson.dumps(chunk), strict=True)
    first, *middle, last, usage = chunks
    assert first["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == whole["choices"][0]["message"]["content"]
    logprobs = [token for chunk in middle for token in chunk["choices"][0]["logprobs"]["content"]]
    shown = [token["token"] for token in whole["choices"][0]["logprobs"]["content"]]
    assert [token["token"] for token in logprobs] == shown
    assert last["choices"][0] == {
        "index": 0,
        "logprobs": None,
        "finish_reason": "length",
        "delta": {},
    }
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 20
    assert "tollhouse" not in usage["usage"], "processor time is no business of a client's"


@pytest.mark.parametrize("stream", [False, True])
async def test_processor_time_is_told_beside_the_answer_once_it_has_ended(
    upstream: Upstream, stream: bool
) -> None:
    """A local answer's cost is its CPU time, which must be known for streams as well."""
    asked = request("/chat/completions", {**CHAT, "max_tokens": 3, "stream": stream})
    response = await upstream.send(asked)
    await read(response)
    assert int(response.header(COMPUTE_HEADER) or 0) > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_bears_the_name_that_can_be_asked_for_and_an_id_without_slash(
    upstream: Upstream, stream: bool
) -> None:
    """The client sees the policy's model name, and one id whichever attempt answered."""
    asked = msgspec.structs.replace(
        request("/chat/completions", {**CHAT, "max_tokens": 3, "stream": stream}),
        model="small",
        request_id="01R/2",
    )
    answered = await read(await upstream.send(asked))
    assert b'"model":"small"' in answered
    assert b'"id":"chatcmpl-01R"' in answered


async def test_without_include_usage_no_chunk_speaks_of_usage(upstream: Upstream) -> None:
    """As OpenAI's own streams."""
    body = {**CHAT, "max_tokens": 3, "stream": True}
    chunks = events(await read(await upstream.send(request("/chat/completions", body))))
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_logprobs_are_logarithms_with_their_bytes(upstream: Upstream) -> None:
    """The chosen token of greedy decoding is the best of its alternatives."""
    answer = await document(
        upstream, "/chat/completions", **CHAT, max_tokens=6, logprobs=True, top_logprobs=3
    )
    tokens = answer["choices"][0]["logprobs"]["content"]
    content = b"".join(bytes(token["bytes"]) for token in tokens)
    assert content.decode() == answer["choices"][0]["message"]["content"]
    for token in tokens:
        best = token["top_logprobs"][0]
        assert (best["token"], best["logprob"]) == (token["token"], token["logprob"])
        assert sum(math.exp(other["logprob"]) for other in token["top_logprobs"]) <= 1.0001
        assert len(token["top_logprobs"]) == 3


async def test_a_text_completion_in_both_forms(upstream: Upstream) -> None:
    """The older endpoint: text, logprobs as parallel lists, no role chunk."""
    body = {"prompt": ENDLESS, "max_tokens": 10, "temperature": 0, "logprobs": 2}
    whole = await document(upstream, "/completions", **body)
    Completion.model_validate_json(orjson.dumps(whole), strict=True)
    logprobs = whole["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == whole["choices"][0]["text"]
    assert logprobs["text_offset"][0] == 0
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 10
    response = await upstream.send(request("/completions", {**body, "stream": True}))
    chunks = events(await read(response))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_stop_strings_and_seeds_are_honoured(upstream: Upstream) -> None:
    """The stop string itself is not shown; one seed gives one answer."""
    body = {"prompt": ENDLESS, "max_tokens": 40, "temperature": 0, "stop": [" 14"]}
    choice = (await document(upstream, "/completions", **body))["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "14" not in choice["text"]
    body = {**CHAT, "max_tokens": 12, "temperature": 1.5, "seed": 7}
    one, two = [await document(upstream, "/chat/completions", **body) for _ in range(2)]
    assert one["choices"] == two["choices"]


async def test_several_answers_at_once_do_not_mix(upstream: Upstream) -> None:
    """Eight streams of different lengths, read in turn."""
    bodies = [{"prompt": ENDLESS, "max_tokens": n, "temperature": 0} for n in range(1, 9)]
    answers = await asyncio.gather(*(document(upstream, "/completions", **body) for body in bodies))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == list(range(1, 9))


def function(name: str, parameters: Any = None) -> dict[str, Any]:
    """A tool."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def schema_format(schema: Any) -> dict[str, Any]:
    """A response_format of this JSON Schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def test_answers_have_the_form_that_was_asked_for(upstream: Upstream) -> None:
    """JSON by a schema, any JSON object, a choice, a regex; in a stream, too."""
    schema = {
        "type": "object",
        "properties": {"river": {"type": "string", "maxLength": 12}, "km": {"type": "integer"}},
        "required": ["river", "km"],
        "additionalProperties": False,
    }
    asked = {**CHAT, "max_tokens": 60, "temperature": 0.7, "seed": 1}
    for form in (schema_format(schema), {"type": "json_object"}):
        choice = (await document(upstream, "/chat/completions", **asked, response_format=form))[
            "choices"
        ][0]
        assert isinstance(orjson.loads(choice["message"]["content"]), dict)
        assert choice["finish_reason"] == "stop"
    body = {**asked, "response_format": schema_format(schema), "stream": True}
    chunks = events(await read(await upstream.send(request("/chat/completions", body))))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert set(orjson.loads(text)) == {"river", "km"}
    for form, wanted in (
        ({"choice": ["Nile", "Rhine"]}, "Nile|Rhine"),
        ({"regex": "[A-Z][a-z]{2,8}"}, "[A-Z][a-z]{2,8}"),
        ({"json": {"enum": [1, 2]}}, "1|2"),
    ):
        answer = await document(upstream, "/chat/completions", **asked, structured_outputs=form)
        assert re.fullmatch(wanted, answer["choices"][0]["message"]["content"])


async def test_a_form_that_only_the_grammar_can_judge_is_refused_too(upstream: Upstream) -> None:
    """By the model process: a 400, like what is refused before it is asked."""
    body = {**CHAT, "structured_outputs": {"regex": "(?=a)"}}
    with pytest.raises(UpstreamStatus, match="look-ahead") as caught:
        await upstream.send(request("/chat/completions", body))
    assert (caught.value.status, caught.value.unsent) == (400, True)


async def test_a_model_whose_template_has_no_tools_says_so(upstream: Upstream) -> None:
    """A 400 that costs nothing, so the next target is asked."""
    with pytest.raises(UpstreamStatus, match="no place for tools") as caught:
        await upstream.send(request("/chat/completions", {**CHAT, "tools": [function("f")]}))
    assert (caught.value.status, caught.value.unsent) == (400, True)
    body = {**CHAT, "tools": [function("f")], "tool_choice": "none", "max_tokens": 4}
    answer = await document(upstream, "/chat/completions", **body)
    assert answer["choices"][0]["message"]["content"]


async def test_several_choices_are_those_of_their_own_seeds(upstream: Upstream) -> None:
    """n answers, numbered; the prompt counts once; a stream carries the same."""
    asked = {**CHAT, "max_tokens": 8, "temperature": 1.2}
    alone = [
        await document(upstream, "/chat/completions", **asked, seed=seed) for seed in (3, 4, 5)
    ]
    answer = await document(upstream, "/chat/completions", **asked, seed=3, n=3)
    ChatCompletion.model_validate_json(orjson.dumps(answer), strict=True)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == [one["choices"][0]["message"]["content"] for one in alone]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)
    body = {**asked, "seed": 3, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    chunks = events(await read(await upstream.send(request("/chat/completions", body))))
    assert chunks[-1]["usage"] == usage
    streamed = ["", "", ""]
    for chunk in chunks[:-1]:
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]].count(None) > 3


async def test_a_closed_stream_of_several_choices_frees_every_slot(
    upstream: Upstream, client: ModelProcessClient
) -> None:
    """None of them writes on for nobody."""
    body = {"prompt": ENDLESS, "max_tokens": 1500, "temperature": 0, "stream": True, "n": 3}
    response = await upstream.send(request("/completions", body))
    assert await response.receive()
    response.close()

    async def free() -> bool:
        return (await client.stats()).generations == 0

    await until(free)


async def test_an_answer_that_loops_is_ended_and_said_to_be(client: ModelProcessClient) -> None:
    """Whole: another target may be asked. In a stream: after what was shown, never as its end."""
    watched = LocalUpstream("local", client, GENERATION, ends_nonsense=True)
    question = {"role": "user", "content": "List the animals of the world."}
    body = {"messages": [question], "max_tokens": 700, "temperature": 0}
    with pytest.raises(UpstreamNonsense, match="repeated itself"):
        await watched.send(request("/chat/completions", body))
    response = await watched.send(request("/chat/completions", {**body, "stream": True}))
    shown = b""
    with pytest.raises(UpstreamNonsense):
        while True:
            shown += await response.receive()
    assert b"Animal" in shown
    assert b"[DONE]" not in shown


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"response_format": schema_format({"type": "object"})}, None),
        ({"response_format": schema_format({"uniqueItems": True})}, "uniqueItems"),
        ({"tools": [function("f")], "tool_choice": "required"}, None),
        ({"tools": [function("f", {"not": {}})]}, "schema.not"),
        ({"n": 8, "presence_penalty": 1}, None),
        ({"n": 9}, "n must be"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"response_format": schema_format({"format": []})}, "schema.format"),
        ({"structured_outputs": {"json": '{"multipleOf": 1e999}'}}, "schema.multipleOf"),
        ({"structured_outputs": {"json": '{"\\ud800": 1}'}}, "schema.?"),
    ],
)
def test_a_router_hears_what_cannot_be_served_before_it_chooses(
    fields: dict[str, Any], told: str | None
) -> None:
    """The same checks as of the request itself, without a model."""
    reason = refusal({**CHAT, **fields}, chat=True)
    assert reason is None if told is None else told in (reason or "")


def test_the_largest_seed_leaves_room_for_several_answers() -> None:
    """Seeds travel in 64 bits: the one after the largest is 0."""
    body = {**CHAT, "seed": 2**64 - 1, "n": 2}
    call = read_call(
        body, chat=True, request_id="r", model="m", context_tokens=64, deadline=1.0
    )  # fmt: skip
    assert [each.params.seed for each in call.requests] == [2**64 - 1, 0]
    assert msgspec.msgpack.encode(call.requests)


async def test_labels_are_scored_with_calibration(client: ModelProcessClient) -> None:
    """Each judged text asks four times; the probabilities are of the labels alone."""
    found = []
    for text in ("I love it, wonderful and great!", "I hate it, awful and terrible!"):
        prompts = [f"Is this positive or negative? {each}" for each in (text, "N/A", "", "[MASK]")]
        asked: dict[str, Any] = {"request_id": "r", "deadline": time.monotonic() + 30}
        labels = ("positive", "negative")
        plain = await score_labels(client, prompts[:1], labels, **asked)
        scored = await score_labels(client, prompts, labels, **asked)
        assert math.isclose(sum(scored.probabilities), 1)
        assert scored.tokens > 3 * plain.tokens / 2
        assert scored.compute_us > plain.compute_us > 0
        found.append(scored.probabilities[0])
    assert found[0] > found[1]
    with pytest.raises(UpstreamStatus, match="labels must differ"):
        await score_labels(client, prompts, ("a", "a"), **asked)


async def test_penalties_and_biases_change_the_answer(upstream: Upstream) -> None:
    """A token with a bias of 100 is the only one; a penalty forbids what was said."""
    asked = {**CHAT, "max_tokens": 6, "temperature": 0}
    biased = await document(upstream, "/chat/completions", **asked, logit_bias={"260": 100})
    text = biased["choices"][0]["message"]["content"]
    assert text
    assert text == text[: len(text) // 6] * 6
    both = {"logit_bias": {"260": 100, "261": 99}, "frequency_penalty": 2}
    penalized = await document(upstream, "/chat/completions", **asked, **both)
    assert penalized["choices"][0]["message"]["content"] != text


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        ("tools[0].function", {"tools": [{"type": "function", "function": {}}]}),
        ("tools", {"tools": [function("f g")]}),
        ("tools", {"tools": [function("f", {"not": {}})]}),
        ("tools", {"tools": [function("f")], "response_format": {"type": "json_object"}}),
        ("tool_choice", {"tools": [function("f")], "tool_choice": "any"}),
        (
            "tool_choice",
            {
                "tools": [function("f")],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
        ),
        ("tool_choice", {"tool_choice": "required"}),
        ("n", {"n": 9}),
        ("n", {"n": 0}),
        (
            "response_format.json_schema.schema",
            {"response_format": {"type": "json_schema", "json_schema": {}}},
        ),
        ("response_format.type", {"response_format": {"type": "grammar"}}),
        ("response_format", {"response_format": schema_format({"uniqueItems": True})}),
        ("structured_outputs", {"structured_outputs": {}}),
        ("structured_outputs", {"structured_outputs": {"choice": []}}),
        ("structured_outputs.grammar", {"structured_outputs": {"grammar": "x"}}),
        (
            "structured_outputs",
            {
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
        ),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("logit_bias", {"logit_bias": {"50": 101}}),
        ("presence_penalty", {"presence_penalty": 2.5}),
        ("temperature", {"temperature": 3}),
        ("temperature", {"temperature": True}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("stop", {"stop": [str(n) for n in range(65)]}),
        ("stop", {"stop": "a" * 1_025}),
        ("stop", {"stop": 5}),
        ("seed", {"seed": "x"}),
        ("messages", {"messages": []}),
        ("messages", {"messages": None}),
        ("messages[0].role", {"messages": [{"role": "function", "content": "x"}]}),
        ("messages[0].role", {"messages": ["x"]}),
        ("messages[0].role", {"messages": [{"role": {}, "content": "x"}]}),
        ("response_format", {"response_format": schema_format({"format": {}})}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        (
            "messages[0].content",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        ),
        ("messages[0].tool_calls[0]", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
        ("stream_options", {"stream_options": "x"}),
    ],
)
async def test_what_the_local_model_cannot_honour_is_refused_by_name(
    upstream: Upstream, field: str, body: dict[str, Any]
) -> None:
    """A 400 before anything was computed, so that another target may be tried for free."""
    with pytest.raises(UpstreamStatus) as caught:
        await upstream.send(request("/chat/completions", {**CHAT, **body}))
    assert (caught.value.status, caught.value.param) == (400, field)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.unsent


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_json_object_is_refused(upstream: Upstream, body: bytes) -> None:
    """Never an unhandled exception."""
    with pytest.raises(UpstreamStatus, match="body"):
        await upstream.send(request("/chat/completions", body))


async def test_fields_that_change_nothing_are_passed_over(upstream: Upstream) -> None:
    """What clients send by default must not cost them the local answer."""
    harmless = {
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "frequency_penalty": 0,
        "user": "u",
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "stop": ["", "\u0000never"],
        "top_p": 0,
        "store": False,
    }
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    body = {"messages": messages, "max_completion_tokens": 2, **harmless}
    answer = await document(upstream, "/chat/completions", **body)
    assert answer["usage"]["completion_tokens"] <= 2


async def test_a_prompt_over_the_window_says_so_in_openai_s_code(upstream: Upstream) -> None:
    """Clients shorten their history on this code."""
    body = {"messages": [{"role": "user", "content": "river " * 4000}]}
    with pytest.raises(UpstreamStatus) as caught:
        await upstream.send(request("/chat/completions", body))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


async def test_a_closed_stream_frees_its_slot(
    upstream: Upstream, client: ModelProcessClient
) -> None:
    """The client's leaving reaches the engine."""
    body = {"prompt": ENDLESS, "max_tokens": 1500, "temperature": 0, "stream": True}
    response = await upstream.send(request("/completions", body))
    assert await response.receive()
    response.close()
    response.close()
    assert await response.receive() == b""

    async def free() -> bool:
        return (await client.stats()).generations == 0

    await until(free)


async def test_a_cancelled_caller_leaves_nothing_behind(
    upstream: Upstream, client: ModelProcessClient
) -> None:
    """Cancelled while the whole answer is awaited."""
    body = {"prompt": ENDLESS, "max_tokens": 1500, "temperature": 0}
    task = asyncio.create_task(upstream.send(request("/completions", body)))

    async def running() -> bool:
        return (await client.stats()).generations == 1

    async def free() -> bool:
        return (await client.stats()).generations == 0

    await until(running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(free)


async def test_deadlines_are_kept(upstream: Upstream, client: ModelProcessClient) -> None:
    """A total deadline in mid-answer is a timeout, and stops the generation."""
    body = {"prompt": ENDLESS, "max_tokens": 1900, "temperature": 0}
    with pytest.raises(UpstreamTimeout):
        await upstream.send(request("/completions", body, seconds=0.3))

    async def free() -> bool:
        return (await client.stats()).generations == 0

    await until(free)


async def test_a_slow_reader_is_sent_no_more_than_its_credit(client: ModelProcessClient) -> None:
    """The rest waits in the process, joined, and arrives complete."""
    stream = client.generate(endless(120))

    async def held() -> bool:
        return (await client.stats()).held_tokens > 60

    await until(held)
    deltas, tokens, message = 0, 0, None
    while not isinstance(message, Finished):
        message = await stream.receive(time.monotonic() + 20)
        if isinstance(message, Delta):
            deltas, tokens = deltas + 1, tokens + message.tokens
    assert tokens == message.completion_tokens == 120
    # 32 by credit, one that joins more than 60 tokens, and singly what came after it.
    assert deltas <= 60


async def test_embeddings_are_openai_s_in_both_encodings(embeddings: Upstream) -> None:
    """float and base64 carry the same numbers, in order; usage counts the tokens."""
    texts = ["a river", "three mountains"]
    plain = await document(embeddings, "/embeddings", input=texts)
    CreateEmbeddingResponse.model_validate_json(orjson.dumps(plain), strict=True)
    encoded = await document(embeddings, "/embeddings", input=texts, encoding_format="base64")
    for index in range(2):
        raw = base64.b64decode(encoded["data"][index]["embedding"])
        np.testing.assert_array_equal(
            np.frombuffer(raw, "<f4"), np.array(plain["data"][index]["embedding"], np.float32)
        )
        assert plain["data"][index]["index"] == index
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] == 8
    assert set(plain["usage"]) == {"prompt_tokens", "total_tokens"}


async def test_fewer_dimensions_are_a_prefix_of_unit_length(embeddings: Upstream) -> None:
    """Shortened, then scaled to length one again."""
    whole = await document(embeddings, "/embeddings", input="a river")
    short = await document(embeddings, "/embeddings", input="a river", dimensions=64)
    prefix = np.array(whole["data"][0]["embedding"][:64])
    vector = np.array(short["data"][0]["embedding"])
    np.testing.assert_allclose(vector, prefix / np.linalg.norm(prefix), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("input", {"input": [1, 2, 3]}),
        ("input", {"input": [[1, 2], [3]]}),
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input", {}),
        ("input", {"input": ["x"] * 2049}),
        ("encoding_format", {"input": "x", "encoding_format": "int8"}),
        ("dimensions", {"input": "x", "dimensions": 385}),
        ("dimensions", {"input": "x", "dimensions": 0}),
        ("input[1]", {"input": ["x", "river " * 600]}),
    ],
)
async def test_an_input_that_cannot_be_embedded_is_refused_by_name(
    embeddings: Upstream, field: str, body: dict[str, Any]
) -> None:
    """Token numbers of another tokenizer and silently cut texts included."""
    with pytest.raises(UpstreamStatus) as caught:
        await embeddings.send(request("/embeddings", body))
    assert (caught.value.status, caught.value.param) == (400, field)


async def test_embed_gives_unit_vectors_and_token_counts(client: ModelProcessClient) -> None:
    """What the semantic tier and the classifier call."""
    vectors, tokens, compute_us = await client.embed(["a river", "a river", "an invoice"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors[0], [1, 1, vectors[2] @ vectors[0]], atol=1e-5)
    assert vectors[2] @ vectors[0] < 0.5
    assert tokens == [4, 4, 6]
    assert compute_us > 0


async def test_an_embedding_that_takes_too_long_is_given_up_on_both_sides(
    client: ModelProcessClient,
) -> None:
    """The timeout also takes the texts out of the process's queue."""
    with pytest.raises(UpstreamTimeout):
        await client.embed(["long text " * 60] * 1000, timeout_seconds=0.1)

    async def free() -> bool:
        return (await client.stats()).embeddings == 0

    await until(free)


async def test_more_calls_than_may_be_pending_are_refused_at_once(path: Path) -> None:
    """The third of two; it cost nothing, and the first two are answered."""
    client = ModelProcessClient(path, "small", pending_max=2)
    client.start()
    await client.until_ready("embedding", timeout_seconds=30)
    first = [asyncio.create_task(client.embed(["x"])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(UpstreamOverloaded) as caught:
        await client.embed(["y"])
    assert caught.value.unsent
    await asyncio.gather(*first)
    await client.close()


async def test_a_model_that_is_not_loaded_is_unhealthy_and_unavailable(
    client: ModelProcessClient, upstream: Upstream, embeddings: Upstream
) -> None:
    """Another model's answer must never pass for the one that was asked."""
    other = LocalUpstream("local", client, "qwen2.5-0.5b-instruct")
    assert (upstream.healthy, embeddings.healthy, other.healthy) == (True, True, False)
    for path, target in (("/chat/completions", other), ("/embeddings", upstream)):
        with pytest.raises(UpstreamUnavailable):
            await target.send(request(path, {**CHAT, "input": "x"}))


@pytest.mark.slow
async def test_when_the_process_is_killed_every_call_fails_at_once_and_later_ones_work(
    tmp_path: Path,
) -> None:
    """kill -9 with a generation, its queue and an embedding under way; then a new process."""
    path = tmp_path / "p.sock"
    process = start(path)
    client = ModelProcessClient(path, "worker-0")
    client.start()
    await client.until_ready("generation", timeout_seconds=30)
    upstream = LocalUpstream("local", client, GENERATION)
    stream = client.generate(endless())
    await stream.receive(time.monotonic() + 20)
    body = {"prompt": ENDLESS, "max_tokens": 1500}
    calls: list[asyncio.Task[Any]] = [
        asyncio.create_task(upstream.send(request("/completions", body))),
        asyncio.create_task(client.embed(["long text " * 60] * 2000)),
    ]

    async def running() -> bool:
        return (await client.stats()).generations == 2

    await until(running)
    process.kill()
    process.wait()
    killed = time.monotonic()
    for call in calls:
        with pytest.raises(UpstreamUnavailable):
            await call
    with pytest.raises(UpstreamUnavailable):
        for _ in range(1000):
            await stream.receive(time.monotonic() + 20)
    assert time.monotonic() - killed < 0.5
    assert not upstream.healthy
    with pytest.raises(UpstreamUnavailable):
        await client.embed(["x"])
    process = start(path)
    await client.until_ready("generation", timeout_seconds=30)
    assert (await document(upstream, "/completions", **{**body, "max_tokens": 2}))["choices"]
    await client.close()
    end(process)


@pytest.mark.slow
async def test_a_process_that_hangs_costs_a_timeout(tmp_path: Path) -> None:
    """Stopped, it neither answers nor hangs up; when it goes on, so does the client."""
    path = tmp_path / "p.sock"
    process = start(path, models=False)
    client = ModelProcessClient(path, "worker-0")
    client.start()

    async def ready() -> bool:
        return client.ready

    await until(ready)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(UpstreamTimeout):
        await client.stats(timeout_seconds=0.2)
    os.kill(process.pid, signal.SIGCONT)
    assert (await client.stats()).connections == 1
    await client.close()
    end(process)


async def test_without_a_process_calls_fail_and_closing_is_clean(tmp_path: Path) -> None:
    """The client keeps trying in the background, and stops when told."""
    client = ModelProcessClient(tmp_path / "none.sock", "worker-0")
    client.start()
    with pytest.raises(UpstreamTimeout):
        await client.until_ready("embedding", timeout_seconds=0.15)
    for call in (client.embed(["x"]), client.stats(), client.count_tokens("x")):
        with pytest.raises(UpstreamUnavailable) as caught:
            await call
        assert isinstance(caught.value, GatewayError)
        assert caught.value.unsent
    await client.close()


def test_a_gateway_worker_never_loads_onnx_runtime() -> None:
    """A crash of native model code must not be able to happen in a worker."""
    code = (
        "import sys, gateway.upstreams.local; "
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'onnx', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
