"""ULIDs: 48 bits of milliseconds and 80 random bits, in Crockford's base 32.

Source: the ULID specification (github.com/ulid/spec). They sort by time, and are the only keys
under which the gateway stores anything.
"""

import os
import re
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(f"[0-7][{_ALPHABET}]{{25}}")  # 26 digits hold 130 bits, a ULID has 128
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]  # ten bits at a time: 13 look-ups, not 26


# A random byte picks one of 32 digits by five of its bits: as fair as the byte, and no arithmetic.
_RANDOM_DIGITS = bytes(ord(_ALPHABET[byte & 31]) for byte in range(256))
_TIME_DIGITS, _OTHER_DIGITS = 10, 16


class UlidFactory:
    """Makes ULIDs, drawing random bytes from the system in blocks.

    Not safe to use from several threads, and must be made anew in a forked process.
    """

    _BLOCK_DIGITS = 256 * _OTHER_DIGITS

    def __init__(self) -> None:
        self._block = ""
        self._position = 0
        self._ms = -1
        self._prefix = ""  # the digits of that millisecond

    def __call__(self) -> str:
        """A new ULID of 26 characters for the present moment."""
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms, self._prefix = ms, encode(ms << 80)[:_TIME_DIGITS]
        position = self._position
        if position == len(self._block):
            self._block = os.urandom(self._BLOCK_DIGITS).translate(_RANDOM_DIGITS).decode()
            position = 0
        self._position = end = position + _OTHER_DIGITS
        return self._prefix + self._block[position:end]


def encode(value: int) -> str:
    """128 bits as 26 characters of Crockford's base 32."""
    pairs = _PAIRS
    return "".join([pairs[value >> shift & 1023] for shift in range(120, -1, -10)])


def timestamp_ms(ulid: str) -> int:
    """The millisecond at which a ULID was made. Raises ValueError for text that is no ULID."""
    if not _ULID.fullmatch(ulid):
        raise ValueError(f"{ulid[:40]!r} is not a ULID")
    value = 0
    for character in ulid[:10]:
        value = value << 5 | _ALPHABET.index(character)
    return value
