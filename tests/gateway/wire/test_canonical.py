"""Canonical bodies: equal meaning, equal bytes; a doubt makes them differ."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.canonical import cacheable, canonical_body
from gateway.wire.openai import ParsedRequest, parse_request

BASE: dict[str, Any] = {
    "model": "auto",
    "messages": [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    "temperature": 0,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}


def parsed(body: dict[str, Any]) -> ParsedRequest:
    return parse_request("chat", orjson.dumps(body))


def canonical(**changes: Any) -> bytes:
    return canonical_body(parsed({**BASE, **changes}))


def asked(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "u-1"},
        {"metadata": {"trace": "x"}},
        {"safety_identifier": "s"},
        {"service_tier": "flex"},
        {"prompt_cache_key": "k"},
        {"store": False},
        {"top_p": 1.0},
        {"n": 1},
        {"presence_penalty": 0.0},
        {"frequency_penalty": -0.0},
        {"logprobs": False},
        {"logit_bias": {}},
        {"stop": None},
        {"seed": None},
        {"max_tokens": None},
        {"temperature": 0.0},
        {"response_format": {"type": "text"}},
        {"tool_choice": "none"},
        {"modalities": ["text"]},
    ],
    ids=str,
)
def test_what_cannot_change_the_answer_does_not_count(changes: dict[str, Any]) -> None:
    """Transport, bookkeeping and defaults said aloud give the same bytes."""
    assert canonical(**changes) == canonical()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "large"},
        {"temperature": 0.7},
        {"temperature": None},
        {"top_p": 0.9},
        {"seed": 1},
        {"n": 2},
        {"n": True},
        {"max_tokens": 50},
        {"stop": ["\n"]},
        {"logprobs": True},
        {"logit_bias": {"50256": -100}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"x_vendor": None},
        {"x_vendor": 1},
        {"x_vendor": True},
        {"x_vendor": "1"},
        {"response_format": {"type": "json_object"}},
        {"tools": [TOOL]},
        {"messages": asked("Why is the sky blue?")},
        {"messages": [{"role": "developer", "content": "Be terse."}, BASE["messages"][1]]},
        {"messages": [BASE["messages"][0], {"role": "user", "content": "why is the sky blue?"}]},
        {"messages": [BASE["messages"][0], {"role": "user", "content": "Why is the sky blue? "}]},
        {"messages": [*BASE["messages"][:1], {**BASE["messages"][1], "name": "ann"}]},
    ],
    ids=str,
)
def test_what_can_change_the_answer_counts(changes: dict[str, Any]) -> None:
    """Each of these gives other bytes, unknown fields included."""
    body = {**BASE, **changes}
    raw = ParsedRequest(endpoint="chat", body=body, model="auto", prompt_bytes=0)
    assert canonical_body(raw) != canonical()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked("x"), asked([{"type": "text", "text": "x"}])),
        (asked("x"), [{"content": "x", "role": "user"}]),
        (asked("x"), asked("x", name=None)),
        (
            asked([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]),
            asked([{"text": "x", "type": "text"}, {"text": "y", "type": "text"}]),
        ),
    ],
)
def test_one_message_in_two_spellings_is_one(one: Any, other: Any) -> None:
    """A lone text part is its text; the order of a message's keys says nothing."""
    assert canonical(messages=one) == canonical(messages=other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked('x"},{"role":"user","content":"y'), [*asked("x"), *asked("y")]),
        (
            asked([{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]),
            asked([{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]),
        ),
        (asked("1"), asked([{"type": "text", "text": "1", "cache_control": {}}])),
        (asked("caf\u00e9"), asked("cafe\u0301")),
        (asked("x"), asked("x\u200b")),
    ],
)
def test_text_cannot_imitate_structure(one: Any, other: Any) -> None:
    """Boundaries, unseen characters and normal forms stay distinct."""
    assert canonical(messages=one) != canonical(messages=other)


def test_integers_beyond_a_doubles_precision_stay_apart() -> None:
    """2**53 and 2**53 + 1 are one double, and two seeds."""
    assert canonical(seed=2**53) != canonical(seed=2**53 + 1)
    huge = ParsedRequest(endpoint="chat", body={"seed": 2**70}, model="m", prompt_bytes=0)
    huger = ParsedRequest(endpoint="chat", body={"seed": 2**70 + 1}, model="m", prompt_bytes=0)
    assert canonical_body(huge) != canonical_body(huger)


def test_key_order_counts_inside_a_schema_and_nowhere_else() -> None:
    """Structured output follows the order of the schema's properties."""
    properties = TOOL["function"]["parameters"]["properties"]
    turned = json.loads(json.dumps(TOOL))
    turned["function"]["parameters"]["properties"] = dict(reversed(properties.items()))
    envelope = {"function": TOOL["function"], "type": "function"}
    assert canonical(tools=[TOOL]) != canonical(tools=[turned])
    assert canonical(tools=[TOOL]) == canonical(tools=[envelope])
    assert canonical(tools=[TOOL], tool_choice="auto") == canonical(tools=[TOOL])
    assert canonical(tools=[TOOL], tool_choice="none") != canonical(tools=[TOOL])


def test_a_limit_and_a_stop_have_one_spelling() -> None:
    """The older name of the limit and the one-string form of stop are folded."""
    assert canonical(max_tokens=9) == canonical(max_completion_tokens=9)
    assert canonical(max_tokens=9, max_completion_tokens=8) != canonical(max_completion_tokens=8)
    assert canonical(stop="END") == canonical(stop=["END"])


def test_names_of_tool_calls_count_by_first_occurrence_only() -> None:
    """Ids are minted per answer; which result belongs to which call still counts."""

    def history(first: str, second: str, answered: str) -> list[dict[str, Any]]:
        calls = [
            {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}
            for name in (first, second)
        ]
        return [
            *asked("x"),
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": answered, "content": "4"},
        ]

    one = canonical(messages=history("a", "b", "a"))
    assert one == canonical(messages=history("p", "q", "p"))
    assert one != canonical(messages=history("a", "b", "b"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
BODIES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["a", "b"]),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=5)}
            ),
            max_size=3,
        ),
    },
    optional={"x_vendor": JSON, "temperature": st.sampled_from([0, 0.5, 1])},
)


def raw_canonical(body: dict[str, Any]) -> bytes:
    return canonical_body(
        ParsedRequest(endpoint="chat", body=body, model=str(body["model"]), prompt_bytes=0)
    )


@settings(max_examples=100, deadline=None)
@given(BODIES, st.randoms(use_true_random=False))
def test_key_order_and_white_space_never_matter(body: dict[str, Any], random: Any) -> None:
    """A body shuffled at the top and in its messages, and printed wide, reads the same."""
    keys = list(body)
    random.shuffle(keys)
    shuffled = {key: body[key] for key in keys}
    shuffled["messages"] = [dict(reversed(message.items())) for message in body["messages"]]
    again = json.loads(json.dumps(shuffled, indent=3))
    assert raw_canonical(again) == raw_canonical(body)


@settings(max_examples=200, deadline=None)
@given(BODIES, BODIES)
def test_bodies_of_different_meaning_never_meet(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal bytes imply equal JSON, type for type."""
    if raw_canonical(one) == raw_canonical(other):
        assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": True},
        {"background": True},
        {"web_search_options": {}},
        {"search_parameters": {"mode": "auto"}},
        {"enable_search": True},
        {"plugins": [{"id": "web"}]},
        {"model": "gpt-4o-search-preview"},
        {"model": "vendor/model:online"},
        {"model": "sonar-pro"},
        {"tools": [{"google_search": {}}]},
        *[
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]}
            for part in (
                {"type": "image_url", "image_url": {"url": "http://camera.example/latest.jpg"}},
                {"type": "image_url", "image_url": "https://camera.example/latest.jpg"},
                {"type": "video_url", "video_url": {"url": "video-1"}},
                {"type": "document", "source": {"location": ["https://a.example/b.pdf"]}},
            )
        ],
        {"tools": [{"type": "web_search"}]},
        {"modalities": ["text", "audio"]},
        {"n": 3, "temperature": 1},
        {"n": 3, "temperature": None},
    ],
    ids=str,
)
def test_an_answer_that_lives_elsewhere_or_depends_on_the_moment_is_not_cached(
    changes: dict[str, Any],
) -> None:
    """The reason names the field."""
    reason = cacheable(parsed({**BASE, **changes}))
    assert reason is not None
    assert reason.split(":")[0] in changes


DATA_URL = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tools": [TOOL]},
        {"n": 3, "temperature": 0},
        {"enable_search": False},
        {"model": "research-assistant"},
        {"messages": [{"role": "user", "content": "Read https://a.example/."}]},
        *[
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "http://a.example"}, part],
                    }
                ]
            }
            for part in (
                {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:x;base64,AA"}},
            )
        ],
    ],
    ids=str,
)
def test_an_ordinary_request_may_be_cached(changes: dict[str, Any]) -> None:
    """Client tools and repeated deterministic choices are ordinary."""
    assert cacheable(parsed({**BASE, **changes})) is None
