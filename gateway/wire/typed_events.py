"""A stream of events that name their type: looked at, and passed on as the bytes that came.

Anthropic's messages and OpenAI's responses both stream so. The last event is kept back until the
caller has booked the answer. Knows no event by name: each dialect does. No socket.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamUnavailable,
)
from gateway.wire.openai import redact, reported_error
from gateway.wire.reported import Reported, read_odd, read_reported
from gateway.wire.sizes import size_of
from gateway.wire.sse import EventSplitter, event_data, names_error
from gateway.wire.told_cost import costless
from gateway.wire.usage import Usage
from gateway.wire.verbatim import read

# The last event of OpenAI's responses repeats the whole answer.
EVENT_BYTES_MAX = 4 << 20


class TypedEventRelay:
    """What the client gets of one stream, and what we learn from it. Base of the dialects'."""

    usage_event = b""  # usage comes within other events
    overloaded_status = 503

    __slots__ = (
        "_counted", "_counting", "_error", "_last", "_secrets", "_splitter", "content_events",
        "next_sequence", "prompt", "text_bytes", "tier", "usage",
    )  # fmt: skip

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        """secrets: what no event of ours, nor a reported error, may repeat."""
        self._secrets = secrets
        self._splitter = EventSplitter(EVENT_BYTES_MAX)
        self._last: bytes | None = None
        self._counted = b""  # the event just seen, where it has the answer's counts so far
        self._counting = b""  # the latest such event: kept back, since the charge goes into it
        self._error: UpstreamError | None = None
        self.usage: Usage | None = None  # of the whole answer, once the provider has told
        self.tier: Any = None  # the service tier that the answer names
        self.prompt: Usage | None = None  # of the prompt alone, where the provider tells it first
        self.content_events = 0  # events that carried something generated: about a token each
        self.text_bytes = 0  # UTF-8 bytes of generated text, tool arguments included
        self.next_sequence = 0  # number of an event of ours, where the dialect numbers them

    @property
    def finished(self) -> bool:
        """The last event has come, or one that ends all: nothing more need be read."""
        return self._last is not None or self._error is not None

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, ``b""`` if none. What follows the last event is dropped.

        Raises UpstreamError for an event that is no JSON or that reports an error. Good events
        before it are passed on first; then ``finished`` is set and ``end`` raises.
        """
        if self._error is not None:
            raise self._error
        passed_on: list[bytes] = []
        try:
            for event in self._splitter.feed(data):
                if self._last is not None:
                    break
                is_last = self._look(event)
                shown = costless(event) if b'"cost' in event else event
                if is_last:
                    self._last = self._counting + shown
                elif event is self._counted:
                    passed_on.append(self._counting)
                    self._counting = shown
                else:
                    passed_on.append(shown)
        except UpstreamError as error:
            if not passed_on:
                raise
            self._error = error
        return passed_on[0] if len(passed_on) == 1 else b"".join(passed_on)

    def end(self) -> bytes:
        """The upstream has closed its answer: the last event, kept back until now.

        Raises UpstreamUnavailable where it has not come. Raises what ``feed`` had to keep back.
        """
        if self._error is not None:
            raise self._error
        if self._last is None:
            raise UpstreamUnavailable("The provider's stream was cut before its end.")
        return self._last

    def answer(self) -> dict[str, Any] | None:
        """None: no cache replays these streams, so none needs the whole."""
        return None

    def _look(self, event: bytes) -> bool:
        """Whether it is the last event."""
        data = event_data(event)
        if data is None:
            return False  # a comment
        try:
            document = read(data)
        except orjson.JSONDecodeError:
            document = None
        if type(document) is not dict:
            raise self._error_of(read_odd(data, certain=names_error(event)), None)
        kind = document.get("type")
        if kind == "error" or type(kind) is not str or event.startswith(b"event: error"):
            reported = read_reported(document, certain=kind is not None)
            if reported is not None:
                raise self._error_of(reported, event if kind == "error" else None)
        try:
            return self._study(document, event)
        except (AttributeError, TypeError):
            raise UpstreamProtocolError("The provider sent an event of another shape.") from None

    def _error_of(self, reported: Reported | None, event: bytes | None) -> UpstreamError:
        """What a status would have said, had the answer not begun with 200.

        event: where it is the dialect's own kind of error event, a client that has seen a part of
        the stream already gets it as it came.
        """
        if reported is None:
            return UpstreamProtocolError("The provider sent an event that is no JSON object.")
        begun = self.usage or self.content_events
        error = reported_error(reported, self._secrets, begun=bool(begun))
        if error.status == 503 and reported.status == 529:
            error.status = self.overloaded_status
        if event is not None:
            error.frame = redact(event.decode(errors="replace"), self._secrets).encode()
        return error

    def _study(self, document: dict[str, Any], event: bytes) -> bool:
        """Learn from an event; whether it is the last. Raises UpstreamError for one that reports
        an error in a way of the dialect's own.

        event: the bytes that ``document`` came in.

        May raise AttributeError or TypeError for an event of another shape than the dialect's.
        """
        raise NotImplementedError

    def _generated(self, value: Any) -> None:
        """Count what an event carried."""
        if isinstance(value, str) and value:
            self.content_events += 1
            self.text_bytes += size_of(value)
