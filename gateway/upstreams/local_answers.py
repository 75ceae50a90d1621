"""The model process's messages as OpenAI's answers: a document, or the events of a stream.

Sans-I/O. An answer may hold several choices; their messages carry the choice's number.
"""

from collections.abc import Sequence

import msgspec
import orjson

from gateway.upstreams.local_openai import Call
from gateway.upstreams.local_tools import CallReader, whole_message
from gateway.upstreams.refusals import Body
from gateway.wire.usage import Usage
from local_models.messages import Delta, Finished, TokenLogprob

DONE = b"data: [DONE]\n\n"


class Choice:
    """One choice as far as it has come."""

    def __init__(self) -> None:
        self.text = ""
        self.logprobs: list[TokenLogprob] = []
        self.finished: Finished | None = None

    def take(self, message: Delta | Finished) -> None:
        """Its next message."""
        if isinstance(message, Finished):
            self.finished = message
        else:
            self.text += message.text
            self.logprobs += message.logprobs


class Totals(msgspec.Struct):
    """What all choices of a request took. The prompt counts once, as OpenAI counts it.

    cached_tokens: of the prompt, what the choice that had to read most of it found read.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    compute_us: int = 0

    def add(self, finished: Finished) -> None:
        """One choice more."""
        first = not self.prompt_tokens
        cached = finished.cached_tokens
        self.cached_tokens = cached if first else min(self.cached_tokens, cached)
        self.prompt_tokens = max(self.prompt_tokens, finished.prompt_tokens)
        self.completion_tokens += finished.completion_tokens
        self.compute_us += finished.compute_us

    def usage(self) -> Body:
        """The usage object. Processor time is the operator's business, and goes into a header."""
        counts = Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
        )
        return counts.document()


def document(call: Call, choices: Sequence[Choice], totals: Totals) -> bytes:
    """The whole answer of a call that does not stream; every choice has finished."""
    answer = _head(call, "chat.completion" if call.chat else "text_completion")
    shown = [_whole_choice(call, choice, number) for number, choice in enumerate(choices)]
    return orjson.dumps({**answer, "choices": shown, "usage": totals.usage()})


def _whole_choice(call: Call, choice: Choice, number: int) -> Body:
    assert choice.finished is not None, "the caller waits for every choice"
    found: Body = {"index": number}
    reader = _call_reader(call, number)
    if call.chat:
        message = whole_message(reader.push(choice.text) + reader.flush())
        found["message"] = {"role": "assistant", **message, "refusal": None}
    else:
        found["text"] = choice.text
    found["logprobs"] = _logprobs(call, choice.logprobs, 0)
    found["finish_reason"] = _finish_reason(choice.finished, reader)
    return found


def _call_reader(call: Call, number: int) -> CallReader:
    """The reader of one choice; its calls' ids are those of no other choice or request."""
    return CallReader(call.tools, f"call_{_plain_id(call)}_{number}")


def _finish_reason(finished: Finished, reader: CallReader) -> str:
    return "tool_calls" if reader.called and finished.reason == "stop" else finished.reason


class Stream:
    """The events of one streamed answer, in order: ``opening``, ``take``..., until ``ended``."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._characters = [0] * len(call.requests)
        self._running = len(call.requests)
        self._readers = [_call_reader(call, number) for number in range(self._running)]
        self._document = _head(call, "chat.completion.chunk" if call.chat else "text_completion")
        self.totals = Totals()

    @property
    def ended(self) -> bool:
        """Every choice has finished."""
        return not self._running

    def opening(self) -> bytes:
        """The role chunks of a chat; a text completion has none."""
        if not self._call.chat:
            return b""
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._event(n, role, None, None) for n in range(self._running))

    def take(self, number: int, message: Delta | Finished) -> bytes:
        """The events of one choice's message; nothing where it has nothing to show."""
        if isinstance(message, Delta):
            return self._delta(number, message)
        self.totals.add(message)
        self._running -= 1
        reader = self._readers[number]
        rest = b"".join(self._event(number, shown, None, None) for shown in reader.flush())
        reason = _finish_reason(message, reader)
        last: Body = {} if self._call.chat else {"text": ""}
        events = rest + self._event(number, last, None, reason)
        return events + self._end() if self.ended else events

    def _delta(self, number: int, delta: Delta) -> bytes:
        if not delta.text and not delta.logprobs:
            return b""
        logprobs = _logprobs(self._call, delta.logprobs, self._characters[number])
        self._characters[number] += len(delta.text)
        if not self._call.chat:
            return self._event(number, {"text": delta.text}, logprobs, None)
        shown = self._readers[number].push(delta.text)
        if logprobs is not None:
            # Where nothing can be shown yet the logarithms come alone.
            first, *shown = shown or [{}]
            events = self._event(number, first, logprobs, None)
        else:
            events = b""
        return events + b"".join(self._event(number, each, None, None) for each in shown)

    def _end(self) -> bytes:
        """The usage chunk where it was asked for, and the end mark."""
        if not self._call.include_usage:
            return DONE
        return _sse({**self._document, "choices": [], "usage": self.totals.usage()}) + DONE

    def _event(self, number: int, shown: Body, logprobs: Body | None, reason: str | None) -> bytes:
        choice: Body = {"index": number, "logprobs": logprobs, "finish_reason": reason}
        choice.update({"delta": shown} if self._call.chat else shown)
        event = {**self._document, "choices": [choice]}
        if self._call.include_usage:
            event["usage"] = None
        return _sse(event)


def _head(call: Call, kind: str) -> Body:
    prefix = "chatcmpl-" if call.chat else "cmpl-"
    return {
        "id": prefix + _plain_id(call),
        "object": kind,
        "created": call.created,
        "model": call.model,
        "system_fingerprint": None,
    }


def _plain_id(call: Call) -> str:
    """The request's id, whichever attempt it was and however many answers it asks for."""
    return call.request.request_id.partition("/")[0]


def _sse(event: Body) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _logprobs(call: Call, tokens: Sequence[TokenLogprob], offset: int) -> Body | None:
    """offset: characters of the answer before these tokens, which the older format states."""
    if call.request.params.logprobs is None:
        return None
    if call.chat:
        return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }


def _chat_logprob(token: TokenLogprob) -> Body:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.bytes_),
        "top_logprobs": [
            {"token": other, "logprob": logprob, "bytes": list(other.encode())}
            for other, logprob in token.top
        ],
    }
