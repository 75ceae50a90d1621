"""Providers whose answers are odd: errors in unexpected places, answers in another form."""

import itertools
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.gateway.odd_world import (
    DONE,
    GOOD,
    USAGE,
    WHOLE,
    Odd,
    answer,
    chunk,
    error_of,
    odd_gateway,
    sse,
    stream,
    text_of,
)
from tests.gateway.running import RunningGateway, free_port

_numbers = itertools.count()
WORDS = "maximum context length is 163840 tokens"
TOO_LONG = {
    "message": WORDS, "type": "invalid_request_error", "param": "messages",
    "code": "context_length_exceeded",
}  # fmt: skip
LIMITED = {"message": "Slow down", "type": "requests", "code": "rate_limit_exceeded"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningGateway, str, int]]:
    port = free_port()
    with odd_gateway(tmp_path_factory.mktemp("odd"), port) as gateway:
        yield gateway, gateway.key("acme"), port


@pytest.fixture
def odd(place: tuple[RunningGateway, str, int]) -> Odd:
    return Odd(*place, next(_numbers))


FAILURES: dict[str, bytes] = {
    "error object": stream({"error": LIMITED}, DONE),
    "error text": stream({"error": "the engine has died"}, DONE),
    "old vLLM": stream({"object": "error", "message": "x", "type": "Internal", "code": 500}, DONE),
    "detail": stream({"detail": "Service is starting"}, DONE),
    "message and code": stream({"message": "no capacity", "code": 503}, DONE),
    "error event": stream(b'event: error\ndata: {"reason":"broken"}\n\n'),
    "Google's list": answer(b'[{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}]'),
    "error beside no choices": stream({"choices": [], "error": {"message": "x"}}, DONE),
    "MiniMax": stream({"base_resp": {"status_code": 1002, "status_msg": "limit"}}, DONE),
    "failed in its first event": stream({"choices": [{"index": 0, "error": {"code": 502}}]}),
    "an end and nothing else": stream(DONE),
    "nothing at all": stream(),
    "comments alone": stream(b": keep-alive\n\n", b": keep-alive\n\n"),
    "an error event in words": stream(b"event: error\ndata: overloaded\n\n"),
    "Google's list as an event": stream([{"error": {"code": 503, "message": "x"}}]),
    "error after an empty first event": stream(
        {"choices": [], "prompt_filter_results": []}, {"error": {"message": "x", "code": 503}}
    ),
    "error after the role": stream(chunk("", role="assistant"), {"error": {"message": "x"}}),
    "cut after the role": stream(chunk("", role="assistant")),
    "usage and nothing else": stream({"choices": [], "usage": USAGE}, DONE),
    "junk": stream(b"upstream connect error\n\n"),
    "a page": answer(b"<!doctype html><html>\n\ndata: x\n\n</html>", "text/html"),
    "status 500": answer(b'{"error":{"message":"broken"}}', status=500),
    "status 504": answer(b"late", "text/plain", 504),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_stream_that_begins_with_an_error_takes_the_fallback(
    odd: Odd, failure: str
) -> None:
    """While no byte has gone to the client, it is as if the status had said so."""
    found = await odd.ask(FAILURES[failure])
    assert (found.status_code, found.headers["x-tollhouse-model"][:4]) == (200, "good")
    assert text_of(found) == "from good"
    assert found.text.endswith("data: [DONE]\n\n")
    first, second = odd.booked(found, 2)
    assert first.status is not None
    assert first.status >= 400
    assert (second.status, second.decision) == (200, "fallback")


def typed(kind: str, **fields: Any) -> bytes:
    """An event that names its type."""
    data = orjson.dumps({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


async def test_an_opening_is_no_answer_so_that_an_error_after_it_takes_the_fallback(
    odd: Odd,
) -> None:
    """Anthropic tells of overload after ``message_start``, OpenAI after ``response.created``."""
    message = {"usage": {"input_tokens": 5, "output_tokens": 1}}
    overloaded = {"type": "overloaded_error", "message": "Overloaded"}
    begun = (typed("message_start", message=message), typed("ping"))
    said = stream(*begun, typed("error", error=overloaded))
    found = await odd.ask(said, {"model": "any-claude", "max_tokens": 9}, "/messages")
    assert found.headers["x-tollhouse-model"].startswith("claude-good")
    told = await odd.ask([said] * 3, {"model": "claude", "max_tokens": 9}, "/messages")
    assert (told.status_code, told.headers["x-should-retry"]) == (529, "true")
    assert told.json()["error"] == overloaded

    failed = {"error": {"code": "server_error", "message": "died"}, "usage": None}
    created = typed("response.created", response={"status": "in_progress"})
    said = stream(created, typed("response.failed", response=failed))
    found = await odd.ask(said, {"input": "Hello"}, "/responses")
    assert found.headers["x-tollhouse-model"].startswith("good")


WORDED: list[tuple[bytes, str]] = [
    (b"no healthy upstream", "no healthy upstream"),
    (b'{"error":{"error":{"message":"within","code":"x"}}}', "within"),
    (b'{"error":["a list of words"]}', "a list of words"),
    (b'{"errors":{"message":"plural"}}', "plural"),
    (b'{"error":{"message":{"detail":"deeper"}}}', "deeper"),
    (b'{"fault":{"faultstring":"quota violated"}}', "quota violated"),
    (b"<html>a page</html>", "The provider answered with status 400."),
]


@pytest.mark.parametrize(("body", "words"), WORDED)
async def test_an_error_keeps_its_words_however_it_is_wrapped(
    odd: Odd, body: bytes, words: str
) -> None:
    """Providers nest their message in many ways; the client reads it as the provider wrote it."""
    found = await odd.ask(answer(body, status=400), {"model": "bad"})
    assert error_of(found)["message"] == words


async def test_an_event_in_words_is_told_in_these_words(odd: Odd) -> None:
    """Some servers write plain text where JSON is due, and it explains more than a parse error."""
    said = stream(chunk("hel"), b"event: error\ndata: the worker has died\n\n")
    assert error_of(await odd.ask(said))["message"] == "the worker has died"


async def test_an_end_is_an_end_with_blanks_around_it_and_without_an_index(odd: Odd) -> None:
    """A stream that is whole must not be reported as cut because it is written loosely."""
    for said in (
        stream(chunk("hi"), chunk(reason="stop"), b"data:  [DONE] \n\n"),
        stream({"choices": [{"delta": {"content": "hi"}}]}, chunk(reason="stop")),
    ):
        found = await odd.ask(said, {"model": "bad"})
        assert text_of(found) == "hi"
        assert found.text.endswith("data: [DONE]\n\n")


WHOLE_FAILURES: dict[str, bytes] = {
    "error object": orjson.dumps({"error": LIMITED}),
    "error beside choices": orjson.dumps({**WHOLE, "error": {"message": "x", "code": 502}}),
    "failed choice": orjson.dumps({"choices": [{"index": 0, "finish_reason": "error"}]}),
    "error text": b'{"error":"broken"}',
    "detail": b'{"detail":"starting"}',
    "message and code": b'{"message":"no capacity","code":"503"}',
    "null choices": b'{"choices":null}',
    "no choice": b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}',
    "another document": b'{"ok":true}',
    "a list": b"[]",
    "a page": b"<html></html>",
    "nothing": b"",
}


@pytest.mark.parametrize("failure", WHOLE_FAILURES)
async def test_an_error_in_the_body_of_a_200_takes_the_fallback(odd: Odd, failure: str) -> None:
    """A status of success does not make an error an answer; the other target answers."""
    found = await odd.ask(answer(WHOLE_FAILURES[failure]), {"stream": False})
    assert found.json()["choices"][0]["message"]["content"] == "from good"
    assert found.headers["x-tollhouse-model"].startswith("good")


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_prompt_that_is_too_long_is_the_clients_400_and_nobody_else_is_asked(
    odd: Odd, streaming: bool
) -> None:
    """A second provider would refuse it as well; nothing is charged and the words stay."""
    body = {"error": TOO_LONG}
    said = stream(body, DONE) if streaming else answer(orjson.dumps(body))
    found = await odd.ask(said, {"stream": streaming})
    assert found.status_code == 400
    assert error_of(found) == TOO_LONG
    assert len(odd.asked) == 1
    assert odd.booked(found)[0].cost_pico == 0


async def test_an_error_in_mid_stream_keeps_the_providers_words_and_no_secret(odd: Odd) -> None:
    """The client keeps the text so far, and the books have a 429 with its one token."""
    reason = {"error": {**LIMITED, "message": "Your key Bearer sk-abcdefgh12345 is slow"}}
    found = await odd.ask(stream(chunk("hel"), reason, DONE))
    assert text_of(found) == "hel"
    error = error_of(found)
    assert error["code"] == "rate_limit_exceeded"
    assert error["message"] == "Your key [redacted] is slow"
    (booked,) = odd.booked(found)
    assert (booked.status, booked.completion_tokens) == (429, 1)


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_that_ended_with_an_error_is_one_and_is_booked_as_told(
    odd: Odd, reason: str, streaming: bool
) -> None:
    """Half an answer may have cost as much as a whole one."""
    events = [chunk("partial"), {**chunk(reason=reason), "usage": USAGE}, DONE]
    whole = {**WHOLE, "choices": [{"index": 0, "finish_reason": reason}]}
    said = stream(*events) if streaming else answer(orjson.dumps(whole))
    found = await odd.ask(said, {"stream": streaming, "model": "bad"})
    assert reason in error_of(found)["message"]
    (booked,) = odd.booked(found)
    assert booked.status is not None
    assert booked.status >= 500
    assert (booked.prompt_tokens, booked.completion_tokens) == (10, 5)


@pytest.mark.parametrize("reason", ["", None])
async def test_no_finish_reason_is_no_end(odd: Odd, reason: str | None) -> None:
    """Some servers write an empty text in every event before the last."""
    found = await odd.ask(stream(chunk("Once ", reason), chunk("upon", reason)))
    assert text_of(found) == "Once upon"
    assert error_of(found)["code"] == "upstream_unavailable"


GONE = [
    (404, {"message": "gone", "code": "model_not_found"}),
    (410, {"message": "gone"}),
    (400, {"message": "gone", "code": "model_decommissioned"}),
    (200, {"message": "gone", "type": "NotFoundError", "code": 404}),
]


@pytest.mark.parametrize(("status", "reason"), GONE)
async def test_a_model_that_the_provider_has_retired_falls_back_where_the_route_says_404(
    odd: Odd, status: int, reason: dict[str, Any]
) -> None:
    """However often: nothing is overloaded, so no budget of retries is used up."""
    said = answer(orjson.dumps({"error": reason}), status=status)
    found = await odd.ask([said] * 12, {"stream": False}, times=12)
    assert found.headers["x-tollhouse-model"].startswith("good")
    refused = await odd.ask(said, {"model": "strict", "stream": False})
    assert refused.status_code in (400, 404, 410)
    assert error_of(refused)["message"] == "gone"


async def test_refused_credentials_are_never_told_and_take_the_fallback(odd: Odd) -> None:
    """A wrong key of ours is our fault: a client reads 502, and never that key."""
    reason = {"error": {"message": "Incorrect API key sk-12345678", "code": "invalid_api_key"}}
    for said in (answer(orjson.dumps(reason), status=401), stream(reason, DONE)):
        found = await odd.ask(said)
        assert text_of(found) == "from good"
        told = await odd.ask(said, {"model": "bad"})
        assert told.status_code == 502
        assert error_of(told)["code"] == "upstream_refused"
        assert "Incorrect" not in told.text


async def test_a_good_answer_is_passed_on_as_it_came(odd: Odd) -> None:
    """The odd world itself is sound."""
    found = await odd.ask(GOOD, {"model": "bad"})
    assert found.content == sse(chunk("from good"), chunk(reason="stop"), DONE)


async def test_a_document_in_place_of_a_stream_is_streamed_and_booked(odd: Odd) -> None:
    """Some servers ignore ``stream``; the answer has been paid for."""
    said = answer(b"\n" + orjson.dumps(WHOLE))
    body = {"model": "bad", "stream_options": {"include_usage": True}}
    found = await odd.ask(said, body)
    assert found.headers["content-type"].startswith("text/event-stream")
    assert text_of(found) == "from good"
    assert '"total_tokens":15' in found.text
    assert found.text.endswith("data: [DONE]\n\n")
    (booked,) = odd.booked(found)
    assert (booked.status, booked.prompt_tokens, booked.completion_tokens) == (200, 10, 5)


async def test_a_document_without_usage_in_place_of_a_stream_is_counted(odd: Odd) -> None:
    """The client gets the text, and the books an estimate in place of nothing."""
    whole = {name: value for name, value in WHOLE.items() if name != "usage"}
    found = await odd.ask(answer(orjson.dumps(whole), "text/event-stream"), {"model": "bad"})
    assert text_of(found) == "from good"
    (booked,) = odd.booked(found)
    assert booked.state == "estimated"
    assert booked.completion_tokens >= 2


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_a_stream_in_place_of_a_document_is_put_together_and_booked(
    odd: Odd, kind: str
) -> None:
    """Some servers always stream, and some call it JSON."""
    events = [chunk("hel", role="assistant"), chunk("lo"), chunk(reason="stop")]
    said = stream(
        b"\xef\xbb\xbf: ping\n\n", *events, {"choices": [], "usage": USAGE}, DONE, kind=kind
    )
    found = await odd.ask(said, {"model": "bad", "stream": False})
    assert found.headers["content-type"] == "application/json"
    document = found.json()
    assert document["object"] == "chat.completion"
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert document["usage"] == USAGE
    (booked,) = odd.booked(found)
    assert (booked.status, booked.prompt_tokens, booked.completion_tokens) == (200, 10, 5)


async def test_a_broken_stream_in_place_of_a_document_is_an_error_and_takes_the_fallback(
    odd: Odd,
) -> None:
    """Half a stream must not be put together as if it were a whole document."""
    cut = stream(chunk("hel"))
    assert (await odd.ask(cut, {"model": "bad", "stream": False})).status_code == 502
    limited = stream({"error": LIMITED})
    for said in (cut, limited):
        found = await odd.ask(said, {"stream": False})
        assert found.headers["x-tollhouse-model"].startswith("good")


TYPED: list[tuple[str, str, dict[str, Any]]] = [
    (
        "/messages",
        "claude",
        {
            "type": "message", "id": "m", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": "from good"}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 10, "output_tokens": 5},
        },
    ),
    (
        "/responses",
        "bad",
        {
            "object": "response", "id": "r", "status": "completed", "model": "m", "error": None,
            "output": [
                {
                    "type": "message", "id": "m", "role": "assistant", "status": "completed",
                    "content": [{"type": "output_text", "text": "from good", "annotations": []}],
                }
            ],
            "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "model", "whole"), TYPED)
async def test_the_other_dialects_forms_are_exchanged_and_booked_as_well(
    odd: Odd, path: str, model: str, whole: dict[str, Any]
) -> None:
    """Messages and responses come in the form asked for, with the usage that was told."""
    body = {"model": model, "max_tokens": 9, "input": "x"}
    streamed = await odd.ask(answer(orjson.dumps(whole)), body, path)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "from good" in streamed.text
    back = stream(streamed.content)
    found = await odd.ask(back, {**body, "stream": False}, path)
    assert found.headers["content-type"] == "application/json"
    for name in ("content", "output"):
        assert found.json().get(name) == whole.get(name)
    for answered in (streamed, found):
        (booked,) = odd.booked(answered)
        assert (booked.status, booked.prompt_tokens, booked.completion_tokens) == (200, 10, 5)


async def test_usage_beside_the_last_content_carries_the_charge_too(odd: Odd) -> None:
    """A client that asks for usage finds its charge, though no separate event brings it."""
    last = {**chunk("hi", "stop"), "usage": USAGE}
    body = {"model": "bad", "stream_options": {"include_usage": True}}
    found = await odd.ask(stream(last, DONE), body)
    assert text_of(found) == "hi"
    assert '"charge_usd":"0.000060000000"' in found.text
    assert found.text.endswith("data: [DONE]\n\n")


COSTLY = {**USAGE, "cost": 0.00123, "cost_details": {"upstream_inference_cost": 0.00111}}


@pytest.mark.parametrize("streaming", [True, False])
async def test_what_the_provider_says_it_cost_is_booked_and_not_told(
    odd: Odd, streaming: bool
) -> None:
    """The cost is the gateway's; a tenant is told its charge."""
    events = (chunk("hi"), {**chunk(reason="stop"), "usage": COSTLY}, DONE)
    whole = answer(orjson.dumps({**WHOLE, "usage": COSTLY}))
    body = {"model": "bad", "stream": streaming, "stream_options": {"include_usage": True}}
    found = await odd.ask(stream(*events) if streaming else whole, body)
    assert '"total_tokens":15' in found.text
    assert "cost" not in found.text
    (booked,) = odd.booked(found)
    assert booked.cost_pico == 1_230_000_000


async def test_what_events_that_name_their_type_say_of_cost_is_not_told(odd: Odd) -> None:
    """Our own cost is taken out of the usage, and never out of the model's own text."""
    usage = {"input_tokens": 5, "output_tokens": 2, "cost": 0.00123}
    said = stream(
        typed("response.output_text.delta", delta='the "cost": 1'),
        typed("response.completed", response={"output": [], "usage": usage}),
    )
    found = await odd.ask(said, {"model": "bad", "input": "x"}, "/responses")
    assert '"cost":' not in found.text
    assert orjson.dumps('the "cost": 1').decode() in found.text
    assert "event: response.completed\ndata: " in found.text
    assert '"output_tokens":2' in found.text


async def test_advice_to_wait_is_told_with_every_status_and_the_account_with_none(
    odd: Odd,
) -> None:
    """Organisation, password and key in a provider's message are redacted on the way."""
    words = "slow, org-AbCdEf1234567890: https://me:secret1@a/?key=abcdefgh"
    body = orjson.dumps({"error": {"message": words}})
    head = b"HTTP/1.1 413 X\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n" % len(body)
    found = await odd.ask(head + body, {"model": "bad"})
    assert (found.status_code, found.headers["retry-after"]) == (413, "7")
    assert error_of(found)["message"] == "slow, [redacted]: https://[redacted]@a/?[redacted]"
