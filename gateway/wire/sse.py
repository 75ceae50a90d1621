"""Server-sent events: bytes in, whole events out (WHATWG HTML, section 9.2).

An event ends with a blank line, of any of the three line endings. Whatever the chunking of the
transport, the events are the same.
"""

import re

from gateway.errors import UpstreamProtocolError

EVENT_BYTES_MAX = 1 << 20
_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")  # of a line, then of an empty one


class EventSplitter:
    """Cuts a stream of bytes into events, each with its terminating blank line."""

    __slots__ = ("_event_bytes_max", "pending")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self.pending = b""  # the beginning of an event whose end has not come

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes. Raises UpstreamProtocolError for one too large."""
        if self.pending:
            data = self.pending + data
        if b"\r" not in data:
            parts = data.split(b"\n\n")
            self.pending = parts.pop()
            events = [part + b"\n\n" for part in parts]
        else:
            events = self._split_any(data)
        most = self._event_bytes_max
        if len(self.pending) > most or any(len(event) > most for event in events):
            raise UpstreamProtocolError(f"The provider sent an event of more than {most} bytes.")
        return events

    def _split_any(self, data: bytes) -> list[bytes]:
        events: list[bytes] = []
        start = 0
        for match in _END.finditer(data):
            # A carriage return at the very end may be half of a line ending.
            if match.end() == len(data) and data.endswith(b"\r"):
                break
            events.append(data[start : match.end()])
            start = match.end()
        self.pending = data[start:]
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
