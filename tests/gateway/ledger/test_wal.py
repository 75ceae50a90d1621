"""The write-ahead log: what was acknowledged is read back, whatever was torn or damaged."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.errors import MeteringUnavailable
from gateway.ledger.event import Checkpoint, Record, Refused, UsageEvent
from gateway.ledger.frames import (
    Corrupt,
    decode_head,
    decode_record,
    lock_name,
    read_segment,
    seal,
)
from gateway.ledger.wal import WriteAheadLog, hold_lock, is_held
from gateway.wire.usage import Usage
from tests.gateway.ledger.books import NOW_US, PRICE, final, intent


@pytest.fixture
def log(tmp_path: Path) -> Iterator[WriteAheadLog]:
    """A log with small segments."""
    opened = WriteAheadLog(tmp_path, boot_id="boot1", segment_bytes=4000)
    yield opened
    opened.close()


def segments(directory: Path) -> list[Path]:
    """The segment files, oldest first."""
    return sorted(directory.glob("*.wal"))


def written(directory: Path) -> list[object]:
    """All records of all segments."""
    return [record for path in segments(directory) for record, _ in read_segment(path)]


def test_records_come_back_equal_and_in_order(log: WriteAheadLog, tmp_path: Path) -> None:
    """Over several segments, none of which exceeds its limit."""
    expected: list[object] = []
    for number in range(40):
        record = intent(f"r{number}", tags={"feature": "é\x00\U0001f680"})
        log.append_intent(record)
        expected.append(record)
        log.append_final(final(f"r{number}"))
        expected.append(final(f"r{number}"))
    assert written(tmp_path) == expected
    assert len(segments(tmp_path)) > 2
    assert all(path.stat().st_size <= 4000 for path in segments(tmp_path))


# One record of each kind, and how it is written: the layout of every log on every disk.
RECORDS: tuple[tuple[Record, list[Any]], ...] = (
    (
        intent("r", markup_ppm=70000, reason="why", tags={"a": "b"}, difficulty=0.5),
        [
            "intent", "r/1", {"a": "b"}, "r", 1, NOW_US, None, None, "why", 0.5, "acme", "default",
            "key-1", "abcdef012345", "chat", "hard", "openai", "auto", "large", PRICE.price_id,
            PRICE.price_id, 100, 10**10, 70000,
        ],
    ),
    (Checkpoint(event_id="r/1", completion_tokens=9), ["checkpoint", "r/1", 9, 0]),
    (
        final(
            "r", end_user="u", superseded=True, ttft_us=5,
            usage=Usage(prompt_tokens=7, cached_tokens=3, completion_tokens=2),
        ),
        [
            "final", "r/1", {}, "r", 1, NOW_US, "u", None, "", None, "acme", "default", "key-1",
            "abcdef012345", "chat", "hard", "openai", "auto", "large", PRICE.price_id,
            PRICE.price_id, "final", "miss", 200, None, True, NOW_US + 10**6, None, None, None,
            33750000, 33750000, 37125000, 67500000, 0, 10**6, 5,
            {"prompt_tokens": 7, "cached_tokens": 3, "completion_tokens": 2}, 0, 0, None,
        ],
    ),
)  # fmt: skip


@pytest.mark.parametrize(("record", "layout"), RECORDS)
def test_the_layout_of_a_record_stays_readable(record: Record, layout: list[Any]) -> None:
    """Whatever is added later stands at the end, and is not missed in what is read today."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record)) == layout
    assert decode_record(msgspec.msgpack.encode(layout)) == record
    assert decode_record(msgspec.msgpack.encode([*layout, "of a later release"])) == record
    if isinstance(record, UsageEvent):
        assert decode_record(msgspec.msgpack.encode(layout[:-3])) == record, "before it had them"


@pytest.mark.parametrize(("record", "layout"), RECORDS)
def test_a_record_that_names_its_fields_is_read_as_well(record: Record, layout: list[Any]) -> None:
    """As logs had them before; fields at their default may be missing."""
    named = msgspec.to_builtins({n: getattr(record, n) for n in record.__struct_fields__})
    named = {"type": layout[0]} | {name: value for name, value in named.items() if value}
    payload = msgspec.msgpack.encode(named)
    assert decode_record(payload) == record
    head = decode_head(payload)
    assert not isinstance(head, Refused)
    assert head.event_id == "r/1"
    assert head == decode_head(msgspec.msgpack.encode(record))


@pytest.mark.parametrize(
    "payload", [b"\xc0", b"\x80", b"\x90", b"x", b"\xde", b"\x93\xa1x\x01\x02"]
)
def test_what_is_no_record_is_refused(payload: bytes, tmp_path: Path) -> None:
    """By both readers, and in a segment it is damage with the whole frame kept."""
    for decode in (decode_record, decode_head):
        with pytest.raises(ValueError, match=r"Expected|Invalid|truncated|malformed|required"):
            decode(payload)
    path = tmp_path / "segment"
    frame = seal(payload)
    path.write_bytes(seal(msgspec.msgpack.encode(intent("a"))) + frame)
    (first, start), (damage, end) = read_segment(path)
    assert first == intent("a")
    assert isinstance(damage, Corrupt)
    assert (damage.offset, damage.content, end) == (start, frame, start + len(frame))


def test_a_segment_larger_than_what_is_read_at_once_comes_back_whole(tmp_path: Path) -> None:
    """Frames lie across the border, a damaged one too."""
    frames = [
        seal(msgspec.msgpack.encode(intent(f"r{n}", reason="x" * 100_000))) for n in range(50)
    ]
    path = tmp_path / "segment"
    path.write_bytes(b"".join(frames))
    names = [record.request_id for record, _ in read_segment(path)]  # type: ignore[union-attr]
    assert names == [f"r{n}" for n in range(50)]
    broken = bytearray(b"".join(frames))
    border = next(n for n in range(50) if len(frames[0]) * (n + 1) > 2 << 20)
    broken[sum(map(len, frames[:border])) + 50] ^= 1
    path.write_bytes(broken)
    found = [record for record, _ in read_segment(path)]
    (damage,) = [record for record in found if isinstance(record, Corrupt)]
    assert len(found) == 50
    assert found.index(damage) == border
    start = sum(map(len, frames[:border]))
    assert damage[:2] == (start, bytes(broken[start : start + len(frames[border])]))


def test_a_checkpoint_comes_back(log: WriteAheadLog, tmp_path: Path) -> None:
    """With its event and its tokens."""
    log.append_checkpoint("r/1", 64, 300)
    (record,) = written(tmp_path)
    assert msgspec.structs.asdict(record) == {  # type: ignore[arg-type]
        "event_id": "r/1",
        "completion_tokens": 64,
        "text_bytes": 300,
    }


def test_a_tail_torn_at_any_byte_costs_only_the_torn_record(
    log: WriteAheadLog, tmp_path: Path
) -> None:
    """The three whole records stay; no cut is taken for damage."""
    ends = []
    for number in range(4):
        log.append_intent(intent(f"r{number}"))
        ends.append(segments(tmp_path)[0].stat().st_size)
    content = segments(tmp_path)[0].read_bytes()
    torn = tmp_path / "torn"
    torn.write_bytes(content)
    for cut in range(len(content), -1, -1):
        os.truncate(torn, cut)
        records = [record for record, _ in read_segment(torn)]
        whole = sum(end <= cut for end in ends)
        assert records == [intent(f"r{number}") for number in range(whole)]


def test_a_tail_of_zeros_is_cut(log: WriteAheadLog, tmp_path: Path) -> None:
    """A power cut may leave space that was never filled."""
    log.append_intent(intent("r"))
    path = segments(tmp_path)[0]
    for zeros in (1, 9, 10, 11, 4096):
        padded = tmp_path / "padded"
        padded.write_bytes(path.read_bytes() + bytes(zeros))
        assert [record for record, _ in read_segment(padded)] == [intent("r")]


def test_any_flipped_byte_is_found_and_only_its_record_is_lost(
    log: WriteAheadLog, tmp_path: Path
) -> None:
    """Records before and after the damage are read; the damage is reported with its place."""
    ends = [0]
    for number in range(3):
        log.append_intent(intent(f"r{number}"))
        ends.append(segments(tmp_path)[0].stat().st_size)
    content = segments(tmp_path)[0].read_bytes()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    for position in range(ends[1], ends[2]):
        with damaged.open("r+b") as file:
            file.seek(max(0, position - 1))
            file.write(content[max(0, position - 1) : position] + bytes([content[position] ^ 0x41]))
        first, damage, last = [record for record, _ in read_segment(damaged)]
        assert (first, last) == (intent("r0"), intent("r2"))
        assert isinstance(damage, Corrupt)
        assert damage.offset == ends[1]


def test_text_from_a_client_is_never_taken_for_a_frame(log: WriteAheadLog, tmp_path: Path) -> None:
    """The bytes of a whole frame, smuggled in as text, do not survive as such."""
    log.append_intent(intent("inner"))
    frame = segments(tmp_path)[0].read_bytes()
    log.append_intent(intent("outer", end_user=frame.decode("latin-1")))
    content = bytearray(segments(tmp_path)[0].read_bytes())
    content[len(frame)] ^= 1  # the outer frame loses its mark, so the reader looks for another
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    first, damage = [record for record, _ in read_segment(damaged)]
    assert first == intent("inner")
    assert isinstance(damage, Corrupt)


def test_reading_goes_on_where_it_stopped(log: WriteAheadLog, tmp_path: Path) -> None:
    """As the shipper does with a segment that grows."""
    log.append_intent(intent("a"))
    path = segments(tmp_path)[0]
    ((_, offset),) = read_segment(path)
    log.append_intent(intent("b"))
    assert [record for record, _ in read_segment(path, offset)] == [intent("b")]


def test_threads_may_append_at_once(tmp_path: Path) -> None:
    """No record is interleaved with another."""
    log = WriteAheadLog(tmp_path, boot_id="b", segment_bytes=20_000)
    names = [[f"t{thread}x{n}" for n in range(200)] for thread in range(4)]

    def append(mine: list[str]) -> None:
        for name in mine:
            log.append_intent(intent(name))

    threads = [threading.Thread(target=append, args=(mine,)) for mine in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = {record.request_id for record in written(tmp_path)}  # type: ignore[attr-defined]
    assert found == {name for mine in names for name in mine}


_FILL = """
import resource, sys
from pathlib import Path
from tests.gateway.ledger.books import intent
from gateway.errors import MeteringUnavailable
from gateway.ledger.wal import WriteAheadLog

log = WriteAheadLog(Path(sys.argv[1]), boot_id="full")
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
acknowledged = refused = 0
while refused < 3:
    try:
        log.append_intent(intent(f"before{acknowledged}"))
        acknowledged += 1
    except MeteringUnavailable as error:
        assert error.status == 503
        refused += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.append_intent(intent("after"))
print(acknowledged)
"""


def test_a_full_disk_refuses_records_and_heals(tmp_path: Path) -> None:
    """The half-written frame is gone, and appending works again once there is space."""
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    acknowledged = int(done.stdout)
    assert acknowledged > 0
    assert written(tmp_path) == [
        *[intent(f"before{number}") for number in range(acknowledged)],
        intent("after"),
    ]


def test_a_closed_log_refuses(log: WriteAheadLog) -> None:
    """Nothing can be lost by a late writer unnoticed."""
    log.close()
    with pytest.raises(MeteringUnavailable, match="shutting down"):
        log.append_intent(intent("late"))


def test_a_record_too_large_for_a_frame_is_refused_whole(
    log: WriteAheadLog, tmp_path: Path
) -> None:
    """A reader would take it for damage."""
    with pytest.raises(MeteringUnavailable, match="exceeds"):
        log.append_intent(intent("big", reason="x" * (1 << 20)))
    log.append_intent(intent("small"))
    assert written(tmp_path) == [intent("small")]


def test_the_lock_lives_and_dies_with_its_owner(tmp_path: Path) -> None:
    """Not with a process id, which the system gives out again."""
    log = WriteAheadLog(tmp_path, boot_id="b")
    lock = tmp_path / lock_name(log.owner)
    assert is_held(lock)
    log.close()
    assert not is_held(lock)
    assert not is_held(tmp_path / "usage-never-1.lock")


def test_a_lock_that_is_held_is_refused(tmp_path: Path) -> None:
    """Also within one process."""
    held = hold_lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        hold_lock(tmp_path / "lock")
    os.close(held)
    os.close(hold_lock(tmp_path / "lock"))


async def test_power_durability_releases_every_waiter(tmp_path: Path) -> None:
    """Many waiters, over a rotation; afterwards nothing is left to sync."""
    log = WriteAheadLog(tmp_path, boot_id="b", durability="power", segment_bytes=2000)

    async def one(number: int) -> None:
        log.append_final(final(f"r{number}"))
        await log.durable()

    async with asyncio.timeout(10):
        await asyncio.gather(*[one(number) for number in range(50)])
    log.close()
    assert len(written(tmp_path)) == 50


@pytest.mark.parametrize("boot_id", ["", "a-b", "../x", "é"])
def test_a_boot_id_cannot_be_a_path(boot_id: str, tmp_path: Path) -> None:
    """It becomes part of a file name."""
    with pytest.raises(ValueError, match="letters and digits"):
        WriteAheadLog(tmp_path, boot_id=boot_id)
