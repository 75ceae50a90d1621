"""Answers keep the form that was asked for, and what cannot be kept is refused by name."""

import datetime
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no stubs of its own
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_models.engine import Engine
from local_models.gguf import GgufFile
from local_models.grammar import GRAMMARS_MAX, Compiler, GrammarFailed, Guide
from local_models.messages import Constraint, GenerationRequest, InvalidPrompt
from local_models.tokenizer import Tokenizer
from tests.local_models.generating import Inbox, Outcome, request, run
from tests.local_models.schemas import random_schema

ANSWER_TOKENS_MAX = 400
ANY_SEED = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def tokenizer(generation_gguf: GgufFile) -> Tokenizer:
    """Of the default model."""
    return Tokenizer(generation_gguf.metadata)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[Compiler]:
    """One for all tests: the vocabulary takes a tenth of a second."""
    made = Compiler(tokenizer)
    yield made
    made.close()


def json_form(schema: Any) -> Constraint:
    """An answer by this schema."""
    return Constraint("json", json.dumps(schema))


def constrained(request_id: str, text: str, form: Constraint, **params: Any) -> GenerationRequest:
    """A chat request whose answer has a form."""
    return msgspec.structs.replace(request(request_id, text, **params), constraint=form)


def guide_of(compiler: Compiler, form: Constraint) -> Guide:
    """A guide at the beginning, or what refuses it."""
    return compiler.compile(form, lambda: None).result(timeout=30)


def wander(guide: Guide, tokenizer: Tokenizer, seed: int) -> bytes:
    """An answer whose tokens are drawn evenly from the allowed ones: worse than any model."""
    rng = np.random.default_rng(seed)
    closes_after = int(rng.integers(0, 40))
    answer = b""
    for count in range(ANSWER_TOKENS_MAX):
        guide.closing = count >= closes_after
        token = int(rng.choice(np.flatnonzero(guide.allowed())))
        if token in tokenizer.end_tokens:
            return answer
        guide.accept(token)
        answer += tokenizer.bytes_of(token)
        if guide.complete:
            return answer
    raise AssertionError(f"no end after {ANSWER_TOKENS_MAX} tokens: {answer[-100:]!r}")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=ANY_SEED)
def test_an_answer_that_ends_is_valid_whatever_the_model_prefers(
    compiler: Compiler, tokenizer: Tokenizer, seed: int
) -> None:
    """Random schemas, random tokens. Whatever is not refused is kept, says ``jsonschema``."""
    schema = random_schema(random.Random(seed))
    try:
        guide = guide_of(compiler, json_form(schema))
    except InvalidPrompt:
        return
    document = json.loads(wander(guide, tokenizer, seed))
    jsonschema.Draft202012Validator(schema).validate(document)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=ANY_SEED,
    choices=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5),
)
def test_a_choice_is_one_of_the_texts(
    compiler: Compiler, tokenizer: Tokenizer, seed: int, choices: list[str]
) -> None:
    """Some characters have bytes that the vocabulary has no token for: these are refused."""
    try:
        guide = guide_of(compiler, Constraint("choice", json.dumps(choices)))
    except InvalidPrompt as refusal:
        assert "cannot spell" in str(refusal)  # noqa: PT017 - most choices are not refused
        return
    assert wander(guide, tokenizer, seed).decode() in choices


@pytest.mark.parametrize(
    "expression", [r"\d{3}-[a-f]+", "(yes|no)", r"v[0-9]+\.[0-9]+", "[^a]{3,9}", "äö?ü"]
)
def test_the_whole_answer_matches_a_regex(
    compiler: Compiler, tokenizer: Tokenizer, expression: str
) -> None:
    """Tokens drawn at random still match from the first letter to the last."""
    for seed in range(8):
        guide = guide_of(compiler, Constraint("regex", expression))
        answer = b""
        rng = np.random.default_rng(seed)
        while not guide.complete and len(answer) < 400:
            allowed = np.flatnonzero(guide.allowed())
            token = int(rng.choice(allowed))
            if token in tokenizer.end_tokens:
                break
            guide.accept(token)
            answer += tokenizer.bytes_of(token)
        if len(answer) < 400:
            assert re.fullmatch(expression, answer.decode(), re.DOTALL)


def nested_lists(depth: int) -> Any:
    """A value of many levels."""
    return [nested_lists(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"uniqueItems": True}, "schema.uniqueItems"),
        ({"properties": {"a": {"not": {}}}}, "schema.properties.a.not"),
        ({"anyOf": [{"if": {}, "then": {}}]}, r"schema.anyOf\[0\].if"),
        ({"items": {"contains": {}}}, "schema.items.contains"),
        ({"x-guidance": {"lenient": True}}, "schema.x-guidance"),
        ({"tpye": "string"}, "schema.tpye"),
        ({"type": "text"}, "schema.type"),
        ({"format": "phone"}, "'phone'"),
        ({"$ref": "https://example.com/s.json"}, r"schema.\$ref"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"multipleOf": 0.1}, "schema.multipleOf"),
        ({"minProperties": 2}, "schema.minProperties"),
        ({"minLength": 10**9}, "schema.minLength"),
        ({"minimum": "1"}, "schema.minimum"),
        ({"enum": []}, "schema.enum"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-a"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ([], "schema"),
        ({"format": []}, "schema.format"),
        ({"multipleOf": 1_000_003}, "schema.multipleOf"),
        ({"multipleOf": float("inf")}, "not JSON"),
        ({"minimum": float("nan")}, "not JSON"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "schema.enum"),
        ({"const": 12345678901234567890}, "schema.const"),
        ({"const": nested_lists(40)}, "schema.const"),
        ({"type": "integer", "exclusiveMaximum": 10**17}, "schema.exclusiveMaximum"),
        ({"type": "integer", "minimum": 2**53 + 1}, "schema.minimum"),
        ({"pattern": "^[[:alpha:]]$"}, "schema.pattern"),
        ({"pattern": "^[a-z&&[^b]]$"}, "schema.pattern"),
        ({"pattern": "^a*+a$"}, "schema.pattern"),
        ({"pattern": r"^\p{L}$"}, "schema.pattern"),
        ({"patternProperties": {r"^\w$": {"type": "null"}}}, "schema.patternProperties"),
        ({"patternProperties": {"": {}}, "additionalProperties": False}, "patternProperties"),
        ({"properties": {str(n): {} for n in range(901)}}, "schema.properties has over"),
        ({"\ud800": 1}, "schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_by_name(
    compiler: Compiler, schema: Any, named: str
) -> None:
    """Never silently passed over: the answer would look valid and not be."""
    with pytest.raises(InvalidPrompt, match=named) as refusal:
        guide_of(compiler, json_form(schema))
    assert len(str(refusal.value).encode()) < 600


def accepts(compiler: Compiler, tokenizer: Tokenizer, schema: Any, answer: str) -> bool:
    """Whether an answer by the schema may be this one."""
    guide = guide_of(compiler, json_form(schema))
    for token in tokenizer.encode(answer):
        if not guide.allowed()[token]:
            return False
        guide.accept(token)
    return guide.complete or bool(guide.allowed()[[*tokenizer.end_tokens]].any())


@pytest.mark.parametrize(
    ("schema", "kept", "not_kept"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.25", "0"),
        ({"type": "number", "exclusiveMinimum": 0.0, "minimum": 0.125, "maximum": 0.5},
         "0.125", "0.0625"),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, "-0.25", "-0"),
        ({"type": "integer", "exclusiveMinimum": 0}, "1", "0"),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"type": "string", "format": "date"}, '"2000-02-29"', '"1900-02-29"'),
        ({"type": "string", "format": "date"}, '"9999-12-31"', '"2026-11-31"'),
        ({"type": "string", "format": "date"}, '"0001-01-01"', '"0000-01-01"'),
        ({"type": "integer", "maximum": 2**63 - 1}, "5", str(2**63)),
        ({"type": "string", "pattern": r"^\W$"}, '"-"', '"é"'),
        ({"type": "string", "pattern": r"^[^\w]$"}, '"-"', '"é"'),
        ({"type": "string", "pattern": r"^[\D]$"}, '"a"', '"٣"'),
        ({"type": "string", "pattern": r"^[^\d-]$"}, '"a"', '"٣"'),
        ({"type": "string", "pattern": r"^[]\S]$"}, '"]"', '"\u00a0"'),
    ],
)  # fmt: skip
def test_what_a_validator_would_refuse_is_no_answer(
    compiler: Compiler, tokenizer: Tokenizer, schema: Any, kept: str, not_kept: str
) -> None:
    """Where the grammar's library reads numbers or patterns otherwise than ``jsonschema`` does."""
    formats = jsonschema.FormatChecker()
    validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
    assert validator.is_valid(json.loads(kept))
    assert not validator.is_valid(json.loads(not_kept))
    assert accepts(compiler, tokenizer, schema, kept)
    assert not accepts(compiler, tokenizer, schema, not_kept)


def test_each_day_that_there_is_and_no_other_is_a_date(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    """Every 29th to 31st of some years, with a time, too: as ``datetime`` has it."""
    for year in (1, 4, 100, 400, 1900, 2000, 2023, 2024):
        for month in range(1, 13):
            for day in range(29, 32):
                written = f"{year:04}-{month:02}-{day:02}"
                try:
                    there_is = bool(datetime.date.fromisoformat(written))
                except ValueError:
                    there_is = False
                for form, rest in (("date", ""), ("date-time", "T12:00:00Z")):
                    schema = {"type": "string", "format": form}
                    answer = f'"{written}{rest}"'
                    assert accepts(compiler, tokenizer, schema, answer) == there_is


def test_an_object_may_have_many_properties_that_may_be_left_out(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    """As many as are not refused: an answer never fails at its first name."""
    names = {f"k{n}": {"type": "integer"} for n in range(900)}
    schema = {"type": "object", "properties": names, "additionalProperties": False}
    assert accepts(compiler, tokenizer, schema, '{"k1": 5, "k899": 6}')


def nested(depth: int) -> dict[str, Any]:
    """Lists of lists."""
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


@pytest.mark.parametrize(
    "form",
    [
        json_form(nested(200)),
        Constraint("json", "[" * 100_000),
        Constraint("json", '{"type": "object", "properties": {' + '"a": {},' * 50_000 + "}}"),
        json_form({"anyOf": [{"const": str(n)} for n in range(10_000)]}),
        json_form({"enum": list(range(10_000))}),
        json_form({"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}b"}),
        json_form({"type": "string", "minLength": 10_000, "maxLength": 10_000}),
        json_form({"$ref": "#"}),
        json_form({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                   "$ref": "#/$defs/a"}),
        Constraint("regex", "(" * 2_000 + "a" + ")*" * 2_000),
        Constraint("regex", "(a|b|ab)*" * 300 + "c{5000}"),
        Constraint("regex", r"(\w{1,200}\s?){1,200}x" * 8),
        Constraint("regex", "a" * 5_000),
        Constraint("choice", json.dumps(["a" * 1_999 + str(n) for n in range(10)])),
        Constraint("choice", "[]"),
        Constraint("choice", "{"),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_hostile_form_ends_in_bounded_time(
    compiler: Compiler, tokenizer: Tokenizer, form: Constraint
) -> None:
    """Refused, given up in mid-answer, or kept: within two seconds for 60 tokens."""
    began, refusal = time.process_time(), "-"
    try:
        guide = guide_of(compiler, form)
        for _ in range(60):
            token = int(np.flatnonzero(guide.allowed())[0])
            if token in tokenizer.end_tokens or guide.complete:
                break
            guide.accept(token)
    except (InvalidPrompt, GrammarFailed) as error:
        refusal = str(error)
    assert 0 < len(refusal) < 500
    assert time.process_time() - began < 2


def test_grammars_are_kept_and_no_more_than_the_maximum(tokenizer: Tokenizer) -> None:
    """A repeated form is not compiled again, and old ones make room."""
    fresh = Compiler(tokenizer)
    try:
        forms = [Constraint("regex", f"a{{{n}}}") for n in range(1, GRAMMARS_MAX + 2)]
        for form in (*forms, forms[-1]):
            guide_of(fresh, form)
        assert fresh.compiled == len(forms)
        guide_of(fresh, forms[0])
        assert fresh.compiled == len(forms) + 1
    finally:
        fresh.close()


def test_two_answers_of_one_grammar_do_not_share_their_place(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    """One answer's first letter does not forbid it to the other."""
    form = Constraint("regex", "[ab]c")
    first, second = guide_of(compiler, form), guide_of(compiler, form)
    first.accept(tokenizer.encode("a")[0])
    assert second.allowed()[tokenizer.encode("b")[0]]
    assert not first.allowed()[tokenizer.encode("b")[0]]


def test_no_form_allows_a_control_token_but_the_ends(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    """Not even one that allows every text."""
    allowed = guide_of(compiler, Constraint("regex", r"(.|\n)*")).allowed()
    controls = {token for token in range(len(tokenizer)) if not tokenizer.bytes_of(token)}
    assert set(np.flatnonzero(allowed)) & controls == tokenizer.end_tokens


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def forms() -> list[GenerationRequest]:
    """Six requests of one batch: forms of each kind, penalties, biases, and none of them."""
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_tokens": 40}
    return [
        constrained("person", "Invent a person.", json_form(PERSON), **sampled),
        constrained("choice", "Is it red?", Constraint("choice", '["yes", "no"]'), **sampled),
        request("free", "Tell a story.", **sampled),
        request("penalty", "Tell a story.", frequency_penalty=1.5, presence_penalty=0.5, **sampled),
        constrained("date", "When?", Constraint("regex", "[0-9]{4}-[0-9]{2}"), **sampled),
        request("bias", "Tell a story.", logit_bias=((260, 5.0), (281, -100.0)), **sampled),
    ]


def test_forms_and_penalties_stay_with_their_own_row(engine: Engine) -> None:
    """Each answer is the one it is alone, and has its form."""
    together = run(engine, forms())
    for each in forms():
        assert together[each.request_id].text == run(engine, [each])[each.request_id].text
    jsonschema.validate(json.loads(together["person"].text), PERSON)
    assert together["choice"].text in ("yes", "no")
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", together["date"].text)
    assert {outcome.finished.reason for outcome in together.values()} <= {"stop", "length"}
    assert together["penalty"].text != together["free"].text != together["bias"].text


def test_a_form_near_the_limit_is_closed(engine: Engine) -> None:
    """A document that is cut is of no use: the last tokens close what is open."""
    schema = {"type": "object", "properties": {"story": {"type": "string"}}, "required": ["story"]}
    for max_tokens in (16, 40):
        outcome = run(engine, [constrained("s", "A long story.", json_form(schema),
                                           max_tokens=max_tokens)])["s"]  # fmt: skip
        jsonschema.validate(json.loads(outcome.text), schema)
        assert outcome.finished.reason == "stop"
        assert outcome.finished.completion_tokens <= max_tokens


def test_a_form_that_cannot_be_kept_ends_its_own_request(engine: Engine) -> None:
    """Found on the compiling thread; the others' answers go on."""
    bad = constrained("bad", "x", Constraint("regex", r"(?=a)"))
    outcomes = run(engine, [bad, request("good", "Name a fruit.", 4)])
    finished = outcomes["bad"].finished
    assert (finished.reason, finished.refused) == ("error", True)
    assert "look-ahead" in finished.message
    assert outcomes["good"].finished.reason in ("stop", "length")


def test_a_form_without_a_first_token_is_refused_as_the_requests_own(engine: Engine) -> None:
    """A value that must hold itself: told when the first token is to be chosen."""
    endless = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}
    finished = run(engine, [constrained("e", "Go on.", json_form(endless))])["e"].finished
    assert (finished.reason, finished.refused, finished.completion_tokens) == ("error", True, 0)
    assert "cannot be followed" in finished.message


def test_a_form_in_the_waiting_line_can_be_cancelled(engine: Engine) -> None:
    """While its grammar is compiled, or right after."""
    inbox = Inbox()
    engine.submit(constrained("gone", "x", json_form(PERSON), max_tokens=300), inbox.deliver)
    engine.cancel("gone")
    assert inbox.outcome()[1].finished.reason == "cancelled"


def test_several_answers_to_one_request_read_the_prompt_once(engine: Engine) -> None:
    """Each is what it is alone, and the copies take less time than the prompt takes."""
    prompt = "Tell me of the sea and the wind. " * 40
    alone = [request(f"a{seed}", prompt, 6, temperature=1.0, seed=seed) for seed in range(3)]
    grouped = [msgspec.structs.replace(each, group="g") for each in alone]
    together = run(engine, grouped)
    for each in alone:
        assert together[each.request_id].text == run(engine, [each])[each.request_id].text
    first, second, third = (together[f"a{seed}"].finished.compute_us for seed in range(3))
    assert max(second, third) < first


def measure(engine: Engine, count: int) -> tuple[Counter[str], list[str]]:
    """Answers of the model to random schemas, in batches: how they ended, and what was invalid."""
    ends: Counter[str] = Counter()
    invalid: list[str] = []
    schemas = (random_schema(random.Random(seed)) for seed in range(2**31))
    while sum(ends.values()) - ends["refused"] < count:
        batch = {str(place): next(schemas) for place in range(16)}
        requests = [
            constrained(place, "Give me an example as JSON.", json_form(schema), max_tokens=256,
                        temperature=1.0 if int(place) % 2 else 0.0, seed=int(place))
            for place, schema in batch.items()
        ]  # fmt: skip
        for place, outcome in submit_all(engine, requests, ends).items():
            ends[outcome.finished.reason if not outcome.finished.refused else "refused"] += 1
            if outcome.finished.reason == "stop":
                try:
                    jsonschema.Draft202012Validator(batch[place]).validate(json.loads(outcome.text))
                except (ValueError, jsonschema.ValidationError) as error:
                    invalid.append(f"{batch[place]} {outcome.text!r} {error}")
    return ends, invalid


def submit_all(
    engine: Engine, requests: list[GenerationRequest], ends: Counter[str]
) -> dict[str, Outcome]:
    """Outcomes of those that are not refused at once."""
    inbox, submitted = Inbox(), 0
    for each in requests:
        try:
            engine.submit(each, inbox.deliver)
            submitted += 1
        except InvalidPrompt:
            ends["refused"] += 1
    return dict(inbox.outcome() for _ in range(submitted))


def test_the_model_s_answers_to_random_schemas_are_valid(engine: Engine) -> None:
    """A small share of the long test below."""
    ends, invalid = measure(engine, 24)
    assert not invalid
    assert ends["stop"] >= 23


@pytest.mark.long
def test_two_thousand_random_schemas_are_kept(engine: Engine) -> None:
    """All answers that end in stop are valid, and 99 % end so; the rest runs into its limit."""
    ends, invalid = measure(engine, 2_000)
    kept = sum(ends.values()) - ends["refused"]
    print(f"{kept} schemas: {ends}, {len(invalid)} invalid")
    assert not invalid
    assert ends["stop"] >= 0.99 * kept


def test_compiling_holds_up_no_other_request(engine: Engine) -> None:
    """The engine's thread steps on while a grammar is compiled on another one."""
    names: list[str] = []
    guide = engine._compiler.compile(
        json_form(PERSON), lambda: names.append(threading.current_thread().name)
    )
    guide.result(timeout=10)
    assert names
    assert names[0] != "engine"
