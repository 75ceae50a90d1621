"""What a gateway and the model process say to each other over their Unix socket.

    frame   = length (uint32, little-endian) + payload
    payload = msgpack array [kind, fields...]; ``id`` is the client's own number for a request

    client                              server
    Hello                               Ready    at once, and again whenever a model becomes ready
    Generate(id, credits)               Delta... Finished | Failed
    Credit(id, n), Cancel(id)
    Embed(id)                           Vectors | Failed
    CountTokens(id)                     Counted | Failed
    AskStats(id)                        Stats

A ``DeltaFrame`` costs one credit. A server without credit for a request joins what the engine gives
into one delta and sends it when credit comes; ``FinishedFrame`` and everything else is free.
Sans-I/O and light: imports neither NumPy nor ONNX Runtime.
"""

from typing import Any, Literal

import msgspec

from local_models.messages import Delta, Finished, GenerationRequest, ModelInfo

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 << 20
"""Larger than the largest message either side may build (2,048 vectors of 1,024 numbers: 8 MiB)."""

HEADER_BYTES = 4

FailureCode = Literal["busy", "too_long", "invalid", "unavailable", "internal"]
ModelState = Literal["absent", "loading", "ready", "failed"]


class FrameError(Exception):
    """The peer sent something that is no frame of this protocol; the connection must be closed."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First frame of a connection. name: of the client, for the logs."""

    version: int
    name: str


class Generate(msgspec.Struct, frozen=True, array_like=True, tag="generate"):
    """Start generating. request.request_id is for the logs; ``id`` is what all frames carry."""

    id: int
    request: GenerationRequest
    credits: int


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="credit"):
    """The client can take ``count`` more deltas."""

    id: int
    count: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """The client wants no more of this request. Unknown ids are ignored: it may have ended."""

    id: int


class Embed(msgspec.Struct, frozen=True, array_like=True, tag="embed"):
    """Texts to embed, each cut to ``max_tokens``."""

    id: int
    texts: tuple[str, ...]
    max_tokens: int


class CountTokens(msgspec.Struct, frozen=True, array_like=True, tag="count_tokens"):
    """How long is this for the generation model? Exactly one of the two is given."""

    id: int
    messages: tuple[dict[str, Any], ...] | None
    prompt: str | None
    tools: tuple[dict[str, Any], ...] | None = None


class AskStats(msgspec.Struct, frozen=True, array_like=True, tag="ask_stats"):
    """Ask for ``Stats``."""

    id: int


class EmbeddingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded embedder is."""

    name: str
    dimensions: int
    max_tokens: int
    precision: str


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """Which models serve. A failed model's ``*_message`` is the reason, in one sentence."""

    version: int
    embedding_state: ModelState
    generation_state: ModelState
    embedding: EmbeddingInfo | None = None
    generation: ModelInfo | None = None
    embedding_message: str = ""
    generation_message: str = ""


class DeltaFrame(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    """New text of a generation."""

    id: int
    delta: Delta


class FinishedFrame(msgspec.Struct, frozen=True, array_like=True, tag="finished"):
    """The end of a generation."""

    id: int
    finished: Finished


class Vectors(msgspec.Struct, frozen=True, array_like=True, tag="vectors"):
    """values: float32 little-endian [texts, dimensions]. compute_us: processor time they took."""

    id: int
    dimensions: int
    values: bytes
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    compute_us: int


class Counted(msgspec.Struct, frozen=True, array_like=True, tag="counted"):
    """Answer to ``CountTokens``."""

    id: int
    tokens: int


class Stats(msgspec.Struct, frozen=True, array_like=True, tag="stats"):
    """generations and embeddings (texts) are what runs or waits now, for all clients.

    held_tokens wait because their client gave no credit.
    """

    id: int
    connections: int
    generations: int
    embeddings: int
    held_tokens: int
    resident_bytes: int
    cpu_seconds: float


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The request will get no answer. The message is one sentence."""

    id: int
    code: FailureCode
    message: str


ClientFrame = Hello | Generate | Credit | Cancel | Embed | CountTokens | AskStats
ServerFrame = Ready | DeltaFrame | FinishedFrame | Vectors | Counted | Stats | Failed

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientFrame] = msgspec.msgpack.Decoder(ClientFrame)
_server_decoder: msgspec.msgpack.Decoder[ServerFrame] = msgspec.msgpack.Decoder(ServerFrame)


def encode_frame(frame: ClientFrame | ServerFrame) -> bytes:
    """Header and payload. Raises FrameError where the payload is over MAX_FRAME_BYTES."""
    payload = _encoder.encode(frame)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(payload)} bytes exceeds {MAX_FRAME_BYTES}.")
    return len(payload).to_bytes(HEADER_BYTES, "little") + payload


def decode_client_frame(payload: bytes) -> ClientFrame:
    """Raises FrameError."""
    try:
        return _client_decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"not a client's frame: {error}.") from error


def decode_server_frame(payload: bytes) -> ServerFrame:
    """Raises FrameError."""
    try:
        return _server_decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"not a server's frame: {error}.") from error


class FrameSplitter:
    """Cuts a byte stream into payloads. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads completed by ``chunk``. Raises FrameError on a length over the maximum."""
        buffer = self._buffer
        buffer += chunk
        payloads: list[bytes] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            size = int.from_bytes(buffer[start : start + HEADER_BYTES], "little")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {size} bytes exceeds {MAX_FRAME_BYTES}.")
            end = start + HEADER_BYTES + size
            if end > len(buffer):
                break
            payloads.append(bytes(buffer[start + HEADER_BYTES : end]))
            start = end
        del buffer[:start]
        return payloads
