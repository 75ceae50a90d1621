"""One upstream stream on its way to a client: passed on as it came, but for a cheap look.

Frames are relayed unparsed unless they may carry usage, a finish reason or an error. ``[DONE]``
is kept back until the caller has booked the answer. Knows the OpenAI stream; no socket.
"""

from typing import Any

import orjson

from gateway.errors import UpstreamProtocolError, UpstreamUnavailable
from gateway.wire.assemble import assemble
from gateway.wire.openai import Endpoint
from gateway.wire.sse import EventSplitter, event_data
from gateway.wire.usage import Usage, parse_usage

DONE = b"data: [DONE]\n\n"


class StreamRelay:
    """What the client gets of one stream, and what we learn from it."""

    __slots__ = (
        "_done", "_endpoint", "_finish_seen", "_include_usage", "_keep_bytes", "_kept", "_splitter",
        "content_events", "text_bytes", "usage",
    )  # fmt: skip

    def __init__(
        self, *, endpoint: Endpoint, include_usage: bool, keep: bool, keep_bytes_max: int = 1 << 20
    ) -> None:
        """``keep`` collects the events for the caches, up to ``keep_bytes_max`` bytes in all."""
        self._endpoint = endpoint
        self._include_usage = include_usage
        self._splitter = EventSplitter()
        self._kept: list[bytes] | None = [] if keep else None
        self._keep_bytes = keep_bytes_max
        self._finish_seen = False
        self._done = False
        self.usage: Usage | None = None
        self.content_events = 0  # events that carried generated text: about one token each
        self.text_bytes = 0  # of those events: an upper bound of the generated text

    @property
    def finished(self) -> bool:
        """``[DONE]`` has come."""
        return self._done

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, ``b""`` if none.

        Raises UpstreamProtocolError for an event that is no JSON or that is an error document.
        """
        events = self._splitter.feed(data)
        passed_on = [event for event in events if self._look(event)]
        if len(passed_on) == 1:
            return passed_on[0]
        return b"".join(passed_on)

    def end(self) -> bytes:
        """The upstream has closed its answer: the bytes kept back.

        Raises UpstreamUnavailable where the stream was cut: no ``[DONE]`` and no finish reason.
        """
        if not self._done and (not self._finish_seen or self._splitter.pending.strip()):
            raise UpstreamUnavailable("The provider's stream was cut before its end.")
        return DONE

    def answer(self) -> dict[str, Any] | None:
        """The whole answer as a document, if it was kept."""
        if self._kept is None or not self._finish_seen:
            return None
        return assemble(self._endpoint, (orjson.loads(data) for data in self._kept))

    def _look(self, event: bytes) -> bool:
        """Whether the event is passed on. What may matter is parsed, the rest is not."""
        data = event_data(event)
        if data is None:
            return True  # a comment or a ping
        if self._done:
            return False
        if data == b"[DONE]":
            self._done = True
            return False
        if not (data.startswith(b"{") and data.endswith(b"}")):
            raise UpstreamProtocolError("The provider sent an event that is no JSON object.")
        if self._kept is not None:
            self._keep(data)
        if b'"error"' in data or b'"usage"' in data or not _plain(data):
            return self._study(data)
        self.content_events += 1
        self.text_bytes += len(data)
        return True

    def _study(self, data: bytes) -> bool:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise UpstreamProtocolError("The provider sent an event that is no JSON.") from None
        if isinstance(document.get("error"), dict | str):
            raise UpstreamProtocolError("The provider reported an error in its stream.")
        usage = parse_usage(document.get("usage"))
        if usage is not None:
            self.usage = usage
        choices = document.get("choices") or []
        for choice in choices:
            if not isinstance(choice, dict):
                raise UpstreamProtocolError("The provider sent a choice that is no object.")
            if choice.get("finish_reason") is not None:
                self._finish_seen = True
            if _has_content(choice):
                self.content_events += 1
                self.text_bytes += len(data)
        # An event with usage and no choices exists only because we asked for it.
        return self._include_usage or bool(choices) or usage is None

    def _keep(self, data: bytes) -> None:
        assert self._kept is not None, "called only while keeping"
        self._keep_bytes -= len(data)
        if self._keep_bytes < 0:
            self._kept = None  # too long to be cached
        else:
            self._kept.append(data)


def _plain(data: bytes) -> bool:
    """Cheap and safe: an event with exactly one unfinished choice that carries content."""
    return (
        (b'"finish_reason":null' in data or b'"finish_reason": null' in data)
        and data.count(b'"finish_reason"') == 1
        and b'"content":"' in data
        and b'"content":""' not in data
    )


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    return any(
        delta.get(name)
        for name in ("content", "tool_calls", "refusal", "reasoning_content", "reasoning", "audio",
                     "function_call")
    )  # fmt: skip
