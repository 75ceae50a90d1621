"""What a client sends and gets is what the provider is sent and says, whatever it may be.

Judged by the standard library's JSON, which is none of the gateway's.
"""

import json
import random
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.wire.dialects import DIALECTS
from gateway.wire.openai import Endpoint, ParsedRequest, encode_request, parse_request
from gateway.wire.relay import DONE, StreamRelay
from gateway.wire.usage import Usage

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
INTEGERS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1.0, -0.0, 1e-7, 0.1 + 0.2, 1e22, 5e-324, 1.7976931348623157e308, 1e15]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=5)
# Fields that are judged, and so cannot be just anything.
JUDGED = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n",
    "user", "temperature",
}  # fmt: skip
UNJUDGED = st.dictionaries(
    st.one_of(
        TEXT, st.sampled_from(["tools", "response_format", "seed", "metadata", "logit_bias"])
    ),
    JSON,
    max_size=6,
).map(lambda found: {name: value for name, value in found.items() if name not in JUDGED})
MESSAGES = st.lists(
    st.builds(
        lambda others, role, content: {**others, "role": role, "content": content},
        OBJECTS,
        TEXT,
        st.one_of(st.none(), TEXT, st.lists(OBJECTS, max_size=3)),
    ),
    min_size=1,
    max_size=3,
)
WRITING = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 1]),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    }
)


def meaning(document: Any) -> str:
    """A text that differs where two documents differ: 1 from 1.0, 0.0 from -0.0, order of keys."""
    return json.dumps(document)


def parsed(raw: bytes) -> ParsedRequest:
    """The request, unless it happens to name what the provider keeps, which is refused."""
    try:
        return parse_request("chat", raw)
    except InvalidRequest as error:
        assume("that the provider keeps" not in error.message)
        raise


@given(unjudged=UNJUDGED, messages=MESSAGES, stream=st.booleans(), writing=WRITING)
def test_a_body_reaches_the_provider_with_its_model_changed_and_nothing_else(
    unjudged: dict[str, Any], messages: list[Any], stream: bool, writing: Any
) -> None:
    """For a stream, usage is asked for too. Order, unknown fields and numbers are as they came."""
    body = {"model": "alias", **unjudged, "messages": messages, "stream": stream}
    raw = json.dumps(body, **writing).encode()
    sent = encode_request(parsed(raw), upstream_model="theirs")
    expected = {**body, "model": "theirs"}
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert meaning(json.loads(sent)) == meaning(expected)


@given(options=OBJECTS, limit=st.integers(1, 10_000), extra=OBJECTS)
def test_a_streams_own_options_stay_and_a_limit_is_the_only_other_change(
    options: dict[str, Any], limit: int, extra: dict[str, Any]
) -> None:
    """The gateway adds include_usage and its cap, and leaves order and every number alone."""
    body = {
        **{name: value for name, value in extra.items() if name not in JUDGED},
        "model": "alias",
        "stream_options": options,
        "stream": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    request = parsed(json.dumps(body).encode())
    sent = encode_request(request, upstream_model="theirs", max_output_tokens=limit)
    expected = {
        **body,
        "model": "theirs",
        "stream_options": {**options, "include_usage": True},
        "max_tokens": limit,
    }
    assert meaning(json.loads(sent)) == meaning(expected)


NUMBERS = [
    "18446744073709551617", "-9223372036854775809", "1" + "0" * 400, "-0", "-0.0", "1e400",
    "-1E+999", "1e-400", "0.1000000000000000055511151231257827", "3.14159265358979323846",
    "12345678901234567.5", "0.30000000000000004", "1e2", "5e-324", "18446744073709551615",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_a_number_that_no_double_holds_reaches_the_provider(
    endpoint: Endpoint, number: str
) -> None:
    """Judged by decimals: what the provider reads is what the client wrote."""
    raw = (
        '{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"input":"Hi",'
        f'"tools":[{{"type":"custom","name":"f","const":{number}}}]}}'
    ).encode()
    dialect = DIALECTS[endpoint]
    request = dialect.parse(endpoint, raw, None)
    sent = dialect.encode(request, upstream_model="m", max_output_tokens=None, limit_field="")
    (tool,) = json.loads(sent, parse_int=Decimal, parse_float=Decimal)["tools"]
    assert tool["const"] == Decimal(number)
    assert tool["const"].is_signed() == Decimal(number).is_signed()


@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_half_a_surrogate_pair_reaches_the_provider(endpoint: Endpoint) -> None:
    """Legal JSON, which JavaScript writes where it cuts a text; in values and in names."""
    raw = (
        b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"cut \\ud83d"}],'
        b'"input":[{"role":"user","content":"cut \\ud83d"}],"x":{"\\ude00":1,"y":1e400}}'
    )
    dialect = DIALECTS[endpoint]
    request = dialect.parse(endpoint, raw, None)
    sent = dialect.encode(request, upstream_model="m", max_output_tokens=None, limit_field="")
    assert json.loads(sent) == json.loads(raw)
    assert b"1e400" in sent
    assert request.last_user_text is None, "no model of ours reads it"


@given(unjudged=UNJUDGED, number=st.sampled_from(NUMBERS))
def test_beside_such_a_number_everything_else_stays(unjudged: dict[str, Any], number: str) -> None:
    """Random fields around a number beyond a double reach the provider with the same meaning."""
    body = {**unjudged, "model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    raw = f'{{"const":{number},{json.dumps(body)[1:]}'.encode()
    sent = encode_request(parse_request("chat", raw), upstream_model="m")
    read = partial(json.loads, parse_int=Decimal, parse_float=Decimal)
    assert read(sent) == read(raw)


DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXT),
    st.builds(lambda text: {"refusal": text}, TEXT),
    st.builds(lambda text: {"reasoning_content": text}, TEXT),
    st.builds(lambda text: {"audio": {"id": "a", "data": text, "transcript": text}}, TEXT),
    st.builds(
        lambda index, name, text: {
            "tool_calls": [{"index": index, "id": name, "function": {"arguments": text}}]
        },
        st.integers(0, 3),
        TEXT,
        TEXT,
    ),
    OBJECTS,
)
CHUNKS = st.builds(
    lambda others, index, delta, logprobs: {
        **{k: v for k, v in others.items() if k not in ("choices", "usage", "error")},
        "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}],
    },
    OBJECTS,
    st.integers(0, 2),
    DELTAS,
    st.one_of(st.none(), OBJECTS),
)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def event(document: Any, writing: dict[str, Any], end: str, space: str, before: str) -> bytes:
    """An event as any provider might write it, over several lines of data too."""
    text = json.dumps(document, **writing)
    lines = [*([before] if before else []), *(f"data:{space}{line}" for line in text.split("\n"))]
    return (end.join(lines) + end + end).encode()


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes | None]:
    """(every event but [DONE], the one of usage alone or None): each in one of three line ends."""
    end = draw(LINE_ENDS)
    shapes = st.tuples(WRITING, st.just(end), st.sampled_from([" ", ""]), st.just(""))
    named = st.tuples(WRITING, st.just(end), st.just(" "), st.sampled_from(["event: x", ": ping"]))
    found = [
        event(document, *draw(st.one_of(shapes, named)))
        for document in draw(st.lists(CHUNKS, min_size=1, max_size=6))
    ]
    found += draw(st.lists(st.just(f": ping{end}{end}".encode()), max_size=1))
    closing = [{"index": n, "delta": {}, "finish_reason": "stop"} for n in range(3)]
    begin = [{"index": n, "delta": {"role": "assistant"}} for n in range(3)]
    found.insert(0, event({"choices": begin}, *draw(shapes)))
    found.append(event({"choices": closing}, *draw(shapes)))
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    alone = event({"choices": [], "usage": usage}, *draw(shapes)) if draw(st.booleans()) else None
    return found, alone


def pieces(raw: bytes, seed: int | None) -> list[bytes]:
    """``raw`` cut at random, or into single bytes."""
    if seed is None:
        return [raw[at : at + 1] for at in range(len(raw))]
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randrange(12)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) if a < b]


@given(
    stream=streams(),
    include_usage=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
)
@settings(deadline=None)  # single bytes of a long stream
def test_a_stream_comes_out_byte_for_byte_wherever_it_is_cut(
    stream: tuple[list[bytes], bytes | None], include_usage: bool, seed: int | None
) -> None:
    """Tool calls, refusals, reasoning, audio, logprobs and several choices as they came; the event
    of usage comes with the end where it was asked for, and never where it was not.
    """
    events, alone = stream
    asked = alone if alone and include_usage else b""
    raw = b"".join(events) + (alone or b"") + DONE
    relay = StreamRelay(endpoint="chat", include_usage=include_usage, keep=True, choices=3)
    passed_on = b"".join(relay.feed(piece) for piece in pieces(raw, seed))
    assert passed_on == b"".join(events)
    assert relay.end() == asked + DONE
    assert (relay.usage is not None) == (alone is not None)
    if isinstance(relay.usage, Usage):
        assert (relay.usage.prompt_tokens, relay.usage.completion_tokens) == (5, 7)


@given(chunk=CHUNKS, writing=WRITING, at=st.integers(0, 9))
def test_usage_beside_choices_goes_and_all_else_means_what_it_meant(
    chunk: dict[str, Any], writing: Any, at: int
) -> None:
    """Wherever it stands among the members, and however they are written."""
    members = list(chunk.items())
    usage = ("usage", {"prompt_tokens": 5, "completion_tokens": 7, "x": '"},{"'})
    members.insert(at % (len(members) + 1), usage)
    text = json.dumps(dict(members), **{**writing, "indent": None})
    relay = StreamRelay(endpoint="chat", include_usage=False, keep=False)
    passed_on = relay.feed(f"data: {text}\n\n".encode())
    assert relay.usage is not None
    assert meaning(json.loads(passed_on[6:])) == meaning(chunk)
