"""The write-ahead log on disk: frames, file names, and a reader that survives damage.

A segment is a run of frames: sync mark, length, CRC-32, then one msgpack record. Knows no
database and never writes.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.ledger.event import Checkpoint, Intent, Record, Refused, UsageEvent

# 0xFF occurs in no UTF-8 text, so nothing a client sends can be taken for the start of a frame.
SYNC = b"\xff\xfe"
HEADER = struct.Struct("<2sII")  # sync, bytes of payload, CRC-32 of payload seeded with its length
FRAME_BYTES_MAX = 1 << 20

_READ_BYTES = 2 << 20  # at first, which is a batch; more only where that is not enough

_SEGMENT_NAME = re.compile(r"usage-([0-9A-Za-z]+-\d+)-(\d{8})\.wal", re.ASCII)


class IntentHead(msgspec.Struct, frozen=True, array_like=True, tag="intent"):
    """Of an ``Intent`` the first field: enough where its final record is at hand."""

    event_id: str


def _map_form(kind: type[Record]) -> type[msgspec.Struct]:
    """The same fields, written as a map."""
    return msgspec.defstruct(
        kind.__name__,
        [
            (field.name, field.type, msgspec.field(default=field.default))
            if field.default_factory is msgspec.NODEFAULT
            else (field.name, field.type, msgspec.field(default_factory=field.default_factory))
            for field in msgspec.structs.fields(kind)
        ],
        kw_only=True,
        tag=kind.__struct_config__.tag,
    )


_MAPS: dict[type[msgspec.Struct], type[Record]] = {
    _map_form(kind): kind for kind in (Intent, Checkpoint, UsageEvent, Refused)
}
Head = IntentHead | Checkpoint | UsageEvent | Refused
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_head_decoder: msgspec.msgpack.Decoder[Head] = msgspec.msgpack.Decoder(Head)
_map_decoder = msgspec.msgpack.Decoder(reduce(or_, _MAPS))


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


def seal(payload: bytes) -> bytes:
    """A payload with its header: the frame that a reader will find intact or not at all."""
    size = len(payload)
    return HEADER.pack(SYNC, size, zlib.crc32(payload, size)) + payload


def read_segment(path: Path, offset: int = 0) -> Iterator[tuple[Record | Corrupt, int]]:
    """The records from ``offset`` on, each with the offset after it.

    What ``read_frames`` yields, decoded; a frame whose payload is no record is ``Corrupt`` too.
    """
    for payload, end in read_frames(path, offset):
        if isinstance(payload, Corrupt):
            yield payload, end
            continue
        try:
            yield decode_record(payload), end
        except ValueError as error:
            yield no_record(payload, end, error), end


def read_frames(path: Path, offset: int = 0) -> Iterator[tuple[bytes | Corrupt, int]]:
    """The payloads from ``offset`` on, each with the offset after its frame.

    An incomplete or zero-filled tail ends the iteration silently: it was never acknowledged, or
    is still being written. Damage in the middle is yielded as ``Corrupt``, after which reading
    goes on at the next valid frame.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(_READ_BYTES)
        position = 0
        while True:
            payload = _payload(content, position)
            if payload is not None:
                position += HEADER.size + len(payload)
                yield payload, offset + position
            elif rest := file.read():  # what looks incomplete or damaged may only have been cut
                content, position, offset = content[position:] + rest, 0, offset + position
            elif position == len(content):
                return
            else:
                end = _next_frame(content, position + 1)
                if end is None and _is_tail(content, position):
                    return
                damaged = content[position:end]
                position += len(damaged)
                start = offset + position - len(damaged)
                yield Corrupt(start, damaged, "damaged frame"), offset + position


def decode_record(payload: bytes) -> Record:
    """One record. Raises ValueError, as msgspec's errors are, where it is none."""
    try:
        return _decoder.decode(payload)
    except msgspec.ValidationError:
        return _from_map(payload)


def decode_head(payload: bytes) -> Head:
    """One record, but of an intent only its event. Raises ValueError where it is none."""
    try:
        return _head_decoder.decode(payload)
    except msgspec.ValidationError:
        record = _from_map(payload)
        return IntentHead(record.event_id) if isinstance(record, Intent) else record


def no_record(payload: bytes, end: int, error: ValueError) -> Corrupt:
    """The damage that an intact frame, ending at offset ``end``, is whose payload is no record."""
    frame = seal(payload)
    return Corrupt(end - len(frame), frame, str(error))


def _from_map(payload: bytes) -> Record:
    """A record as it was written before there were arrays: a map that names its fields."""
    form = _map_decoder.decode(payload)
    return _MAPS[type(form)](**msgspec.structs.asdict(form))


def _payload(content: bytes, position: int) -> bytes | None:
    """What the valid frame at ``position`` holds; None where there is no valid frame."""
    start = position + HEADER.size
    if start >= len(content):
        return None
    sync, size, checksum = HEADER.unpack_from(content, position)
    if sync != SYNC or not 0 < size <= FRAME_BYTES_MAX:
        return None
    payload = content[start : start + size]
    return payload if len(payload) == size and zlib.crc32(payload, size) == checksum else None


def _next_frame(content: bytes, position: int) -> int | None:
    while (position := content.find(SYNC, position)) >= 0:
        if _payload(content, position) is not None:
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
