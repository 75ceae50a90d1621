"""Raw bytes to a running gateway and what comes back, for tests that speak broken HTTP on purpose.

Knows sockets and the standard library's HTTP parser; nothing of the server behind the port.
"""

import asyncio
import contextlib
import http.client
import io
import json
import time
from typing import Any, NamedTuple

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ERROR_KEYS = {"message", "type", "param", "code"}


class Reply(NamedTuple):
    """One parsed answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def check_error(self) -> str:
        """The message of an error, which must have OpenAI's shape."""
        assert 400 <= self.status < 600, self
        assert self.headers["content-type"].startswith("application/json"), self
        document = json.loads(self.body)
        assert set(document) == {"error"}, self
        assert set(document["error"]) == _ERROR_KEYS, self
        message: str = document["error"]["message"]
        assert message
        return message


class Heard(NamedTuple):
    """What a connection brought, until it closed or patience ended."""

    received: bytes
    closed: bool
    seconds: float

    @property
    def replies(self) -> list[Reply]:
        """Every answer, in order."""
        return parse(self.received)


class _Source:
    def __init__(self, text: bytes) -> None:
        self._file = io.BytesIO(text)

    def makefile(self, *_: Any) -> io.BytesIO:
        return self._file


def parse(text: bytes) -> list[Reply]:
    """Every answer in ``text`` but 100 Continue. Raises http.client's errors for what is none."""
    found = []
    while text := text.removeprefix(CONTINUE):
        head, _, rest = text.partition(b"\r\n\r\n")
        response = http.client.HTTPResponse(_Source(text))  # type: ignore[arg-type] # a makefile
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.length is not None:
            assert len(rest) >= response.length, ("the answer is cut", text)
            body, text = rest[: response.length], rest[response.length :]
        else:
            body, text = response.read(), b""  # chunks, or to the connection's end
        found.append(Reply(response.status, headers, body))
        assert head.startswith(b"HTTP/1.1 "), text
    return found


async def talk(port: int, *parts: bytes, patience_seconds: float = 1.0) -> Heard:
    """Send the parts and read until the gateway closes, for so long at most."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    closed = False
    try:
        async with asyncio.timeout(patience_seconds):
            for part in parts:
                writer.write(part)
                await writer.drain()
            while data := await reader.read(1 << 20):
                received += data
            closed = True
    except TimeoutError:
        pass
    except ConnectionError:
        closed = True
    finally:
        writer.transport.abort()
    return Heard(received, closed, time.monotonic() - began)


async def ask_and_leave(
    port: int, raw: bytes, *, linger_seconds: float, patience_seconds: float
) -> Heard:
    """Send all; say "no more" once something came back or after a moment; read to the end.

    ``seconds`` counts from saying so: it is how long the gateway needed to part.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    closed = False
    began = time.monotonic()
    try:
        writer.write(raw)
        with contextlib.suppress(TimeoutError):
            received = await asyncio.wait_for(reader.read(1 << 16), linger_seconds)
        began = time.monotonic()
        writer.write_eof()
        async with asyncio.timeout(patience_seconds):
            while data := await reader.read(1 << 16):
                received += data
        closed = True
    except TimeoutError:
        pass
    except OSError:  # reset, or already closed when we said "no more"
        closed = True
    finally:
        writer.transport.abort()
    return Heard(received, closed, time.monotonic() - began)
