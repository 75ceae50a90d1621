"""A whole model file with one thing wrong: it loads and answers, or ends in one short sentence."""

import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from local_models.engine import Engine
from local_models.messages import InvalidModel, InvalidPrompt, LocalModelError
from tests.local_models import gguf_files
from tests.local_models.generating import request, run

LETTERS = [chr(code) for code in range(33, 127)]
PIECES = [*LETTERS, "ab", "<|im_start|>", "<|im_end|>", *(f"<u{n}>" for n in range(31))]
KINDS = [1] * (len(LETTERS) + 1) + [3, 3] + [1] * 31
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": KINDS,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": len(LETTERS) + 2,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}


def load(folder: Path, metadata: dict[str, Any], tensors: dict[str, Any] | None = None) -> Engine:
    """An engine for a random model of two layers, with these entries instead of its own."""
    own, weights, _ = gguf_files.tiny_decoder({})
    gguf_files.write(
        folder / "model.gguf", own | TOKENIZER | metadata, weights | (tensors or {})
    )  # fmt: skip
    return Engine.load(folder, threads=1, slots=1, context_tokens=64)


def at(place: int, entries: list[Any], entry: Any) -> list[Any]:
    """The list with another entry there."""
    return [*entries[:place], entry, *entries[place + 1 :]]


def test_the_file_that_all_others_here_are_made_of_answers(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    engine = load(tmp_path, {})
    try:
        assert run(engine, [request("1", "ab", 4)])["1"].finished.completion_tokens > 0
    finally:
        engine.close()


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.ggml.pre": "x" * 100_000},
        {"tokenizer.ggml.pre": ["x"] * 1_000},
        {"tokenizer.ggml.merges": ["a " + "b" * 100_000]},
        {"llama.expert_count": "9" * 100_000},
        {"tokenizer.ggml.tokens": at(100, PIECES, "<" + "a" * 20_000 + ">"),
         "tokenizer.ggml.token_type": at(100, KINDS, 3)},
        {"tokenizer.chat_template": "{{ " + "9" * 5_000 + " }}"},
        {"tokenizer.chat_template": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}"},
    ],
    ids=range(7),
)  # fmt: skip
def test_what_no_model_has_is_told_in_one_short_sentence(
    tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """No message repeats the file, and nothing takes long."""
    with pytest.raises(InvalidModel) as refusal:
        load(tmp_path, metadata)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


def test_a_control_token_without_a_name_is_passed_over(tmp_path: Path) -> None:
    """It is no mark, and no text can hold it."""
    metadata = {"tokenizer.ggml.tokens": at(100, PIECES, "")}
    metadata["tokenizer.ggml.token_type"] = at(100, KINDS, 3)
    engine = load(tmp_path, metadata)
    try:
        assert run(engine, [request("1", "ab", 4)])["1"].finished.reason in ("stop", "length")
    finally:
        engine.close()


def test_a_template_that_says_nothing_makes_no_prompt(tmp_path: Path) -> None:
    """Told before anything is queued: there is no token to begin with."""
    engine = load(tmp_path, {"tokenizer.chat_template": "{% if messages %}{% endif %}"})
    try:
        with pytest.raises(InvalidPrompt, match="empty prompt"):
            engine.submit(request("1", "ab"), lambda request_id, message: None)
    finally:
        engine.close()


def test_weights_whose_products_overflow_give_no_answer(tmp_path: Path) -> None:
    """Each is a finite number, so the file loads; what it says would be made of NaN."""
    huge = gguf_files.floats(np.full(64, 3e38, np.float32))
    engine = load(tmp_path, {}, {"output_norm.weight": huge})
    try:
        outcome = run(engine, [request("1", "ab", 4, logprobs=2, temperature=1.0)])["1"]
        assert (outcome.finished.reason, outcome.text) == ("error", "")
        assert "overflow" in outcome.finished.message
        scored = msgspec.structs.replace(request("2", "ab"), labels=("a", "b"))
        labelled = run(engine, [scored])["2"].finished
        assert (labelled.reason, labelled.scores) == ("error", ())
        assert "overflow" in labelled.message
    finally:
        engine.close()


def test_tensors_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Else a file of a megabyte becomes a graph of a thousand layers, which is written to disk."""
    metadata, tensors, _ = gguf_files.tiny_decoder({})
    path = tmp_path / "model.gguf"
    head_bytes = gguf_files.write(path, metadata, tensors)
    whole = path.read_bytes()
    name = b"blk.1.ffn_up.weight"
    entry = whole.index(name) + len(name) + 4 + 2 * 8 + 4
    assert entry < head_bytes
    path.write_bytes(whole[:entry] + struct.pack("<Q", 0) + whole[entry + 8 :])
    with pytest.raises(LocalModelError, match="within another"):
        Engine.load(tmp_path)


def test_metadata_that_say_a_thing_twice_are_refused(tmp_path: Path) -> None:
    """Two readers would take two models for one."""
    path = tmp_path / "model.gguf"
    gguf_files.write(path, {"key": 1, "yek": 2}, {})
    path.write_bytes(path.read_bytes().replace(b"yek", b"key"))
    with pytest.raises(InvalidModel, match="key twice"):
        Engine.load(tmp_path)
