"""Calls are read as they were written, in whatever pieces they come, and keep their grammar."""

import json
import random
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models.engine import Engine
from local_models.gguf import GgufFile
from local_models.grammar import Compiler
from local_models.messages import Constraint, InvalidPrompt
from local_models.tokenizer import Tokenizer
from local_models.tool_calls import Called, Calling, Reader, Said, Tool
from tests.local_models.generating import request, run

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("weather", CITY), Tool("stop"))


def written(name: str, arguments: Any) -> str:
    """A call as a model writes it."""
    call = f'{{"name": "{name}", "arguments": {json.dumps(arguments)}}}'
    return f"<tool_call>\n{call}\n</tool_call>"


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in pieces."""
    reader, text = Reader({"weather", "stop"}), ""
    calls: list[tuple[str, str]] = []
    found = [each for piece in pieces for each in reader.push(piece)] + reader.flush()
    for each in found:
        match each:
            case Said():
                text += each.text
            case Called(number, name, arguments):
                if name:
                    assert (number, arguments) == (len(calls), "")
                    calls.append((name, ""))
                else:
                    calls[number] = (calls[number][0], calls[number][1] + arguments)
    assert reader.calls == len(calls)
    return text, calls


ANSWERS: list[tuple[str, str, list[tuple[str, Any]]]] = [
    ("Hello <there> {you}", "Hello <there> {you}", []),
    (written("weather", {"city": "Bern"}), "", [("weather", {"city": "Bern"})]),
    (
        "Let me see.\n" + written("weather", {"city": "a}\n</tool_call>"}) + "\n"
        + written("stop", {}),
        "Let me see.",
        [("weather", {"city": "a}\n</tool_call>"}), ("stop", {})],
    ),
    ('{"name": "stop", "arguments": {}}', "", [("stop", {})]),
    ('```json\n{"name": "weather", "arguments": {"city": "é"}}\n```', "",
     [("weather", {"city": "é"})]),
    ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
    ('{"a": 1}', '{"a": 1}', []),
    ("```json\n[1]\n```", "```json\n[1]\n```", []),
    ("```python\nx\n```", "```python\nx\n```", []),
    ("a < b <tool", "a < b <tool", []),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS, ids=range(len(ANSWERS)))
def test_every_cut_of_an_answer_reads_alike(
    answer: str, text: str, calls: list[tuple[str, Any]]
) -> None:
    """Whole, character by character, and cut in two at every place."""
    cuts = [[answer], list(answer)]
    cuts += [[answer[:place], answer[place:]] for place in range(len(answer))]
    for pieces in cuts:
        said, found = read(pieces)
        assert said == text
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@pytest.mark.parametrize(
    "head", ["", "\n", '\n{"na', '\n{"name": "weather', '\n{"name": "weather", "ar']
)
def test_a_call_that_is_cut_before_its_name_is_no_text(head: str) -> None:
    """The limit of tokens may end an answer anywhere."""
    whole = written("stop", {})
    assert read([whole, "\n<tool_call>" + head]) == ("", [("stop", "{}")])
    assert read(["So:\n<tool_call>" + head]) == ("So:", [])


@given(st.text())
def test_a_text_without_a_call_stays_what_it_is(text: str) -> None:
    """The filter of calls neither eats nor changes a letter of ordinary text."""
    said, calls = read(list(text))
    if "<tool_call>" not in text:
        assert calls == []
        assert said == ("" if text.isspace() else text)


def test_text_is_shown_before_the_answer_ends() -> None:
    """Only what may belong to a mark is held back."""
    assert Reader({"stop"}).push("Hello <tool, you") == [Said("Hello <tool, you")]
    assert Reader({"stop"}).push("Hello <tool") == [Said("Hello")]


@pytest.fixture(scope="module")
def tokenizer(generation_gguf: GgufFile) -> Tokenizer:
    """Of the default model."""
    return Tokenizer(generation_gguf.metadata)


def form(calling: Calling) -> Constraint:
    """An answer that may call."""
    return Constraint("calls", msgspec.json.encode(calling).decode())


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_random_answers_call_only_what_there_is(
    tokenizer: Tokenizer, required: bool, parallel: bool
) -> None:
    """Tokens at random, then the way to the end: names and arguments are those of the tools."""
    compiler = Compiler(tokenizer)
    rng = np.random.default_rng(3)
    begin = tokenizer.encode("<tool_call>")
    try:
        for number in range(12):
            guide = compiler.compile(
                form(Calling(TOOLS, required=required, parallel=parallel)), lambda: None
            ).result(timeout=30)
            answer = b""
            for token in begin:
                guide.accept(token)
                answer += tokenizer.bytes_of(token)
            for count in range(300):
                guide.closing = count > 4 * number
                token = int(rng.choice(np.flatnonzero(guide.allowed())))
                if token in tokenizer.end_tokens:
                    break
                guide.accept(token)
                answer += tokenizer.bytes_of(token)
                if guide.complete:
                    break
            text, calls = read([answer.decode(errors="replace")])
            assert not text
            assert calls if parallel else len(calls) == 1
            for name, arguments in calls:
                schema = {tool.name: tool.parameters for tool in TOOLS}[name]
                jsonschema.validate(json.loads(arguments), schema)
    finally:
        compiler.close()


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ('{"name": "weather", "arguments": {"city": "Bern"}}', True),
        (
            '```json\n{\n  "name": "weather",\n  "arguments": {\n    "city": "Bern"\n  }\n}\n```',
            True,
        ),
        ('{"name": "weather", "arguments": {"town": "Bern"}}', False),
        ('```json\n{"name": "weather", "arguments": {}}\n```', False),
        ('{"name": "weather"}', False),
        ('{"name": "Anna", "arguments": {"town": "Bern"}}', True),
        ('```json\n{"name": "Anna"}\n```', True),
        ("A text of `code` and {braces}.", True),
        ('Well: {"name": "weather"}', True),
        ('<tool_call>\n{"name": "weather", "arguments": {"town": "x"}}\n</tool_call>', False),
        ('<tool_call>\n{"name": "snow", "arguments": {}}\n</tool_call>', False),
    ],
    ids=range(11),
)
def test_what_begins_as_a_call_of_a_tool_keeps_to_its_parameters(
    tokenizer: Tokenizer, answer: str, kept: bool
) -> None:
    """With the marks and without; every other text is free."""
    compiler = Compiler(tokenizer)
    try:
        guide = compiler.compile(form(Calling(TOOLS)), lambda: None).result(timeout=30)
        tokens = tokenizer.encode(answer)
        allowed = True
        for token in tokens:
            allowed = bool(guide.allowed()[token])
            if not allowed:
                break
            guide.accept(token)
        else:
            mask = guide.allowed()
            allowed = guide.complete or any(mask[end] for end in tokenizer.end_tokens)
        assert allowed == kept
    finally:
        compiler.close()


def test_a_required_call_is_made_and_a_possible_one_leaves_the_text_free(engine: Engine) -> None:
    """By a model that knows no tools."""
    asked = request("r", "What is the weather in Bern?", 90, temperature=0.8, seed=1)
    must = msgspec.structs.replace(asked, constraint=form(Calling(TOOLS[:1], required=True)))
    outcome = run(engine, [must])["r"]
    text, calls = read([outcome.text])
    assert (text, outcome.finished.reason) == ("", "stop")
    jsonschema.validate(json.loads(calls[0][1]), CITY)
    # Greedy: a draw may differ, because the shares of what is never text are spread over the rest.
    # One limit is reached in the midst of a sentence: text is cut there, as it is without tools.
    for most in (40, 90):
        free = request("r", "What is the weather in Bern?", most, temperature=0.0)
        may = msgspec.structs.replace(free, constraint=form(Calling(TOOLS)))
        with_tools, without = (run(engine, [each])["r"] for each in (may, free))
        assert with_tools.text == without.text
        assert with_tools.finished.reason == without.finished.reason


@pytest.mark.parametrize(
    ("calling", "named"),
    [
        (Calling(()), "tools"),
        (Calling((Tool("a b"),)), "a b"),
        (Calling((Tool("f", {"if": {}}),)), "function f: schema.if"),
    ],
)
def test_tools_that_cannot_be_kept_are_refused_by_name(
    engine: Engine, calling: Calling, named: str
) -> None:
    """A tool's schema is kept in full or refused with the part that cannot be."""
    asked = msgspec.structs.replace(request("r", "x"), constraint=form(calling))
    with pytest.raises(InvalidPrompt, match=named):
        engine.submit(asked, lambda *_: None)


def test_random_parameters_make_grammars(tokenizer: Tokenizer) -> None:
    """Schemas of every kind within a call."""
    from tests.local_models.schemas import random_schema

    compiler, kept = Compiler(tokenizer), 0
    try:
        for seed in range(40):
            schema = random_schema(random.Random(seed))
            tool = Tool("f", {"type": "object", "properties": {"value": schema},
                              "$defs": schema["$defs"]})  # fmt: skip
            try:
                compiler.compile(form(Calling((tool,))), lambda: None).result(timeout=30)
                kept += 1
            except InvalidPrompt as refusal:
                assert str(refusal)  # noqa: PT017 - most are not refused
    finally:
        compiler.close()
    assert kept > 25
