"""JSON as it was written: numbers that no double holds, and halves of surrogate pairs, survive.

orjson reads and writes everything else. It rounds integers beyond 64 bits and long decimals,
drops the sign of ``-0``, and refuses ``1e400`` and half an emoji; all of them are legal JSON
(RFC 8259 §6, §8.2). Knows no field.
"""

import json
import re
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any

import msgspec
import orjson

_DIGITS_CERTAIN = 15  # so many decimal digits survive a double
_INTEGER_DIGITS_CERTAIN = 18
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_KINDS = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS = b"0" * (_DIGITS_CERTAIN + 1)
_NEGATIVE_ZERO = re.compile(rb"-0(?![0-9.])")
# What orjson refuses and the grammar allows: half a pair, and what overflows a double.
_REFUSED = re.compile(rb"\\u[dD][89a-fA-F]|[0-9][eE]\+?[0-9]{2}|[0-9]{300}")


class Number(msgspec.Struct, frozen=True):
    """A number that Python's int and float, as orjson spells them, would change."""

    text: str

    def __float__(self) -> float:
        return float(self.text)


def decode(raw: bytes | bytearray) -> Any:
    """The document. Raises orjson.JSONDecodeError where it is no JSON."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if _REFUSED.search(raw) is None:
            raise
        return decode_slowly(raw, error)
    # 1.5 µs for a short chat
    return decode_slowly(raw) if looks_rounded(outside_of_texts(raw)) else document


def read(raw: bytes | bytearray) -> Any:
    """A document to be looked at, and not written again: numbers may be rounded.

    Raises orjson.JSONDecodeError where it is no JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if _REFUSED.search(raw) is None:
            raise
        return decode_slowly(raw, error)


def looks_rounded(between: bytes) -> bool:
    """Whether a number may not survive orjson. between: what stands outside of texts."""
    kinds = between.translate(_KINDS, b".")
    if _MANY_DIGITS in kinds or b"0e" in kinds:
        return True
    return b"-0" in between and _NEGATIVE_ZERO.search(between) is not None


def outside_of_texts(raw: bytes | bytearray) -> bytes:
    """What stands between the texts of a document."""
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b" ".join(raw.split(b'"')[::2])


def encode(document: Any) -> bytes:
    """The document's JSON; what ``decode`` kept apart is written as it came."""
    try:
        return orjson.dumps(document, default=_as_written)
    except TypeError:  # half a pair, or an integer beyond 64 bits
        return _spell(document).encode()


def without_halves(text: str) -> str:
    """The text with a mark in the place of each half of a surrogate pair, so that it is UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _as_written(value: object) -> orjson.Fragment:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    raise TypeError(f"{type(value).__name__} is no JSON")


def decode_slowly(raw: bytes | bytearray, error: orjson.JSONDecodeError | None = None) -> Any:
    """The document, by the standard library. Raises ``error``, or orjson's, where it cannot."""
    try:
        return json.loads(
            raw.decode(), parse_int=_integer, parse_float=_decimal, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        if error is not None:
            raise error from None
        return orjson.loads(raw)  # too deep for the standard library, and rounded


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _integer(text: str) -> int | Number:
    if len(text) > _INTEGER_DIGITS_CERTAIN:
        if len(text) > 21 or not _INT_MIN <= int(text) <= _INT_MAX:
            return Number(text)
    elif text == "-0":
        return Number(text)
    return int(text)


def _decimal(text: str) -> float | Number:
    number = float(text)
    if len(text) <= _DIGITS_CERTAIN and "e" not in text and "E" not in text:
        return number
    if number - number != 0.0 or Decimal(text) != Decimal(repr(number)):
        return Number(text)
    return number


def _spell(value: Any) -> str:
    if isinstance(value, str):
        try:
            return orjson.dumps(value).decode()
        except TypeError:
            return encode_basestring_ascii(value)
    if isinstance(value, dict):
        members = ",".join(f"{_spell(key)}:{_spell(value[key])}" for key in value)
        return f"{{{members}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spell, value))}]"
    if isinstance(value, Number):
        return value.text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return orjson.dumps(value).decode()
