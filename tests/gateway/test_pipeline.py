"""The two lists of stages: closing runs once whatever happens, and outside any cancellation."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import pipeline
from gateway.errors import ClientClosed, GatewayError, InternalError, Overloaded, RateLimited
from gateway.exchange import Exchange
from gateway.respond import Message, Responder
from gateway.services import Services
from gateway.telemetry import Metrics
from tests.gateway.exchanges import exchange

FirstStage = Callable[[Exchange, Services], Awaitable[None] | None]


class Connection:
    """What ``server.py`` lets a responder know, and a client that can leave."""

    on_lost: Callable[[], None] | None = None

    def leave(self) -> None:
        left, self.on_lost = self.on_lost, None
        assert left is not None, "nobody is watching"
        left()


class World:
    """One request whose first stage is the test's; everything after it is real."""

    def __init__(self, stage: FirstStage) -> None:
        self.stage = stage
        self.connection = Connection()
        self.sent: list[Message] = []
        self.send_waits: asyncio.Event | None = None
        self.send_fails = False
        self.exchange = exchange()
        self.responder = Responder(self.connection, self.send)
        self.exchange.client = self.responder
        self.settled: list[int] = []
        self.exchange.rate = cast(Any, SimpleNamespace(settle=self.settled.append, allowance=None))
        self.metrics = Metrics()
        clock = iter(range(1000))

        async def durable() -> None:
            """Nothing is booked here, so nothing has to reach a disk."""

        self.services = cast(
            Services,
            SimpleNamespace(
                metrics=self.metrics,
                monotonic=lambda: 100.0 + next(clock),
                ledger=SimpleNamespace(durable=durable),
            ),
        )

    async def send(self, message: Message) -> None:
        if self.send_waits is not None:
            await self.send_waits.wait()
        if self.send_fails:
            raise RuntimeError("the server gave up")
        self.sent.append(message)

    async def run(self) -> GatewayError | None:
        await pipeline.run(self.exchange, self.services, self.release, (self.stage,))
        return self.exchange.error

    async def release(self, made: Exchange) -> None:
        made.rate = None  # its allowance is not what these tests are about
        await self.responder.release(made)

    @property
    def recorded(self) -> int:
        return sum(
            self.metrics.requests_total.value(("chat", "none", outcome))
            for outcome in ("internal_error", "client_closed_request", "overloaded", "ok",
                            "rate_limit_exceeded")
        )  # fmt: skip

    def closed_once(self) -> bool:
        return self.settled == [0] and self.recorded == 1


async def wait_for_ever(exchange: Exchange, services: Services) -> None:
    await asyncio.Event().wait()


async def test_a_client_that_leaves_ends_the_forward_list_and_closing_is_not_cancelled() -> None:
    world = World(wait_for_ever)
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    world.connection.leave()
    assert isinstance(await task, ClientClosed)
    assert task.cancelling() == 0, "the cancellation ended at the border"
    assert world.closed_once()
    assert world.sent == [], "nobody is there to be told"


async def test_the_drain_deadline_ends_the_forward_list_with_503() -> None:
    world = World(wait_for_ever)
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await task, Overloaded)
    assert world.closed_once()
    assert world.sent[0]["status"] == 503
    assert (b"retry-after", b"1") in world.sent[0]["headers"]


async def test_the_drain_deadline_during_the_last_bytes_still_stores_and_records() -> None:
    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    world = World(refuse)
    world.send_waits = asyncio.Event()
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    assert world.settled == [0], "booked before anything is released"
    task.cancel()
    assert isinstance(await task, RateLimited)
    assert world.closed_once()


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing_and_closing_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(exchange: Exchange, services: Services) -> None:
        raise ZeroDivisionError("a secret: sk-123")

    world = World(fail)
    assert isinstance(await world.run(), InternalError)
    assert world.closed_once()
    assert b"sk-123" not in world.sent[-1]["body"]
    assert "ZeroDivisionError failed in fail" in caplog.text


async def test_a_list_that_ends_without_an_answer_is_our_mistake() -> None:
    world = World(lambda exchange, services: None)
    assert isinstance(await world.run(), InternalError)
    assert world.closed_once()


async def test_a_client_gone_before_the_first_stage_still_ends_in_closing() -> None:
    world = World(wait_for_ever)
    world.connection.leave()
    assert isinstance(await world.run(), ClientClosed)
    assert world.closed_once()


async def test_a_failing_send_neither_raises_nor_skips_what_follows() -> None:
    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    world = World(refuse)
    world.send_fails = True
    assert isinstance(await world.run(), RateLimited)
    assert world.closed_once()


async def test_a_responder_done_late_does_not_blind_the_next_request_of_its_connection() -> None:
    """The next request's responder may be watching before this one's closing stages end."""

    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    world = World(refuse)
    world.exchange.rate = None
    following = Responder(world.connection, world.send)
    await world.run()
    world.responder.close()
    world.connection.leave()
    assert following.gone
    assert not world.responder.gone


async def test_a_broken_stream_ends_with_an_error_event_and_without_done() -> None:
    async def break_off(exchange: Exchange, services: Services) -> None:
        await exchange.client.start(exchange, 200, b"text/event-stream")
        await exchange.client.write(b"data: {}\n\n")
        exchange.tail = b"data: [DONE]\n\n"
        raise RateLimited("slow down")

    world = World(break_off)
    world.exchange.rate = None
    await world.run()
    body = b"".join(message.get("body", b"") for message in world.sent)
    assert body.startswith(b'data: {}\n\ndata: {"error":')
    assert b"[DONE]" not in body
    assert world.sent[-1]["more_body"] is False
    assert [message["type"] for message in world.sent].count("http.response.start") == 1


async def test_writing_to_a_client_that_has_left_raises_instead_of_going_on_for_ever() -> None:
    world = World(wait_for_ever)
    world.connection.leave()
    with pytest.raises(ClientClosed):
        await world.responder.write(b"data")
