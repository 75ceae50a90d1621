"""An ASGI application behind our own server: the admin pages.

Each request becomes one task and one ``http`` scope (ASGI 3.0), its body whole in one message.
For pages, where a framework is worth its time; ``/v1`` does without.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from gateway.errors import GatewayError, InternalError
from gateway.server import Call, error_lines

Message = MutableMapping[str, Any]
Application = Callable[..., Awaitable[None]]  # (scope, receive, send)
_PROBES = (b"/livez", b"/readyz", b"/startupz", b"/metrics")
_REST_SECONDS_MAX = 0.25
_FORBIDDEN = frozenset(b"\r\n\0")
_log = logging.getLogger("tollhouse.admin")


class AsgiHandler:
    """Implements ``server.Handler`` for one application."""

    def __init__(self, application: Application, running_max: int = 64) -> None:
        """running_max: requests that run at once, probes and metrics aside; the others wait."""
        self._application = application
        self._running = asyncio.Semaphore(running_max)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifespan: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()

    async def startup(self) -> None:
        """Tell the application to start. Raises RuntimeError where it cannot."""
        self._lifespan = asyncio.create_task(self._live())
        await self._tell("lifespan.startup")

    async def shutdown(self) -> None:
        """End what runs, and tell the application to stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tell("lifespan.shutdown")
        if self._lifespan is not None:
            await self._lifespan

    def head(self, call: Call) -> bool:
        """Every body is wanted."""
        return True

    def body(self, call: Call) -> None:
        """Run the application."""
        probes = call.target.startswith(_PROBES)
        task = asyncio.create_task(self._run(call) if probes else self._take_turns(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def refuse(self, call: Call, error: GatewayError) -> None:
        """As the application would have, had it been asked."""
        call.answer(error.status, error_lines(error), error.body())

    async def _take_turns(self, call: Call) -> None:
        """A page takes a thread, and with it the interpreter from whoever asks a model: after each
        its turn rests as long as it ran, so that pages have half of the time at most.
        """
        async with self._running:
            if call.gone:
                return
            loop = asyncio.get_running_loop()
            began = loop.time()
            await self._run(call)
            await asyncio.sleep(min(loop.time() - began, _REST_SECONDS_MAX))

    async def _run(self, call: Call) -> None:
        exchange = _AsgiExchange(call)
        try:
            await self._application(_scope(call), exchange.receive, exchange.send)
        except Exception:
            _log.exception("%r failed", call.target[:200])
        if not call.answered:
            exchange.fail()

    async def _live(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._application(scope, self._inbox.get, self._outbox.put)
        except Exception as error:
            await self._outbox.put({"type": "failed", "message": repr(error)})

    async def _tell(self, what: str) -> None:
        await self._inbox.put({"type": what})
        reply = await self._outbox.get()
        if reply["type"] != f"{what}.complete":
            raise RuntimeError(f"{what}: {reply.get('message', '')}")


class _AsgiExchange:
    """``receive`` and ``send`` of one request."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._body_read = False
        self._left = asyncio.Event()
        self._status = 500
        self._lines = b""
        call.on_lost = self._left.set

    async def receive(self) -> Message:
        """The body; after it, that the client has left, once it has."""
        if not self._body_read:
            self._body_read = True
            return {"type": "http.request", "body": bytes(self._call.body), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on."""
        call = self._call
        if message["type"] == "http.response.start":
            self._status, self._lines = message["status"], _lines(message.get("headers", ()))
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not call.started:
            if not more:
                call.answer(self._status, self._lines, body)
                self._left.set()
                return
            call.start(self._status, self._lines)
        if more:
            waiting = call.write(body) if body else None
            if waiting is not None:
                await waiting
        else:
            call.end(body)
            self._left.set()

    def fail(self) -> None:
        """The application has ended without a whole answer."""
        call = self._call
        if call.started:
            call.abort()
            return
        error = InternalError("The gateway made a mistake; its log says more.")
        call.answer(error.status, error_lines(error), error.body())


def _scope(call: Call) -> Message:
    raw_path, _, query = call.target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        # RFC 9110 §9.3.2: as GET in everything but the body, which the call leaves out.
        "method": "GET" if call.method == b"HEAD" else call.method.decode("ascii"),
        "scheme": _scheme(call),
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": list(call.headers.items()),
        "client": call.peer,
        "server": call.own,
        "state": {},
    }


def _scheme(call: Call) -> str:
    """As the proxy before us says, where there is one: cookies are then marked ``Secure``.

    Whoever makes it up spoils nothing but the answer to themselves.
    """
    told = call.headers.get(b"x-forwarded-proto", b"").rpartition(b",")[2].strip().lower()
    return "https" if told == b"https" else "http"


def _lines(headers: Any) -> bytes:
    """Header lines. Raises ValueError for a value that would end its line."""
    lines: list[bytes] = []
    for name, value in headers:
        if not _FORBIDDEN.isdisjoint(value) or not _FORBIDDEN.isdisjoint(name):
            raise ValueError(f"the header {name!r} holds the end of a line")
        if name.lower() not in (b"content-length", b"transfer-encoding", b"connection"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)
