"""Streams: splitting, relaying, assembling and replaying are the same whatever the chunking."""

import time
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamUnavailable,
)
from gateway.wire.assemble import answer_text, assemble, complete, replay
from gateway.wire.relay import DONE, StreamRelay
from gateway.wire.sse import EVENT_BYTES_MAX, EventSplitter, event_data
from gateway.wire.usage import Usage

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def chunk(*choices: dict[str, Any], **fields: Any) -> bytes:
    document = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + orjson.dumps({**document, "choices": list(choices), **fields}) + b"\n\n"


def delta(index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": index, "delta": fields, "logprobs": None, "finish_reason": reason}


HELLO = [
    chunk(delta(role="assistant", content="")),
    chunk(delta(content="Hel")),
    chunk(delta(content="lö")),
    chunk(delta(reason="stop")),
    chunk(usage=USAGE),
    DONE,
]


def relay_of(include_usage: bool = True, keep: bool = True) -> StreamRelay:
    return StreamRelay(endpoint="chat", include_usage=include_usage, keep=keep)


def split(pieces: Iterable[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\r\r\n"])
def test_events_are_the_same_wherever_the_bytes_are_cut(blank: bytes) -> None:
    """The last event is followed by another, so that no line ending is left open."""
    data = blank.join([b"data: one", b": ping", b"event: x\ndata: two\ndata: three", b"id: 1", b""])
    whole = split([data, b"z"])
    assert [event_data(event) for event in whole] == [b"one", None, b"two\nthree", None]
    assert b"".join(whole) == data
    for offset in range(len(data) + 1):
        assert split([data[:offset], data[offset:], b"z"]) == whole
    assert split([bytes([byte]) for byte in data] + [b"z"]) == whole


@given(
    st.binary(max_size=300).map(lambda raw: raw.translate(bytes(range(48, 64)) * 4 + b"\n\r" * 96))
)
def test_nothing_is_lost_or_added_by_splitting(data: bytes) -> None:
    """Events and remainder add up to the input, and byte by byte the events are the same."""
    splitter = EventSplitter()
    events = splitter.feed(data)
    assert b"".join(events) + splitter.pending == data
    one_by_one = EventSplitter()
    pieces = [event for byte in data for event in one_by_one.feed(bytes([byte]))]
    assert b"".join(pieces) + one_by_one.pending == data
    assert pieces == events


def test_an_event_without_end_is_refused_at_the_limit() -> None:
    """One mebibyte is the most an event may fill, whether it comes in pieces or at once."""
    splitter = EventSplitter()
    splitter.feed(b"data: " + b"x" * (EVENT_BYTES_MAX - 6))
    with pytest.raises(UpstreamProtocolError, match="1048576"):
        splitter.feed(b"x")
    with pytest.raises(UpstreamProtocolError):
        EventSplitter().feed(b"data: " + b"x" * EVENT_BYTES_MAX + b"\n\n")


def test_event_data_follows_the_standard() -> None:
    """One space after "data:" goes, a second one stays; a comment or a bare name has no data."""
    assert event_data(b"data: x\n\n") == b"x"
    assert event_data(b"data:x\n\n") == b"x"
    assert event_data(b"data:  x\r\n\r\n") == b" x"
    assert event_data(b"data\n\n") is None
    assert event_data(b": comment\n\n") is None


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_relay_passes_every_byte_on_but_what_was_not_asked_for(include_usage: bool) -> None:
    """Cut at each offset, text passes at once; usage and end mark wait until they are booked."""
    stream = b": ping\n\n" + b"".join(HELLO)
    expected = b": ping\n\n" + b"".join(HELLO[:4])
    for offset in range(len(stream) + 1):
        relay = relay_of(include_usage)
        passed = relay.feed(stream[:offset]) + relay.feed(stream[offset:])
        assert passed == expected
        assert relay.finished
        assert relay.end() == (HELLO[4] if include_usage else b"") + DONE
        assert relay.usage is not None
        assert (relay.usage.prompt_tokens, relay.usage.completion_tokens) == (5, 3)
        assert (relay.content_events, relay.text_bytes) == (2, 6)
        assert relay.answer() == assemble("chat", (orjson.loads(e[6:]) for e in HELLO[:-1]))


def test_usage_beside_choices_is_read_and_taken_out_for_who_did_not_ask() -> None:
    """Some providers report in the chunk that ends the choice. Nothing else of it is touched."""
    last = chunk(delta(reason="stop"), usage=USAGE, system_fingerprint="fp")
    for include_usage in (True, False):
        relay = relay_of(include_usage)
        cut = chunk(delta(reason="stop"), system_fingerprint="fp")
        assert relay.feed(last) == (b"" if include_usage else cut)
        assert relay.end() == (last if include_usage else b"") + DONE
        assert relay.usage is not None
        hidden = b"" if include_usage else chunk(usage=USAGE, system_fingerprint="fp")
        assert relay.usage_event == hidden, "for those who share the stream and asked"


def usage_after(*events: bytes) -> Usage | None:
    relay = relay_of()
    for event in events:
        relay.feed(event)
    return relay.usage


def test_thoughts_count_as_generated_and_once_where_they_have_two_names() -> None:
    """Some servers send each thought under two names; a cut stream must not be billed twice."""

    def counted(**fields: Any) -> tuple[int, int]:
        relay = relay_of()
        relay.feed(chunk(delta(**fields)))
        return relay.content_events, relay.text_bytes

    once = counted(content="", reasoning_content="let me think")
    assert once == (1, 12)
    assert counted(reasoning="let me think", reasoning_content="let me think") == once


def test_later_usage_completes_earlier_usage_and_takes_nothing_back() -> None:
    """In each of three orders, poorer reports and zeros leave the richest count standing."""
    full = USAGE | {"prompt_tokens_details": {"cached_tokens": 4}}
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    orders = ([full, USAGE, zeros], [zeros, USAGE, full], [USAGE, full, zeros])
    for order in orders:
        told = usage_after(*[chunk(usage=usage) for usage in order])
        assert told == Usage(prompt_tokens=5, cached_tokens=4, completion_tokens=3)


@pytest.mark.parametrize(
    "place",
    [
        {"x_groq": {"id": "req", "usage": USAGE}},
        {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 3}},
        {"timings": {"prompt_n": 5, "predicted_n": 3}},
    ],
)
def test_usage_is_read_where_a_provider_puts_it(place: dict[str, Any]) -> None:
    """Groq, Gemini and llama.cpp report in fields of their own, which the client still sees."""
    last = chunk(delta(reason="stop"), **place)
    assert usage_after(last) == Usage(prompt_tokens=5, completion_tokens=3)
    assert relay_of(include_usage=False).feed(last) == last, "it is the provider's own field"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([chunk(delta(content="Hi"), service_tier="flex")], {"service_tier": "flex"}),
        ([chunk(delta(content="Hi"), service_tier="default")], {}),
        (
            [chunk({"index": 0, "delta": {"annotations": [{"type": "url_citation"}]}})],
            {"web_searches": 1},
        ),
        ([chunk({"index": 0, "delta": {"annotations": []}})], {}),
        ([chunk(search_results=[{"url": "https://example.org"}])], {"web_searches": 1}),
    ],
)
def test_the_tier_and_the_searches_that_any_event_shows_are_part_of_the_usage(
    events: list[bytes], expected: dict[str, Any]
) -> None:
    """Flex lowers the price and a citation proves a search, though the counts come later."""
    told = usage_after(*events, chunk(usage=USAGE))
    assert told == Usage(prompt_tokens=5, completion_tokens=3, **expected)


BESIDE = b'"usage" : {"prompt_tokens": 5, "x": "\\"}{,"}'


@pytest.mark.parametrize(
    ("event", "passed_on"),
    [
        (b'data: {"choices": [{}] , @ }\n\n', b'data: {"choices": [{}]  }\n\n'),
        (b'data:{@ ,\t"choices":[{}]}\r\n\r\n', b'data:{\t"choices":[{}]}\r\n\r\n'),
        (
            b'data: {"choices":[{"text":"\\"usage\\": 1, {\xc3\xb6"}],"x":{@},@,"z":1.0}\n\n',
            b'data: {"choices":[{"text":"\\"usage\\": 1, {\xc3\xb6"}],"x":{@},"z":1.0}\n\n',
        ),
    ],
)
def test_usage_is_cut_out_of_an_event_and_every_other_byte_stays(
    event: bytes, passed_on: bytes
) -> None:
    """@ stands for usage; only the provider's own report goes, not what looks like it."""
    relay = relay_of(include_usage=False)
    assert relay.feed(event.replace(b"@", BESIDE)) == passed_on.replace(b"@", BESIDE)
    assert relay.usage is not None


@pytest.mark.parametrize(
    "event",
    [b'data: {"choices":[{}],@,@}\n\n', b'data: {"choices":[{}],\ndata: @}\n\n'],
    ids=["given twice", "two lines of data"],
)
def test_usage_that_cannot_be_cut_out_beyond_doubt_is_passed_on(event: bytes) -> None:
    """A client sees usage that it did not ask for rather than an event spoiled by the cut."""
    event = event.replace(b"@", BESIDE)
    assert relay_of(include_usage=False).feed(event) == event


def test_an_event_that_comes_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    """Half a megabyte takes well below a second, not minutes."""
    splitter = EventSplitter()
    event = b"data: " + b"x\n" * (EVENT_BYTES_MAX // 4) + b"\n"
    began = time.process_time()
    found = [whole for byte in event for whole in splitter.feed(bytes((byte,)))]
    assert found == [event]
    assert time.process_time() - began < 5.0


def test_what_follows_the_end_mark_is_not_passed_on() -> None:
    """Clients stop at [DONE]; more content behind it would be shown by some and not by others."""
    relay = relay_of()
    assert relay.feed(b"".join(HELLO) + chunk(delta(content="more"))) == b"".join(HELLO[:4])
    assert relay.end() == HELLO[4] + DONE


@pytest.mark.parametrize(
    ("stream", "ended"),
    [
        (b"".join(HELLO), True),
        (b"".join(HELLO[:5]), True),
        (b"".join(HELLO[:4]), True),
        (b"".join(HELLO[:3]), False),
        (b"", False),
        (b"".join(HELLO[:4]) + b"data: {", False),
        (HELLO[1] + DONE, True),
        (chunk(delta(0, content="a"), delta(1, content="b")) + chunk(delta(0, "stop")), False),
    ],
)
def test_a_stream_that_was_cut_never_ends_as_a_success(stream: bytes, ended: bool) -> None:
    """A missing [DONE] is forgiven only once every choice has its finish_reason."""
    relay = relay_of()
    relay.feed(stream)
    if ended:
        assert relay.end() == (HELLO[4] if HELLO[4] in stream else b"") + DONE
    else:
        with pytest.raises(UpstreamUnavailable):
            relay.end()
        assert relay.answer() is None


@pytest.mark.parametrize(
    "event",
    [
        b"data: {not json}\n\n",
        b'data: {"id":"x","choices":[{"ind\n\n',
        b"data: []\n\n",
        b"data: 7\n\n",
        b"data: \n\n",
        HELLO[1].replace(b"Hel", b"H\xe2\x82"),
        HELLO[1].replace(b'"index":0', b'"index":}'),
        b'data: {"choices":["x"]}\n\n',
        b'data: {"choices":7}\n\n',
        b'data: {"choices":[{"index":[],"delta":{}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":"text"}]}\n\n',
    ],
)
def test_a_broken_event_stops_the_relay(event: bytes) -> None:
    """Bad JSON, half a character or a wrong shape ends the stream before a client chokes on it."""
    relay = relay_of()
    relay.feed(HELLO[0])
    with pytest.raises(UpstreamProtocolError):
        relay.feed(event)


def test_good_events_before_a_broken_one_are_passed_on_first() -> None:
    """They may have come in one piece; what was generated must reach the client and the books."""
    relay = relay_of()
    assert relay.feed(HELLO[0] + HELLO[1] + b"data: {broken\n\n" + HELLO[2]) == HELLO[0] + HELLO[1]
    assert relay.finished
    assert relay.content_events == 1
    for ask in (relay.end, lambda: relay.feed(HELLO[2])):
        with pytest.raises(UpstreamProtocolError):
            ask()
    assert relay.answer() is None


def test_an_answer_too_long_to_be_kept_is_relayed_all_the_same() -> None:
    """Beyond keep_bytes_max the caches get nothing, and the client gets every byte."""
    relay = StreamRelay(endpoint="chat", include_usage=True, keep=True, keep_bytes_max=300)
    assert relay.feed(b"".join(HELLO)) == b"".join(HELLO[:4])
    assert relay.answer() is None
    assert relay.end() == HELLO[4] + DONE


TOOLS = [
    chunk(delta(role="assistant", content=None, tool_calls=[
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}])),
    chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"x"'}}])),
    chunk(delta(tool_calls=[
        {"index": 1, "id": "b", "type": "function",
         "function": {"name": "g", "arguments": "{}"}}])),
    chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}])),
    chunk(delta(reason="tool_calls")),
]  # fmt: skip


def test_tool_calls_are_assembled_by_their_index() -> None:
    """Arguments that arrive interleaved end up whole in their own call, ready to be cached."""
    relay = relay_of()
    relay.feed(b"".join(TOOLS))
    answer = relay.answer()
    assert answer is not None
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function",
                     "function": {"name": "f", "arguments": '{"x":1}'}},
                    {"id": "b", "type": "function",
                     "function": {"name": "g", "arguments": "{}"}},
                ],
            },
        }
    ]  # fmt: skip
    assert complete(answer)
    assert relay.content_events == 4


def test_other_fields_refusals_reasoning_and_logprobs_are_assembled() -> None:
    """Each joins piece by piece in its own choice, and one choice cut short is not complete."""

    def logprob(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -0.1}], "refusal": None}

    chunks: list[dict[str, Any]] = [
        {"choices": [delta(role="assistant", reasoning_content="hm")], "system_fingerprint": "f"},
        {"choices": [delta(reasoning_content="m") | {"logprobs": logprob("a")}]},
        {"choices": [delta(refusal="No") | {"logprobs": logprob("b")}]},
        {"choices": [delta(1, content="one"), delta(0, refusal=".")]},
        {"choices": [delta(1, "length"), delta(0, "stop")]},
        {"choices": [], "usage": USAGE},
    ]
    answer = assemble("chat", chunks)
    assert answer is not None
    first, second = answer["choices"]
    assert first["message"] == {
        "role": "assistant", "content": None, "reasoning_content": "hmm", "refusal": "No.",
    }  # fmt: skip
    assert [item["token"] for item in first["logprobs"]["content"]] == ["a", "b"]
    assert (second["message"]["content"], second["finish_reason"]) == ("one", "length")
    assert (answer["usage"], answer["system_fingerprint"]) == (USAGE, "f")
    assert not complete(answer)
    assert "hmm" in answer_text(answer)


texts = st.text(max_size=80)
calls = st.lists(st.builds(
    lambda name, arguments: {
        "id": "call", "type": "function", "function": {"name": name, "arguments": arguments}},
    st.text(min_size=1, max_size=8), texts,
), min_size=1, max_size=3)  # fmt: skip
messages = st.one_of(
    texts.map(lambda text: {"role": "assistant", "content": text}),
    calls.map(lambda found: {"role": "assistant", "content": None, "tool_calls": found}),
    texts.map(lambda text: {"role": "assistant", "content": None, "refusal": text}),
)


@given(st.lists(messages, min_size=1, max_size=3), st.booleans())
def test_a_replayed_answer_assembles_to_itself(
    found: list[dict[str, Any]], include_usage: bool
) -> None:
    """A cached answer served as a stream keeps texts, refusals, tool calls and usage."""
    answer = {
        "id": "old", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": i, "message": message, "logprobs": None, "finish_reason": "stop"}
            for i, message in enumerate(found)
        ],
        "usage": USAGE,
    }  # fmt: skip
    events = replay("chat", answer, include_usage=include_usage, answer_id="new", created=2)
    relay = relay_of(include_usage)
    relay.feed(b"".join(events))
    assert relay.end() == (events[-2] if include_usage else b"") + DONE
    again = relay.answer()
    assert again is not None
    assert (again["id"], again["created"]) == ("new", 2)
    assert again.get("usage") == (USAGE if include_usage else None)
    for before, after in zip(found, again["choices"], strict=True):
        for name in ("content", "refusal", "tool_calls"):
            assert (after["message"].get(name) or None) == (before.get(name) or None)


def test_a_replayed_text_completion_assembles_to_itself() -> None:
    """The legacy endpoint's stored answer streams and comes back as the very same document."""
    answer = {
        "id": "old", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": "x" * 100, "logprobs": None, "finish_reason": "stop"}],
    }  # fmt: skip
    events = replay("completions", answer, include_usage=False, answer_id="old", created=1)
    chunks = [orjson.loads(event[6:]) for event in events[:-1]]
    assert assemble("completions", chunks) == answer
    assert events[-1] == DONE


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_whatever_raise_anything_but_an_upstream_error(pieces: list[bytes]) -> None:
    """Garbage from a provider is the provider's failure and never an internal error of ours."""
    relay = relay_of()
    try:
        for piece in pieces:
            relay.feed(b"data: " + piece + b"\n\n")
        relay.end()
    except UpstreamError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "delta", "content", "index", "finish_reason", "usage", "text",
                         "tool_calls", "function", "logprobs", "error", "prompt_tokens"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(json_values, max_size=4))
def test_no_json_whatever_raises_anything_but_an_upstream_error(values: list[Any]) -> None:
    """Well-formed JSON of any wrong shape is the provider's failure, not an internal error."""
    relay = relay_of()
    try:
        for value in values:
            relay.feed(b"data: " + orjson.dumps(value) + b"\n\n")
        relay.end()
        relay.answer()
    except UpstreamError:
        pass


def test_the_last_content_waits_where_the_usage_to_be_charged_stands_beside_it() -> None:
    """Whatever follows it follows it still."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    first, ending = (b"data: " + orjson.dumps(event) + b"\n\n" for event in (chunk, last))
    for between in (b"", b'data: {"choices":[],"x":1}\n\n'):
        relay = relay_of(include_usage=True)
        assert relay.feed(first) == first
        assert relay.feed(ending) == b""
        assert relay.feed(between) == (ending + between if between else b"")
        assert relay.feed(DONE) == b""
        assert relay.end() == (DONE if between else ending + DONE)


def test_the_last_content_is_not_lost_where_an_error_follows_it() -> None:
    """Text held back with its usage still reaches the client before the late error does."""
    relay = relay_of(include_usage=True)
    last = {
        "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    event = b"data: " + orjson.dumps(last) + b"\n\n"
    assert relay.feed(event) == b""
    assert relay.feed(b'data: {"error":{"message":"late"}}\n\n') == event
    with pytest.raises(UpstreamStatus):
        relay.end()
