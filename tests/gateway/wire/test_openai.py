"""Request bodies: what is read of them, what is refused, and what reaches the upstream."""

import contextlib
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.wire.openai import (
    ParsedRequest,
    encode_request,
    parse_request,
    redact,
    upstream_error,
)
from gateway.wire.structure import CONTAINERS_MAX, DEPTH_MAX, KEYS_MAX

A = {"type": "text", "text": "a"}
USER: Any = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ParsedRequest:
    return parse_request("chat", orjson.dumps({"model": "m", "messages": USER} | fields))


def nested(depth: int) -> bytes:
    """A body whose deepest list is ``depth`` containers down."""
    inner = b"[" * (depth - 1) + b"]" * (depth - 1)
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":%b}' % inner


def keyed(count: int) -> bytes:
    """A body with ``count`` keys, none of them a repetition."""
    fields = b",".join(b'"k%d" : 1' % i for i in range(count - 4))
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],%b}' % fields


def test_what_the_gateway_needs_is_read() -> None:
    """Limits, choices, user, tools and format of a chat reach the policy as the client set them."""
    request = chat(
        stream=True, stream_options={"include_usage": True}, max_tokens=7, n=3, user="u",
        temperature=0, tools=[{"type": "function"}], response_format={"type": "json_object"},
    )  # fmt: skip
    assert request.stream
    assert request.include_usage
    assert (request.max_output_tokens, request.choices, request.user) == (7, 3, "u")
    assert request.temperature == 0.0
    assert request.has_tools
    assert request.has_json_format
    assert not request.has_media
    assert (request.messages_count, request.last_user_text) == (1, "Hi")


@pytest.mark.parametrize(
    ("message", "text", "media"),
    [
        ({"role": "user", "content": "plain"}, "plain", False),
        ({"role": "user", "content": [A]}, "a", False),
        ({"role": "user", "content": [A, {"type": "text", "text": "b"}]}, "a\nb", False),
        ({"role": "user", "content": [A, {"type": "image_url", "image_url": {}}]}, None, True),
        ({"role": "assistant", "content": "plain"}, None, False),
        ({"role": "user", "content": None}, None, False),
        ({"role": "tool", "tool_call_id": "1", "content": "4"}, None, False),
    ],
)  # fmt: skip
def test_only_a_users_plain_text_is_the_last_user_text(
    message: Any, text: str | None, media: bool
) -> None:
    """Caches must not judge by a text beside an image, nor by another role's words."""
    request = chat(messages=[*USER, message])
    assert (request.last_user_text, request.has_media) == (text, media)


@given(st.lists(st.text(), min_size=1, max_size=5), st.text())
def test_prompt_bytes_bound_the_tokens_of_all_text(texts: list[str], description: str) -> None:
    """No tokenizer makes more tokens of a text than it has bytes."""
    tool = {"type": "function", "function": {"name": "f", "description": description}}
    request = chat(messages=[{"role": "user", "content": text} for text in texts], tools=[tool])
    least = sum(len(text.encode()) for text in texts) + len(description.encode())
    assert least <= request.prompt_bytes


def test_a_linked_image_is_bounded_by_its_tokens_and_not_by_its_link() -> None:
    """500 kB inline count as one picture, like a short link; low detail counts about 2,900."""
    part = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    inline = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 500_000}}
    low = {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}}
    sizes = [
        chat(messages=[{"role": "user", "content": [p]}]).prompt_bytes for p in (part, inline, low)
    ]
    assert sizes[1] > 45_000
    assert sizes[0] - sizes[1] == len("https://a/b.png")
    assert 2_833 <= sizes[2] < 3_000


def test_completions_count_their_prompts_and_choices() -> None:
    """Two prompts with best_of 5 are ten answers to pay, and a token list is a single prompt."""

    def read(**fields: Any) -> ParsedRequest:
        return parse_request("completions", orjson.dumps({"model": "m", **fields}))

    assert read(prompt="abc").last_user_text == "abc"
    assert read(prompt=["a", "b"], n=2).choices == 4
    assert read(prompt=["a", "b"], n=2, best_of=5).choices == 10
    assert read(prompt=[1, 2, 3]).prompt_bytes == 3
    assert read(prompt=[[1, 2], [3]]).choices == 2
    assert read(prompt=["a", "b"]).last_user_text is None


def test_embeddings_take_texts_and_tokens() -> None:
    """Each input is bounded by its bytes or its token count, and stream has no meaning there."""
    for given_input, size in (("äb", 3), (["ab", "c"], 3), ([1, 2], 2), ([[1, 2], [3]], 3)):
        body = orjson.dumps({"model": "m", "input": given_input, "stream": True})
        request = parse_request("embeddings", body)
        assert request.prompt_bytes == size
        assert not request.stream


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'"text"', None),
        (b"{", None),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}', None),
        (b'{"model":"m","temperature":NaN,"messages":[{"role":"user"}]}', None),
        (b'{"model":"m","temperature":1e999,"messages":[{"role":"user"}]}', "temperature"),
        (b'{"messages":[{"role":"user"}]}', "model"),
        (b'{"model":"","messages":[{"role":"user"}]}', "model"),
        (b'{"model":7,"messages":[{"role":"user"}]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":{}}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":["x"]}', "messages[0]"),
        (b'{"model":"m","messages":[{"role":"user"},{}]}', "messages[1].role"),
        (b'{"model":"m","messages":[{"role":"user","content":7}]}', "messages[0].content"),
        (b'{"model":"m","stream":1,"messages":[{"role":"user"}]}', "stream"),
        (b'{"model":"m","max_tokens":-1,"messages":[{"role":"user"}]}', "max_tokens"),
        (b'{"model":"m","max_tokens":true,"messages":[{"role":"user"}]}', "max_tokens"),
        (b'{"model":"m","max_completion_tokens":1.5,"messages":[{"role":"user"}]}',
         "max_completion_tokens"),
        (b'{"model":"m","n":"2","messages":[{"role":"user"}]}', "n"),
        (b'{"model":"m","temperature":"hot","messages":[{"role":"user"}]}', "temperature"),
        (nested(1100), None),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_and_its_field_named(raw: bytes, param: str | None) -> None:
    """The client gets a 400 with the JSON path of the fault, or none where it is no JSON object."""
    with pytest.raises(InvalidRequest) as caught:
        parse_request("chat", raw)
    assert caught.value.param == param
    assert caught.value.status == 400


def test_limits_hold_at_their_edge() -> None:
    """Depth and keys pass at their maximum and fail one above it; containers fail beyond theirs."""
    assert parse_request("chat", nested(DEPTH_MAX))
    with pytest.raises(InvalidRequest, match="nested"):
        parse_request("chat", nested(DEPTH_MAX + 1))
    assert parse_request("chat", keyed(KEYS_MAX))
    with pytest.raises(InvalidRequest, match="keys"):
        parse_request("chat", keyed(KEYS_MAX + 1))
    with pytest.raises(InvalidRequest, match="lists and objects"):
        lists = b"[" + b"[]," * CONTAINERS_MAX + b"1]"
        parse_request("chat", b'{"model":"m","messages":[{"role":"user"}],"x":%b}' % lists)


@given(
    st.recursive(
        st.text(alphabet='[]{}:"\\,aä'),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.text('[{:"\\'), inner, max_size=4),
        max_leaves=60,
    )
)  # fmt: skip
def test_marks_inside_strings_never_count_as_structure(value: Any) -> None:
    """Thirty-two levels around any value whose strings are full of brackets are always accepted."""
    padding = ["[{:" * 200, '"\\' * 300]
    wrapped: Any = [value, padding]
    for _ in range(25):
        wrapped = [wrapped]
    assert chat(x=wrapped).body["x"] == wrapped


@pytest.mark.parametrize(
    "inner",
    [b"[" + b"[]," * 2_700_000 + b"1]", b'{"a" :1' + b',"a" :1' * 1_150_000 + b"}",
     b'"' + b"[" * 8_000_000 + b'"', b'["[' + b'","[' * 2_000_000 + b'"]'],
)  # fmt: skip
def test_eight_hostile_megabytes_are_judged_without_walking_them(inner: bytes) -> None:
    """CPU of this thread, which other work on the machine does not disturb much."""
    raw = b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + inner + b"}"
    began = time.thread_time()
    with contextlib.suppress(InvalidRequest):
        parse_request("chat", raw)
    assert time.thread_time() - began < 1.0


def test_the_body_reaches_the_upstream_with_another_model_and_nothing_lost() -> None:
    """Unknown fields and nulls stay, and the parsed request still knows the client's own name."""
    request = chat(unknown={"deep": [1, None]}, stream=False)
    sent = orjson.loads(encode_request(request, upstream_model="real"))
    assert sent == {
        "model": "real", "messages": USER, "unknown": {"deep": [1, None]}, "stream": False,
    }  # fmt: skip
    assert request.body["model"] == "m"


def test_usage_is_always_asked_of_a_stream_and_other_options_stay() -> None:
    """Without usage nothing could be booked exactly; the client's wish not to see it is kept."""
    request = chat(stream=True, stream_options={"include_obfuscation": False})
    sent = orjson.loads(encode_request(request, upstream_model="real"))
    assert sent["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert not request.include_usage


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"max_tokens": 9}),
        ({"max_tokens": 50}, {"max_tokens": 9}),
        ({"max_completion_tokens": 50}, {"max_completion_tokens": 9}),
    ],
)
def test_a_cap_goes_into_the_field_that_the_client_used(
    fields: dict[str, int], expected: dict[str, int]
) -> None:
    """A provider that gets both limits may refuse, so only one of them is ever sent."""
    body = encode_request(chat(**fields), upstream_model="m", max_output_tokens=9)
    sent = orjson.loads(body)
    assert {name: sent[name] for name in sent if name.startswith("max_")} == expected


def test_a_cap_that_no_field_asks_for_goes_into_the_model_s_own() -> None:
    """The legacy endpoint knows the older name alone, whatever the model."""
    newer = "max_completion_tokens"
    sent = encode_request(chat(), upstream_model="m", max_output_tokens=9, limit_field=newer)
    assert orjson.loads(sent)[newer] == 9
    legacy = parse_request("completions", b'{"model":"m","prompt":"x"}')
    sent = encode_request(legacy, upstream_model="m", max_output_tokens=9, limit_field=newer)
    assert orjson.loads(sent) == {"model": "m", "prompt": "x", "max_tokens": 9}


def test_of_duplicate_keys_the_last_counts_for_us_and_for_the_upstream() -> None:
    """A second model key cannot pass the policy as one model and reach the provider as another."""
    raw = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}'
    request = parse_request("chat", raw)
    assert request.model == "b"
    assert encode_request(request, upstream_model=request.model).count(b'"model"') == 1


def error(message: str, **fields: Any) -> bytes:
    return orjson.dumps({"error": {"message": message, **fields}})


def test_a_providers_error_keeps_status_type_code_and_param() -> None:
    """A 422 with a bad parameter reaches the client's SDK as the provider meant it."""
    raw = error("No such thing", type="invalid_request_error", code="nope", param="tools")
    found = upstream_error(422, raw, [], [])
    assert (found.status, found.type, found.code, found.param, found.message) == (
        422, "invalid_request_error", "nope", "tools", "No such thing",
    )  # fmt: skip
    assert not found.retryable


@pytest.mark.parametrize("status", [401, 402, 403])
def test_the_gateways_own_account_is_no_fault_of_the_tenant(status: int) -> None:
    """401, 402 and 403 concern the gateway's key: the tenant sees a 502 and no part of the key."""
    found = upstream_error(status, error("Incorrect API key provided: sk-1234567890"), [], [])
    assert found.status == 502
    assert "sk-" not in found.message


@pytest.mark.parametrize(
    ("status", "free"),
    [(400, True), (401, True), (429, True), (503, True), (529, True), (500, False), (502, False)],
)
def test_a_refusal_costs_nothing_and_a_failure_may(status: int, free: bool) -> None:
    """A 400, 429 or 529 is booked at zero; after a 500 or 502 the provider may still bill."""
    assert upstream_error(status, error("no"), [], []).unsent is free


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"287441")], 287_441.0),
        ([(b"retry-after", b"1000000001")], None),
        ([(b"retry-after", b"inf")], None),
        ([(b"retry-after", b"-5")], None),
        ([(b"retry-after", b"nan")], None),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"Mon, 01 Jan 99999999999999 00:00:00 GMT")], None),
        ([(b"retry-after", b"Mon, 01 Jan 2020 00:00:00 +99999999999999999999999")], None),
        ([(b"retry-after", b"Sun, 06 Nov 1994 08:49:47 GMT")], 10.0),
        ([(b"retry-after", b"Sun, 06 Nov 1994 08:49:27 GMT")], None),
        ([], None),
    ],
)
def test_retry_advice_is_read_in_every_form_and_kept_as_it_is(
    headers: list[tuple[bytes, bytes]], expected: float | None
) -> None:
    """Seconds, milliseconds and dates count; past, endless, negative or huge ones do not."""
    found = upstream_error(429, error("slow"), headers, [], now_seconds=784111777.0)
    assert found.retry_after_seconds == expected
    assert found.retryable
    assert found.status == 429


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"[]", b'{"error":7}', b'{"error":{"message":[]}}']
)
def test_an_error_of_another_shape_still_becomes_one_of_ours(raw: bytes) -> None:
    """An empty body, HTML or odd JSON still gives the client a status and a readable message."""
    found = upstream_error(500, raw, [], [])
    assert found.status == 500
    assert found.message


SECRET = "canary-3f9a77d1e0"


@pytest.mark.parametrize(
    "secret",
    [SECRET, "sk-proj-abcDEF123456", "Bearer abc.def-ghi_123", "th_" + "a1" * 21, "tha_" + "b" * 40,
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "AIzaSyA1234567890abcdef"],
)  # fmt: skip
def test_no_secret_survives_in_any_field_of_an_error(secret: str) -> None:
    """Keys of providers, tenants and clouds are removed from message, type, code and param."""
    raw = error(f"key {secret} is wrong", type=secret, code=secret, param=secret)
    found = upstream_error(400, raw, [], [f"Bearer {SECRET}"])
    assert secret not in found.body().decode()
    assert "is wrong" in found.message


def test_a_secret_is_removed_even_where_the_message_is_cut() -> None:
    """Redaction comes before the cut at 2,000 characters, so no first half of a key remains."""
    raw = error("x" * 1_995 + SECRET)
    message = upstream_error(400, raw, [], [SECRET]).message
    assert len(message) <= 2_000
    assert SECRET[:5] not in message


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=7))
def test_redaction_leaves_text_without_secrets_as_it_is(text: str) -> None:
    """Seven characters hold no credential of any vendor: they come back as they are."""
    assert redact(text, []) == text
