"""One upstream stream on its way to a client: looked at, and passed on as the bytes that came.

Learns usage, finish reasons and errors on the way. ``[DONE]`` is kept back until the caller has
booked the answer. Knows the OpenAI stream; no socket.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamUnavailable,
)
from gateway.wire.assemble import assemble
from gateway.wire.excise import without_member
from gateway.wire.openai import Endpoint, reported_error
from gateway.wire.reported import Reported, failed_choice, read_odd, read_reported
from gateway.wire.sizes import size_of
from gateway.wire.sse import EventSplitter, event_data, names_error
from gateway.wire.told_cost import costless, tells_cost
from gateway.wire.usage import Usage
from gateway.wire.usage_reading import (
    cites,
    merged,
    parse_usage,
    searched_by,
    usage_place,
    with_extras,
)
from gateway.wire.usage_shapes import tier_of
from gateway.wire.verbatim import decode, encode, read

DONE = b"data: [DONE]\n\n"


class StreamRelay:
    """What the client gets of one stream, and what we learn from it."""

    __slots__ = (
        "_begun",
        "_choices",
        "_counting",
        "_done",
        "_ended",
        "_endpoint",
        "_error",
        "_include_usage",
        "_keep_bytes",
        "_kept",
        "_searched",
        "_secrets",
        "_splitter",
        "_told",
        "_usage",
        "_usage_last",
        "content_events",
        "text_bytes",
        "tier",
        "usage_event",
    )  # fmt: skip
    prompt: Usage | None = None  # this stream tells everything at its end
    next_sequence = 0  # and does not number its events

    def __init__(
        self, *, endpoint: Endpoint, include_usage: bool, keep: bool, choices: int = 1,
        keep_bytes_max: int = 1 << 20, secrets: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """``keep`` collects the events for the caches, up to ``keep_bytes_max`` bytes in all.

        secrets: what no reported error may repeat.
        """
        self._endpoint = endpoint
        self._choices = choices  # as many as were asked for must end
        self._include_usage = include_usage
        self._splitter = EventSplitter()
        self._kept: list[bytes] | None = [] if keep else None
        self._keep_bytes = keep_bytes_max
        self._begun: set[Any] = set()  # indices of choices
        self._ended: set[Any] = set()  # those with a finish reason
        self._done = False
        self._secrets = secrets
        self._error: UpstreamError | None = None
        self._counting = b""  # the last event of content, kept back where usage stands beside it
        self._usage_last = False  # the event of usage alone is kept back for the end
        self._told: dict[str, Any] | None = None  # all usage objects so far, as one
        self._usage: Usage | None = None  # what it means
        self.tier: Any = None  # the service tier that events name
        self._searched = False
        self.usage_event = b""  # of usage alone, passed on or not
        self.content_events = 0  # events that carried something generated: about a token each
        self.text_bytes = 0  # UTF-8 bytes of generated text, tool arguments included

    @property
    def usage(self) -> Usage | None:
        """What the provider has told so far; None: nothing."""
        if self._usage is None:
            return None
        return with_extras(self._usage, tier_of(self.tier), self._searched)

    @property
    def finished(self) -> bool:
        """``[DONE]`` has come, or an event that ends all: nothing more need be read."""
        return self._done or self._error is not None

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now, ``b""`` if none.

        Raises UpstreamError for an event that is no JSON or that reports an error.
        Good events before it are passed on first; then ``finished`` is set and ``end`` raises.
        """
        if self._error is not None:
            raise self._error
        passed_on: list[bytes] = []
        try:
            for event in self._splitter.feed(data):
                if kept := self._look(event):
                    passed_on.append(kept)
        except UpstreamError as error:
            if self._counting:
                passed_on.append(self._release())
            if not passed_on:
                raise
            self._error = error
        return passed_on[0] if len(passed_on) == 1 else b"".join(passed_on)

    def end(self) -> bytes:
        """The upstream has closed its answer: the bytes kept back.

        Raises UpstreamUnavailable where the stream was cut: no ``[DONE]``, and a choice without
        finish reason. Raises what ``feed`` had to keep back.
        """
        if self._error is not None:
            raise self._error
        if self._cut:
            raise UpstreamUnavailable("The provider's stream was cut before its end.")
        if not self._begun:
            raise UpstreamProtocolError("The provider's stream ended without an answer.")
        return self._release() + (self.usage_event + DONE if self._usage_last else DONE)

    def answer(self) -> dict[str, Any] | None:
        """The whole answer as a document, if it was kept and every choice has ended."""
        if self._kept is None or self._error or self._cut or not self._all_ended:
            return None
        return assemble(self._endpoint, map(decode, self._kept))

    @property
    def _cut(self) -> bool:
        rest = self._splitter.pending.strip()
        if self._done or (
            rest and (event_data(rest) or b"").strip() == b"[DONE]"
        ):  # without its blank line
            return False
        return bool(rest) or not self._all_ended

    @property
    def _all_ended(self) -> bool:
        return len(self._ended) >= self._choices and self._ended == self._begun

    def _look(self, event: bytes) -> bytes:
        """What is passed on of an event: all of it, nothing, or all but the usage."""
        data = event_data(event)
        if data is None:
            return event  # a comment or a ping
        if self._done:
            return b""
        if data == b"[DONE]":
            self._done = True
            return b""
        # Parsing costs 0.6 µs and sees all; a search for telling substrings costs more.
        try:
            chunk = read(data)
        except orjson.JSONDecodeError:
            if data.strip() == b"[DONE]":
                self._done = True
                return b""
            chunk = None
        if type(chunk) is not dict:
            raise self._error_of(read_odd(data, certain=names_error(event)), {})
        choices = chunk.get("choices")
        if not choices or chunk.get("error") or b"event:" in event:
            reported = read_reported(chunk, certain=names_error(event))
            if reported is not None:
                raise self._error_of(reported, chunk)
        if choices:
            failed = self._study(choices)
            if failed is not None:
                raise self._error_of(failed, chunk)
        told = chunk.get("usage")
        if told is not None and tells_cost(told):
            event = costless(event)
            data = event_data(event) or b""
            chunk = read(data)
        if self._kept is not None:
            self._keep(data)
        tier = chunk.get("service_tier")
        if tier is not None:
            self.tier = tier
        if told is not None:
            if self._tell(told):
                if choices:
                    if not self._include_usage:
                        return self._hide(event, data, chunk)
                    if not self._all_ended:
                        return event
                    return self._release(event)
                # An event of usage alone exists only because we asked for it. Who did, too, gets
                # it with the charge in it: with the end, once the answer is booked.
                self.usage_event = event
                self._usage_last = self._include_usage
                return b""
        elif self._ended or not choices:
            self._tell(usage_place(chunk))
            self._searched = self._searched or searched_by(chunk)
        return self._release() + event if self._counting else event

    def _release(self, successor: bytes = b"") -> bytes:
        """The event kept back so far; ``successor`` is kept in its place."""
        kept, self._counting = self._counting, successor
        return kept

    def _error_of(self, reported: Reported | None, chunk: dict[str, Any]) -> UpstreamError:
        """What a status would have said, had the answer not begun with 200."""
        if reported is None:
            return UpstreamProtocolError("The provider sent an event that is no JSON object.")
        self._tell(usage_place(chunk))
        begun = self.content_events > 0 or self._usage is not None
        return reported_error(reported, self._secrets, begun=begun)

    def _tell(self, told: Any) -> bool:
        """Take in a usage object; whether it tells anything. Later ones complete earlier ones."""
        usage = parse_usage(told)
        if usage is None:
            return False
        if self._told is not None:
            told = merged(self._told, told)
            usage = parse_usage(told)
        self._told, self._usage = told, usage
        return True

    def _hide(self, event: bytes, data: bytes, chunk: dict[str, Any]) -> bytes:
        """An event of content without the usage that stands beside it; its other bytes stay.

        Where it cannot be cut out beyond doubt, the event passes as it came.
        """
        cut = without_member(data, "usage", chunk) if data in event else None
        if cut is None:
            return event
        self.usage_event = b"data: " + encode({**chunk, "choices": []}) + b"\n\n"
        return event.replace(data, cut, 1)

    def _study(self, choices: Any) -> Reported | None:
        """Count what was generated, and note which choices have begun and ended.

        Returns the error that one of them ended with.
        """
        size = 0
        generated = False
        failed = None
        try:
            for choice in choices:
                index = choice.get("index", 0)  # some leave it out, or write null, where one is
                index = 0 if index is None else index
                self._begun.add(index)
                if choice.get("finish_reason"):  # some write "" until the end has come
                    self._ended.add(index)
                    failed = failed or failed_choice(choice)
                elif choice.get("error"):
                    failed = failed or failed_choice(choice)
                part = choice.get("delta") or choice
                if "annotations" in part and cites(part["annotations"]):
                    self._searched = True
                text = part.get("content") or part.get("text")
                if type(text) is str:
                    generated = generated or text != ""
                    size += len(text) if text.isascii() else size_of(text)
                else:
                    others = _generated_bytes(part)
                    generated = generated or others > 0
                    size += others
        except (AttributeError, TypeError):
            raise UpstreamProtocolError("The provider sent choices of another shape.") from None
        self.content_events += generated
        self.text_bytes += size
        return failed

    def _keep(self, data: bytes) -> None:
        assert self._kept is not None, "called only while keeping"
        self._keep_bytes -= len(data)
        if self._keep_bytes < 0:
            self._kept = None  # too long to be cached
        else:
            self._kept.append(data)


_GENERATED = (
    "content", "tool_calls", "refusal", "reasoning_content", "reasoning", "audio", "function_call",
)  # fmt: skip


def _generated_bytes(delta: dict[str, Any]) -> int:
    """Bytes of what a delta carries besides plain text; 0 where it carries nothing."""
    size = sum(_text_bytes(delta[name]) for name in _GENERATED if delta.get(name))
    if delta.get("reasoning") and delta.get("reasoning_content"):
        size -= _text_bytes(delta["reasoning"])  # the same thought under both of its names
    return size


def _text_bytes(value: Any) -> int:
    """UTF-8 bytes of all text in a value that was parsed from JSON."""
    if isinstance(value, str):
        return size_of(value)
    if isinstance(value, dict):
        return sum(map(_text_bytes, value.values()))
    return sum(map(_text_bytes, value)) if isinstance(value, list) else 0
