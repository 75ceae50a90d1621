"""The unmodified anthropic client, as coding agents use it."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.dialect_world import CACHED
from tests.gateway.running import RunningGateway

anthropic = pytest.importorskip("anthropic")

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "get_weather", "description": "The weather now.", "input_schema": SCHEMA}
ASKED: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture(scope="module")
def claude(dialects: RunningGateway) -> Iterator[Any]:
    url = f"http://127.0.0.1:{dialects.port}"
    with anthropic.Anthropic(
        base_url=url, api_key=dialects.key("acme"), max_retries=0, timeout=30
    ) as client:
        yield client


def test_a_message_arrives_whole_and_streamed(claude: Any) -> None:
    """Both forms give the same text and the same usage, cached prompt tokens included."""
    whole = claude.messages.create(model="claude", max_tokens=200, **CACHED)
    assert whole.stop_reason == "end_turn"
    assert whole.content[0].text.startswith("[simulated]")
    assert len(whole._request_id) == 26
    with claude.messages.stream(model="claude", max_tokens=200, **CACHED) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == whole.content[0].text
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert last.usage.cache_read_input_tokens == whole.usage.cache_read_input_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_taken(claude: Any, streamed: bool) -> None:
    """A coding agent gets the tool's arguments parsed, and its result leads to a last answer."""
    given = {"model": "claude", "max_tokens": 200, "tools": [TOOL]}
    if streamed:
        with claude.messages.stream(messages=ASKED, **given) as stream:
            answer = stream.get_final_message()
    else:
        answer = claude.messages.create(messages=ASKED, **given)
    assert answer.stop_reason == "tool_use"
    (call,) = answer.content
    assert (call.name, call.input) == ("get_weather", {"city": "simulated"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    turn = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(messages=[*ASKED, *turn], **given).stop_reason == "end_turn"


def test_a_token_may_come_as_bearer_and_beta_features_by_query(
    dialects: RunningGateway, claude: Any
) -> None:
    """As coding agents send them."""
    with anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{dialects.port}", api_key=None,
        auth_token=dialects.key("acme"), max_retries=0,
    ) as agent:  # fmt: skip
        answer = agent.beta.messages.create(
            model="claude", max_tokens=200, messages=ASKED, betas=["some-beta-2026-01-01"]
        )
    assert answer.content[0].text
    counted = claude.messages.count_tokens(model="claude", messages=ASKED)
    assert counted.input_tokens == answer.usage.input_tokens


def test_an_error_is_the_clients_own_exception(claude: Any, dialects: RunningGateway) -> None:
    """Unknown models, foreign dialects, overload and wrong keys each raise their exception."""
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        claude.messages.create(model="nobody", max_tokens=9, messages=ASKED)
    with pytest.raises(anthropic.BadRequestError, match="does not translate"):
        claude.messages.create(model="gpt", max_tokens=9, messages=ASKED)
    broken = [{"role": "user", "content": "Break. [[fault:status-529]]"}]
    with pytest.raises(anthropic.OverloadedError) as overload:
        claude.messages.create(model="claude", max_tokens=9, messages=broken)
    assert overload.value.body["error"]["type"] == "overloaded_error"
    stranger = claude.with_options(api_key="th_wrong")
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model="claude", max_tokens=9, messages=ASKED)


@pytest.mark.parametrize("fault", ["cut-after-10", "error-event-after-10"])
def test_a_broken_stream_raises_and_never_ends_silently(claude: Any, fault: str) -> None:
    """Half an answer must not pass for a whole one."""
    broken = [{"role": "user", "content": f"Break. [[fault:{fault}]]"}]
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(model="claude", max_tokens=200, messages=broken) as stream,
    ):
        list(stream)
