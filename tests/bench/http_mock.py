"""A provider that answers from constants, much faster than any gateway in front of it.

    python -m tests.bench.http_mock --port 9001 [--pace-ms 4]

Speaks as much HTTP/1.1 and OpenAI chat as the benchmarks and soak tests need. A stream has as many
content events as the request's ``max_tokens`` says, each written apart from the others. Knows no
keys, no models and no limits.
"""

import argparse
import asyncio
import re
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_TOKENS_DEFAULT = 16

_WORDS = "A small answer of about the length that people get from a model when they ask it. " * 2
_BODY = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1767225600,"model":"mock",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":40,"completion_tokens":40,'
    b'"total_tokens":80},"system_fingerprint":"fp_mock"}' % _WORDS.encode()
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)
ERROR_BODY = b'{"error":{"message":"made to fail","type":"server_error","param":null,"code":null}}'
_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(ERROR_BODY), ERROR_BODY)
)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _event(choices: bytes, usage: bytes = b"null") -> bytes:
    """One server-sent event as one HTTP chunk."""
    data = (
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1767225600,'
        b'"model":"mock","system_fingerprint":"fp_mock","choices":[%b],"usage":%b}\n\n'
        % (choices, usage)
    )
    return b"%x\r\n%b\r\n" % (len(data), data)


# Different words: some gateways take the same one over and over for a broken model.
_DELTAS = tuple(
    _event(b'{"index":0,"delta":{"content":" %b"},"logprobs":null,"finish_reason":null}' % word)
    for word in (b"one", b"two", b"three", b"four")
)
_POURED = b"".join(_DELTAS) * 8
_STOP = _event(b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}')
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Provider(asyncio.Protocol):
    """One connection.

    A prompt that contains ``made-to-fail`` gets a 500, ``made-to-wait`` never an answer, and
    ``made-to-pour`` a stream without an end, as fast as it is read.
    """

    pace_seconds = 0.004

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._pouring = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def pause_writing(self) -> None:
        self._pouring = False

    def resume_writing(self) -> None:
        self._pouring = True
        self._pour()

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        head_end = data.find(b"\r\n\r\n") + 4
        if head_end == 3:
            return
        length = _LENGTH.search(data, 0, head_end)
        if length is not None:
            complete = len(data) >= head_end + int(length[1])
        elif data.startswith(b"GET "):
            complete = True
        else:
            complete = data.endswith(b"0\r\n\r\n")  # a chunked body; these clients do not pipeline
        if complete:
            self._buffer = b""
            self._answer(data)

    def _answer(self, request: bytes) -> None:
        if b"made-to-fail" in request:
            self._transport.write(_ERROR)
        elif b"made-to-wait" in request:
            pass
        elif b"made-to-pour" in request:
            self._transport.write(_STREAM_HEAD)
            self.resume_writing()
        elif _STREAM.search(request) is None:
            self._transport.write(ANSWER)
        else:
            found = _MAX_TOKENS.search(request)
            self._left = int(found[1]) if found is not None else _TOKENS_DEFAULT
            self._usage = _USAGE.search(request) is not None
            self._tokens = self._left
            self._next(_STREAM_HEAD)

    def _pour(self) -> None:
        """Write a few kilobytes, and again as soon as others have had their turn."""
        if self._pouring and not self._transport.is_closing():
            self._transport.write(_POURED)
            self._loop.call_soon(self._pour)

    def _next(self, before: bytes = b"") -> None:
        """Write one event, and plan the next."""
        self._left -= 1
        delta = _DELTAS[self._left & 3]
        if self._left > 0:
            self._transport.write(before + delta)
            self._timer = self._loop.call_later(self.pace_seconds, self._next)
            return
        end = before + delta + _STOP
        if self._usage:
            usage = b'{"prompt_tokens":40,"completion_tokens":%d,"total_tokens":%d}'
            end += _event(b"", usage % (self._tokens, 40 + self._tokens))
        self._transport.write(end + _DONE)


async def serve(port: int) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serve on 127.0.0.1 until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace-ms", type=float, default=Provider.pace_seconds * 1e3)
    arguments = parser.parse_args()
    Provider.pace_seconds = arguments.pace_ms / 1e3
    uvloop.run(serve(arguments.port))


if __name__ == "__main__":
    main()
