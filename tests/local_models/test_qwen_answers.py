"""What applications ask of the Qwen file that is shipped: calls of tools, forms, labels."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import msgspec
import orjson
import pytest

from gateway.upstreams.local_answers import Choice, Totals, document
from gateway.upstreams.local_openai import read_call
from local_models.calibration import calibrated
from local_models.engine import Engine
from tests.local_models.generating import request, run
from tests.local_models.qwen import qwen_model_dir

pytestmark = pytest.mark.long

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, description: str) -> dict[str, Any]:
    """A function of a city."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": CITY},
    }


TOOLS = [tool("get_weather", "The weather in a city now"), tool("get_time", "The time in a city")]


@pytest.fixture(scope="module")
def qwen() -> Iterator[Engine]:
    """The 0.5B model."""
    engine = Engine.load(qwen_model_dir("0.5b"))
    yield engine
    engine.close()


def answer(engine: Engine, messages: Any, **fields: Any) -> Any:
    """The choice of an answer in OpenAI's form."""
    body = {"messages": messages, "max_tokens": 120, "temperature": 0, **fields}
    call = read_call(
        body, chat=True, request_id="r/1", model="m",
        context_tokens=engine.info.context_tokens, deadline=1e18,
    )  # fmt: skip
    outcome = run(engine, [call.request])[call.request.request_id]
    choice = Choice()
    choice.text, choice.finished = outcome.text, outcome.finished
    return orjson.loads(document(call, [choice], Totals()))["choices"][0]


WEATHER = [{"role": "user", "content": "What is the weather in Bern?"}]


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_tool_is_called_with_its_arguments(qwen: Engine, choice: Any) -> None:
    """Of its own accord, because it must, and because it is named."""
    found = answer(qwen, WEATHER, tools=TOOLS, tool_choice=choice)
    (call,) = found["message"]["tool_calls"]
    assert found["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Bern"}


def test_a_tool_that_is_named_is_called_whatever_is_asked(qwen: Engine) -> None:
    """A question about the weather calls get_time alone, because the application insists."""
    named = {"type": "function", "function": {"name": "get_time"}}
    found = answer(qwen, WEATHER, tools=TOOLS, tool_choice=named)
    assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["get_time"]


def test_a_tool_s_answer_is_used(qwen: Engine) -> None:
    """Calls and answers of the history reach the model by its own template."""
    call = {"name": "get_weather", "arguments": '{"city": "Bern"}'}
    history = [
        *WEATHER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "Snow, minus 3 degrees"},
    ]
    found = answer(qwen, history, tools=TOOLS, tool_choice="none")
    assert "now" in found["message"]["content"].lower() or "3" in found["message"]["content"]


def test_a_schema_is_filled_rightly(qwen: Engine) -> None:
    """Not only valid: what the text says."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    text = "Extract name and age as JSON: Maria Keller is 34 years old and lives in Basel."
    found = answer(qwen, [{"role": "user", "content": text}], response_format=form)
    made = json.loads(found["message"]["content"])
    jsonschema.validate(made, schema)
    assert made == {"name": "Maria Keller", "age": 34}


def test_labels_tell_good_from_bad(qwen: Engine) -> None:
    """With calibration, ten reviews."""
    reviews = [
        ("I loved every minute.", 0), ("A waste of time.", 1), ("Wonderful acting!", 0),
        ("Dull and far too long.", 1), ("The best book of the year.", 0),
        ("I want my money back.", 1),
        ("Great service, friendly people.", 0), ("It broke after one day.", 1),
        ("Works perfectly.", 0), ("The food was cold and stale.", 1),
    ]  # fmt: skip
    right = 0
    for review, wanted in reviews:
        ask = "Is this review positive or negative? Answer with one word.\nReview: "
        prompts = [
            [{"role": "user", "content": ask + text}] for text in (review, "N/A", "", "[MASK]")
        ]
        asked = [
            msgspec.structs.replace(
                request(str(number), ""), messages=tuple(prompt), labels=("positive", "negative")
            )
            for number, prompt in enumerate(prompts)
        ]
        outcomes = run(qwen, asked)
        scores = [outcomes[str(number)].finished.scores for number in range(len(prompts))]
        right += calibrated(scores[0], scores[1:])[wanted] > 0.5
    assert right >= 8
