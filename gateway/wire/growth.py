"""Characters that some tokenizers spell out before they count, so that tokens may exceed bytes.

Tokenizers that normalize their text (NFC at Qwen, NFKC at XLM-R, T5 and others) make several
characters of one: of the three bytes of U+FDFA they make 33. Knows no field and no money.
"""

import re
from typing import Any

from gateway.wire.verbatim import encode

# From Unicode 14: what has more UTF-8 bytes in NFC or NFKC, in lower case or as it is.
_RANGES = (
    "\xa8\xaf\xb4\xb8\xbc-\xbe\u0130\u013f-\u0140\u0149\u01c4-\u01c6\u023a\u023e\u02d8-\u02dd"
    "\u0344\u037a\u0384-\u0385\u0587\u0675-\u0678\u0958-\u095f\u09dc-\u09df\u0a33\u0a36"
    "\u0a59-\u0a5b\u0a5e\u0b5c-\u0b5d\u0e33\u0eb3\u0edc-\u0edd\u0f43\u0f4d\u0f52\u0f57\u0f5c"
    "\u0f69\u0f73-\u0f79\u0f81\u0f93\u0f9d\u0fa2\u0fa7\u0fac\u0fb9\u1fc1\u1fcd-\u1fcf"
    "\u1fdd-\u1fdf\u1fed-\u1fee\u2033-\u2037\u2057\u2150-\u215f\u2167\u2177\u2189"
    "\u222c-\u2230\u247d-\u2487\u2a0c\u2adc\u309b-\u309c\u309f\u30ff\u3200-\u3243"
    "\u327c-\u327d\u32c0-\u32cb\u32ff-\u3370\u337b-\u337f\u3389\u33a7-\u33a8\u33ae-\u33af"
    "\u33c2\u33c6\u33d8\u33de-\u33fe\ufa6c\ufacf-\ufad1\ufad5-\ufad7\ufb13-\ufb17"
    "\ufb1d-\ufb1f\ufb2a-\ufb4f\ufbdd\ufbea-\ufbfb\ufc00-\ufd3d\ufd50-\ufd8f\ufd92-\ufdc7"
    "\ufdf0-\ufdfc\ufe71\ufe77-\ufe7f\ufef5-\ufefc\U0001d15e-\U0001d164\U0001d1bb-\U0001d1c0"
    "\U0001f12a\U0001f200-\U0001f201\U0001f240-\U0001f248"
)
_GROWING = re.compile(f"[{_RANGES}]|\\\\u[0-9a-f]{{4}}")  # an escape may be any character
_BYTES_MORE = 15
_LARGEST = "\ufdfa"  # this one alone grows by twice as much
_PIECE_CHARACTERS = 1 << 16  # 2 ms of matching: nothing else runs meanwhile


def growth_of(document: Any) -> int:
    """By how many bytes the texts of a document can grow at most."""
    raw = encode(document)
    if raw.isascii() and b"\\u" not in raw:
        return 0
    text = raw.decode()
    found = text.count(_LARGEST) + text.count("\\ufdfa")
    for start in range(0, len(text), _PIECE_CHARACTERS):
        found += _GROWING.subn("", text[start : start + _PIECE_CHARACTERS])[1]
    return found * _BYTES_MORE
