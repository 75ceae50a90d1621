"""Requests share the engine, and none of them can tell."""

import logging
import threading
import time
from pathlib import Path

import msgspec
import pytest

from local_models import engine as engine_module
from local_models import graph, native
from local_models.chat_template import ChatTemplate
from local_models.decoder_graph import Options
from local_models.engine import (
    Delta,
    Engine,
    EngineBusy,
    Finished,
    GenerationRequest,
    InvalidModel,
    InvalidPrompt,
    ModelInfo,
    PromptTooLong,
    SamplingParams,
)
from local_models.family import read_shape
from local_models.gguf import GgufFile
from local_models.session import DecoderSession, Logits
from local_models.tokenizer import Tokenizer
from tests.local_models.generating import WAIT_SECONDS_MAX, Inbox, request, run

PROMPTS = [
    "What is the capital of France?",
    "Write a short poem about the sea, with emojis.",
    "Count from one to five.",
    "Say hello in Chinese, Greek and Russian. " * 12,
    "Why is the sky blue? Explain it to a child of six years.",
    "Name a fruit.",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fused", "accuracy_level"),
    [
        (False, 4),
        (False, 1),
        pytest.param(
            True,
            4,
            marks=pytest.mark.skipif(native.library_path() is None, reason="library not built"),
        ),
    ],
    ids=["onnxruntime", "onnxruntime-float", "fused"],
)
def test_requests_in_a_batch_are_answered_as_they_are_alone(
    generation_model_dir: Path, fused: bool, accuracy_level: int
) -> None:
    """Six ragged requests of different lengths over four slots: rows join, leave and move."""
    lengths = [24, 6, 18, 30, 1, 12]
    requests = [
        request(str(place), prompt, length, temperature=0.8, top_p=0.9, seed=place)
        for place, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    shared = Engine.load(generation_model_dir, fused=fused, accuracy_level=accuracy_level)
    try:
        together = run(shared, requests)
        alone = {each.request_id: run(shared, [each])[each.request_id] for each in requests}
        counts = [shared.count_tokens(each.messages or ()) for each in requests]
    finally:
        shared.close()
    for each, count in zip(requests, counts, strict=True):
        ours, expected = together[each.request_id], alone[each.request_id]
        assert ours.text == expected.text
        assert ours.finished.completion_tokens == expected.finished.completion_tokens
        assert ours.finished.prompt_tokens == count


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(engine: Engine) -> None:
    """A developer can repeat a sampled answer, and still get a different one."""

    def answer(seed: int) -> str:
        return run(engine, [request("r", PROMPTS[1], 12, temperature=1.0, seed=seed)])["r"].text

    first = answer(1)
    assert answer(1) == first
    assert answer(2) != first


def test_an_answer_ends_at_its_token_limit(engine: Engine) -> None:
    """After five tokens it says "length", and the pieces add up to the count that is billed."""
    outcome = run(engine, [request("r", PROMPTS[1], 5)])["r"]
    assert outcome.finished.reason == "length"
    assert outcome.finished.completion_tokens == 5
    assert sum(delta.tokens for delta in outcome.deltas) == 5
    assert outcome.finished.compute_us > 0


def test_a_stop_string_ends_the_answer_and_never_shows(engine: Engine) -> None:
    """The stop string is cut out of the middle of the plain answer, over a token's border."""
    plain = run(engine, [request("plain", PROMPTS[4], 24)])["plain"].text
    stop = plain[len(plain) // 2 - 3 : len(plain) // 2 + 3]
    outcome = run(engine, [request("r", PROMPTS[4], 24, stop=(stop, "�never"), logprobs=1)])["r"]
    assert outcome.text == plain[: plain.index(stop)]
    assert outcome.finished.reason == "stop"
    spoken = b"".join(entry.bytes_ for delta in outcome.deltas for entry in delta.logprobs)
    assert stop.encode() not in spoken
    assert spoken.startswith(outcome.text.encode())


def test_logprobs_come_with_their_text(engine: Engine) -> None:
    """Their bytes make up the answer, and the alternatives are in falling order."""
    outcome = run(engine, [request("r", PROMPTS[0], 8, logprobs=3)])["r"]
    entries = [entry for delta in outcome.deltas for entry in delta.logprobs]
    assert b"".join(entry.bytes_ for entry in entries).decode() == outcome.text
    for entry in entries:
        values = [value for _, value in entry.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        # Greedy: what was chosen leads its alternatives.
        assert entry.top[0] == (entry.token, entry.logprob)
        assert entry.logprob <= 0
    only_chosen = run(engine, [request("r", PROMPTS[0], 2, logprobs=0)])["r"]
    assert [entry.top for d in only_chosen.deltas for entry in d.logprobs] == [(), ()]


def test_a_raw_prompt_is_continued_without_a_template(engine: Engine) -> None:
    """After "One, two, three, four," comes five, and no tokens of a template are billed."""
    params = SamplingParams(max_tokens=4, temperature=0)
    raw = GenerationRequest(request_id="r", prompt="One, two, three, four,", params=params)
    outcome = run(engine, [raw])["r"]
    assert outcome.text.strip().startswith("five")
    assert outcome.finished.prompt_tokens == engine.count_tokens("One, two, three, four,")


def test_a_cancelled_request_ends_soon_and_the_others_go_on(engine: Engine) -> None:
    """It stops before 100 of 1,500 tokens, and its neighbour's text does not change."""
    inbox = Inbox()
    engine.submit(request("leaver", PROMPTS[1], 1500), inbox.deliver)
    engine.submit(request("stayer", PROMPTS[2], 24), inbox.deliver)
    inbox.next()
    engine.cancel("leaver")
    engine.cancel("unknown")
    outcomes = dict(inbox.outcome() for _ in range(2))
    assert outcomes["leaver"].finished.reason == "cancelled"
    assert 0 < outcomes["leaver"].finished.completion_tokens < 100
    alone = run(engine, [request("stayer", PROMPTS[2], 24)])["stayer"]
    assert outcomes["stayer"].text == alone.text


def test_a_request_that_still_waits_can_be_cancelled(engine: Engine) -> None:
    """Six long ones over four slots: the last can only be waiting when it is cancelled."""
    inbox = Inbox()
    names = [str(place) for place in range(6)]
    for name in names:
        engine.submit(request(name, PROMPTS[1], 400), inbox.deliver)
    engine.cancel("5")
    name, outcome = inbox.outcome()
    assert (name, outcome.finished.reason) == ("5", "cancelled")
    assert outcome.finished.completion_tokens == 0
    for name in names[:5]:
        engine.cancel(name)
    assert {inbox.outcome()[1].finished.reason for _ in range(5)} == {"cancelled"}


def test_a_request_past_its_deadline_ends_as_an_error(engine: Engine) -> None:
    """After 0.2 seconds a caller learns why it got no whole answer."""
    inbox = Inbox()
    late = msgspec.structs.replace(
        request("late", PROMPTS[1], 1500), deadline_seconds=time.monotonic() + 0.2
    )
    engine.submit(late, inbox.deliver)
    _, outcome = inbox.outcome()
    assert outcome.finished.reason == "error"
    assert outcome.finished.message == "the deadline passed"


def test_the_context_window_bounds_prompt_and_answer_together(generation_model_dir: Path) -> None:
    """A window of 64 tokens: the answer ends with it, and a prompt that fills it is refused."""
    small = Engine.load(generation_model_dir, context_tokens=64, slots=1, fused=False)
    try:
        outcome = run(small, [request("r", PROMPTS[1], 500)])["r"]
        assert outcome.finished.reason == "length"
        assert outcome.finished.prompt_tokens + outcome.finished.completion_tokens == 64
        with pytest.raises(PromptTooLong, match="the context window is 64"):
            small.submit(request("r", "word " * 60), Inbox().deliver)
    finally:
        small.close()


@pytest.mark.parametrize(
    "wrong",
    [
        GenerationRequest(request_id="r", params=SamplingParams(max_tokens=1)),
        GenerationRequest(request_id="r", prompt="", params=SamplingParams(max_tokens=1)),
        GenerationRequest(request_id="r", prompt="x", params=SamplingParams(max_tokens=0)),
        GenerationRequest(
            request_id="r", prompt="x", messages=(), params=SamplingParams(max_tokens=1)
        ),
    ],
)
def test_a_request_that_cannot_be_run_is_refused_at_once(
    engine: Engine, wrong: GenerationRequest
) -> None:
    """An empty prompt or a limit of zero never takes a place in the waiting line."""
    with pytest.raises(InvalidPrompt):
        engine.submit(wrong, Inbox().deliver)


def test_megabytes_are_refused_before_they_are_tokenized(engine: Engine) -> None:
    """50 MB of text cost less than half a second, so one caller cannot block the engine."""
    huge = "x" * 50_000_000
    begin_seconds = time.perf_counter()
    with pytest.raises(PromptTooLong):
        engine.submit(request("r", huge), Inbox().deliver)
    assert time.perf_counter() - begin_seconds < 0.5


def test_a_full_waiting_line_and_a_used_name_are_refused(engine: Engine) -> None:
    """The engine is held inside a delivery, so that nothing leaves the line meanwhile."""
    held, go_on = threading.Event(), threading.Event()
    inbox = Inbox()

    def hold(request_id: str, message: Delta | Finished) -> None:
        held.set()
        go_on.wait(WAIT_SECONDS_MAX)
        inbox.deliver(request_id, message)

    engine.submit(request("holder", PROMPTS[0], 2), hold)
    try:
        assert held.wait(WAIT_SECONDS_MAX)
        with pytest.raises(InvalidPrompt, match="'holder' is already in use"):
            engine.submit(request("holder", PROMPTS[0]), inbox.deliver)
        for place in range(engine_module.WAITING_MAX):
            engine.submit(request(str(place), "x", 1), inbox.deliver)
        with pytest.raises(EngineBusy, match="waiting already"):
            engine.submit(request("one too many", "x", 1), inbox.deliver)
        for place in range(engine_module.WAITING_MAX):
            engine.cancel(str(place))
    finally:
        go_on.set()
    ends = [inbox.outcome() for _ in range(engine_module.WAITING_MAX + 1)]
    assert sum(outcome.finished.reason == "cancelled" for _, outcome in ends) == 64


def test_a_reader_that_fails_loses_only_its_own_answer(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Another request's answer is whole though a callback raises beside it."""

    def fail(request_id: str, message: Delta | Finished) -> None:
        raise RuntimeError("the reader's own mistake")

    inbox = Inbox()
    with caplog.at_level(logging.CRITICAL):
        engine.submit(request("bad", PROMPTS[1], 200), fail)
        engine.submit(request("good", PROMPTS[2], 8), inbox.deliver)
        name, outcome = inbox.outcome()
    assert (name, outcome.finished.completion_tokens) == ("good", 8)


class _FailingSession(DecoderSession):
    """Fails where a prompt is longer than 80 tokens, as a broken kernel might."""

    def prefill(self, slot: int, tokens: list[int], length: int) -> Logits:
        if len(tokens) > 80:
            raise RuntimeError("a kernel's mistake")
        return super().prefill(slot, tokens, length)


def test_a_step_that_fails_ends_its_requests_and_not_the_engine(
    generation_model_dir: Path, generation_gguf: GgufFile, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller reads no inner detail, and the next request is answered."""
    path, options = generation_model_dir / "model.gguf", Options(context_tokens=256)
    shape = read_shape(generation_gguf)
    session = _FailingSession(
        graph.ensure_graph(path, options), shape, options, threads=1, slots=2, library=None
    )
    tokenizer = Tokenizer(generation_gguf.metadata)
    info = ModelInfo(
        name="x",
        context_tokens=options.context_tokens,
        vocabulary=len(tokenizer),
        fused=False,
        accuracy_level=options.accuracy_level,
    )
    failing = Engine(session, tokenizer, ChatTemplate(generation_gguf.metadata, tokenizer), info)
    try:
        with caplog.at_level(logging.CRITICAL):
            ended = run(failing, [request("bad", "word " * 90)])["bad"].finished
        assert ended.reason == "error"
        assert "kernel" not in ended.message
        assert run(failing, [request("good", PROMPTS[0], 3)])["good"].finished.reason == "length"
    finally:
        failing.close()


def test_closing_ends_what_runs_and_refuses_what_comes(generation_model_dir: Path) -> None:
    """Running and waiting requests hear that they are cancelled, so no caller waits for ever."""
    closing = Engine.load(generation_model_dir, context_tokens=256, slots=1, fused=False)
    inbox = Inbox()
    for name in ("running", "waiting"):
        closing.submit(request(name, PROMPTS[1], 200), inbox.deliver)
    inbox.next()
    closing.close()
    assert {inbox.outcome()[1].finished.reason for _ in range(2)} == {"cancelled"}
    with pytest.raises(EngineBusy, match="closed"):
        closing.submit(request("late", PROMPTS[0]), inbox.deliver)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The message says that the file cannot be read, before any request is taken."""
    with pytest.raises(InvalidModel, match="cannot be read"):
        Engine.load(tmp_path)
