"""The life of a request: one list of stages forward, one list of stages to close.

The first forward stage that answers or raises ends the forward list. The closing list always
runs, once, and never inside a scope that the client's leaving has cancelled: the cancellation
ends at the border between the two lists.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from gateway.errors import ClientClosed, GatewayError, InternalError, Overloaded
from gateway.exchange import Exchange
from gateway.services import Services
from gateway.stages.admit import admit
from gateway.stages.assess import assess
from gateway.stages.authenticate import authenticate
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

FORWARD: tuple[Stage, ...] = (
    authenticate,
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


async def run(
    exchange: Exchange,
    services: Services,
    release: Callable[[Exchange], Awaitable[None]],
    forward: Sequence[Stage] = FORWARD,
) -> None:
    """Take one request through every stage. Never raises; ``exchange.error`` tells.

    release: sends what is left of the answer; called once, between settling and storing.
    """
    await _forward(exchange, services, forward)
    try:
        settle(exchange, services)
        await services.ledger.durable()  # at once, unless the settings ask for power-safe books
    except GatewayError as error:
        exchange.error = error
    except Exception as error:
        exchange.error = _unexpected(error, exchange, "settle")
    try:
        await release(exchange)
    except asyncio.CancelledError:
        _uncancel()  # the drain deadline has passed: the answer stays unsent, the rest is done
    except Exception as error:
        _unexpected(error, exchange, "release")
    for stage in CLOSING[1:]:
        try:
            stage(exchange, services)
        except Exception as error:
            _unexpected(error, exchange, stage.__name__)


async def _forward(exchange: Exchange, services: Services, forward: Sequence[Stage]) -> None:
    monotonic, marks = services.monotonic, exchange.marks
    stage = forward[0]
    exchange.client.watch(asyncio.current_task())
    try:
        for stage in forward:
            waiting = stage(exchange, services)
            if waiting is not None:
                await waiting
            marks.append((stage.__name__, monotonic()))
            if exchange.answered:
                return
        raise AssertionError("the last stage must answer")
    except GatewayError as error:
        exchange.error = error
    except asyncio.CancelledError:
        exchange.error = _cancelled(exchange)
    except Exception as error:
        exchange.error = _unexpected(error, exchange, stage.__name__)
    finally:
        exchange.client.watch(None)


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


def _unexpected(error: Exception, exchange: Exchange, stage: str) -> InternalError:
    _log.error(
        "request %s: %s failed in %s", exchange.request_id, type(error).__name__, stage,
        exc_info=error,
    )  # fmt: skip
    return InternalError("The gateway made a mistake; the request id names it in our log.")
