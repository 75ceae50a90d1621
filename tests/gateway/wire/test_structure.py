"""Large bodies: what is refused before it is decoded, and that nothing else is changed."""

import contextlib
import json
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.wire.openai import parse_request
from gateway.wire.structure import (
    ELEMENTS_MAX,
    ESCAPES_MAX,
    LARGE_BYTES,
    TEXT_BYTES_MAX,
    decode_large,
)

HELD_SECONDS_MAX = 0.02


def body(inner: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":%b}' % inner


def picture(size: int, seed: int = 0) -> str:
    text = random.Random(seed).choices("ABCDEFGHIJKLMNOPabcdefghijklmnop0123456789+/", k=size)
    return "data:image/png;base64," + "".join(text)


@given(
    st.lists(
        st.one_of(
            st.integers(60_000, 300_000).map(lambda size: "A" * size),
            st.integers(130_000, 300_000).map(lambda size: "words and \\ more, " * (size // 17)),
            st.text(max_size=30),
            st.sampled_from([1, 1.5, None, True, '"', "\\", '\\"', "cut-", 2**80]),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_a_large_body_is_decoded_as_the_standard_library_does(
    values: list[Any], ensure_ascii: bool
) -> None:
    """Whatever is cut out of it is put back, wherever the pieces end."""
    values = [value for value in values if value != 2**80]
    document = {"list": values, "nested": {"deeper": [{"a": value} for value in values]}}
    raw = json.dumps(document, ensure_ascii=ensure_ascii).encode()
    assert decode_large(raw) == document
    assert decode_large(bytearray(raw)) == document


def test_a_large_body_with_a_number_that_no_double_holds_keeps_it() -> None:
    """Cutting out the picture must not cost the exact spelling of 2^64 + 1 beside it."""
    raw = body(b'["%b",18446744073709551617]' % picture(LARGE_BYTES).encode())
    request = parse_request("chat", raw)
    assert request.body["x"][0] == picture(LARGE_BYTES)
    assert request.body["x"][1].text == "18446744073709551617"


@pytest.mark.parametrize(
    ("inner", "refused"),
    [
        (b"[" + b"1," * ELEMENTS_MAX + b"1]", "elements"),
        (b"[" + b"0.5," * 120_000 + b"1]", "elements"),
        (b"[" + b'"",' * 500_000 + b"1]", "elements"),
        (b'"' + b"word " * (TEXT_BYTES_MAX // 5) + b'"', "base64"),
        (b'"' + b"\\n" * (ESCAPES_MAX + 1) + b'"', "backslashes"),
        (b'{"%b":1}' % (b"A" * LARGE_BYTES), "name"),
        (b'"a"%b"b"' % (b"A" * LARGE_BYTES), "parse"),
        (b"[" + b"1 " * LARGE_BYTES, "parse"),
    ],
    ids=["integers", "decimals", "empty texts", "text", "escapes", "a name", "no text", "cut"],
)
def test_what_would_take_long_to_decode_is_refused_by_name(inner: bytes, refused: str) -> None:
    """One such body would stall all other requests, so it is refused before it is decoded."""
    with pytest.raises((InvalidRequest, BodyTooLarge), match=refused):
        parse_request("chat", body(inner))


def test_the_tokens_of_the_largest_embedding_fit() -> None:
    """OpenAI takes 300,000 tokens in all."""
    numbers = ",".join(map(str, range(100_000, 400_000 - 1))).encode()
    raw = b'{"model":"m","input":[%b]}' % numbers
    assert parse_request("embeddings", raw).prompt_bytes == 300_000 - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "inner",
    [
        b"[" + b"1," * (4_000_000) + b"1]",
        b"[" + b"1," * (ELEMENTS_MAX - 9) + b"1]",
        b"[" + b"0.12345," * (ELEMENTS_MAX // 5 - 9) + b"1]",
        b"[" + b'"",' * (ELEMENTS_MAX - 9) + b"1]",
        b'"%b"' % picture(31 << 20).encode(),
        b'"' + b"word " * ((TEXT_BYTES_MAX - 200) // 5) + b'"',
        b'"' + b"\\n" * ESCAPES_MAX + b'"',
        b"[" * 60 + b"1" + b"]" * 60 + b" " * (5 << 20),
    ],
    ids=[
        "too many integers", "integers", "decimals", "empty texts", "a picture", "prose", "escapes",
        "deep",
    ],
)  # fmt: skip
def test_no_body_holds_the_interpreter_for_long(inner: bytes) -> None:
    """A second thread ticks beside the parser, whose CPU between two ticks is what it held.

    The best of seven runs: where others use the machine, the ticks are late by themselves.
    """
    raw = body(inner)
    held = [_longest_hold(raw) for _ in range(7)]
    assert min(held) < HELD_SECONDS_MAX, held


def _longest_hold(raw: bytes) -> float:
    done, begin = threading.Event(), threading.Event()

    def parse() -> None:
        begin.wait()
        try:
            with contextlib.suppress(InvalidRequest):
                parse_request("chat", raw)
        finally:
            done.set()

    thread = threading.Thread(target=parse)
    thread.start()
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    longest, last = 0.0, time.clock_gettime(clock)
    begin.set()
    with contextlib.suppress(OSError):  # the thread has ended, and its clock with it
        while not done.is_set():
            time.sleep(0)
            now = time.clock_gettime(clock)
            longest, last = max(longest, now - last), now
    thread.join()
    return longest
