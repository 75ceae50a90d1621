"""Server-sent events: bytes in, whole events out (WHATWG HTML, section 9.2).

An event ends with a blank line, of any of the three line endings. Whatever the chunking of the
transport, the events are the same.
"""

import re

from gateway.errors import UpstreamProtocolError

EVENT_BYTES_MAX = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_END_BYTES_MAX = 4
_ERROR_NAME = re.compile(rb"(?:^|[\r\n])event: ?error[\r\n]")
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")  # of a line, then of an empty one


class EventSplitter:
    """Cuts a stream of bytes into events, each with its terminating blank line.

    A byte order mark before the first is no part of it (WHATWG HTML, section 9.2.6), and is not
    passed on: many clients take it for the beginning of an unknown field.
    """

    __slots__ = ("_event_bytes_max", "_fresh", "_open")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._fresh = True  # a byte order mark may still come
        # An array as soon as it grows: an event of a megabyte that comes byte by byte would else
        # be copied a million times.
        self._open: bytes | bytearray = b""

    @property
    def pending(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return bytes(self._open)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes. Raises UpstreamProtocolError for one too large."""
        if self._fresh:
            data = bytes(self._open) + data
            self._open = b""
            if len(data) < len(BYTE_ORDER_MARK) and BYTE_ORDER_MARK.startswith(data):
                self._open = data
                return []
            self._fresh, data = False, _without_mark(data)
        if self._open:
            if _END.search(self._open[1 - _END_BYTES_MAX :] + data) is None:
                if not isinstance(self._open, bytearray):
                    self._open = bytearray(self._open)
                self._open += data
                self._check(len(self._open))
                return []
            data = bytes(self._open) + data
        if b"\r" not in data:
            parts = data.split(b"\n\n")
            self._open = parts.pop()
            events = [part + b"\n\n" for part in parts]
        else:
            events = self._split_any(data)
        self._check(max(map(len, events), default=0))
        self._check(len(self._open))
        return events

    def _check(self, size: int) -> None:
        most = self._event_bytes_max
        if size > most:
            raise UpstreamProtocolError(f"The provider sent an event of more than {most} bytes.")

    def _split_any(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        start = 0
        for match in _END.finditer(data):
            # A carriage return at the very end may be half of a line ending.
            if match.end() == len(data) and data.endswith(b"\r"):
                break
            events.append(data[start : match.end()])
            start = match.end()
        self._open = data[start:]
        return events


def event_data(event: bytes) -> bytes | None:
    """The ``data`` of an event, its lines joined; None for a comment or an event without data."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # the one shape nearly every provider sends
    if event.startswith(b"event: ") and b"\r" not in event:
        name, _, data = event.partition(b"\ndata: ")
        if data and b"\n" not in name and data.find(b"\n") == len(data) - 2:
            return data[:-2]  # the shape of events that name their type
    lines: list[bytes] = []
    for line in event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines) if lines else None


def names_error(event: bytes) -> bool:
    """Whether the event's own name is ``error``."""
    return b"event:" in event and _ERROR_NAME.search(event) is not None


def begins_a_document(data: bytes) -> bool:
    """Whether the first bytes of a body are JSON's or HTML's, and so of no stream of events."""
    return _without_mark(data).lstrip()[:1] in (b"{", b"[", b"<")


def begins_a_stream(data: bytes) -> bool:
    """Whether the first bytes of a body are of a stream of events, and so of no JSON."""
    return _without_mark(data).lstrip().startswith((b"data:", b"event:", b"id:", b"retry:", b":"))


def _without_mark(data: bytes) -> bytes:
    return data.removeprefix(BYTE_ORDER_MARK)
