"""The adapter that runs the admin application behind our own server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.asgi import AsgiHandler, Message
from gateway.config import Limits
from gateway.server import Server


class Application:
    """Answers by path, as an ASGI application may."""

    def __init__(self, *, starts: bool = True) -> None:
        self.scopes: list[Message] = []
        self.events: list[str] = []
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.running = self.running_most = 0
        self._starts = starts

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self.scopes.append(scope)
        body = (await receive())["body"]
        path = scope["path"]
        if path == "/raises":
            raise ZeroDivisionError("a secret: sk-123")
        if path == "/injects":
            await start(send, [(b"x-a", b"b\r\nset-cookie: c=d")])
        elif path == "/stream":
            await start(send, [(b"content-type", b"text/csv")])
            for part in (b"a,", b"", b"b"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})
        elif path == "/breaks":
            await start(send, [])
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ZeroDivisionError
        elif path == "/counted" or path == "/livez":
            self.running += 1
            self.running_most = max(self.running_most, self.running)
            await self.go_on.wait()
            self.running -= 1
            await start(send, [])
            await send({"type": "http.response.body", "body": path.encode()})
        elif path == "/waits":
            assert (await receive())["type"] == "http.disconnect"
            self.left.set()
        else:
            await start(send, [(b"content-length", b"%d" % len(body))])
            await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Any, send: Any) -> None:
        while True:
            event = (await receive())["type"]
            self.events.append(event)
            if not self._starts:
                await send({"type": f"{event}.failed", "message": "no"})
                return
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return


async def start(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})


@contextlib.asynccontextmanager
async def serving(
    application: Application, running_max: int = 64
) -> AsyncIterator[httpx.AsyncClient]:
    handler = AsgiHandler(application, running_max)
    await handler.startup()
    server = Server(handler, Limits())
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            yield client
    finally:
        listening.close()
        server.abort()
        await handler.shutdown()


async def test_a_request_arrives_whole_and_its_answer_leaves_whole() -> None:
    """The application sees method, decoded path, query and headers, and starts and stops once."""
    application = Application()
    async with serving(application) as client:
        answer = await client.post("/a%20b?c=d", content=b"hello", headers={"x-e": "f"})
        assert (answer.status_code, answer.content) == (200, b"hello")
        assert answer.headers["content-length"] == "5"
        (scope,) = application.scopes
        assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/a b", b"c=d")
        assert (b"x-e", b"f") in scope["headers"]
        assert scope["server"][1] == client.base_url.port
    assert application.events == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_streamed_answer_arrives_in_parts() -> None:
    """An answer without a length is sent in chunks, and the client puts them together."""
    async with serving(Application()) as client:
        answer = await client.get("/stream")
        assert answer.content == b"a,b"
        assert answer.headers["transfer-encoding"] == "chunked"


async def test_the_answer_to_head_has_no_body() -> None:
    """A body after HEAD would be taken for the next answer on a connection that is kept."""
    async with serving(Application()) as client:
        for _ in range(2):  # a body would be taken for the next answer's head
            answer = await client.request("HEAD", "/", content=b"hello")
            assert (answer.status_code, answer.headers["content-length"]) == (200, "5")
            streamed = await client.request("HEAD", "/stream")
            assert (streamed.status_code, streamed.content) == (200, b"")


@pytest.mark.parametrize("path", ["/raises", "/injects"])
async def test_a_mistake_is_a_500_that_tells_nothing(path: str) -> None:
    """Neither a secret in the exception nor a cookie already set reaches the client."""
    async with serving(Application()) as client:
        answer = await client.get(path)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "sk-123" not in answer.text
        assert "set-cookie" not in answer.headers


async def test_an_answer_that_breaks_half_way_is_never_taken_for_whole() -> None:
    """The client gets a protocol error in place of a page with its end missing."""
    async with serving(Application()) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/breaks")


async def test_a_client_that_leaves_is_told_to_the_application() -> None:
    """Within two seconds the application can stop work that has no reader any more."""
    application = Application()
    async with serving(application) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/waits", timeout=0.1)
        await asyncio.wait_for(application.left.wait(), 2)


async def test_pages_take_turns_and_probes_do_not_wait_for_them() -> None:
    """However many look at pages, few of them run at once; all are answered."""
    application = Application()
    async with serving(application, running_max=2) as client:
        pages = [asyncio.create_task(client.get("/counted")) for _ in range(20)]
        while application.running < 2:  # noqa: ASYNC110 - they come over sockets
            await asyncio.sleep(0.001)
        probe = asyncio.create_task(client.get("/livez"))
        while application.running < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        application.go_on.set()
        answers = await asyncio.gather(*pages, probe)
        assert {answer.status_code for answer in answers} == {200}
    assert application.running_most == 3


async def test_an_application_that_cannot_start_says_so() -> None:
    """A failed start raises the application's own reason and hides no broken admin port."""
    with pytest.raises(RuntimeError, match="no"):
        await AsgiHandler(Application(starts=False)).startup()
