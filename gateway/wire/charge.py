"""The charge in the usage that ends a stream: put in beside the provider's numbers, all else as it
came. A whole answer carries it in a header; a stream's head leaves before anybody knows.
"""

import json
import re

_USAGE = re.compile(rb'"usage"[ \t]*:[ \t]*(?=\{)')  # within a text its quotes would be escaped
_USAGE_BYTES_MAX = 16 * 1024
_COUNTS = ("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens")
_read = json.JSONDecoder().raw_decode


def with_charge(ending: bytes, charge_usd: str) -> bytes:
    """The last events of a stream, with ``usage.charge_usd``; as they came, where none has usage.

    charge_usd: exact decimal text, so that nobody adds it up as a count of tokens.
    """
    for match in reversed(list(_USAGE.finditer(ending))):
        at = match.end()
        try:
            usage, _ = _read(ending[at : at + _USAGE_BYTES_MAX].decode(errors="replace"))
        except ValueError:
            continue
        # A tool may have a parameter of this name: its counts are no numbers.
        if any(type(usage.get(name)) is int for name in _COUNTS):
            return b'%b{"charge_usd":"%b",%b' % (
                ending[:at],
                charge_usd.encode(),
                ending[at + 1 :],
            )
    return ending
