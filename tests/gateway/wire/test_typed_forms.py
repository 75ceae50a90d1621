"""Whole messages and responses as streams and back, as the vendors' own clients read them."""

from typing import Any

import anthropic
import openai
import orjson
import pytest

from gateway.errors import UpstreamError
from gateway.simulator.dialects import messages_reply, responses_reply
from gateway.wire.dialects import DIALECTS
from gateway.wire.typed_forms import (
    message_events,
    response_events,
    whole_message,
    whole_response,
)
from tests.fakes import Peer, RawUpstream

BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Hm – 你好.", "signature": "c2ln"},
    {"type": "text", "text": "Schöne Grüße 🙂", "citations": None},
    {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"a": ["\n", 1]}},
    {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    {"type": "redacted_thinking", "data": "AAAA"},
]
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": BLOCKS,
    "stop_reason": "tool_use", "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 4},
}  # fmt: skip
OUTPUT: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
    {
        "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [
            {"type": "output_text", "text": "Grüße 🙂", "annotations": []},
            {"type": "refusal", "refusal": "But no."},
        ],
    },
    {
        "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f",
        "arguments": '{"a":1}', "status": "completed",
    },
]  # fmt: skip
RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m",
    "output": OUTPUT, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    "error": None, "incomplete_details": None, "instructions": None, "metadata": {},
    "usage": {
        "input_tokens": 3, "output_tokens": 9, "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 2},
    },
}  # fmt: skip


def served(events: bytes) -> RawUpstream:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + events)
        peer.close()

    return RawUpstream(script)


async def test_a_message_as_a_stream_is_the_same_to_anthropics_client() -> None:
    """Thoughts, text, tool calls and usage survive the trip through Anthropic's own SDK."""
    async with (
        served(message_events(MESSAGE)) as upstream,
        anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{upstream.port}", api_key="k", max_retries=0
        ) as client,
        client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]
        ) as stream,
    ):
        found = (await stream.get_final_message()).to_dict()
    assert found["content"] == [
        {name: value for name, value in block.items() if name != "parsed_output"}
        for block in BLOCKS
    ]
    assert (found["stop_reason"], found["id"]) == ("tool_use", "msg_1")
    usage: Any = found["usage"]
    assert usage["output_tokens"] == 9
    assert usage["input_tokens"] == 3


async def test_a_response_as_a_stream_is_the_same_to_openais_client() -> None:
    """OpenAI's SDK collects the same text from the deltas as from the final response."""
    async with (
        served(response_events(RESPONSE)) as upstream,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{upstream.port}/v1", api_key="k", max_retries=0
        ) as client,
        client.responses.stream(model="m", input="x") as stream,
    ):
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        found = await stream.get_final_response()
    assert "".join(texts) == found.output_text == "Grüße 🙂"
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call"]
    assert found.usage is not None
    assert found.usage.total_tokens == 12


def test_there_and_back_again_is_the_same_document() -> None:
    """A message and a response turned into events and read again lose no field."""
    assert whole_message(message_events(MESSAGE)) == MESSAGE
    assert whole_response(response_events(RESPONSE)) == RESPONSE


@pytest.mark.parametrize("endpoint", ["messages", "responses"])
def test_a_providers_stream_is_put_together_to_what_it_would_have_answered(endpoint: Any) -> None:
    """An independent provider: its stream and its document say the same."""
    dialect = DIALECTS[endpoint]
    body: dict[str, Any] = {"model": "m", "max_tokens": 50, "input": "Why?"}
    body |= {"messages": [{"role": "user", "content": "Why?"}], "stream": True}
    replies = []
    for asked in (body, {**body, "stream": False}):
        if endpoint == "messages":
            made = messages_reply(asked, seed=1, usage="true", long=False, count_only=False)
        else:
            made = responses_reply(asked, seed=1, usage="true", long=False)
        replies.append(made)
    streamed, whole = replies
    assert streamed.events is not None
    assert dialect.whole is not None
    request = dialect.parse(endpoint, orjson.dumps(body), None)
    raw = b"".join(event.data for event in streamed.events)
    document, usage = dialect.whole(request, raw, ())
    expected = orjson.loads(whole.body)
    assert dialect.text(document) == dialect.text(expected)
    assert usage == dialect.usage(expected) == dialect.usage(document)


@pytest.mark.parametrize(
    "delta", [{"type": "unheard_delta", "x": 1}, {"type": "text_delta"}, {}, None]
)
def test_a_message_with_pieces_nobody_knows_is_not_put_together(delta: Any) -> None:
    """An unknown or shapeless delta is an error, since a whole answer would lack its content."""
    odd = {"type": "content_block_delta", "index": 1, "delta": delta}
    events = message_events(MESSAGE)
    at = events.index(b"event: message_delta")
    with pytest.raises(UpstreamError):
        whole_message(events[:at] + b"data: " + orjson.dumps(odd) + b"\n\n" + events[at:])
