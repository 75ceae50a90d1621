"""Answers that hold what no double and no UTF-8 can: passed on, kept, and served again."""

import json

import orjson
import pytest

from gateway.wire.anthropic import MessagesRelay
from gateway.wire.assemble import replay
from gateway.wire.openai import redact, shown
from gateway.wire.relay import DONE, StreamRelay
from gateway.wire.tokens import count_tokens
from gateway.wire.verbatim import Number, decode, encode, read

HALVES = (b"hi \\ud83d", b"\\ude00 there")


def chunk(content: bytes, finish: bytes = b"null") -> bytes:
    return (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        b'[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}],"x":18446744073709551617}\n\n'
        % (content, finish)
    )


def test_an_emoji_cut_in_two_passes_as_it_came_and_is_kept_whole() -> None:
    """Replayed from the store, the halves join to the emoji, and the long number stays exact."""
    relay = StreamRelay(endpoint="chat", include_usage=False, keep=True)
    stream = b"".join(map(chunk, HALVES)) + chunk(b"", b'"stop"')
    assert relay.feed(stream + DONE) == stream
    assert relay.end() == DONE
    kept = relay.answer()
    assert kept is not None
    assert kept["choices"][0]["message"]["content"] == "hi \ud83d\ude00 there"
    replayed = b"".join(replay("chat", kept, include_usage=False, answer_id="c", created=1))
    events = [json.loads(line[6:]) for line in replayed.split(b"\n\n")[:-2]]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert json.loads(json.dumps(text)) == "hi 😀 there"
    assert b"18446744073709551617" in replayed


def test_half_an_emoji_passes_in_a_typed_stream() -> None:
    """Anthropic's events with a lone surrogate reach the client unchanged and count as content."""
    relay = MessagesRelay()
    delta = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        b'{"type":"text_delta","text":"\\ud83d"}}\n\n'
    )
    assert relay.feed(delta) == delta
    assert relay.content_events == 1


@pytest.mark.parametrize("raw", [b'["\\ud83d', b"[1e400", b'["\xff\\ud83d"]', b"[NaN,1e999]"])
def test_what_is_no_json_is_still_none(raw: bytes) -> None:
    """Half emojis and huge numbers are tolerated; cut text, bad UTF-8 and NaN are not."""
    for judge in (decode, read):
        with pytest.raises(orjson.JSONDecodeError):
            judge(raw)


def test_numbers_keep_their_spelling_only_where_a_double_changes_them() -> None:
    """Ordinary numbers stay plain ints and floats, and the document is written as it was read."""
    raw = b"[18446744073709551617,-0,1e400,0.30000000000000004,1.0,2]"
    document = decode(raw)
    assert [type(value) for value in document] == [Number, Number, Number, float, float, int]
    assert encode(document) == raw


def test_half_a_pair_is_counted_and_shown_without_breaking_anything() -> None:
    """Counting, redacting and previewing such a text give valid UTF-8, cut to 100 bytes."""
    assert count_tokens("cut \ud83d", model="unheard-of")[0] > 0
    assert redact("cut \ud83d", ()).encode()
    assert shown("\ud83d" + "x" * 1_000_000).encode() == b"?" + b"x" * 99
