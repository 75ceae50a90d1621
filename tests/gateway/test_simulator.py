"""The simulated provider, asked by the real ``openai`` client and by raw sockets."""

import asyncio
import base64
import contextlib
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import openai
import pytest

from gateway.simulator import FAULTS, Simulator
from tests.gateway.running import ProviderThread, wait_for

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city", "unit", "days"],
            },
        },
    }
    for name in ("get_weather", "get_forecast")
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 40},
        "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "kind": {"const": "person"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        "nested": {"type": "object", "properties": {"ok": {"type": ["boolean", "null"]}}},
    },
    "required": ["name", "age", "size", "kind", "tags", "nested"],
    "additionalProperties": False,
}


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Simulator]:
    simulator = Simulator(**options)
    await simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()


def http_client() -> httpx.AsyncClient:
    """Without certificates, whose loading takes longer than most tests here."""
    return httpx.AsyncClient(trust_env=False, verify=False)


@contextlib.asynccontextmanager
async def asking(**options: Any) -> AsyncIterator[tuple[Simulator, openai.AsyncOpenAI]]:
    async with (
        running(**options) as simulator,
        openai.AsyncOpenAI(
            base_url=simulator.base_url,
            api_key="sk-test",
            max_retries=0,
            timeout=5,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, verify=False),
        ) as client,
    ):
        yield simulator, client


async def connect(simulator: Simulator) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = simulator.base_url.rpartition(":")[2].removesuffix("/v1")
    return await asyncio.open_connection("127.0.0.1", int(port))


async def raw_answer(simulator: Simulator, body: dict[str, Any] | bytes) -> bytes:
    """Every byte until the connection ends, or 0.1 s of silence."""
    reader, writer = await connect(simulator)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\n"
        b"content-length: %d\r\n\r\n" % len(raw) + raw
    )
    found = b""
    with contextlib.suppress(TimeoutError):
        while data := await asyncio.wait_for(reader.read(1 << 20), 0.1):
            found += data
    writer.close()
    return found


def fault(name: str, *, stream: bool = False) -> dict[str, Any]:
    content = f"Break now. [[fault:{name}]]"
    return {"model": "m", "messages": [{"role": "user", "content": content}], "stream": stream}


async def test_an_answer_is_short_labelled_and_the_same_each_time() -> None:
    """No demo can mistake it for a real model, and tests repeat it by its seed."""
    async with asking(seed=1) as (_, client), asking(seed=1) as (_, twin):
        first = await client.chat.completions.create(model="m", messages=QUESTION)
        again = await twin.chat.completions.create(model="m", messages=QUESTION)
    async with asking(seed=2) as (_, other):
        another = await other.chat.completions.create(model="m", messages=QUESTION)
    text = first.choices[0].message.content or ""
    assert text.startswith("[simulated] ")
    assert text == again.choices[0].message.content != another.choices[0].message.content
    assert first.choices[0].finish_reason == "stop"
    assert first.usage is not None
    assert 20 <= first.usage.completion_tokens <= 60
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


def generated(part: Any) -> str:
    """The text of a message or delta, be it content or the arguments of a call."""
    calls = part.tool_calls or []
    return (part.content or "") + "".join(call.function.arguments for call in calls)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"max_tokens": 5},
    {"max_completion_tokens": 1, "n": 2},
    {"tools": TOOLS},
    {"tools": TOOLS, "tool_choice": "none"},
    {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_forecast"}}},
    {"tools": TOOLS, "max_tokens": 3, "n": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}},
    {"response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("options", VARIANTS)
async def test_a_stream_says_and_counts_the_same_as_the_whole_answer(
    options: dict[str, Any],
) -> None:
    """The reference for all streaming tests must itself add up, choice by choice."""
    async with asking() as (simulator, client):
        whole = await client.chat.completions.create(model="m", messages=QUESTION, **options)
        stream = await client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True},
            **options,
        )  # fmt: skip
        texts: dict[int, str] = {choice.index: "" for choice in whole.choices}
        reasons: dict[int, str | None] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += generated(choice.delta)
                reasons[choice.index] = choice.finish_reason
        assert chunk.usage == whole.usage
        assert texts == {choice.index: generated(choice.message) for choice in whole.choices}
        assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
        written = [served.completion_tokens for served in simulator.requests]
        assert whole.usage is not None
        assert written == [whole.usage.completion_tokens] * 2
        assert all(served.finished for served in simulator.requests)


async def test_max_tokens_is_kept_exactly_and_named_as_the_reason() -> None:
    """Limits of 1 and 7 give just as many tokens, which tests of cost rely on."""
    async with asking() as (_, client):
        for limit in (1, 7):
            answer = await client.chat.completions.create(
                model="m", messages=QUESTION, max_tokens=limit
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens == limit
            assert answer.choices[0].finish_reason == "length"


async def test_a_tool_is_called_until_its_result_is_there() -> None:
    """Arguments fit the tool's schema, and a loop of tool calls comes to its end."""
    async with asking() as (_, client):
        answer = await client.chat.completions.create(model="m", messages=QUESTION, tools=TOOLS)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None
        call: Any = message.tool_calls[0]
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "12 °C"}
        history: Any = [*QUESTION, message.model_dump(exclude_none=True), result]
        then = await client.chat.completions.create(
            model="m", messages=history,
            tools=TOOLS,
        )  # fmt: skip
        assert then.choices[0].finish_reason == "stop"
        assert then.choices[0].message.content


async def test_a_json_schema_is_obeyed() -> None:
    """An independent validator accepts the document that the simulator makes up."""
    async with asking() as (_, client):
        answer = await client.chat.completions.create(
            model="m",
            messages=QUESTION,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA},
            },
        )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


async def test_usage_of_a_stream_comes_only_when_asked_for() -> None:
    """A client that did not ask sees no extra chunk, as at OpenAI."""
    async with asking() as (_, client):
        stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        assert all([chunk.choices and chunk.usage is None async for chunk in stream])


async def test_text_completions_work_whole_and_streamed() -> None:
    """Two choices of the older endpoint differ from each other and not by their form."""
    async with asking() as (_, client):
        whole = await client.completions.create(model="m", prompt="Once upon a time", n=2)
        stream = await client.completions.create(
            model="m", prompt="Once upon a time", n=2, stream=True
        )
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1]


async def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone() -> None:
    """Equal texts must match in a cache; floats, base64 and token lists all work."""
    async with asking() as (_, client):
        answer = await client.embeddings.create(
            model="m", input=["one", "two", "one"], dimensions=8
        )
        vectors = [item.embedding for item in answer.data]
        assert vectors[0] == vectors[2] != vectors[1]
        assert all(sum(x * x for x in vector) == pytest.approx(1, abs=1e-6) for vector in vectors)
        floats = await client.embeddings.create(
            model="m", input="one", dimensions=8, encoding_format="float"
        )
        assert floats.data[0].embedding == pytest.approx(vectors[0])
        packed = await client.embeddings.with_raw_response.create(
            model="m", input="one", encoding_format="base64"
        )
        raw = base64.b64decode(json.loads(packed.text)["data"][0]["embedding"])
        assert len(struct.unpack("<64f", raw)) == 64
        tokens = await client.embeddings.create(model="m", input=[[1, 2], [3]])
        assert len(tokens.data) == 2


async def test_models_are_listed() -> None:
    """A client that looks for models first finds the simulated one."""
    async with asking() as (_, client):
        assert "simulated-large" in [model.id async for model in client.models.list()]


def test_the_synchronous_client_works_alike() -> None:
    """The thread that synchronous tests use answers whole and streamed with one text."""
    provider = ProviderThread(seed=1)
    try:
        with openai.OpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as client:
            whole = client.chat.completions.create(model="m", messages=QUESTION)
            with client.chat.completions.create(
                model="m", messages=QUESTION, stream=True
            ) as chunks:
                text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == whole.choices[0].message.content
    finally:
        provider.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages":[{"role":"user"}]}',
        b'{"model":"m","messages":[]}',
        b'{"model":"m","messages":[7]}',
        b'{"model":"m","messages":[{"role":"user"}],"n":"x"}',
        b'{"model":"m","messages":[{"role":"user"}],"n":1000000}',
        b'{"model":"m","messages":[{"role":"user"}],"tools":[{"function":7}]}',
        b'{"model":"m","messages":[{"role":"user"}],"stream_options":7}',
        b'{"model":"fault-unknown","messages":[{"role":"user"}]}',
        b'{"model":"fault-status","messages":[{"role":"user"}]}',
        b'{"model":"fault-status-N","messages":[{"role":"user"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"[[fault:status-abc]]"}]}',
    ],
)
async def test_a_wrong_request_is_answered_400_in_openais_shape(body: bytes) -> None:
    """It is not recorded either, so a count of requests means good ones."""
    async with running() as simulator:
        head, _, document = (await raw_answer(simulator, body)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert set(json.loads(document)["error"]) == {"message", "type", "param", "code"}
        assert simulator.requests == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("status-500", openai.InternalServerError),
        ("status-503", openai.InternalServerError),
        ("status-429", openai.RateLimitError),
        ("status-404", openai.NotFoundError),
        ("error-leaks-key", openai.BadRequestError),
        ("hang", openai.APITimeoutError),
        ("hang-after-head", openai.APITimeoutError),
        ("close-before-head", openai.APIConnectionError),
        ("reset-before-head", openai.APIConnectionError),
        ("garbage-head", openai.APIConnectionError),
        ("huge-head", openai.APIConnectionError),
        ("wrong-length", openai.APIConnectionError),
        ("cut-after-40", openai.APIConnectionError),
        ("reset-after-7", openai.APIConnectionError),
        ("stall-after-20", openai.APITimeoutError),
    ],
)
async def test_a_fault_is_the_clients_own_exception(
    name: str, error: type[openai.OpenAIError]
) -> None:
    """A fault is chosen by a mark in the prompt or by the model's name."""
    body = fault(name)
    async with asking() as (simulator, client):
        with pytest.raises(error):
            await client.with_options(timeout=0.1).chat.completions.create(
                model="m", messages=body["messages"]
            )
        assert simulator.requests[0].fault == name
        client.api_key = "sk-other"
        with pytest.raises(error):
            await client.with_options(timeout=0.1).chat.completions.create(
                model=f"fault-{name}", messages=QUESTION
            )


def ends_cut(raw: bytes) -> bool:
    return raw.count(b'"content":" ') in (39, 40) and b"[DONE]" not in raw


HOSTILE: dict[str, Callable[[bytes], bool]] = {
    "redirect": lambda raw: b"302 " in raw and b"location: http://169.254.169.254/" in raw,
    "gzip": lambda raw: b"content-encoding: gzip" in raw and b"\x1f\x8b" in raw,
    "garbage-head": lambda raw: not raw.startswith(b"HTTP/"),
    "error-leaks-key": lambda raw: b"400 " in raw and b"Bearer k" in raw,
    "early-hints": lambda raw: raw.startswith(b"HTTP/1.1 103 ") and b"[DONE]" in raw,
    "close-delimited": lambda raw: b"chunked" not in raw and b"[DONE]" in raw,
    "not-json": lambda raw: b"text/html" in raw,
    "hang": lambda raw: raw == b"",
    "hang-after-head": lambda raw: raw.endswith(b"\r\n\r\n"),
    "close-before-head": lambda raw: raw == b"",
    "cut-after-40": ends_cut,
    "stall-after-40": ends_cut,
    "end-after-40": lambda raw: ends_cut(raw) and raw.endswith(b"\r\n0\r\n\r\n"),
    "malformed-event-after-10": lambda raw: b"{not json}" in raw and b"[DONE]" in raw,
    "error-event-after-10": lambda raw: b'data: {"error"' in raw and b"[DONE]" not in raw,
    "half-utf8": lambda raw: raw.endswith(b"\xe4\xb8\r\n"),
    "huge-line": lambda raw: len(raw) > 2 << 20,
    "lying-usage": lambda raw: b"1000000000" in raw,
    "no-usage": lambda raw: b'"usage"' not in raw and b"[DONE]" in raw,
    "pings": lambda raw: raw.count(b": ping\n\n") > 60,
    "crlf": lambda raw: b"data: [DONE]\r\n\r\n" in raw,
    "no-done": lambda raw: b'"finish_reason":"stop"' in raw and b"[DONE]" not in raw,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_fault_is_written_as_it_is_described(name: str) -> None:
    """Tests of broken providers prove nothing if the fault on the wire is another one."""
    body = {**fault(name, stream=True), "stream_options": {"include_usage": True}}
    async with running() as simulator:
        assert HOSTILE[name](await raw_answer(simulator, body))


async def test_a_reset_is_a_reset_after_exactly_so_many_bytes() -> None:
    """The client gets a hundred bytes, no more and no clean end."""
    async with running() as simulator:
        for stream in (False, True):
            async with http_client() as client:
                found = b""
                with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                    async with client.stream(
                        "POST",
                        simulator.base_url + "/chat/completions",
                        json=fault("reset-after-100", stream=stream),
                    ) as answer:
                        async for part in answer.aiter_raw():
                            found += part
            assert len(found) == 100
        assert [served.finished for served in simulator.requests] == [False, False]


def test_every_fault_of_the_table_is_tested() -> None:
    """A fault that is added to the table without a test fails here."""
    tested = {*HOSTILE, "status-N", "wrong-length", "huge-head", "reset-before-head"}
    kinds = {name if name in FAULTS else name.rpartition("-")[0] + "-N" for name in tested}
    assert kinds | {"reset-after-N"} == set(FAULTS)


async def test_a_share_of_all_requests_can_be_made_to_fail() -> None:
    """Of a hundred requests about 30 fail, and none once the fault is taken back."""
    async with running(seed=5) as simulator, http_client() as client:
        control = simulator.base_url.removesuffix("/v1") + "/control"
        set_to = await client.post(control + "/faults", json={"fault": "status-503", "rate": 0.3})
        assert set_to.json() == {"fault": "status-503", "rate": 0.3}
        chat = simulator.base_url + "/chat/completions"
        body = {"model": "m", "messages": QUESTION}
        statuses = [(await client.post(chat, json=body)).status_code for _ in range(100)]
        assert set(statuses) == {200, 503}
        assert 15 <= statuses.count(503) <= 45
        unknown = await client.post(control + "/faults", json={"fault": "unknown"})
        assert unknown.status_code == 400
        assert "status-N" in unknown.json()["error"]["message"]
        await client.post(control + "/faults", json={"fault": None})
        assert (await client.post(chat, json=body)).status_code == 200


async def test_the_record_says_exactly_what_was_written() -> None:
    """The books are checked against it: a stream cut after 40 tokens is recorded with 40."""
    async with running() as simulator, http_client() as client:
        control = simulator.base_url.removesuffix("/v1") + "/control/requests"
        chat = simulator.base_url + "/chat/completions"
        good = {"model": "m", "messages": QUESTION, "stream": True}
        await client.post(chat, json=good, headers={"x-request-id": "whole"})
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(
                chat, json=fault("cut-after-40", stream=True), headers={"x-request-id": "cut"}
            )
        whole, cut = (await client.get(control)).json()
    assert (whole["id"], whole["finished"], whole["status"]) == ("whole", True, 200)
    assert (cut["id"], cut["finished"], cut["completion_tokens"]) == ("cut", False, 40)
    assert whole["closed_after_seconds"] is cut["closed_after_seconds"] is None


async def test_a_caller_that_hangs_up_is_noticed_and_pays_for_what_was_written() -> None:
    """After five tokens read, at most three more are written and recorded."""
    async with asking(tokens_per_second=100) as (simulator, client):
        stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        seen = 0
        async for chunk in stream:
            seen += bool(chunk.choices[0].delta.content)
            if seen == 5:
                break
        await stream.close()
        served = simulator.requests[0]
        await asyncio.to_thread(wait_for, lambda: served.closed_after_seconds is not None, 2.0)
        assert served.closed_after_seconds is not None
        assert not served.finished
        assert 5 <= served.completion_tokens <= 8
        assert 0.04 <= served.closed_after_seconds < 1


async def test_latency_and_token_rate_are_kept() -> None:
    """Ten tokens at 200 per second after 50 ms take between 0.1 and 0.3 seconds."""
    async with asking(latency_seconds=0.05, tokens_per_second=200) as (_, client):
        began = time.monotonic()
        stream = await client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, max_tokens=10
        )
        arrivals = [time.monotonic() - began async for _ in stream]
        assert arrivals[0] >= 0.05
        assert 0.1 <= arrivals[-1] < 0.3
        began = time.monotonic()
        await client.chat.completions.create(model="m", messages=QUESTION, max_tokens=10)
        assert 0.1 <= time.monotonic() - began < 0.3


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    """A stream between two documents ends before the next answer begins."""
    async with running(latency_seconds=0.01) as simulator:
        requests = b""
        for number in range(3):
            body = {"model": f"m{number}", "messages": QUESTION, "stream": number == 1}
            raw = json.dumps(body).encode()
            requests += b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            requests += b"content-length: %d\r\n\r\n%b" % (len(raw), raw)
        reader, writer = await connect(simulator)
        writer.write(requests)
        found = b""
        while b'"m2"' not in found:
            found += await asyncio.wait_for(reader.read(65_536), 2)
        writer.close()
        assert found.index(b'"m0"') < found.index(b'"m1"')
        assert found.index(b"[DONE]") < found.index(b'"m2"')
