"""The unmodified openai and AzureOpenAI clients, in the dialects that coding agents speak."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.gateway.dialect_world import BODIES
from tests.gateway.running import RunningGateway

SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
QUESTION = "What is the weather in Oslo?"
ASKED: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def gpt(dialects: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=dialects.base_url, api_key=dialects.key("acme"), max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture(scope="module")
def azure(dialects: RunningGateway) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{dialects.port}", api_key=dialects.key("acme"),
        api_version="2024-10-21", max_retries=0, timeout=30,
    ) as client:  # fmt: skip
        yield client


def test_a_response_arrives_whole_and_streamed(gpt: openai.OpenAI) -> None:
    """A stream has the text and usage of the whole response; our charge is the one addition."""
    body = BODIES["/responses"]
    whole = gpt.responses.create(**body)
    assert whole.output_text.startswith("[simulated]")
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens > 0
    with gpt.responses.create(**body, stream=True) as events:
        found = list(events)
    assert found[-1].type == "response.completed"
    told = found[-1].response.usage
    assert told is not None
    assert set(told.model_extra or {}) == {"charge_usd"}
    assert told.model_dump(exclude={"charge_usd"}) == whole.usage.model_dump()
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text


def test_a_function_is_called_in_a_response(gpt: openai.OpenAI) -> None:
    """The function's arguments arrive as JSON, and its output leads to a last answer."""
    with gpt.responses.stream(model="gpt", input=QUESTION, tools=[FUNCTION]) as stream:
        answer = stream.get_final_response()
    call: Any = answer.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "simulated"}
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    called: Any = {"type": "function_call", "call_id": call.call_id, "name": call.name,
                   "arguments": call.arguments}  # fmt: skip
    turn = [{"role": "user", "content": QUESTION}, called, output]
    assert gpt.responses.create(model="gpt", input=turn, tools=[FUNCTION]).output_text


def test_a_response_that_is_cut_ends_with_an_error(gpt: openai.OpenAI) -> None:
    """The last event is an error; a reference to an answer kept elsewhere is refused by name."""
    with gpt.responses.create(
        model="gpt", input="Break. [[fault:cut-after-10]]", stream=True
    ) as events:
        found = list(events)
    assert found[-1].type == "error"
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        gpt.responses.create(model="gpt", input="And then?", previous_response_id="resp_1")


@pytest.mark.parametrize("model", ["gpt", "azure-gpt", "azure-older-gpt"])
def test_azures_client_works_unchanged(azure: openai.AzureOpenAI, model: str) -> None:
    """Whoever answers: the deployment in the path is a model of the policy."""
    answer = azure.chat.completions.create(model=model, messages=ASKED)
    assert answer.choices[0].message.content
    with azure.chat.completions.create(model=model, messages=ASKED, stream=True) as chunks:
        assert [chunk for chunk in chunks if chunk.choices][-1].choices[0].finish_reason == "stop"
    assert azure.responses.create(model=model, input=QUESTION).output_text
    assert model in [listed.id for listed in azure.models.list()]
