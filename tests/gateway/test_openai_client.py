"""The unmodified openai client against a running gateway: what it may rely on."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.running import ProviderThread, RunningGateway

HELLO: Any = [{"role": "user", "content": "Say hello to the tests."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


def test_a_completion_arrives_with_usage_and_says_how_it_was_answered(acme: openai.OpenAI) -> None:
    """Headers name model, route, both request ids and the cost to the last pico-dollar."""
    raw = acme.chat.completions.with_raw_response.create(model="large", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-tollhouse-model"] == "large"
    assert raw.headers["x-tollhouse-route"] == "rest"
    assert len(raw.headers["x-request-id"]) == 26
    assert raw.headers["x-tollhouse-upstream-request-id"]
    cost = answer.usage.prompt_tokens * 2_500_000 + answer.usage.completion_tokens * 15_000_000
    assert raw.headers["x-tollhouse-cost-usd"] == f"{cost / 1e12:.12f}"


def test_a_stream_gives_the_same_text_as_the_whole_answer(acme: openai.OpenAI) -> None:
    """The provider is deterministic, and this model's route stores nothing."""
    whole = acme.chat.completions.create(model="uncached", messages=HELLO)
    with acme.chat.completions.create(model="uncached", messages=HELLO, stream=True) as chunks:
        found = list(chunks)
    text = "".join(c.choices[0].delta.content or "" for c in found if c.choices)
    assert text == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in found), "usage was not asked for"


def test_usage_comes_with_a_stream_when_it_is_asked_for(acme: openai.OpenAI) -> None:
    """The last chunk brings it and has no choices, as OpenAI documents it."""
    with acme.chat.completions.create(
        model="uncached", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        found = list(chunks)
    assert found[-1].usage is not None
    assert found[-1].choices == []
    assert found[-1].usage.completion_tokens > 0


def test_a_tool_call_passes_through_whole_and_streamed(acme: openai.OpenAI) -> None:
    """Arguments that come in pieces make the same JSON as those of the whole answer."""
    question: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    whole = acme.chat.completions.create(model="uncached", messages=question, tools=[TOOL])
    calls = whole.choices[0].message.tool_calls
    assert calls
    assert whole.choices[0].finish_reason == "tool_calls"
    function: Any = calls[0]
    assert function.function.name == "get_weather"
    assert "city" in json.loads(function.function.arguments)
    arguments = ""
    with acme.chat.completions.create(
        model="uncached", messages=question, tools=[TOOL], stream=True
    ) as chunks:
        for chunk in chunks:
            for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                arguments += (call.function.arguments or "") if call.function else ""
    assert json.loads(arguments) == json.loads(function.function.arguments)


def test_a_json_schema_answer_fits_its_schema(acme: openai.OpenAI) -> None:
    """The schema reaches the provider, so that fields have the types the application reads."""
    answer = acme.chat.completions.create(model="large", messages=HELLO, response_format=SCHEMA)
    person = json.loads(answer.choices[0].message.content or "")
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)


async def test_the_async_client_works_alike(plain: RunningGateway) -> None:
    """Applications on asyncio get the same text, whole and streamed."""
    async with openai.AsyncOpenAI(
        base_url=plain.base_url, api_key=plain.key("acme"), max_retries=0
    ) as client:
        whole = await client.chat.completions.create(model="uncached", messages=HELLO)
        stream = await client.chat.completions.create(model="uncached", messages=HELLO, stream=True)
        text = ""
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert text == whole.choices[0].message.content


def test_legacy_completions_work_whole_and_streamed(acme: openai.OpenAI) -> None:
    """Applications that still use the older endpoint need no change."""
    whole = acme.completions.create(model="uncached", prompt="Once upon a time", max_tokens=20)
    with acme.completions.create(
        model="uncached", prompt="Once upon a time", max_tokens=20, stream=True
    ) as chunks:
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].text


def test_the_models_this_key_may_use_are_listed(acme: openai.OpenAI) -> None:
    """An application finds its models and "auto" by name; any other name is a 404."""
    names = {model.id for model in acme.models.list()}
    assert {"auto", "large", "small", "with-fallback"} <= names
    assert acme.models.retrieve("large").owned_by == "tollhouse"
    with pytest.raises(openai.NotFoundError):
        acme.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("key", "model", "error", "status", "code"),
    [
        ("th_" + "x" * 43, "large", openai.AuthenticationError, 401, "invalid_api_key"),
        ("sk-foreign", "large", openai.AuthenticationError, 401, "invalid_api_key"),
        (None, "gpt-unknown", openai.NotFoundError, 404, "model_not_found"),
    ],
)
def test_refusals_are_the_clients_own_exceptions(
    plain: RunningGateway, key: str | None, model: str, error: Any, status: int, code: str
) -> None:
    """Handlers written for OpenAI catch them, with the status and code they expect."""
    client = openai.OpenAI(base_url=plain.base_url, api_key=key or plain.key("acme"), max_retries=0)
    with pytest.raises(error) as caught, client:
        client.chat.completions.create(model=model, messages=HELLO)
    assert caught.value.status_code == status
    assert caught.value.code == code


def test_bad_bodies_are_400_with_the_field_at_fault(plain: RunningGateway) -> None:
    """Broken, nested, empty, compressed and huge bodies each get their status and no 500."""
    headers = {"authorization": f"Bearer {plain.key('acme')}", "content-type": "application/json"}
    url = plain.base_url + "/chat/completions"
    for body, expected in (
        (b"{", "could not parse"),
        (b'{"model": "large", "messages": [], "x": NaN}', "could not parse"),
        (
            b'{"model": "large", "messages": [{"role": "user", "content": "\xff"}]}',
            "could not parse",
        ),
        (b"[" * 100_000, "nested deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested deeper"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "model parameter"),
        (b'{"model": "large", "messages": []}', "messages"),
        (b'{"model": "large", "messages": [{"content": "x"}]}', "role"),
        (b'{"model": "large", "messages": [{"role": "user", "content": 7}]}', "content"),
        (b'{"model": "large", "stream": "yes", "messages": [{"role": "user"}]}', "stream"),
        (b'{"model": "large", "max_tokens": -1, "messages": [{"role": "user"}]}', "max_tokens"),
        (b"", "empty"),
    ):
        answer = httpx.post(url, content=body, headers=headers, trust_env=False)
        assert answer.status_code == 400, body[:60]
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert expected in error["message"], (body[:60], error)
    too_large = httpx.post(url, content=b" " * (11 << 20), headers=headers, trust_env=False)
    assert too_large.status_code == 413
    compressed = httpx.post(
        url, content=b"x", headers=headers | {"content-encoding": "gzip"}, trust_env=False
    )
    assert compressed.status_code == 415
    assert httpx.get(url, headers=headers, trust_env=False).status_code == 405
    unknown = httpx.post(plain.base_url + "/nothing", headers=headers, trust_env=False)
    assert unknown.status_code == 404


def test_unknown_fields_reach_the_provider_and_routing_fields_do_not_choose_a_host(
    acme: openai.OpenAI, provider: ProviderThread
) -> None:
    """A caller could otherwise send our credentials to a host of its choice."""
    answer = acme.chat.completions.create(
        model="uncached",
        messages=HELLO,
        extra_body={"api_base": "http://169.254.169.254/", "x_custom": {"deep": [1, 2]}},
        extra_headers={"x-portkey-custom-host": "http://169.254.169.254/"},
    )
    assert answer.choices
    seen = provider.simulator.requests[-1].body
    assert seen["x_custom"] == {"deep": [1, 2]}
    assert seen["model"] == "simulated-large"


def test_rate_limits_name_the_limit_and_when_to_come_back(plain: RunningGateway) -> None:
    """Three requests count down to zero; the fourth is told to wait 61 seconds at most."""
    client = openai.OpenAI(base_url=plain.base_url, api_key=plain.key("limited"), max_retries=0)
    with client:
        for remaining in (2, 1, 0):
            raw = client.chat.completions.with_raw_response.create(model="large", messages=HELLO)
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(remaining)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="large", messages=HELLO)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 61
    assert caught.value.response.headers["x-should-retry"] == "true"


def test_a_spent_budget_is_insufficient_quota_and_says_do_not_retry(plain: RunningGateway) -> None:
    """Clients stop at once in place of hammering, and the message names the budget."""
    client = openai.OpenAI(base_url=plain.base_url, api_key=plain.key("poor"), max_retries=0)
    refused: openai.RateLimitError | None = None
    with client:
        for number in range(60):
            try:
                client.chat.completions.create(
                    model="large",
                    max_tokens=60,
                    messages=[{"role": "user", "content": f"Question {number}"}],
                )
            except openai.RateLimitError as error:
                refused = error
                break
    assert refused is not None
    assert refused.code == "insufficient_quota"
    assert refused.response.headers["x-should-retry"] == "false"
    assert "daily" in refused.message


def test_required_tags_are_asked_for_and_accepted(plain: RunningGateway) -> None:
    """Without its tag a request is refused by the tag's name, so no cost goes unassigned."""
    client = openai.OpenAI(base_url=plain.base_url, api_key=plain.key("tagged"), max_retries=0)
    with client:
        with pytest.raises(openai.BadRequestError, match="feature"):
            client.chat.completions.create(model="large", messages=HELLO)
        raw = client.chat.completions.with_raw_response.create(
            model="large", messages=HELLO, extra_headers={"x-tollhouse-tags": "feature=search"}
        )
    (event,) = plain.events(raw.headers["x-request-id"])
    assert event.tags == {"feature": "search", "env": "prod"}


def test_an_exact_repeat_is_answered_from_the_cache_in_either_form(acme: openai.OpenAI) -> None:
    """The hit costs nothing, has an id of its own, and is streamed to a client that asks so."""
    question: Any = [{"role": "user", "content": "An exact repeat, once and again."}]
    first = acme.chat.completions.with_raw_response.create(model="large", messages=question)
    again = acme.chat.completions.with_raw_response.create(model="large", messages=question)
    assert first.headers["x-tollhouse-cache"] == "miss"
    assert again.headers["x-tollhouse-cache"] == "hit-exact"
    assert again.headers["x-tollhouse-cost-usd"] == "0.000000000000"
    text = first.parse().choices[0].message.content
    assert again.parse().choices[0].message.content == text
    assert again.parse().id != first.parse().id
    with acme.chat.completions.create(model="large", messages=question, stream=True) as chunks:
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text
    fresh = acme.chat.completions.with_raw_response.create(
        model="large", messages=question, extra_headers={"cache-control": "no-store"}
    )
    assert fresh.headers["x-tollhouse-cache"] == "bypass"


def test_another_tenant_never_gets_the_answer(plain: RunningGateway, acme: openai.OpenAI) -> None:
    """The same question of a second tenant is a miss: answers are one tenant's secret."""
    question: Any = [{"role": "user", "content": "A secret of acme's."}]
    for cached in ("miss", "hit-exact"):
        own = acme.chat.completions.with_raw_response.create(model="large", messages=question)
        assert own.headers["x-tollhouse-cache"] == cached
    with openai.OpenAI(base_url=plain.base_url, api_key=plain.key("globex")) as globex:
        raw = globex.chat.completions.with_raw_response.create(model="large", messages=question)
    assert raw.headers["x-tollhouse-cache"] == "miss"


def test_only_if_cached_is_answered_without_asking_anybody(
    acme: openai.OpenAI, provider: ProviderThread
) -> None:
    """A client that will not pay gets a 504, and no call reaches the provider."""
    before = len(provider.simulator.requests)
    with pytest.raises(openai.APIStatusError) as caught:
        acme.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": "Never asked before."}],
            extra_headers={"cache-control": "only-if-cached"},
        )
    assert caught.value.status_code == 504
    assert len(provider.simulator.requests) == before


@pytest.mark.slow
def test_local_models_answer_chat_completions_and_embeddings(acme_full: openai.OpenAI) -> None:
    """One client speaks to the models of this machine: whole, streamed, legacy and vectors."""
    chat = acme_full.chat.completions.create(
        model="small", messages=HELLO, max_tokens=16, temperature=0, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].message.content
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content
    with acme_full.chat.completions.create(
        model="small", messages=HELLO, max_tokens=16, temperature=0, stream=True
    ) as chunks:
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == chat.choices[0].message.content
    legacy = acme_full.completions.create(model="small", prompt="The capital of", max_tokens=5)
    assert legacy.usage is not None
    assert legacy.usage.completion_tokens <= 5
    vectors = acme_full.embeddings.create(model="embedder", input=["one text", "another"])
    assert [len(item.embedding) for item in vectors.data] == [384, 384]
    assert abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-3


def test_auto_at_an_endpoint_that_no_target_speaks_is_told_so(plain: RunningGateway) -> None:
    """Who asked for ``auto`` has named no model, and is told what to do instead."""
    answer = httpx.post(
        plain.base_url + "/messages",
        json={"model": "auto", "max_tokens": 16, "messages": HELLO},
        headers={"authorization": f"Bearer {plain.key('acme')}"}, trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert "'auto' may choose" in told
    assert "/v1/chat/completions" in told


EASY = "Say hello in Spanish."


def message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


UNSERVED: list[dict[str, Any]] = [
    {"logit_bias": {"50256": -100}},
    {"top_p": 0, "temperature": 2.5},
    {"stop": ["a"] * 65},
    {"n": 9},
    {"top_logprobs": 21, "logprobs": True},
    {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
    {"function_call": {"name": "f"}},
    {"seed": "7"},
    {"messages": [{"role": "function", "name": "f", "content": "x"}, message(EASY)]},
    # Fits by its bytes, but each digit is a token: only the model itself can tell.
    {"messages": [message("Say hello. " + "7" * 3_000)]},
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", UNSERVED, ids=lambda fields: next(iter(fields)))
def test_auto_answers_what_the_small_model_cannot_serve(
    full: RunningGateway, fields: dict[str, Any], stream: bool
) -> None:
    """Whether a question is easy or hard, two requests of one app are both legal or neither is."""
    body = {"model": "auto", "max_tokens": 16, "messages": [message(EASY)], "stream": stream}
    answer = httpx.post(
        full.base_url + "/chat/completions", json=body | fields,
        headers={"authorization": f"Bearer {full.key('globex')}"}, trust_env=False, timeout=30,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollhouse-model"] == "large"


SERVED: list[dict[str, Any]] = [
    {"presence_penalty": 0.4, "frequency_penalty": 0.4},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"stop": ""},
    {"top_p": 0},
    {"n": 2},
    {
        "messages": [
            message("No?"),
            {"role": "assistant", "content": None, "refusal": "No."},
            message(EASY),
        ]
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", SERVED, ids=lambda fields: next(iter(fields)))
def test_auto_leaves_to_the_small_model_what_it_serves(
    full: RunningGateway, fields: dict[str, Any], stream: bool
) -> None:
    """An easy question with such fields stays cheap, whole and streamed."""
    body = {"model": "auto", "max_tokens": 4, "messages": [message(EASY)], "stream": stream}
    answer = httpx.post(
        full.base_url + "/chat/completions", json=body | fields,
        headers={"authorization": f"Bearer {full.key('globex')}"}, trust_env=False, timeout=30,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollhouse-model"] == "small"


@pytest.mark.slow
def test_nonsense_of_the_small_model_is_answered_by_the_large_one(full: RunningGateway) -> None:
    """The small model says 'Animal' for ever; nobody sees it, and both attempts are booked."""
    question = message("List the animals of the world.")
    body = {"model": "auto", "max_tokens": 700, "temperature": 0, "messages": [question]}
    answer = httpx.post(
        full.base_url + "/chat/completions", json=body,
        headers={"authorization": f"Bearer {full.key('globex')}"}, trust_env=False, timeout=60,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollhouse-model"] == "large"
    assert "from=small" in answer.headers["x-tollhouse-decision"]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"suffix": "end"}, {"echo": True}, {"prompt": ["a", "b"]}])
def test_auto_completes_what_the_small_model_cannot_serve(
    full: RunningGateway, fields: dict[str, Any]
) -> None:
    """A suffix, an echo or two prompts at once are answered by the large model, not refused."""
    answer = httpx.post(
        full.base_url + "/completions",
        json={"model": "auto", "max_tokens": 16, "prompt": EASY} | fields,
        headers={"authorization": f"Bearer {full.key('globex')}"}, trust_env=False, timeout=30,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollhouse-model"] == "large"


@pytest.mark.slow
def test_auto_sends_an_easy_question_to_the_small_model_and_a_hard_one_to_the_large(
    acme_full: openai.OpenAI, full: RunningGateway
) -> None:
    """A greeting costs less than its baseline, and a proof goes to the better model."""
    easy = acme_full.chat.completions.with_raw_response.create(
        model="auto", max_tokens=16, messages=[{"role": "user", "content": "Say hello in Spanish."}]
    )
    hard = acme_full.chat.completions.with_raw_response.create(
        model="auto",
        max_tokens=16,
        messages=[
            {
                "role": "user",
                "content": "Prove that the square root of 2 is irrational, then generalise the"
                " proof to the n-th root of any prime, stating each lemma you use.",
            }
        ],
    )
    assert easy.headers["x-tollhouse-model"] == "small"
    assert hard.headers["x-tollhouse-model"] == "large"
    assert float(easy.headers["x-tollhouse-difficulty"]) < float(
        hard.headers["x-tollhouse-difficulty"]
    )
    assert easy.http_response.json()["model"] == "small", "a name that can be asked for"
    assert "tollhouse" not in easy.http_response.json()["usage"]
    (event,) = full.events(easy.headers["x-request-id"])
    assert event.decision == "easy"
    assert event.reason
    assert event.baseline_pico is not None
    assert event.cost_pico is not None
    assert event.cost_pico < event.baseline_pico


@pytest.mark.slow
def test_a_rewording_is_served_and_a_changed_number_is_not(acme_full: openai.OpenAI) -> None:
    """Another number or a "not" makes another question, however close the texts are."""

    def ask(text: str) -> str:
        raw = acme_full.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": text}]
        )
        return str(raw.headers["x-tollhouse-cache"])

    assert ask("How do I export the quarterly report as a spreadsheet?") == "miss"
    assert ask("how do i export the quarterly report as a spreadsheet") == "hit-semantic"
    assert ask("Is a plan for 10 people enough for a small office?") == "miss"
    assert ask("Is a plan for 30 people enough for a small office?") == "miss"
    assert ask("Is a plan for 10 people not enough for a small office?") == "miss"
