"""Whole answers and streams of one another, as the openai client reads them."""

from typing import Any

import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

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


def call_of(name: str, arguments: str, call_id: str = "a") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


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
    """Two interleaved choices come out in order, with the latest fingerprint and their own end."""
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


PIECES = st.text('ab {}[],:"\\n\u00e4\U0001f642', max_size=6)


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A stream of OpenAI's shape: pieces of several choices and calls, in any order."""
    chunks: list[dict[str, Any]] = []

    def add(index: int, delta: dict[str, Any], **fields: Any) -> None:
        choice = {"index": index, "delta": delta, "finish_reason": None, **fields}
        chunks.append(
            {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
             "choices": [choice]}
        )  # fmt: skip

    choices = draw(st.integers(1, 3))
    for index in range(choices):
        add(index, {"role": "assistant", "content": draw(st.sampled_from(["", None]))})
    begun: set[tuple[int, int]] = set()
    for _ in range(draw(st.integers(0, 12))):
        index = draw(st.integers(0, choices - 1))
        kind = draw(st.sampled_from(["content", "refusal", "reasoning_content", "call", "old"]))
        if kind == "old":
            named = {"name": "f"} if ((index, -1) not in begun) else {}
            begun.add((index, -1))
            add(index, {"function_call": {**named, "arguments": draw(PIECES)}})
        elif kind == "call":
            number = draw(st.integers(0, sum(i == index and n >= 0 for i, n in begun)))
            part: dict[str, Any] = {"index": number, "function": {"arguments": draw(PIECES)}}
            if (index, number) not in begun:
                begun.add((index, number))
                part |= {"id": f"call_{index}_{number}", "type": "function"}
                part["function"]["name"] = draw(st.sampled_from(["f", "g"]))
            add(index, {"tool_calls": [part]})
        else:
            tokens = [{"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": []}]
            logprobs = draw(st.none() | st.just({"content": tokens, "refusal": None}))
            add(index, {kind: draw(PIECES)}, logprobs=logprobs)
    for index in range(choices):
        add(index, {})
        chunks[-1]["choices"][0]["finish_reason"] = draw(st.sampled_from(["stop", "tool_calls"]))
    return chunks


def without_nothing(value: Any) -> Any:
    """Without null, empty texts and indices: clients differ in whether they keep them."""
    if isinstance(value, dict):
        plain = {name: without_nothing(item) for name, item in value.items() if name != "index"}
        return {name: item for name, item in plain.items() if item not in (None, "", [])}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


@given(streams())
def test_a_stream_is_kept_as_the_openai_client_puts_it_together(
    chunks: list[dict[str, Any]],
) -> None:
    """Its own accumulator, fed the same chunks, is the judge."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    expected: Any = state.current_completion_snapshot.to_dict()
    found = assemble("chat", chunks)
    assert found is not None
    for choice, theirs in zip(found["choices"], expected["choices"], strict=True):
        for message in (choice["message"], theirs["message"]):
            for call in message.get("tool_calls") or ():
                call["function"].pop("parsed_arguments", None)
            message.pop("parsed", None)
        assert without_nothing(choice) == without_nothing(theirs)


def piece(*calls: dict[str, Any], **delta: Any) -> dict[str, Any]:
    if calls:
        delta["tool_calls"] = list(calls)
    return {"choices": [{"index": 0, "delta": delta}]}


A, B = call_of("f", '{"a":1}'), call_of("g", '{"b":2}', "b")
FIRST = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        ([piece(A), piece(B)], [A, B]),  # no index
        ([piece({"index": None, **A}), piece({"index": None, **B})], [A, B]),
        ([piece({"index": 0, **A}), piece({"index": 0, **B})], [A, B]),  # 0 for every call
        ([piece(A, B)], [A, B]),
        ([piece({"index": 1, **B}), piece({"index": 0, **A})], [A, B]),
        ([piece(A, **{"content": "x"}), piece({"function": {"arguments": ""}})], [A]),
        (  # pieces without an index continue the last call, or the one with their id
            [
                piece({**A, "function": {"name": "f", "arguments": '{"a"'}}),
                piece({"function": {"arguments": ":"}}),
                piece({"id": "a", "function": {"arguments": "1}"}}),
                piece(B),
            ],
            [A, B],
        ),
        (  # a name in pieces, and the id once more
            [
                piece({**FIRST, "function": {"name": "loo"}}),
                piece({"index": 0, "id": "a", "function": {"name": "k_up"}}),
                piece({"index": 0, "id": "a", "function": {"name": "", "arguments": "{}"}}),
            ],
            [call_of("look_up", "{}")],
        ),
        # Nobody can tell: the name once more, or a second call; an id for every piece; and so on.
        ([piece(FIRST), piece(FIRST)], None),
        ([piece({"index": 0, **A}), piece({"index": 0, "function": B["function"]})], None),
        ([piece(FIRST), piece({"index": 0, "id": "b", "function": {"arguments": "{}"}})], None),
        ([piece(FIRST), piece({"function": {"arguments": "{}"}})], None),
        ([piece(A), piece({"index": 0, "function": {"arguments": "{}"}})], None),
        ([piece({"function": {"arguments": "{}"}})], None),
        ([piece({"index": "0", **A})], None),
        ([piece({"index": True, **A})], None),
        ([piece({**A, "function": {"name": "f", "arguments": {"a": 1}}})], None),
        ([piece({**FIRST, "x": 1}), piece({"index": 0, "x": 2})], None),
        ([piece(A), {"choices": [{"index": 0, "message": {"content": "x"}}]}], None),
        ([piece(A), {"choices": [{"delta": {}}, {"delta": {}}]}], None),
        ([piece(audio={"id": "x", "data": "AA=="}), piece(audio={"data": "AA=="})], None),
        ([piece(details=[{"text": "a"}]), piece(details=[{"text": "b"}])], None),
        ([piece(content="a"), piece(content=[{"type": "text", "text": "b"}])], None),
    ],
)
def test_a_new_id_is_a_new_call_and_what_is_doubtful_is_not_kept(
    chunks: list[dict[str, Any]], calls: list[dict[str, Any]] | None
) -> None:
    """Many servers leave the index of a call out, or write 0 for each."""
    found = assemble("chat", chunks)
    if calls is None:
        assert found is None
        return
    assert found is not None
    assert found["choices"][0]["message"]["tool_calls"] == calls


def test_usage_that_comes_in_parts_is_kept_as_it_is_booked() -> None:
    """A provider may end with an object that tells less than the one before it."""
    first = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    chunks = [{"choices": [], "usage": first}, {"choices": [], "usage": {"completion_tokens": 7}}]
    document = assemble("chat", chunks)
    assert document is not None
    assert document["usage"] == {**first, "completion_tokens": 7}


def test_a_role_that_is_never_named_is_the_assistants() -> None:
    """Some servers leave the role empty or null; the stored message says assistant all the same."""
    found = assemble("chat", [piece(role="", content="x"), piece(role=None, content="y")])
    assert found is not None
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "xy"}


def test_a_field_nobody_knows_is_kept_where_it_comes_once_and_replayed_whole() -> None:
    """Once is the whole of it, however a client would put pieces together."""
    note = "a note that is longer than one piece of a replayed text"
    chunks = [piece(content="x", note=note), piece(note=None), piece(content="y")]
    chunks[-1]["choices"][0] |= {"finish_reason": "stop", "stop_reason": 7}
    found = assemble("chat", chunks)
    assert found is not None
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "xy", "note": note}
    events = replay("chat", found, include_usage=False, answer_id="i", created=1)
    again = assemble("chat", [orjson.loads(event_data(event) or b"") for event in events[:-1]])
    assert again is not None
    assert again["choices"] == found["choices"]


@given(st.lists(DOCUMENTS, max_size=4))
def test_no_json_of_a_provider_stops_the_assembly(chunks: list[dict[str, Any]]) -> None:
    """Random documents give a list of choices and a text, or no answer, but never an exception."""
    for endpoint in ("chat", "completions"):
        answer = assemble(endpoint, chunks)
        if answer is not None:
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
        ({"message": {"content": None, "refusal": "no"}}, True),
        ({"message": {"tool_calls": [call_of("f", "{}")]}, "finish_reason": "tool_calls"}, True),
        ({"message": {"tool_calls": [call_of("f", "")]}, "finish_reason": "tool_calls"}, True),
        ({"message": {"function_call": {"name": "f", "arguments": "{}"}}}, True),
        ({"message": {"tool_calls": [{"id": "a", "custom": {"name": "f", "input": "x"}}]}}, True),
        ({"message": {"tool_calls": [{}]}, "finish_reason": "tool_calls"}, False),
        ({"message": {"tool_calls": [call_of("f", '{"a":')]}}, False),
        ({"message": {"tool_calls": [call_of("f", "{}{}")]}}, False),
        ({"message": {"function_call": {"name": "f", "arguments": "{}{}"}}}, False),
        ({"message": {"content": ""}}, False),
        ({"message": {"content": None, "reasoning_content": "hm"}}, False),
        ({"text": ""}, False),
        ({"message": {"content": "x", "annotations": [{"type": "url_citation"}]}}, False),
        ({"message": {"content": "x", "annotations": []}}, True),
        ({"message": {"content": "x", "audio": {"id": "audio_1"}}}, False),
        ({"message": {"content": "x"}, "error": {"message": "half"}}, False),
        ({"message": {"content": "x"}, "finish_reason": "length"}, False),
        ({"message": {"content": "x"}, "finish_reason": "content_filter"}, False),
        ({"message": {"content": "x"}, "finish_reason": None}, False),
        ({"message": {"content": "x"}, "finish_reason": {}}, False),
        ({"message": {"content": "x"}, "index": None}, False),
        ({"message": {"tool_calls": [7]}}, False),
        ({"message": {"content": "x"}, "finish_reason": "tool_calls"}, False),
        ({"message": {"content": "x"}, "native_finish_reason": "MAX_TOKENS"}, False),
        ({"message": {"content": "x"}, "native_finish_reason": "end_turn"}, True),
        ({"message": {"tool_calls": [call_of("", "{}")]}, "finish_reason": "tool_calls"}, False),
        ({"message": {"tool_calls": [{"custom": {"name": "", "input": "x"}}]}}, False),
        ({"message": {"content": "x", "images": [{"image_url": {"url": "https://a/b"}}]}}, False),
        ({"message": {"content": "x", "context": {"citations": [{}]}}}, False),
        ({"message": "x"}, False),
        ({}, False),
    ],
)
def test_only_an_answer_that_ended_well_and_is_well_formed_is_complete(
    choice: dict[str, Any], expected: bool
) -> None:
    """A cache must not serve cut, filtered or empty answers; one cut choice spoils the others."""
    assert complete(answer_of(choice)) is expected
    cut = answer_of({"index": 1, "message": {"content": "x"}, "finish_reason": "length"})
    answer = answer_of(choice)
    answer["choices"] += cut["choices"]
    assert not complete(answer)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": None}, {"choices": [7]}])
def test_an_answer_without_choices_is_never_complete(answer: dict[str, Any]) -> None:
    """A cache would serve nothing at all: choices that are missing, empty, null or a number."""
    assert not complete(answer)
