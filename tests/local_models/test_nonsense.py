"""Loops and strange scripts are noticed; what only looks alike is left alone."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

import local_models
from local_models.engine import Engine
from local_models.gguf import GgufFile
from local_models.messages import Constraint, GenerationRequest
from local_models.nonsense import LOOP_TOKENS, Detector, Nonsense
from local_models.tokenizer import Detokenizer, Tokenizer
from local_models.tool_calls import Calling, Tool
from tests.local_models.generating import request, run

ASKED = "Write it, please."


@pytest.fixture(scope="module")
def tokenizer(generation_gguf: GgufFile) -> Tokenizer:
    """Of the default model."""
    return Tokenizer(generation_gguf.metadata)


def judged(tokenizer: Tokenizer, text: str, prompt: str = ASKED) -> tuple[Nonsense | None, int]:
    """What a detector says of an answer, and after how many tokens."""
    detector, detokenizer = Detector(prompt), Detokenizer(tokenizer)
    tokens = tokenizer.encode(text)
    for place, token in enumerate(tokens):
        found = detector.push(token, detokenizer.push(token))
        if found is not None:
            return found, place + 1
    return None, len(tokens)


RUSSIAN = "Вода кипит при ста градусах, и пар поднимается над чашкой чая. "

NONSENSE: list[tuple[str, str, str]] = [
    ("loop", ASKED, "I am sorry. " * 200),
    ("loop", ASKED, "ha" * 3_000),
    ("loop", ASKED, "A story: " + "the cat saw the dog and the dog saw the cat, " * 60),
    ("loop", "In 2024, why?", "It is so. " * 200),
    ("endless", ASKED, "".join(f"{n}. The cat sat on the mat.\n" for n in range(1, 200))),
    ("script", "Why does water boil?", RUSSIAN * 6),
    ("script", "Why does water boil?", "Water boils. " + RUSSIAN * 12),
    ("broken", ASKED, "Well \ufffd\ufffd\ufffd \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd"),
]


@pytest.mark.parametrize(("kind", "prompt", "answer"), NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_no_answer_is_noticed(
    tokenizer: Tokenizer, kind: str, prompt: str, answer: str
) -> None:
    """The kind is told, and a loop is found within 100 tokens of where it can be known."""
    found, after = judged(tokenizer, answer, prompt)
    assert found == kind
    if kind == "loop":
        assert after <= LOOP_TOKENS + 100


REFRAIN = """Row, row, row your boat,
Gently down the stream.
Merrily, merrily, merrily, merrily,
Life is but a dream.
"""

SENSE: list[tuple[str, str]] = [
    ("Repeat 'I must not talk in class' 50 times.", "I must not talk in class.\n" * 50),
    ("Write hello world 100 times", "hello world " * 100),
    ("A 20 x 15 matrix of zeros as JSON", str([[0] * 20] * 15)),
    ("A JSON array of equal items", "[" + ", ".join(["0"] * 100) + "]"),
    ("The song, please", REFRAIN * 6),
    ("A table", "| name | age |\n|---|---|\n" + "".join(f"| row {n} | {n} |\n" for n in range(40))),
    ("The numbers", "\n".join(map(str, range(1, 400)))),
    ("A line", "-" * 400 + "\n" + "=" * 400),
    ("Translate into Russian: water boils.", RUSSIAN * 5),
    ("How do you say that in Japanese?", "お湯が沸いています。" * 6),
    ("Почему вода кипит?", RUSSIAN * 4),
    ("水为什么会沸腾?", "因为温度升高时分子运动加快,水就沸腾了,这是物理现象。" * 6),
    ("What does '\ufffd' mean?", "\ufffd" * 20),
    ("Water?", "Water is Вода in a certain tongue. " * 3),
]


@pytest.mark.parametrize(("prompt", "answer"), SENSE, ids=[prompt[:24] for prompt, _ in SENSE])
def test_what_only_looks_like_nonsense_is_left_alone(
    tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    """A refrain, a table, numbers and a translation are good answers and stay."""
    assert judged(tokenizer, answer, prompt)[0] is None


def test_the_project_s_own_texts_are_sense(tokenizer: Tokenizer) -> None:
    """Prose, tables, code, YAML and JSON, cut as answers are."""
    root = Path(local_models.__file__).parent.parent
    files: list[Path] = []
    for suffix in ("md", "py", "yaml", "json", "cc", "toml", "lock"):
        files += sorted(root.glob(f"*.{suffix}")) + sorted(root.glob(f"[a-z]*/*.{suffix}"))
    assert len(files) > 50
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert judged(tokenizer, text[:6_000])[0] is None, path


def looping(request_id: str, **changes: Any) -> GenerationRequest:
    """A prompt that the default model answers without end: 'Animal' again and again."""
    asked = request(request_id, "List the animals of the world.", 700)
    return msgspec.structs.replace(asked, **changes)


def test_a_loop_ends_early_where_it_is_asked_for(engine: Engine) -> None:
    """Half-way, with the reason; elsewhere it runs to its limit."""
    requests = [looping("ended", ends_nonsense=True), looping("not")]
    outcomes = run(engine, requests)
    ended, other = outcomes["ended"].finished, outcomes["not"].finished
    assert (ended.reason, ended.message) == ("nonsense", "loop")
    assert ended.completion_tokens < 700
    assert (other.reason, other.completion_tokens) == ("length", 700)
    assert outcomes["not"].text.startswith(outcomes["ended"].text)


def test_a_loop_within_json_is_closed(engine: Engine) -> None:
    """The document is whole, so nothing is ended early but the text in it."""
    form = Constraint("json", '{"type": "array", "items": {"enum": ["cat", "dog"]}}')
    asked = looping("r", ends_nonsense=True, constraint=form)
    outcome = run(engine, [asked])["r"]
    assert outcome.finished.reason == "stop"
    assert outcome.text.endswith("]")


def test_a_loop_in_text_beside_tools_ends_as_it_does_without_them(engine: Engine) -> None:
    """Nothing is open there that would have to be closed, and the reason is told."""
    calls = Constraint("calls", msgspec.json.encode(Calling((Tool("stop"),))).decode())
    asked = looping("r", ends_nonsense=True, constraint=calls)
    finished = run(engine, [asked])["r"].finished
    assert (finished.reason, finished.message) == ("nonsense", "loop")
