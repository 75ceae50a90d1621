"""Takes one member out of a JSON object without touching another byte.

Where that cannot be done beyond doubt, it is not done. Knows no field's meaning.
"""

import re
from json import JSONDecoder
from typing import Any

import orjson

from gateway.wire.verbatim import read

_BLANK = b" \t\r\n"
_decoder = JSONDecoder()


def without_member(raw: bytes, name: str, document: dict[str, Any]) -> bytes | None:
    """``raw`` without the top-level member ``name``, or None where it stays.

    raw: one JSON object; document: what it decodes to. What is cut out is proved by decoding the
    rest.
    """
    rest = {key: value for key, value in document.items() if key != name}
    text = raw.decode("latin-1")  # a character per byte: offsets are the same
    for found in re.finditer(rf'"{re.escape(name)}"[ \t\r\n]*:[ \t\r\n]*', text):
        try:
            _, end = _decoder.raw_decode(text, found.end())
        except ValueError:
            continue  # it stands inside a text
        before, after = raw[: found.start()].rstrip(_BLANK), raw[end:].lstrip(_BLANK)
        if before.endswith(b","):
            before, after = before[:-1], raw[end:]
        elif after.startswith(b","):
            before, after = raw[: found.start()], after[1:]
        try:
            if read(cut := before + after) == rest:
                return cut
        except orjson.JSONDecodeError:
            continue
    return None
