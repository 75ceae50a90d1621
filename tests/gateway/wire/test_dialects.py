"""Dialects: bodies judged and sent on untouched, streams relayed as they came, errors in kind."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    AuthenticationFailed,
    BodyTooLarge,
    GatewayError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamStatus,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.simulator.dialects import messages_reply, responses_reply
from gateway.wire.canonical import cacheable
from gateway.wire.dialects import DIALECTS, error_body, error_event, locate, provider_paths, v1_path
from gateway.wire.openai import Endpoint, ParsedRequest
from gateway.wire.sizes import IMAGE_TOKENS_MAX
from gateway.wire.typed_events import EVENT_BYTES_MAX, TypedEventRelay
from gateway.wire.usage import Usage

MESSAGE: dict[str, Any] = {
    "model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello there."}],
}  # fmt: skip
RESPONSE: dict[str, Any] = {"model": "m", "input": "Hello there."}
SECRET = "0123456789abcdef-of-the-provider"
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def parse(endpoint: Endpoint, body: dict[str, Any]) -> ParsedRequest:
    return DIALECTS[endpoint].parse(endpoint, orjson.dumps(body), None)


def events_of(*documents: dict[str, Any]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (document["type"].encode(), orjson.dumps(document))
        for document in documents
    )


def relay_of(endpoint: Endpoint) -> TypedEventRelay:
    body = MESSAGE if endpoint == "messages" else RESPONSE
    relay = DIALECTS[endpoint].relay(parse(endpoint, body), False, False, [SECRET])
    assert isinstance(relay, TypedEventRelay)
    return relay


def simulated(endpoint: Endpoint) -> list[bytes]:
    """The events of an honest stream."""
    if endpoint == "messages":
        reply = messages_reply({**MESSAGE, "stream": True}, seed=1, usage="true", long=False,
                               count_only=False)  # fmt: skip
    else:
        reply = responses_reply({**RESPONSE, "stream": True}, seed=1, usage="true", long=False)
    assert reply.events is not None
    return [event.data for event in reply.events]


# Paths


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/messages", ("messages", None)),
        ("/v1/messages/count_tokens", ("count_tokens", None)),
        ("/v1/responses", ("responses", None)),
        ("/v1/chat/completions", ("chat", None)),
        ("/openai/deployments/gpt-x/chat/completions", ("chat", "gpt-x")),
        ("/openai/deployments/my model/embeddings", ("embeddings", "my model")),
        ("/openai/deployments/gpt-x/completions", ("completions", "gpt-x")),
        ("/openai/deployments/openai/gpt/chat/completions", ("chat", "openai/gpt")),
        ("/openai/v1/chat/completions", ("chat", None)),
        ("/openai/v1/responses", ("responses", None)),
        ("/openai/responses", ("responses", None)),
    ],
)
def test_a_path_is_found_as_each_vendor_spells_it(path: str, found: tuple[Endpoint, str]) -> None:
    """Clients of OpenAI, Anthropic and Azure change only their base URL; slashes in names work."""
    assert locate(path) == found


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/messages/", "/v1/messages/batches", "/openai", "/openai/v1/",
        "/openai/deployments/", "/openai/deployments/gpt-x", "/openai/deployments/gpt-x/messages",
        "/openai/deployments/embeddings",
        "/openai/deployments//embeddings", "/openai/v1/v1/responses",
    ],
)  # fmt: skip
def test_no_other_path_is_taken_for_one_of_them(path: str) -> None:
    """A trailing slash, a doubled /v1 or a deployment without a name reaches no model."""
    assert locate(path)[0] is None


def test_azures_lists_of_models_are_ours() -> None:
    """Both spellings of Azure's paths lead to the same list as /v1/models."""
    assert v1_path("/openai/v1/models/x") == "/v1/models/x"
    assert v1_path("/openai/models") == "/v1/models"
    assert v1_path("/v1/models") == "/v1/models"


def test_a_provider_has_paths_for_what_it_speaks_and_for_nothing_else() -> None:
    """Anthropic's API has two paths; an older Azure has its deployment and api-version in each."""
    assert provider_paths(["messages"]) == {
        "messages": "/messages", "count_tokens": "/messages/count_tokens",
    }  # fmt: skip
    older = provider_paths(["chat", "responses"], deployment="d", api_version="2024-10-21")
    assert older["chat"] == "/deployments/d/chat/completions?api-version=2024-10-21"
    assert older["embeddings"] == "/deployments/d/embeddings?api-version=2024-10-21"
    assert older["responses"] == "/responses?api-version=2024-10-21"
    assert "messages" not in older


# Bodies


@given(extra=st.dictionaries(st.text(max_size=6).map(lambda name: "x_" + name), JSON, max_size=4))
@pytest.mark.parametrize(
    ("endpoint", "body"),
    [("messages", MESSAGE), ("count_tokens", MESSAGE), ("responses", RESPONSE)],
)
def test_fields_nobody_knows_reach_the_provider_untouched(
    endpoint: Endpoint, body: dict[str, Any], extra: dict[str, Any]
) -> None:
    """A vendor's new feature works the day it appears; only the model's name is replaced."""
    request = parse(endpoint, {**body, **extra})
    sent = DIALECTS[endpoint].encode(
        request, upstream_model="theirs", max_output_tokens=None, limit_field="max_tokens"
    )
    assert orjson.loads(sent) == {**body, **extra, "model": "theirs"}


def test_azures_deployment_names_the_model_whatever_the_body_says() -> None:
    """The path wins over a body with another model, and over a body that names none."""
    raw = orjson.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    assert DIALECTS["chat"].parse("chat", raw, "gpt-x").model == "gpt-x"
    raw = orjson.dumps({**RESPONSE, "model": "other"})
    assert DIALECTS["responses"].parse("responses", raw, "gpt-x").model == "gpt-x"


def test_a_message_tells_what_the_policy_asks_for() -> None:
    """Anthropic's user id, limit, tools, schema and temperature decide as OpenAI's own would."""
    request = parse(
        "messages",
        {
            **MESSAGE,
            "stream": True,
            "temperature": 0.5,
            "system": [{"type": "text", "text": "Be brief."}],
            "metadata": {"user_id": "u-7"},
            "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"type": "bash_20250124"}],
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
    )
    assert (request.stream, request.temperature, request.user) == (True, 0.5, "u-7")
    assert (request.max_output_tokens, request.choices) == (50, 1)
    assert (request.has_tools, request.has_json_format, request.has_media) == (True, True, False)
    assert request.last_user_text == "Hello there."
    assert request.provider_tools is None
    assert request.prompt_bytes > len("Be brief.Hello there.")


def test_a_response_tells_what_the_policy_asks_for() -> None:
    """Limits, users, tools and schemas are read, and an image is bounded and hides the text."""
    given: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    ]
    request = parse(
        "responses",
        {
            "model": "m",
            "input": given,
            "instructions": "Answer.",
            "max_output_tokens": 9,
            "user": "u-7",
            "tools": [{"type": "function", "name": "f"}, {"type": "local_shell"}],
            "text": {"format": {"type": "json_schema", "schema": {}}},
        },
    )
    assert (request.max_output_tokens, request.user, request.choices) == (9, "u-7", 1)
    assert (request.has_tools, request.has_json_format, request.has_media) == (True, True, False)
    assert request.last_user_text == "Hello"
    assert request.provider_tools is None
    given[-1]["content"].append({"type": "input_image", "image_url": "data:image/png;base64,AA"})
    request = parse("responses", {"model": "m", "input": given})
    assert request.has_media
    assert request.prompt_bytes > IMAGE_TOKENS_MAX
    assert request.last_user_text is None


def test_an_image_in_a_tools_result_counts_as_one() -> None:
    """An image two levels down would otherwise pass a hard budget as a few bytes of text."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    request = parse("messages", {**MESSAGE, "messages": [{"role": "user", "content": [result]}]})
    assert request.has_media
    assert request.prompt_bytes > IMAGE_TOKENS_MAX


@pytest.mark.parametrize(
    ("endpoint", "changes", "tool"),
    [
        ("messages", {"tools": [{"type": "web_search_20250305"}]}, "web_search_20250305"),
        ("messages", {"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        ("responses", {"tools": [{"type": "web_search"}]}, "web_search"),
        (
            "responses",
            {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
            "shell",
        ),
        ("messages", {"speed": "fast"}, "speed"),
        ("messages", {"inference_geo": "us"}, "inference_geo"),
        ("responses", {"service_tier": "priority"}, "service_tier"),
        ("chat", {"service_tier": "priority"}, "service_tier"),
        ("chat", {"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_the_provider_bills_as_no_price_foretells_is_known(
    endpoint: Endpoint, changes: dict[str, Any], tool: str
) -> None:
    """Nobody knows beforehand what it costs, so that a hard budget cannot allow it."""
    body = RESPONSE if endpoint == "responses" else MESSAGE
    assert parse(endpoint, {**body, **changes}).provider_tools == tool


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("tier", [None, "auto", "default", "flex"])
def test_a_tier_at_the_list_price_or_below_is_no_surprise(endpoint: Endpoint, tier: Any) -> None:
    """A hard budget need not refuse auto, default or flex, which cost the list price at most."""
    body = RESPONSE if endpoint == "responses" else MESSAGE
    assert parse(endpoint, {**body, "service_tier": tier}).provider_tools is None


@pytest.mark.parametrize(
    ("endpoint", "changes", "param"),
    [
        ("messages", {"messages": []}, "messages"),
        ("messages", {"messages": ["x"]}, "messages.0"),
        ("messages", {"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ("messages", {"max_tokens": None}, "max_tokens"),
        ("messages", {"max_tokens": -1}, "max_tokens"),
        ("messages", {"stream": 1}, "stream"),
        ("messages", {"model": ""}, "model"),
        ("responses", {"input": []}, "input"),
        ("responses", {"input": 1}, "input"),
        ("responses", {"background": True}, "background"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    endpoint: Endpoint, changes: dict[str, Any], param: str
) -> None:
    """The client reads the faulty field in its own dialect's spelling, as messages.0.content."""
    body = MESSAGE if endpoint == "messages" else RESPONSE
    with pytest.raises(InvalidRequest) as refusal:
        parse(endpoint, {**body, **changes})
    assert refusal.value.param == param


def shown(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def item(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "f"}, fields]}


KEPT: list[tuple[Endpoint, dict[str, Any], str]] = [
    ("chat", shown({"type": "file", "file": {"file_id": "f"}}),
     "messages[0].content[0].file.file_id"),
    ("chat", shown({"type": "image_url", "image_url": {"url": "gs://bucket/a.png"}}),
     "messages[0].content[0].image_url.url"),
    ("chat", shown({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
     "messages[0].content[0].image_url.url"),
    ("chat", shown({"type": "file", "file": {"url":
        "https://generativelanguage.googleapis.com/v1beta/files/abc"}}),
     "messages[0].content[0].file.url"),
    ("chat", {"messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]},
     "messages[0].audio"),
    ("chat", {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]},
     "tools[0].vector_store_ids"),
    ("chat", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("chat", {"cached_content": "cachedContents/1"}, "cached_content"),
    ("chat", {"extra_body": {"google": {"cached_content": "x"}}},
     "extra_body.google.cached_content"),
    ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("responses", {"conversation": "conv_1"}, "conversation"),
    ("responses", {"conversation": {"id": "conv_1"}}, "conversation"),
    ("responses", {"prompt": {"id": "pmpt_1", "version": "2"}}, "prompt"),
    ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ("responses", {"input": [{"id": "msg_1"}]}, "input[0]"),
    ("responses", {"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input[0]"),
    ("responses", {"input": [{"type": "code_interpreter_call", "container_id": "cntr_1"}]},
     "input[0].container_id"),
    ("responses", item({"type": "input_text", "text": "x"}, {"type": "input_file", "file_id": "f"}),
     "input[0].content[1].file_id"),
    ("responses", item({"type": "input_image", "file_id": "f"}), "input[0].content[0].file_id"),
    ("responses", {"input": [{"type": "function_call_output", "call_id": "c",
                              "output": [{"type": "input_image", "file_id": "f"}]}]},
     "input[0].output[0].file_id"),
    ("responses", {"input": [{"type": "computer_call_output", "call_id": "c",
                              "output": {"type": "computer_screenshot", "file_id": "f"}}]},
     "input[0].output.file_id"),
    ("responses", tool(type="file_search", vector_store_ids=["vs_1"]), "tools[1].vector_store_ids"),
    ("responses", tool(type="code_interpreter", container="cntr_1"), "tools[1].container"),
    ("responses", tool(type="code_interpreter", container={"type": "auto", "file_ids": ["f"]}),
     "tools[1].container.file_ids"),
    ("responses", tool(type="shell", environment={"container_id": "cntr_1"}),
     "tools[1].environment.container_id"),
    ("responses", tool(type="image_generation", input_image_mask={"file_id": "f"}),
     "tools[1].input_image_mask.file_id"),
    ("messages", {"container": "container_1"}, "container"),
    ("messages", {"container": {"id": "container_1"}}, "container"),
    ("messages", {"container": {"skills": [{"type": "custom", "skill_id": "skill_1"}]}},
     "container.skills[0].skill_id"),
    ("messages", shown({"type": "document", "source": {"type": "file", "file_id": "f"}}),
     "messages[0].content[0].source.file_id"),
    ("count_tokens", shown({"type": "image", "source": {"type": "file", "file_id": "f"}}),
     "messages[0].content[0].source.file_id"),
    ("messages", shown({"type": "container_upload", "file_id": "f"}),
     "messages[0].content[0].file_id"),
    ("messages", shown({"type": "tool_result", "tool_use_id": "t", "content": [
        {"type": "document", "source": {"type": "file", "file_id": "f"}}]}),
     "messages[0].content[0].content[0].source.file_id"),
]  # fmt: skip
BODIES: dict[Endpoint, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "responses": RESPONSE,
    "messages": MESSAGE,
    "count_tokens": MESSAGE,
}


@pytest.mark.parametrize(("endpoint", "changes", "place"), KEPT)
def test_what_the_provider_keeps_is_refused_by_its_place_in_every_dialect(
    endpoint: Endpoint, changes: dict[str, Any], place: str
) -> None:
    """All tenants share the gateway's account: another tenant's file would be read."""
    with pytest.raises(InvalidRequest) as refusal:
        parse(endpoint, {**BODIES[endpoint], **changes})
    assert refusal.value.param == place
    assert refusal.value.message.startswith(f"'{place}' refers to a")
    assert ": " in refusal.value.message, "and says how to do without it"


FREE: list[tuple[Endpoint, dict[str, Any]]] = [
    ("chat", shown({"type": "file", "file": {"filename": "a", "file_data": "data:x;base64,A"}})),
    ("chat", shown({"type": "image_url", "image_url": {"url": "https://a.example/files/1.png"}})),
    ("chat", {"audio": {"voice": "alloy", "format": "wav"}, "modalities": ["text", "audio"]}),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "properties": {"file_id": {"type": "string"}, "container": {"type": "string"}}}}}]}),
    ("chat", {"metadata": {"conversation": "7"}, "store": False, "conversation": None}),
    ("responses", {"input": [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"file_id":"x"}'},
        {"type": "function_call_output", "call_id": "c", "output": '{"file_id":"x"}'},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {"id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "x",
            "annotations": [{"type": "file_citation", "file_id": "f"}]}]},
        {"type": "image_generation_call", "id": "ig_1", "result": "AAAA"},
    ]}),
    ("responses", tool(type="code_interpreter", container={"type": "auto"})),
    ("responses", tool(type="shell", environment={"type": "container_auto"})),
    ("messages", {"container": {"skills": [{"type": "anthropic", "skill_id": "pptx"}]}}),
    ("messages", {"messages": [
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "f", "input": {"file_id": "x"}},
            {"type": "code_execution_tool_result", "content": {"content": [{"file_id": "f"}]}}]},
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://a.example/a.png"}}]},
    ]}),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "changes"), FREE)
def test_what_is_the_clients_own_passes_whatever_its_fields_are_called(
    endpoint: Endpoint, changes: dict[str, Any]
) -> None:
    """A file_id in a tool's arguments or schema is the client's data and names no stored file."""
    assert parse(endpoint, {**BODIES[endpoint], **changes}).body["model"]


@pytest.mark.parametrize("endpoint", ["messages", "count_tokens", "responses"])
def test_no_cache_answers_a_dialect_that_it_cannot_replay(endpoint: Endpoint) -> None:
    """Neither Anthropic's messages nor OpenAI's responses can be replayed from a store."""
    body = RESPONSE if endpoint == "responses" else MESSAGE
    assert cacheable(parse(endpoint, body)) is not None


# Usage


def test_anthropics_disjoint_counts_become_parts_of_the_prompt() -> None:
    """10 new, 300 read and 50 written tokens are billed as one prompt of 360 with its parts."""
    usage = DIALECTS["messages"].usage(
        {
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 300,
                "cache_creation_input_tokens": 50,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 20,
                },
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 4},
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 5},
            }
        }
    )  # fmt: skip
    assert usage == Usage(
        prompt_tokens=360, cached_tokens=300, cache_write_tokens=50, cache_write_1h_tokens=20,
        completion_tokens=7, reasoning_tokens=4, web_searches=2,
    )  # fmt: skip


def test_what_a_compaction_took_is_added_to_totals_that_leave_it_out() -> None:
    """Anthropic bills the compaction's 100 tokens too, though the totals show the turn's 10."""
    compaction = {
        "type": "compaction", "input_tokens": 100, "output_tokens": 20,
        "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4,
    }  # fmt: skip
    turn = {"type": "message", "input_tokens": 10, "output_tokens": 7}
    counts = {"input_tokens": 10, "output_tokens": 7, "iterations": [compaction, turn]}
    usage = DIALECTS["messages"].usage({"usage": counts})
    assert usage == Usage(
        prompt_tokens=117, cached_tokens=4, cache_write_tokens=3, completion_tokens=27
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": {"speed": "fast"}},
        {"usage": {"server_tool_use": {"code_execution_requests": 1}}},
        {"usage": {"iterations": [{"type": "advisor_message", "input_tokens": 5}]}},
        {"container": {"id": "container_1"}},
    ],
)
def test_what_no_price_covers_is_marked_and_not_forgotten(changes: dict[str, Any]) -> None:
    """Fast mode, containers, code runs and advisors cost extra, so the booked sum is not final."""
    counts = {"input_tokens": 1, "output_tokens": 1, **changes.pop("usage", {})}
    usage = DIALECTS["messages"].usage({"usage": counts, **changes})
    assert usage is not None
    assert usage.other_fees


def test_a_responses_searches_are_counted_in_its_output() -> None:
    """Opening a page is no search; tools that bill by the call mark the usage as having fees."""
    calls = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "function_call"},
    ]
    counts = {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 5},
    }  # fmt: skip
    usage = DIALECTS["responses"].usage({"usage": counts, "output": calls})
    expected = Usage(
        prompt_tokens=100, cached_tokens=60, completion_tokens=9, reasoning_tokens=5,
        web_searches=1,
    )  # fmt: skip
    assert usage == expected
    for kind in ("code_interpreter_call", "x_search_call", "file_search_call"):
        usage = DIALECTS["responses"].usage({"usage": counts, "output": [*calls, {"type": kind}]})
        assert usage is not None
        assert usage.other_fees, kind


@given(counts=st.dictionaries(st.sampled_from([
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation", "output_tokens_details", "server_tool_use", "iterations", "speed",
]), JSON | st.dictionaries(st.sampled_from(
    ["ephemeral_1h_input_tokens", "thinking_tokens", "web_search_requests"]), st.integers(0, 2**54)
)))  # fmt: skip
def test_no_usage_object_breaks_the_books(counts: dict[str, Any]) -> None:
    """Missing is None, a zero is a zero, and parts never exceed their totals (Usage asserts it)."""
    for endpoint in ("messages", "responses"):
        usage = DIALECTS[endpoint].usage({"usage": counts, "output": counts})
        assert usage is None or usage.prompt_tokens >= usage.cached_tokens


# Streams


@pytest.mark.parametrize("endpoint", ["messages", "responses"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_stream_passes_byte_for_byte_whatever_its_chunks(
    endpoint: Endpoint, ending: bytes
) -> None:
    """What has the last counts and the end waits until the answer is booked; the rest passes."""
    events = simulated(endpoint)
    events[1:1] = [b": keep-alive\n\n", b'event: later\ndata: {"type":"later.version"}\n\n']
    events = [event.replace(b"\n", ending) for event in events]
    waiting = 2 if endpoint == "messages" else 1  # message_delta with usage, message_stop
    stream, last = b"".join(events[:-waiting]), b"".join(events[-waiting:])
    usages = set()
    for size in (1, 7, 64, 4096, 1 << 20):
        relay = relay_of(endpoint)
        data = stream + last + b"data: [DONE]\n\n"
        passed = b"".join(relay.feed(data[i : i + size]) for i in range(0, len(data), size))
        assert passed == stream
        assert relay.finished
        assert relay.end() == last
        assert relay.usage is not None
        usages.add((relay.usage.prompt_tokens, relay.usage.completion_tokens))
        assert relay.content_events == relay.usage.completion_tokens
        assert relay.text_bytes > 0
    assert len(usages) == 1


@given(documents=st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), max_size=4),
       size=st.integers(1, 40))  # fmt: skip
@pytest.mark.parametrize("endpoint", ["messages", "responses"])
def test_events_of_any_unknown_type_pass_untouched(
    endpoint: Endpoint, documents: list[dict[str, Any]], size: int
) -> None:
    """New event types of a vendor reach its client byte for byte, however they are cut."""
    unknown = [{**document, "type": "x.unknown"} for document in documents]
    data = events_of(*unknown)
    relay = relay_of(endpoint)
    assert b"".join(relay.feed(data[i : i + size]) for i in range(0, len(data), size)) == data
    assert not relay.finished


@pytest.mark.parametrize("endpoint", ["messages", "responses"])
def test_a_stream_that_ends_before_its_last_event_was_cut(endpoint: Endpoint) -> None:
    """Cut after any number of events, the stream ends in an error and never as a success."""
    events = simulated(endpoint)
    for count in range(len(events)):
        relay = relay_of(endpoint)
        told = [event for event in events[:count] if b"message_delta" not in event]
        assert relay.feed(b"".join(events[:count])) == b"".join(told)
        with pytest.raises(UpstreamUnavailable, match="cut"):
            relay.end()


def test_the_counts_of_a_message_grow_and_are_not_added() -> None:
    """Anthropic repeats running totals; adding them up would bill 65 tokens where 42 were made."""
    relay = relay_of("messages")
    start = {
        "input_tokens": 5, "cache_read_input_tokens": 100, "output_tokens": 3,
        "cache_creation_input_tokens": 8, "cache_creation": {"ephemeral_1h_input_tokens": 8},
    }  # fmt: skip
    relay.feed(events_of({"type": "message_start", "message": {"usage": start}}))
    assert relay.usage is None
    assert relay.prompt == Usage(
        prompt_tokens=113, cached_tokens=100, cache_write_tokens=8, cache_write_1h_tokens=8
    )
    relay.feed(events_of({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 20}}))
    later = {"output_tokens": 42, "input_tokens": 6, "cache_read_input_tokens": None}
    relay.feed(events_of({"type": "message_delta", "delta": {}, "usage": later}))
    assert relay.usage == Usage(
        prompt_tokens=114, cached_tokens=100, cache_write_tokens=8, cache_write_1h_tokens=8,
        completion_tokens=42,
    )  # fmt: skip


def test_zeros_of_a_message_take_nothing_back() -> None:
    """Counts are cumulative: compatible servers send 0 where nothing is new."""
    relay = relay_of("messages")
    start = {"input_tokens": 1000, "cache_read_input_tokens": 500, "output_tokens": 1}
    relay.feed(events_of({"type": "message_start", "message": {"usage": start}}))
    zeros = {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 50}
    relay.feed(events_of({"type": "message_delta", "delta": {}, "usage": zeros}))
    assert relay.usage == Usage(prompt_tokens=1500, cached_tokens=500, completion_tokens=50)


def test_a_prompt_of_no_tokens_is_not_what_a_message_begins_with() -> None:
    """Compatible servers open with zeros; a cut stream must not be booked as a free prompt."""
    relay = relay_of("messages")
    start = {"input_tokens": 0, "output_tokens": 0}
    relay.feed(events_of({"type": "message_start", "message": {"usage": start}}))
    assert relay.prompt is None


BROKEN = [b"event: x\ndata: {not json}\n\n", b"data: [1]\n\n"]


@pytest.mark.parametrize("broken", [
    *[("messages", event) for event in BROKEN],
    *[("responses", event) for event in BROKEN],
    ("messages", events_of({"type": "message_start", "message": None})),
    ("messages", events_of({"type": "content_block_delta", "delta": 1})),
    ("responses", events_of({"type": "response.completed"}).replace(b"}", b',"response":1}')),
])  # fmt: skip
def test_a_malformed_event_ends_the_stream_after_what_was_good(
    broken: tuple[Endpoint, bytes],
) -> None:
    """The client keeps every good byte, sees no broken one, and is told that the stream failed."""
    endpoint, event = broken
    good = simulated(endpoint)[0]
    relay = relay_of(endpoint)
    assert relay.feed(good + event) == good
    assert relay.finished
    with pytest.raises(UpstreamProtocolError):
        relay.end()
    with pytest.raises(UpstreamProtocolError):
        relay_of(endpoint).feed(event)


def test_an_event_that_repeats_a_long_answer_passes_and_a_longer_one_is_refused() -> None:
    """An event just below EVENT_BYTES_MAX passes whole; one just above it cannot fill memory."""
    event = b"data: " + orjson.dumps({"type": "x", "text": "y" * (EVENT_BYTES_MAX - 100)}) + b"\n\n"
    assert relay_of("responses").feed(event) == event
    with pytest.raises(UpstreamProtocolError, match=str(EVENT_BYTES_MAX)):
        relay_of("responses").feed(event[:-2] + b" " * 100)


def test_an_error_in_the_stream_is_the_providers_own_without_secrets() -> None:
    """An overload in mid-stream is a 529 with Anthropic's type, and the key in it is redacted."""
    relay = relay_of("messages")
    reason = {"type": "overloaded_error", "message": f"key {SECRET} is busy"}
    with pytest.raises(UpstreamStatus) as failure:
        relay.feed(events_of({"type": "error", "error": reason}))
    assert (failure.value.status, failure.value.retryable) == (529, True)
    assert (failure.value.type, failure.value.message) == (
        "overloaded_error", "key [redacted] is busy",
    )  # fmt: skip
    assert error_event("messages", failure.value, "01R", 0) == events_of(
        {"type": "error", "error": {**reason, "message": "key [redacted] is busy"}}
    )


def test_a_failed_response_is_told_as_it_came_and_billed_as_it_says() -> None:
    """The client gets the provider's event unchanged, and the failed run's tokens are booked."""
    relay = relay_of("responses")
    failed = {
        "type": "response.failed",
        "sequence_number": 4,
        "response": {
            "error": {"code": "server_error", "message": "It broke."},
            "usage": {"input_tokens": 3, "output_tokens": 2},
        },
    }
    good = events_of({"type": "response.created", "sequence_number": 3})
    assert relay.feed(good + events_of(failed)) == good
    with pytest.raises(UpstreamStatus) as failure:
        relay.end()
    assert (failure.value.status, failure.value.code) == (500, "server_error")
    assert error_event("responses", failure.value, "01R", 5) == events_of(failed)
    assert relay.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert relay.next_sequence == 5


# Errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("x"), "invalid_request_error"),
        (AuthenticationFailed("x"), "authentication_error"),
        (PermissionDenied("x"), "permission_error"),
        (ModelNotFound("x"), "not_found_error"),
        (BodyTooLarge("x"), "request_too_large"),
        (RateLimited("x"), "rate_limit_error"),
        (InternalError("x"), "api_error"),
        (UpstreamUnavailable("x"), "api_error"),
        (UpstreamTimeout("x"), "timeout_error"),
        (Overloaded("x"), "overloaded_error"),
    ],
)
def test_anthropics_clients_get_their_own_errors(error: GatewayError, kind: str) -> None:
    """Anthropic's SDK raises its usual exception for each of the gateway's own refusals."""
    for endpoint in ("messages", "count_tokens"):
        assert orjson.loads(error_body(endpoint, error, "01R")) == {
            "type": "error", "error": {"type": kind, "message": "x"}, "request_id": "01R",
        }  # fmt: skip


def test_everybody_else_gets_openais_errors() -> None:
    """Chat, embeddings, responses and unknown paths answer in the one body OpenAI's SDK reads."""
    error = RateLimited("x")
    for endpoint in (None, "chat", "embeddings", "responses"):
        assert error_body(endpoint, error, "01R") == error.body()
    assert error_event("chat", error, "01R", 0) == error.event()


def test_a_response_that_breaks_ends_with_a_numbered_error() -> None:
    """OpenAI's client orders events by sequence_number, so the error continues the count."""
    event = error_event("responses", UpstreamUnavailable("cut"), "01R", 12)
    assert event == events_of(
        {
            "type": "error", "code": "upstream_unavailable", "message": "cut", "param": None,
            "sequence_number": 12,
        }
    )  # fmt: skip


def test_a_providers_error_keeps_its_type_and_overload_its_status() -> None:
    """A 529 may be retried elsewhere; a 401 becomes a 502, because the key is the gateway's."""
    read: Callable[..., UpstreamError] = DIALECTS["messages"].provider_error
    raw = orjson.dumps(
        {"type": "error", "error": {"type": "overloaded_error", "message": f"no: {SECRET}"}}
    )
    error = read(529, raw, (), [SECRET], 0.0)
    assert (error.status, error.retryable) == (529, True)
    assert orjson.loads(error_body("messages", error, "01R"))["error"] == {
        "type": "overloaded_error", "message": "no: [redacted]",
    }  # fmt: skip
    refused = read(401, raw, (), [SECRET], 0.0)
    assert refused.status == 502, "it is our key that was refused, not the client's"
