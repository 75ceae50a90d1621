"""Server-sent events are the same whatever the transport did to the bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamProtocolError
from gateway.wire.sse import BYTE_ORDER_MARK, EVENT_BYTES_MAX, EventSplitter, event_data

ENDINGS = (b"\n", b"\r\n", b"\r")
LINES = st.lists(
    st.sampled_from(
        [b"data: {}", b"data:x", b"data: \xe4\xb8\xad", b": ping", b"event: e", b"data", b""]
    ),
    max_size=12,
)


def split(*pieces: bytes) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.pending


def data_of_lines(raw: bytes) -> list[bytes]:
    """The specification read literally: line by line, an event at each blank line."""
    found: list[bytes] = []
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    gathered: list[bytes] = []
    for line in lines:
        if not line:
            if gathered:
                found.append(b"\n".join(gathered))
            gathered = []
        elif line.startswith(b"data:"):
            gathered.append(line[5:].removeprefix(b" "))
    return found


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    raw = b"".join(line + draw(st.sampled_from(ENDINGS)) for line in draw(LINES))
    return raw + b"x"  # a carriage return at the very end waits for what follows


@given(streams())
def test_any_mix_of_line_endings_reads_as_the_specification_says(raw: bytes) -> None:
    """LF, CRLF and CR may alternate within one stream, and no byte is lost, added or moved."""
    events, pending = split(raw)
    found = [data for event in events if (data := event_data(event)) is not None]
    assert found == data_of_lines(raw)
    assert b"".join(events) + pending == raw, "no byte is lost, added or moved"


@given(streams())
def test_a_stream_cut_at_any_offset_gives_the_same_events(raw: bytes) -> None:
    """Packets of one byte, and two packets cut at each offset, read like the whole stream."""
    whole = split(raw)
    for offset in range(len(raw) + 1):
        assert split(raw[:offset], raw[offset:]) == whole
    assert split(*(raw[i : i + 1] for i in range(len(raw)))) == whole


@given(streams())
def test_a_byte_order_mark_is_no_part_of_the_first_event(raw: bytes) -> None:
    """However the transport cuts it. A second one, or one elsewhere, is a field nobody knows."""
    marked = BYTE_ORDER_MARK + raw
    for offset in range(6):
        assert split(marked[:offset], marked[offset:]) == split(raw)
    assert split(*(marked[i : i + 1] for i in range(len(marked)))) == split(raw)
    assert split(b"x" + marked) == split(b"x", marked)
    assert split(BYTE_ORDER_MARK[:2] + raw) == split(BYTE_ORDER_MARK[:1], b"\xbb" + raw)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\n\n", b"\n\r\n"])
def test_an_event_is_given_as_soon_as_its_blank_line_is_there(end: bytes) -> None:
    """A client sees each token at once and not only with the event that follows it."""
    assert split(b"data: 1" + end) == ([b"data: 1" + end], b"")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: x\r\n\n", b"x"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"event: e\nid: 7\ndata: x\n\n", b"x"),
        (b"data: \n\n", b""),
        (b": ping\n\n", None),
        (b"event: ping\n\n", None),
        (b"\n\n", None),
        (b"database: x\n\n", None),
    ],
)
def test_the_data_of_an_event_is_its_data_lines_joined(event: bytes, data: bytes | None) -> None:
    """One space after the colon goes, other fields are ignored, and a ping has no data."""
    assert event_data(event) == data


def test_an_event_may_be_as_long_as_the_limit_and_not_longer() -> None:
    """EVENT_BYTES_MAX bytes pass, and one byte more is refused with the limit in its message."""
    event = b"data: " + b"x" * (EVENT_BYTES_MAX - 8) + b"\n\n"
    assert split(event) == ([event], b"")
    with pytest.raises(UpstreamProtocolError, match=str(EVENT_BYTES_MAX)):
        split(b"x" + event)


def test_an_event_without_end_is_refused_once_it_is_too_long() -> None:
    """A provider that never sends a blank line cannot fill the gateway's memory."""
    splitter = EventSplitter()
    assert splitter.feed(b"x" * EVENT_BYTES_MAX) == []
    with pytest.raises(UpstreamProtocolError):
        splitter.feed(b"x")
