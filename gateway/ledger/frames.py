"""The write-ahead log on disk: frames, file names, and a reader that survives damage.

A segment is a run of frames: sync mark, length, CRC-32, then one msgpack record. Knows no
database and never writes.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.ledger.event import Record

# 0xFF occurs in no UTF-8 text, so nothing a client sends can be taken for the start of a frame.
SYNC = b"\xff\xfe"
HEADER = struct.Struct("<2sII")  # sync, bytes of payload, CRC-32 of payload seeded with its length
FRAME_BYTES_MAX = 1 << 20

_SEGMENT_NAME = re.compile(r"usage-([0-9A-Za-z]+-\d+)-(\d{8})\.wal", re.ASCII)
_decoder = msgspec.msgpack.Decoder(Record)


class Corrupt(NamedTuple):
    """A stretch of a segment that is no valid record: kept for inspection, never guessed at."""

    offset: int
    content: bytes
    reason: str


def segment_name(owner: str, number: int) -> str:
    """The file name of one process's segment; ``owner`` is ``<boot>-<pid>``."""
    return f"usage-{owner}-{number:08d}.wal"


def lock_name(owner: str) -> str:
    """The file whose flock says that the owner is alive."""
    return f"usage-{owner}.lock"


def segment_owner(path: Path) -> tuple[str, int] | None:
    """The owner and number in a segment's file name; None for any other file."""
    match = _SEGMENT_NAME.fullmatch(path.name)
    return (match.group(1), int(match.group(2))) if match else None


def seal(buffer: bytearray) -> None:
    """Fill in the header of a frame whose payload stands after ``HEADER.size`` free bytes."""
    size = len(buffer) - HEADER.size
    checksum = zlib.crc32(memoryview(buffer)[HEADER.size :], size)
    HEADER.pack_into(buffer, 0, SYNC, size, checksum)


def read_segment(path: Path, offset: int = 0) -> Iterator[tuple[Record | Corrupt, int]]:
    """The records from ``offset`` on, each with the offset after it.

    An incomplete or zero-filled tail ends the iteration silently: it was never acknowledged, or
    is still being written. Damage in the middle is yielded as ``Corrupt``, after which reading
    goes on at the next valid frame.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    position = 0
    while position < len(content):
        end = _frame_end(content, position)
        if end is None:
            following = _next_frame(content, position + 1)
            if following is None and _is_tail(content, position):
                return
            end = len(content) if following is None else following
            yield Corrupt(offset + position, content[position:end], "damaged frame"), offset + end
        else:
            payload = content[position + HEADER.size : end]
            try:
                yield _decoder.decode(payload), offset + end
            except (msgspec.DecodeError, ValueError) as error:
                yield Corrupt(offset + position, content[position:end], str(error)), offset + end
        position = end


def _frame_end(content: bytes, position: int) -> int | None:
    """Where the valid frame at ``position`` ends; None where there is none."""
    start = position + HEADER.size
    if start > len(content):
        return None
    sync, size, checksum = HEADER.unpack_from(content, position)
    end = start + size
    if sync != SYNC or not 0 < size <= FRAME_BYTES_MAX or end > len(content):
        return None
    valid = zlib.crc32(memoryview(content)[start:end], size) == checksum
    return end if valid else None


def _next_frame(content: bytes, position: int) -> int | None:
    while (position := content.find(SYNC, position)) >= 0:
        if _frame_end(content, position) is not None:
            return position
        position += 1
    return None


def _is_tail(content: bytes, position: int) -> bool:
    """Whether what stands at ``position`` is the beginning of a frame, or space never filled."""
    rest = content[position:]
    if not rest.strip(b"\0"):
        return True
    if len(rest) < HEADER.size:
        return rest[:2] == SYNC[: len(rest)]
    size: int
    sync, size, _ = HEADER.unpack_from(rest)
    return bool(sync == SYNC and 0 < size <= FRAME_BYTES_MAX and HEADER.size + size > len(rest))
