"""Whole answers and streams of one another, as the openai client reads them."""

from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.documents import read_question, reply_to
from gateway.wire.assemble import answer_text, assemble, complete, replay
from gateway.wire.relay import StreamRelay
from gateway.wire.sse import event_data
from tests.fakes import Peer, RawUpstream

TOOLS = [
    {"type": "function", "function": {"name": "look_up", "parameters": {"properties": {}}}},
]
ANSWERS: list[dict[str, Any]] = [
    {"message": {"role": "assistant", "content": "Schöne Grüße – 你好 🙂" * 9, "refusal": None}},
    {"message": {"role": "assistant", "content": ""}},
    {"message": {"role": "assistant", "content": None, "refusal": "I must not say."}},
    {"message": {"role": "assistant", "content": "x", "reasoning_content": "because"}},
    {
        "message": {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": "look_up", "arguments": '{"a": "\\n"}'},
                }
                for number in range(2)
            ],
        },
        "finish_reason": "tool_calls",
    },
]

NAMES = st.sampled_from(
    ["choices", "delta", "message", "content", "role", "index", "finish_reason", "usage", "text",
     "tool_calls", "function", "arguments", "logprobs", "id"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["stop", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
CHOICES = st.lists(
    st.fixed_dictionaries(
        {"finish_reason": st.just("stop") | JSON, "index": st.just(0) | JSON},
        optional={
            "delta": JSON | st.fixed_dictionaries({"tool_calls": st.lists(JSON, max_size=3)}),
            "message": JSON | st.fixed_dictionaries({"tool_calls": st.lists(JSON, max_size=3)}),
            "text": JSON,
            "logprobs": JSON,
        },
    )
    | JSON,
    max_size=3,
)
DOCUMENTS = st.fixed_dictionaries({"choices": CHOICES | JSON}, optional={"usage": JSON, "id": JSON})


def answer_of(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }  # fmt: skip


@pytest.mark.parametrize("choice", ANSWERS)
async def test_a_replayed_answer_is_the_same_to_the_openai_client(choice: dict[str, Any]) -> None:
    """Read by the client's own parser and put together by its own accumulator."""
    answer = answer_of(choice)
    events = replay("chat", answer, include_usage=True, answer_id="chatcmpl-2", created=2)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        await peer.send(b"".join(events))
        peer.close()

    async with (
        RawUpstream(script) as upstream,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{upstream.port}/v1", api_key="k", max_retries=0
        ) as client,
        client.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": "x"}]
        ) as stream,
    ):
        found = await stream.get_final_completion()
    expected = answer["choices"][0]
    message = found.choices[0].message
    assert (found.id, found.created, found.choices[0].finish_reason) == (
        "chatcmpl-2", 2, expected["finish_reason"],
    )  # fmt: skip
    assert (message.content or None) == (expected["message"].get("content") or None)
    assert (message.refusal or None) == expected["message"].get("refusal")
    assert [
        (call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []
    ] == [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in expected["message"].get("tool_calls") or []
    ]
    assert found.usage is not None
    assert found.usage.total_tokens == 7


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"tools": TOOLS}, {"max_tokens": 2}])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_relayed_stream_assembles_to_the_providers_whole_answer(
    endpoint: Any, options: dict[str, Any]
) -> None:
    """An independent provider: what it streams is what it would have answered."""
    asked = {"messages": [{"role": "user", "content": "Why?"}]} if endpoint == "chat" else {}
    body = {"model": "m", "prompt": "Why?", **asked, **options}
    whole = reply_to(endpoint, read_question(endpoint, orjson.dumps(body)), seed=1)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    streamed = reply_to(endpoint, read_question(endpoint, orjson.dumps(body)), seed=1)
    relay = StreamRelay(endpoint=endpoint, include_usage=True, keep=True)
    assert streamed.events is not None
    relayed = relay.feed(b"".join(event.data for event in streamed.events)) + relay.end()
    assert relayed == b"".join(event.data for event in streamed.events)
    expected = orjson.loads(whole.body)
    for choice in expected["choices"]:
        choice.get("message", {}).pop("refusal", None)
    assert relay.answer() == expected
    assert relay.content_events == whole.completion_tokens


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\r"])
def test_an_end_mark_without_its_blank_line_is_an_end_all_the_same(end: bytes) -> None:
    """Some providers close right behind it, and clients take that for a clean end."""
    relay = StreamRelay(endpoint="chat", include_usage=False, keep=True)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    assert relay.feed(event + end) == event
    assert relay.end() == b"data: [DONE]\n\n"
    assert relay.answer() is not None


def test_chunks_of_one_document_are_put_together_field_by_field() -> None:
    chunks: list[dict[str, Any]] = [
        {"id": "a", "system_fingerprint": None, "obfuscation": "xy", "choices": []},
        {"system_fingerprint": "fp", "choices": [{"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {"content": "c"}, "finish_reason": "length"}]},
    ]
    assert assemble("chat", chunks) == {
        "id": "a",
        "object": "chat.completion",
        "system_fingerprint": "fp",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"},
            {
                "index": 1,
                "message": {"role": "assistant", "content": "bc"},
                "finish_reason": "length",
            },
        ],
    }


@given(st.lists(DOCUMENTS, max_size=4))
def test_no_json_of_a_provider_stops_the_assembly(chunks: list[dict[str, Any]]) -> None:
    for endpoint in ("chat", "completions"):
        answer = assemble(endpoint, chunks)
        assert isinstance(answer["choices"], list)
        assert isinstance(answer_text(answer), str)


@given(DOCUMENTS)
def test_whatever_counts_as_complete_can_be_replayed(answer: dict[str, Any]) -> None:
    """Stored once, an answer is served to streams for hours: its shape must have been checked."""
    if not complete(answer):
        return
    for endpoint in ("chat", "completions"):
        events = replay(endpoint, answer, include_usage=True, answer_id="i", created=1)
        assert events[-1] == b"data: [DONE]\n\n"
        assert all(isinstance(orjson.loads(event_data(e) or b""), dict) for e in events[:-1])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": "x"}}, True),
        ({"text": "x"}, True),
        ({"message": {"tool_calls": [{}]}, "finish_reason": "tool_calls"}, True),
        ({"message": {"content": "x"}, "finish_reason": "length"}, False),
        ({"message": {"content": "x"}, "finish_reason": "content_filter"}, False),
        ({"message": {"content": "x"}, "finish_reason": None}, False),
        ({"message": {"content": "x"}, "finish_reason": {}}, False),
        ({"message": {"content": "x"}, "index": None}, False),
        ({"message": {"tool_calls": [7]}}, False),
        ({"message": "x"}, False),
        ({}, False),
    ],
)
def test_only_an_answer_that_ended_well_and_is_well_formed_is_complete(
    choice: dict[str, Any], expected: bool
) -> None:
    assert complete(answer_of(choice)) is expected
    cut = answer_of({"index": 1, "message": {"content": "x"}, "finish_reason": "length"})
    answer = answer_of(choice)
    answer["choices"] += cut["choices"]
    assert not complete(answer)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": None}, {"choices": [7]}])
def test_an_answer_without_choices_is_never_complete(answer: dict[str, Any]) -> None:
    assert not complete(answer)
