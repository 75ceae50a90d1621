"""The two lists of stages: closing runs once whatever happens, and outside any cancellation."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import pipeline
from gateway.errors import ClientClosed, GatewayError, InternalError, Overloaded, RateLimited
from gateway.exchange import Exchange
from gateway.respond import Responder
from gateway.services import Services
from gateway.telemetry import Metrics
from tests.gateway.exchanges import exchange

FirstStage = Callable[[Exchange, Services], Awaitable[None] | None]


class Call:
    """A request's connection as a responder sees it, and a client that can leave."""

    def __init__(self) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.sent: list[tuple[str, int, bytes, bytes]] = []  # (what, status, lines, body)
        self.fails = False

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        if self.fails:
            raise RuntimeError("the server gave up")
        self.sent.append(("answer", status, lines, body))

    def start(self, status: int, lines: bytes) -> None:
        self.sent.append(("start", status, lines, b""))

    def write(self, data: bytes) -> None:
        self.sent.append(("write", 0, b"", data))

    def end(self, data: bytes) -> None:
        self.sent.append(("end", 0, b"", data))

    def leave(self) -> None:
        left, self.on_lost = self.on_lost, None
        assert left is not None, "nobody is watching"
        left()


class World:
    """One request whose first stage is the test's; everything after it is real."""

    def __init__(self, stage: FirstStage, durable: Awaitable[None] | None = None) -> None:
        self.stage = stage
        self.call = Call()
        self.forgotten: list[Responder] = []
        self.exchange = exchange()
        self.responder = Responder(self.call, self.forgotten.append)
        self.exchange.client = self.responder
        self.settled: list[int] = []
        self.exchange.rate = cast(Any, SimpleNamespace(settle=self.settled.append, allowance=None))
        self.metrics = Metrics()
        clock = iter(range(1000))
        self.services = cast(
            Services,
            SimpleNamespace(
                metrics=self.metrics,
                monotonic=lambda: 100.0 + next(clock),
                ledger=SimpleNamespace(durable=lambda: durable, refuse=lambda refused: None),
            ),
        )

    async def run(self) -> GatewayError | None:
        rest = pipeline.run(self.exchange, self.services, self.release, (self.stage,))
        if rest is not None:
            await rest
        return self.exchange.error

    def release(self, made: Exchange) -> None:
        made.rate = None  # its allowance is not what these tests are about
        self.responder.release(made)

    @property
    def recorded(self) -> int:
        return sum(
            self.metrics.requests_total.value(("chat", "none", outcome))
            for outcome in ("internal_error", "client_closed_request", "overloaded", "ok",
                            "rate_limit_exceeded")
        )  # fmt: skip

    def closed_once(self) -> bool:
        return self.settled == [0] and self.recorded == 1 and self.responder in self.forgotten


async def wait_for_ever(exchange: Exchange, services: Services) -> None:
    await asyncio.Event().wait()


async def test_a_client_that_leaves_ends_the_forward_list_and_closing_is_not_cancelled() -> None:
    """Otherwise a disconnect could leave an answer unbooked."""
    world = World(wait_for_ever)
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    world.call.leave()
    assert isinstance(await task, ClientClosed)
    assert task.cancelling() == 0, "the cancellation ended at the border"
    assert world.closed_once()
    assert world.call.sent == [], "nobody is there to be told"


async def test_the_drain_deadline_ends_the_forward_list_with_503() -> None:
    """A client is told to come back in a second in place of losing its connection."""
    world = World(wait_for_ever)
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await task, Overloaded)
    assert world.closed_once()
    ((_, status, lines, _),) = world.call.sent
    assert status == 503
    assert b"retry-after: 1\r\n" in lines


async def test_stopping_ends_a_request_with_503_even_before_it_began_to_wait() -> None:
    """A request that has just begun is closed once and answered, like one that waits."""
    for begin in (True, False):
        world = World(wait_for_ever)
        task = asyncio.create_task(world.run())
        if begin:
            await asyncio.sleep(0)
        world.responder.stop()
        assert isinstance(await task, Overloaded)
        assert world.closed_once()
        assert world.call.sent[0][1] == 503


async def test_an_answer_that_the_drain_deadline_keeps_from_the_disk_is_not_released() -> None:
    """No client may hold an answer that the books do not have."""

    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    on_disk = asyncio.get_running_loop().create_future()
    world = World(refuse, on_disk)
    task = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    assert world.settled == [0], "booked before anything is released"
    assert world.call.sent == []
    task.cancel()
    assert isinstance(await task, Overloaded)
    assert world.closed_once()


async def test_a_request_that_waits_for_nothing_is_answered_without_a_task() -> None:
    """A refusal is answered and closed at once, so a flood of them costs little."""

    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    world = World(refuse)
    assert pipeline.run(world.exchange, world.services, world.release, (world.stage,)) is None
    assert world.call.sent[0][1] == 429
    assert world.closed_once()


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing_and_closing_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The secret in the exception stays in the log of the operator."""

    def fail(exchange: Exchange, services: Services) -> None:
        raise ZeroDivisionError("a secret: sk-123")

    world = World(fail)
    assert isinstance(await world.run(), InternalError)
    assert world.closed_once()
    assert b"sk-123" not in world.call.sent[-1][3]
    assert "ZeroDivisionError failed in fail" in caplog.text


async def test_a_list_that_ends_without_an_answer_is_our_mistake() -> None:
    """The client gets an internal error and never an endless wait."""
    world = World(lambda exchange, services: None)
    assert isinstance(await world.run(), InternalError)
    assert world.closed_once()


async def test_a_client_gone_before_the_first_stage_still_ends_in_closing() -> None:
    """Its reservations are given back, though no stage ran."""
    world = World(wait_for_ever)
    world.call.leave()
    assert isinstance(await world.run(), ClientClosed)
    assert world.closed_once()


async def test_a_failing_send_neither_raises_nor_skips_what_follows() -> None:
    """A broken connection must not keep the rest from being booked and closed."""

    def refuse(exchange: Exchange, services: Services) -> None:
        raise RateLimited("slow down")

    world = World(refuse)
    world.call.fails = True
    assert isinstance(await world.run(), RateLimited)
    assert world.closed_once()


async def test_a_broken_stream_ends_with_an_error_event_and_without_done() -> None:
    """An answer that fails half way can never be taken for a whole one."""

    async def break_off(exchange: Exchange, services: Services) -> None:
        exchange.client.start(exchange, 200, b"text/event-stream")
        exchange.client.write(b"data: {}\n\n")
        exchange.tail = b"data: [DONE]\n\n"
        raise RateLimited("slow down")

    world = World(break_off)
    world.exchange.rate = None
    await world.run()
    body = b"".join(data for _, _, _, data in world.call.sent)
    assert body.startswith(b'data: {}\n\ndata: {"error":')
    assert b"[DONE]" not in body
    assert [what for what, _, _, _ in world.call.sent] == ["start", "write", "end"]


async def test_writing_to_a_client_that_has_left_raises_instead_of_going_on_for_ever() -> None:
    """A provider's stream ends here, so tokens that have no reader are not paid for."""
    world = World(wait_for_ever)
    world.call.leave()
    with pytest.raises(ClientClosed):
        world.responder.write(b"data")
