"""Judging and decoding a body without holding the interpreter for long.

A decoder keeps Python's lock from its first byte to its last: 10 MB of ``1,1,...`` take it 140 ms,
and nobody else answers meanwhile. So what is large is judged in pieces beforehand: too many
elements are refused, and long base64, such as a picture, is cut out and put back as it is. Knows
no field.
"""

import re
import secrets
from itertools import accumulate
from typing import Any

import orjson

from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.wire.verbatim import decode, decode_slowly, looks_rounded

LARGE_BYTES = 256 * 1024  # a smaller body is decoded at once: 10 ms at worst
DEPTH_MAX = 64
KEYS_MAX = 10_000
CONTAINERS_MAX = 100_000  # lists and objects; an empty list of three bytes takes 60 in memory
ELEMENTS_MAX = 400_000  # of lists and objects; an embedding of 300,000 tokens fits
TEXT_BYTES_MAX = 8 << 20  # of a body without its base64: four times what the longest prompts have
ESCAPES_MAX = 2_000_000  # backslashes
_DECIMAL_WEIGHT = 4  # a decimal takes as long as so many integers

_PIECE_BYTES = 128 * 1024
_CUT_BYTES = 64 * 1024  # base64 from here on may be cut out, from twice that on it is
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_:;,."
_BACKSLASHES = re.compile(rb"\\*.?", re.DOTALL)
_NO_MARK = bytes(set(range(256)) - set(b'[]{}:,".eE+-0123456789'))
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one level down, one up: as signed bytes
# Between two strings there is a mark, or they were one: with more strings a limit is broken.
_QUOTES_MAX = 2 * (ELEMENTS_MAX + KEYS_MAX + 2 * CONTAINERS_MAX)


def decode_large(raw: bytes | bytearray) -> Any:
    """As ``verbatim.decode``, in steps of a few milliseconds each.

    Raises InvalidRequest, BodyTooLarge or orjson.JSONDecodeError.
    """
    skeleton, cuts = _without_base64(raw)
    if len(skeleton) > TEXT_BYTES_MAX:
        raise BodyTooLarge(
            f"The body has {len(skeleton)} bytes beside its base64 data; {TEXT_BYTES_MAX} are"
            " decoded at most."
        )
    rounded = check_structure(skeleton)
    try:
        document = orjson.loads(skeleton)
    except orjson.JSONDecodeError:
        document = decode(skeleton)
    else:
        if rounded:
            document = decode_slowly(skeleton)
    if cuts and _restore(document, cuts):
        raise InvalidRequest("A long base64 text is a name, or stands twice under one name.")
    return document


def check_structure(raw: bytes | bytearray) -> bool:
    """Refuse a document that is too deep or has too many elements, keys or containers.

    Returns whether a number in it may not survive orjson. Never walks it in Python: the marks
    outside of strings are counted, piece by piece.
    """
    start = depth = keys = containers = elements = quotes = escapes = 0
    inside = rounded = False
    while start < len(raw):
        end = min(start + _PIECE_BYTES, len(raw))
        if end < len(raw) and raw[end - 1] == 0x5C:  # no piece ends within an escape
            run = _BACKSLASHES.match(raw, end)
            end = run.end() if run is not None else end
        piece = raw[start:end]
        start = end
        if b"\\" in piece:
            escapes += piece.count(b"\\")
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        # A pair of adjoining quotes can go: what follows stays inside, or outside, of a string.
        parts = piece.translate(None, _NO_MARK).replace(b'""', b"").split(b'"')
        marks = b" ".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0
        quotes += len(parts) - 1
        brackets = marks.translate(None, _NO_BRACKET)
        keys += marks.count(b":")
        containers += len(brackets)
        decimals = marks.count(b".") + marks.count(b"e") + marks.count(b"E")
        elements += marks.count(b",") + _DECIMAL_WEIGHT * decimals
        if keys > KEYS_MAX:
            raise InvalidRequest(f"The body has more than {KEYS_MAX} keys.")
        if containers > 2 * CONTAINERS_MAX:
            raise InvalidRequest(f"The body has more than {CONTAINERS_MAX} lists and objects.")
        if elements > ELEMENTS_MAX or quotes > _QUOTES_MAX:
            raise InvalidRequest(
                f"The body has more than {ELEMENTS_MAX} elements; a decimal counts as"
                f" {_DECIMAL_WEIGHT}."
            )
        if escapes > ESCAPES_MAX:
            raise InvalidRequest(f"The body has more than {ESCAPES_MAX} backslashes.")
        if brackets:
            steps = memoryview(brackets.translate(_STEPS)).cast("b")
            deepest = max(accumulate(steps, initial=depth))
            if deepest > DEPTH_MAX:
                raise InvalidRequest(f"The body is nested deeper than {DEPTH_MAX} levels.")
            depth += sum(steps)
        rounded = rounded or looks_rounded(marks)
    return rounded


def _without_base64(raw: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, str]]:
    """The body with short names instead of its long base64 texts, and these by name.

    A name outside of a string is no JSON: whether a text is one, the decoder decides.
    """
    cuts: dict[str, str] = {}
    kept: list[bytes | bytearray] = []
    position = block = 0
    while block + _CUT_BYTES <= len(raw):
        quote = raw.rfind(b'"', block, block + _CUT_BYTES)
        if quote >= 0:
            block = quote + 1
            continue
        start, end = raw.rfind(b'"', position, block) + 1, raw.find(b'"', block + _CUT_BYTES)
        if end < 0:
            break
        block = end + 1
        if start > position and _is_base64(raw, start, end):
            name = f"cut-{secrets.token_hex(12)}"
            cuts[name] = str(memoryview(raw)[start:end], "ascii")
            kept += (raw[position:start], name.encode())
            position = end
    if not cuts:
        return raw, cuts
    kept.append(raw[position:])
    return b"".join(kept), cuts


_NAME_LENGTH = len("cut-") + 24


def _is_base64(raw: bytes | bytearray, start: int, end: int) -> bool:
    return not any(
        raw[piece : min(piece + _PIECE_BYTES, end)].translate(None, _BASE64)
        for piece in range(start, end, _PIECE_BYTES)
    )


def _restore(document: Any, cuts: dict[str, str]) -> int:
    """Put every text back in its place; how many have none."""
    left = len(cuts)
    waiting = [document]
    while waiting and left:
        container = waiting.pop()
        places: Any = ()
        if isinstance(container, dict):
            places = list(container.items())
        elif isinstance(container, list):
            places = enumerate(container)
        for place, value in places:
            if isinstance(value, str):
                if len(value) == _NAME_LENGTH and value in cuts:
                    container[place] = cuts[value]
                    left -= 1
            elif isinstance(value, dict | list):
                waiting.append(value)
    return left
