"""The life of a request: one list of stages forward, one list of stages to close.

The first forward stage that answers or raises ends the forward list. The closing list always
runs, once, and never inside a scope that the client's leaving has cancelled: the cancellation
ends at the border between the two lists. A request that waits for nothing needs no task.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from gateway.errors import ClientClosed, GatewayError, InternalError, Overloaded
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.stages.admit import admit
from gateway.stages.assess import assess
from gateway.stages.authenticate import authenticate
from gateway.stages.enter import enter
from gateway.stages.exact import exact
from gateway.stages.generate import generate
from gateway.stages.plan import plan
from gateway.stages.record import record
from gateway.stages.reserve import reserve
from gateway.stages.resolve import resolve
from gateway.stages.semantic import semantic
from gateway.stages.settle import settle
from gateway.stages.store import store

Stage = Callable[[Exchange, Services], Awaitable[None] | None]
Release = Callable[[Exchange], None]

FORWARD: tuple[Stage, ...] = (
    authenticate,
    enter,
    resolve,
    admit,
    exact,
    assess,
    semantic,
    plan,
    reserve,
    generate,
)
CLOSING: tuple[Stage, ...] = (settle, store, record)

_log = logging.getLogger("tollhouse.pipeline")


def run(
    exchange: Exchange,
    services: Services,
    release: Release,
    forward: Sequence[Stage] = FORWARD,
    start: int = 0,
) -> Coroutine[Any, Any, None] | None:
    """Take one request through every stage, as far as it goes without waiting.

    Returns None when all is done, else the coroutine of the rest. Neither raises;
    ``exchange.error`` tells. release: sends what is left of the answer; called once, between
    settling and storing. start: the position of the first stage that is still to be run.
    """
    waiting = _advance(exchange, services, forward, start)
    if waiting is not None:
        return _go_on(exchange, services, release, forward, waiting)
    return _conclude(exchange, services, release)


def refuse(
    exchange: Exchange, services: Services, release: Release, error: GatewayError
) -> Coroutine[Any, Any, None] | None:
    """Close a request that was refused before its body was read. As ``run``."""
    exchange.error = _bare(error)
    return _conclude(exchange, services, release)


def _conclude(
    exchange: Exchange, services: Services, release: Release
) -> Coroutine[Any, Any, None] | None:
    durable = _settle(exchange, services)
    if durable is not None:
        return _finish(exchange, services, release, durable)
    _close(exchange, services, release)
    return None


async def _go_on(
    exchange: Exchange,
    services: Services,
    release: Release,
    forward: Sequence[Stage],
    waiting: tuple[int, Awaitable[None]] | None,
) -> None:
    """The rest of a request from the first stage on that waits."""
    exchange.client.watch(asyncio.current_task())
    while waiting is not None:
        position, pause = waiting
        try:
            await pause
        except GatewayError as error:
            exchange.error = _bare(error)
            break
        except asyncio.CancelledError:
            exchange.error = _cancelled(exchange)
            break
        except Exception as error:
            exchange.error = _unexpected(error, exchange, forward[position].__name__)
            break
        exchange.marks.append((forward[position].__name__, services.monotonic()))
        if exchange.answered:
            break
        waiting = _advance(exchange, services, forward, position + 1)
    exchange.client.watch(None)
    durable = _settle(exchange, services)
    if durable is not None:
        await _finish(exchange, services, release, durable)
    else:
        _close(exchange, services, release)


def _advance(
    exchange: Exchange, services: Services, forward: Sequence[Stage], position: int
) -> tuple[int, Awaitable[None]] | None:
    """Run stages until one answers, raises or waits; the one that waits, and what it waits for."""
    monotonic, mark = services.monotonic, exchange.marks.append
    stage = forward[position - 1]
    try:
        for stage in forward[position:]:
            waiting = stage(exchange, services)
            if waiting is not None:
                return position, waiting
            mark((stage.__name__, monotonic()))
            if exchange.answered:
                return None
            position += 1
    except GatewayError as error:
        exchange.error = _bare(error)
        return None
    except Exception as error:
        exchange.error = _unexpected(error, exchange, stage.__name__)
        return None
    exchange.error = _unexpected(
        AssertionError("the last stage must answer"), exchange, forward[-1].__name__
    )
    return None


def _settle(exchange: Exchange, services: Services) -> Awaitable[None] | None:
    """Book; what to wait for where the settings ask for power-safe books."""
    try:
        settle(exchange, services)
        return services.ledger.durable()
    except GatewayError as error:
        exchange.error = _bare(error)
    except Exception as error:
        exchange.error = _unexpected(error, exchange, "settle")
    return None


async def _finish(
    exchange: Exchange, services: Services, release: Release, durable: Awaitable[None]
) -> None:
    try:
        await durable
    except GatewayError as error:
        exchange.error = _bare(error)
    except asyncio.CancelledError:
        _uncancel()  # the drain deadline has passed: nothing is released that is not safe
        exchange.error = Overloaded("The gateway is stopping.", retry_after_seconds=1.0)
    except Exception as error:
        exchange.error = _unexpected(error, exchange, "settle")
    _close(exchange, services, release)


def _close(exchange: Exchange, services: Services, release: Release) -> None:
    try:
        release(exchange)
    except Exception as error:
        _unexpected(error, exchange, "release")
    for stage in CLOSING[1:]:
        try:
            stage(exchange, services)
        except Exception as error:
            _unexpected(error, exchange, stage.__name__)


def _cancelled(exchange: Exchange) -> GatewayError:
    """The client left, or the drain deadline has passed. Either way closing begins here."""
    _uncancel()
    if exchange.client.gone:
        return ClientClosed("The client closed the connection.")
    return Overloaded("The gateway is stopping.", retry_after_seconds=1.0)


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


def _bare(error: GatewayError) -> GatewayError:
    """The error without the frames it came through: they hold the exchange, which holds it."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _unexpected(error: Exception, exchange: Exchange, stage: str) -> InternalError:
    _log.error(
        "request %s: %s failed in %s", exchange.request_id, type(error).__name__, stage,
        exc_info=error,
    )  # fmt: skip
    return InternalError("The gateway made a mistake; the request id names it in our log.")
