"""What the admin process asks its workers, what they answer, and how that looks on the socket.

A frame is four bytes of length and msgpack. Both ends are the same release of the same program.
Knows no process.
"""

import asyncio

import msgspec

from gateway.ledger.shared_budgets import OpenHold

FRAME_BYTES_MAX = 256 << 20  # a policy with large files, or the metrics of a very busy worker


class Hello(msgspec.Struct, tag=True):
    """A worker's first words."""

    number: int
    process: str  # another one after a restart, the same after a cut


class Wanted(msgspec.Struct, tag=True):
    """What every worker should have; asked again and again, so that no news can get lost."""

    policy: int  # the policy's serial number in this admin process
    keys: int  # changes of the keys so far
    switches: dict[str, int | None]  # thrown, until when
    denied: tuple[str, ...] = ()  # keys that are revoked and not so in the file yet


class Adopt(msgspec.Struct, tag=True):
    """A policy to put in force."""

    policy: int
    files: list[tuple[str, bytes]]  # as they were read; secrets are references


class Measure(msgspec.Struct, tag=True):
    """Report all metrics."""


class ListHolds(msgspec.Struct, tag=True):
    """Report the budget holds of requests that are not over."""


class Purge(msgspec.Struct, tag=True):
    """Forget cached answers, of one tenant or of all."""

    tenant: str | None


class Standing(msgspec.Struct, tag=True, kw_only=True):
    """How a worker is."""

    owner: str = ""  # its name in the usage log; "": not open yet
    policy: int = 0
    version: str = ""
    healthy: bool = False
    draining: bool = False
    local: dict[str, str] = {}  # per local model: "ok", "ok: which", or why not
    in_flight: int = 0
    exact_entries: int = 0
    semantic_namespaces: int = 0
    problem: str = ""  # why the wanted policy is not in force


class Measured(msgspec.Struct, tag=True):
    """A packed ``merged_metrics.Snapshot``."""

    snapshot: bytes


class Holds(msgspec.Struct, tag=True):
    """Open budget holds, and whose."""

    owner: str
    holds: list[OpenHold]


class Purged(msgspec.Struct, tag=True):
    """How many entries were dropped; or why it failed."""

    entries: int = 0
    problem: str = ""


Question = Wanted | Adopt | Measure | ListHolds | Purge
Answer = Standing | Measured | Holds | Purged

_QUESTIONS: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_HELLO = msgspec.msgpack.Decoder(Hello)


async def send(writer: asyncio.StreamWriter, message: Hello | Question | Answer) -> None:
    """Write one frame. Raises OSError."""
    content = msgspec.msgpack.encode(message)
    writer.write(len(content).to_bytes(4, "big") + content)
    await writer.drain()


async def read_question(reader: asyncio.StreamReader) -> Question:
    """The next question. Raises OSError or EOFError at the end."""
    return _QUESTIONS.decode(await _frame(reader))


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer. Raises OSError or EOFError at the end."""
    return _ANSWERS.decode(await _frame(reader))


async def read_hello(reader: asyncio.StreamReader) -> Hello:
    """A worker's first words. Raises OSError or EOFError at the end."""
    return _HELLO.decode(await _frame(reader))


async def _frame(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > FRAME_BYTES_MAX:
        raise OSError(f"a frame of {size} bytes exceeds {FRAME_BYTES_MAX}")
    return await reader.readexactly(size)


def serves(state: str) -> bool:
    """Whether a part or a local model serves, by its check: ``ok`` or ``ok: which``."""
    return state.partition(":")[0] == "ok"
