"""Frames survive the wire however it cuts them, and nothing else passes for a frame."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_models import protocol
from local_models.messages import Delta, Finished, GenerationRequest, SamplingParams, TokenLogprob
from local_models.protocol import FrameError, FrameSplitter, decode_client_frame, encode_frame

REQUEST = GenerationRequest(
    request_id="r/1",
    params=SamplingParams(max_tokens=5, stop=("\n",), seed=2**63, logprobs=1),
    messages=({"role": "user", "content": "世界 🙂"},),
)
CLIENT_FRAMES = (
    protocol.Hello(1, "worker-0"),
    protocol.Generate(1, REQUEST, 32),
    protocol.Credit(1, 16),
    protocol.Cancel(1),
    protocol.Embed(2, ("", "text"), 128),
    protocol.CountTokens(3, None, "prompt"),
    protocol.AskStats(4),
)
SERVER_FRAMES = (
    protocol.Ready(1, "ready", "failed", generation_message="no such file."),
    protocol.DeltaFrame(1, Delta("é", 2, (TokenLogprob("é", b"\xc3\xa9", -0.5, (("e", -1.0),)),))),
    protocol.FinishedFrame(1, Finished("stop", 9, 2, 1234)),
    protocol.Vectors(2, 2, bytes(16), (2, 3), (False, True), 99),
    protocol.Counted(3, 7),
    protocol.Stats(4, 1, 0, 0, 0, 10**9, 1.5),
    protocol.Failed(5, "busy", "later."),
)


@pytest.mark.parametrize("frame", CLIENT_FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_client_frame_comes_back_equal(frame: Any) -> None:
    """Also with the full range of the fields."""
    (payload,) = FrameSplitter().feed(encode_frame(frame))
    assert decode_client_frame(payload) == frame


@pytest.mark.parametrize("frame", SERVER_FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_server_frame_comes_back_equal(frame: Any) -> None:
    """Bytes stay bytes, tuples stay tuples."""
    (payload,) = FrameSplitter().feed(encode_frame(frame))
    assert protocol.decode_server_frame(payload) == frame


def test_every_cut_of_the_stream_gives_the_same_frames() -> None:
    """Whole, in two at each offset, and byte by byte."""
    stream = b"".join(encode_frame(frame) for frame in CLIENT_FRAMES)
    whole = FrameSplitter().feed(stream)
    assert [decode_client_frame(payload) for payload in whole] == list(CLIENT_FRAMES)
    for cut in range(len(stream)):
        splitter = FrameSplitter()
        assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == whole
    splitter = FrameSplitter()
    single = [payload for byte in stream for payload in splitter.feed(bytes([byte]))]
    assert single == whole


def test_a_length_over_the_maximum_is_refused_before_its_payload_comes() -> None:
    """Four bytes are enough to know."""
    with pytest.raises(FrameError, match="exceeds"):
        FrameSplitter().feed((protocol.MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_a_frame_over_the_maximum_is_never_built() -> None:
    """The sender hears of it, not the receiver."""
    with pytest.raises(FrameError, match="exceeds"):
        encode_frame(protocol.Embed(1, ("x" * protocol.MAX_FRAME_BYTES,), 128))


@given(st.binary(max_size=300))
def test_no_payload_raises_anything_but_frame_error(payload: bytes) -> None:
    """Arbitrary bytes are refused, or are one of the known frames."""
    try:
        frame = decode_client_frame(payload)
    except FrameError:
        return
    assert isinstance(frame, protocol.ClientFrame)


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=5),
        max_leaves=20,
    )
)
def test_no_msgpack_document_raises_anything_but_frame_error(document: Any) -> None:
    """Well-formed msgpack of the wrong shape included."""
    import msgspec

    try:
        decode_client_frame(msgspec.msgpack.encode(["embed", document]))
    except FrameError:
        pass


def test_deep_nesting_is_refused() -> None:
    """100,000 nested lists must not exhaust the stack."""
    with pytest.raises(FrameError):
        decode_client_frame(b"\x91" * 100_000)


def test_the_protocol_needs_neither_numpy_nor_onnxruntime() -> None:
    """A gateway worker imports it, and shall stay small."""
    code = (
        "import sys, local_models.protocol; "
        "sys.exit(any(name in sys.modules for name in ('numpy', 'onnxruntime', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
