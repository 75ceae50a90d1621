"""YAML as people mean it: scalars of 1.2, no tricks, references, and a place for everything."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from gateway.errors import PolicyError
from gateway.yaml_documents import (
    DEPTH_MAX,
    DOCUMENTS_MAX,
    FILE_BYTES_MAX,
    Referenced,
    parse_documents,
    read_documents,
    suggest,
    validate,
)

PATH = Path("policy.yaml")


def parsed(text: str, **environ: str) -> Any:
    """The value of a text's one document."""
    (document,) = parse_documents(text.encode(), PATH, environ)
    return document.value


def refused(text: str | bytes, **environ: str) -> tuple[str, ...]:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(PolicyError) as refusal:
        parse_documents(content, PATH, environ)
    return refusal.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("2026-10-01", "2026-10-01"),
        ("1_000", "1_000"),
        ("=", "="),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("1.5", 1.5),
        ("1e3", 1000),
        ("1e+06", 1_000_000),
        ("400.0", 400),
        ("-0.5", -0.5),
        ("1e16", 1e16),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("|\n  12\n", "12\n"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    """Numbers are finite, quoted is always text; infinity and NaN are of no use here."""
    found = parsed(f"v: {text}")["v"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "policy.yaml:3:1: the key 'a' is given twice"),
        ("a: &x 1", "policy.yaml:1:4: a YAML anchor &x is not accepted; write the value out"),
        ("a: *x", "policy.yaml:1:4: a YAML alias *x is not accepted; write the value out"),
        ("a: !!int '3'", "tag tag:yaml.org,2002:int is not accepted; write the value out"),
        ("a: !secret x", "policy.yaml:1:4: a YAML tag !secret is not accepted"),
        ("<<: {a: 1}\n<<: {b: 1}", "policy.yaml:2:1: the key '<<' is given twice"),
        ("? [a]\n: 1", "policy.yaml:1:3: a key is a plain word"),
        ("? {a: 1}\n: 1", "policy.yaml:1:3: a key is a plain word"),
        ("a: [1", "policy.yaml:2:1: this is not YAML: a bracket or a comma is missing"),
        ("a:\n\t- 1", "policy.yaml:2:1: this is not YAML: indent with spaces"),
        ("a: 1\nb: 'c\nd: 2\n", "policy.yaml:2:4: this is not YAML: a quotation mark is not"),
        ("a: \"\\d\"", "policy.yaml:1:5: this is not YAML: in double quotes a backslash"),
        ("a: - b", "policy.yaml:1:4: this is not YAML: a list begins on a line of its own"),
        ("a: *", "policy.yaml:1:5: this is not YAML: quote a text that begins with * or &"),
        ("a: b: c", "policy.yaml:1:5: this is not YAML: is a line before it not indented"),
        ("a: é\nb: \x07", "policy.yaml:2:4: this is not YAML: a character here is no text"),
        ("a: é\x07", "policy.yaml:1:5: this is not YAML: a character here is no text"),
        ("a: ${env:GONE}", "policy.yaml:1:4: the environment variable GONE is not set; set it, or"
         " give a default: ${env:GONE:-default}"),
        ("a: '${envs:X}'", "policy.yaml:1:4: a reference reads ${env:NAME}, ${env:NAME:-default}"),
        ("a: '${env:A\n\n B}'", "policy.yaml:1:4: a reference reads ${env:NAME}"),
        ("a: ${file:/nonexistent/key}", "the file /nonexistent/key cannot be read: No such file"),
        ("a: ${file:/dev/zero}", "the file /dev/zero cannot be read: it is no regular"),
        ("a: th_abcdefghijklmnopqrstuv", "policy.yaml:1:4: this looks like a key: write a"),
        ("a: x sk-proj-abcdefghijklmnop", "policy.yaml:1:4: this looks like a key: write a"),
        ("a: '${env:X:-sk-proj-abcdefghijklmnop}'", "policy.yaml:1:4: this looks like a key"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_at_its_place(text: str, problem: str) -> None:
    """File, line and column lead an operator to tricks, missing variables and keys in clear."""
    problems = refused(text)
    assert any(problem in found for found in problems), problems


def test_a_file_over_one_mebibyte_is_refused(tmp_path: Path) -> None:
    """The limit is exact to the byte, so that no file can use up memory."""
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a: b #".ljust(FILE_BYTES_MAX, b"-"))
    assert [document.value for document in read_documents(path)] == [{"a": "b"}]
    path.write_bytes(b"a: b #".ljust(FILE_BYTES_MAX + 1, b"-"))
    with pytest.raises(PolicyError, match="has more than 1048576 bytes"):
        read_documents(path)


def test_bytes_that_are_no_text_are_refused() -> None:
    """The message gives line and column of the byte, and the encoding to save in."""
    assert refused(b"a: 1\nb: \xff") == ("policy.yaml:2:4: is not UTF-8: save it in that encoding",)


def test_nesting_ends_at_its_limit() -> None:
    """Deeper brackets could exhaust the parser's stack; the column of the first one is named."""

    def nested(levels: int) -> str:
        return "[" * levels + "]" * levels

    assert parsed(nested(DEPTH_MAX + 1))
    (problem,) = refused(nested(DEPTH_MAX + 2))
    assert problem == f"policy.yaml:1:{DEPTH_MAX + 2}: nested deeper than {DEPTH_MAX} levels"


def test_documents_end_at_their_limit() -> None:
    """The last one allowed is read, and one more is refused with the number."""
    assert len(parse_documents(b"---\na: 1\n" * DOCUMENTS_MAX, PATH, {})) == DOCUMENTS_MAX
    (problem,) = refused(b"---\na: 1\n" * (DOCUMENTS_MAX + 1))
    assert f"more than {DOCUMENTS_MAX} documents" in problem


def test_references_are_resolved_inside_texts(tmp_path: Path) -> None:
    """Variables, defaults and files fill a text, and the result is known to hold a secret."""
    secret = tmp_path / "key"
    secret.write_text("from-a-file\n")
    text = (
        f"a: 'x-${{env:A}}-${{env:B:-default}}'\nb: ${{file:{secret}}}\nc: plain\nd: ${{env:C:-}}"
    )
    found = parsed(text, A="1", B="")
    assert found == {"a": "x-1-default", "b": "from-a-file", "c": "plain", "d": ""}
    assert [isinstance(value, Referenced) for value in found.values()] == [True, True, False, True]


def test_a_reference_stays_a_text(tmp_path: Path) -> None:
    """A password of digits is no number, and one that looks like a reference is none."""
    assert parsed("a: ${env:A}", A="123") == {"a": "123"}
    assert parsed("a: ${env:A}", A="${env:B}", B="x") == {"a": "${env:B}"}


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    count: int = 0
    share: float = 0.0
    names: list[str] = []


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    inner: Inner = Inner()
    rows: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: x\nnam: y", "policy.yaml:2:1: nam: unknown key 'nam'; did you mean 'name'?"),
        ("name: x\ninner: {cont: 1}", "2:9: inner.cont: unknown key 'cont'; did you mean 'count'?"),
        ("name: x\nrows:\n  - {}\n  - {shares: 1}", "4:6: rows.1.shares: unknown key 'shares'"),
        ("inner: {}", "policy.yaml:1:1: the key 'name' is missing"),
        ("name: 5", "policy.yaml:1:7: name: expected a text, not the number 5"),
        ("name: yes\ninner: {count: yes}", "count: expected a whole number, not the text 'yes'"),
        ("name: x\ninner: {count: 1.5}", "count: expected a whole number, not the number 1.5"),
        ("name: x\ninner: {count: true}", "inner.count: expected a whole number, not true"),
        ("name: x\ninner: {share: '1'}", "inner.share: expected a number, not the text '1'"),
        ("name: x\ninner: [1]", "policy.yaml:2:8: inner: expected a mapping of keys, not a list"),
        ("name: x\ninner:", "inner: expected a mapping of keys, not nothing"),
        ("name: x\nrows: {}", "2:7: rows: expected a list, not a mapping of keys"),
        ("name: x\ninner: {names: [a, 1]}", "2:20: inner.names.1: expected a text, not the number"),
        ("- 1", "policy.yaml:1:1: expected a mapping of keys, not a list"),
        ("x", "policy.yaml:1:1: expected a mapping of keys, not the text 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_explained_at_its_place(text: str, problem: str) -> None:
    """The key, the expected type and the value found stand in one message."""
    (document,) = parse_documents(text.encode(), PATH, {})
    with pytest.raises(PolicyError) as refusal:
        validate(document, Outer)
    (found,) = refusal.value.problems
    assert problem in found


def test_an_integer_is_welcome_where_a_number_is_expected() -> None:
    """A share of 1 is 1.0; only a fussy schema would refuse it."""
    (document,) = parse_documents(b"name: x\ninner: {share: 1}", PATH, {})
    assert validate(document, Outer).inner.share == 1.0


@pytest.mark.parametrize("secret", ["hunter2-hunter2", "it's \\ odd", "long" * 20])
@pytest.mark.parametrize("quoted", ["{0}", "'{0}'", "{0!r}", "{1!r}"])
def test_no_message_shows_what_a_reference_stands_for(secret: str, quoted: str) -> None:
    """However the message that is to be hidden quotes or shortens it."""
    (document,) = parse_documents(b"a: ${env:SECRET}", PATH, {"SECRET": secret})
    problem = document.problem(("a",), f"there is no {quoted.format(secret, secret[:40])} here")
    assert problem.replace("'", "").replace('"', "") == (
        "policy.yaml:1:4: a: there is no ${env:SECRET} here"
    )


def test_the_nearest_word_is_suggested_or_none() -> None:
    """ "smal" is close to "small", and a word like nothing gets no misleading advice."""
    assert suggest("smal", ["large", "small"]) == "; did you mean 'small'?"
    assert suggest("xyz", ["large", "small"]) == ""


def test_a_beginning_goes_before_a_similar_word() -> None:
    """Who writes "json" means "json_schema", and not "vision"; one letter says nothing."""
    assert suggest("json", ["vision", "json_schema"]) == "; did you mean 'json_schema'?"
    assert suggest("s", ["small", "tools"]) == ""


@given(st.text(max_size=200) | st.text("ab:-[]{}\"'&*!|>#%@` \n\t${}", max_size=60))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    """No input crashes the reader, and no message is without file, line and column."""
    problems: tuple[str, ...] = ()
    try:
        parse_documents(text.encode("utf-8", "surrogatepass"), PATH, {})
    except PolicyError as refusal:
        problems = refusal.problems or ("none",)
    assert all(re.match(r"policy.yaml:[0-9]+:[0-9]+: [^\n]+$", problem) for problem in problems)
