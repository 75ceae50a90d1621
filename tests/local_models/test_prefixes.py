"""The beginning of a prompt is read once within a scope, and no answer shows it."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from local_models import native
from local_models.engine import CHUNK_TOKENS_ALONE, CHUNK_TOKENS_SHARED, Engine
from local_models.messages import GenerationRequest, SamplingParams
from local_models.prefixes import PIECE_TOKENS_MIN, PREFIX_TOKENS_MIN, Prefixes
from tests.local_models.generating import Inbox, Outcome, run

SYSTEM = "You are the assistant of a library. " + "Books are lent for four weeks. " * 20


@pytest.fixture(
    scope="module",
    params=[
        (False, 4),
        (False, 1),
        pytest.param(
            (True, 4),
            marks=pytest.mark.skipif(native.library_path() is None, reason="library not built"),
        ),
    ],
    ids=["onnxruntime", "onnxruntime-float", "fused"],
)
def loaded(request: pytest.FixtureRequest, generation_model_dir: Path) -> Iterator[Engine]:
    """An engine of each graph."""
    fused, accuracy_level = request.param
    engine = Engine.load(generation_model_dir, fused=fused, accuracy_level=accuracy_level)
    yield engine
    engine.close()


def asked(
    request_id: str, question: str, scope: str, system: str = SYSTEM, **params: object
) -> GenerationRequest:
    """A question to the library, with the logarithms of what is answered."""
    sampling = {"max_tokens": 8, "temperature": 0.8, "seed": 7, "logprobs": 5} | params
    return GenerationRequest(
        request_id=request_id,
        messages=({"role": "system", "content": system}, {"role": "user", "content": question}),
        params=msgspec.convert(sampling, SamplingParams),
        scope=scope,
    )


def shown(outcome: Outcome) -> object:
    """All of an answer that a client may see, to the last bit of its logarithms."""
    entries = [entry for delta in outcome.deltas for entry in delta.logprobs]
    return outcome.text, entries, outcome.finished.reason, outcome.finished.prompt_tokens


def one(engine: Engine, request: GenerationRequest) -> Outcome:
    return run(engine, [request])[request.request_id]


def test_a_repeated_beginning_is_read_once_and_the_answer_is_the_same(loaded: Engine) -> None:
    """Compared with the request that shares nothing, to the last bit."""
    first = one(loaded, asked("a", "How long may I keep a book?", "library"))
    again = one(loaded, asked("b", "Where is the reading room?", "library"))
    alone = one(loaded, asked("c", "Where is the reading room?", ""))
    assert first.finished.cached_tokens == alone.finished.cached_tokens == 0
    assert again.finished.cached_tokens > 100
    assert shown(again) == shown(alone)


def test_another_scope_reads_everything_itself(loaded: Engine) -> None:
    """Neither another scope nor the empty one gets what a scope has read."""
    for number, (scope, expected) in enumerate(
        [("red", False), ("blue", False), ("", False), ("", False), ("red", True), ("blue", True)]
    ):
        outcome = one(loaded, asked(str(number), "Who are you?", scope, "Another one. " * 40))
        assert (outcome.finished.cached_tokens > 0) is expected, scope


def test_the_same_prompt_again_reads_its_last_tokens_alone(loaded: Engine) -> None:
    """All but one smallest piece is reused, and the answer is the same to the last bit."""
    request = asked("a", "Is it open on Sundays?", "same")
    first = one(loaded, request)
    again = one(loaded, request)
    assert again.finished.cached_tokens == first.finished.prompt_tokens - PIECE_TOKENS_MIN
    assert shown(again) == shown(first)


@pytest.mark.slow
def test_requests_of_many_scopes_at_once_are_answered_as_each_is_alone(loaded: Engine) -> None:
    """Rows join, move and leave; prompts end anywhere; labels and choices are among them."""
    rng = random.Random(5)
    systems = [SYSTEM, "Answer briefly. " * 30, "You know rivers. " * 25]
    requests = []
    for number in range(15):
        each = asked(
            str(number),
            "Tell me more. " * rng.choice((1, 2, 7, 19)),
            rng.choice(("red", "blue", "")),
            rng.choice(systems),
            max_tokens=rng.choice((1, 3, 9)),
            seed=number,
        )
        if number % 5 == 4:
            each = msgspec.structs.replace(each, labels=("yes", "no", "not today"))
        requests.append(each)
    together = run(loaded, requests)
    shared = sum(outcome.finished.cached_tokens for outcome in together.values())
    assert shared > 500
    for each in requests:
        alone = one(loaded, msgspec.structs.replace(each, scope=""))
        assert alone.finished.cached_tokens == 0
        assert shown(together[each.request_id]) == shown(alone)
        assert together[each.request_id].finished.scores == alone.finished.scores


def test_what_a_cancelled_request_has_read_is_right(loaded: Engine) -> None:
    """It may be cancelled between two pieces of its prompt, or while it decodes."""
    system = "Rivers run to the sea. " * 120
    expected = one(loaded, asked("alone", "Why?", "", system))
    for number in range(3):
        inbox = Inbox()
        loaded.submit(asked("leaver", "How?", f"c{number}", system, max_tokens=400), inbox.deliver)
        if number:
            inbox.next()
        loaded.cancel("leaver")
        inbox.outcome()
        assert shown(one(loaded, asked("b", "Why?", f"c{number}", system))) == shown(expected)


def test_a_prompt_gives_the_same_bits_however_it_is_cut(loaded: Engine) -> None:
    """What sharing rests on: pieces of PIECE_TOKENS_MIN tokens and more are all alike."""
    session, rng = loaded._session, random.Random(3)
    prompt = [rng.randrange(1_000, 20_000) for _ in range(200)]

    def read(cuts: list[int]) -> list[np.ndarray]:
        start = 0
        for end in [*cuts, len(prompt)]:
            logits = session.prefill(0, prompt[start:end], start)
            start = end
        caches = session._cache.arrays.values()
        return [logits.copy(), *(cache[0, :, : len(prompt)].copy() for cache in caches)]

    whole = read([])
    for cuts in ([64, 128], [2, 4, 7], [198], [197], [1 + PIECE_TOKENS_MIN, 100, 103, 198]):
        assert all(map(np.array_equal, read(cuts), whole)), cuts


def test_no_piece_of_a_prompt_is_a_single_token(loaded: Engine) -> None:
    """One token more than five steps read beside others, which two read alone."""
    tokens = 5 * CHUNK_TOKENS_SHARED + 1
    assert tokens - PIECE_TOKENS_MIN > CHUNK_TOKENS_ALONE
    request = asked("a", "Go on.", "", "word " * tokens)
    over = loaded.count_tokens(request.messages or ()) - tokens
    request = asked("a", "Go on.", "", "word " * (tokens - over))
    assert loaded.count_tokens(request.messages or ()) == tokens
    alone = one(loaded, request)
    inbox = Inbox()
    other = asked("other", "Count to a hundred.", "", "You count.", max_tokens=60)
    loaded.submit(other, inbox.deliver)
    inbox.next()
    loaded.submit(request, inbox.deliver)
    outcomes = dict(inbox.outcome() for _ in range(2))
    assert shown(outcomes["a"]) == shown(alone)


def test_the_slot_that_was_used_longest_ago_is_given_up() -> None:
    """Slots that hold nothing go first."""
    prefixes = Prefixes(3)
    long, other = list(range(100)), list(range(100, 200))
    prefixes.hold(0, "a", long, 100)
    assert prefixes.oldest(0) == 1
    prefixes.hold(1, "a", other, 100)
    prefixes.hold(2, "b", long, 100)
    assert (prefixes.oldest(0), prefixes.oldest(1), prefixes.oldest(3)) == (0, 1, None)
    prefixes.copied(2, 0)
    assert prefixes.longest("a", long) == (0, 0)
    assert not prefixes.worth_keeping(0)
    prefixes.clear(2)
    assert prefixes.worth_keeping(0)


def test_the_longest_common_beginning_is_found() -> None:
    """Against a count of equal tokens, one by one, for beginnings of every length."""
    rng = random.Random(1)
    for _ in range(300):
        held = [rng.randrange(3) for _ in range(rng.randrange(1, 200))]
        prompt = held[: rng.randrange(len(held) + 1)] + [rng.randrange(3) for _ in range(60)]
        prefixes = Prefixes(2)
        length = rng.randrange(1, len(held) + 1)
        prefixes.hold(1, "scope", held, length)
        pairs = zip(held[:length], prompt, strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(length, len(prompt)))
        same = min(same, len(prompt) - PIECE_TOKENS_MIN)
        expected = (1, same) if same >= PREFIX_TOKENS_MIN else (0, 0)
        assert prefixes.longest("scope", prompt) == expected
        assert prefixes.longest("", prompt) == (0, 0)
