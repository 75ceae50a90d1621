"""settle: true usage becomes money; what was held and not used is released.

The final record is in the log before the answer's last bytes leave. Never raises for a request
that is already answered: what cannot be booked is told to the client as an error.
"""

from gateway.booking import attempt_event, cache_event
from gateway.exchange import Exchange
from gateway.ledger.event import Refused, UsageEvent, plausible
from gateway.services import Services


def settle(exchange: Exchange, services: Services) -> None:
    """Set ``usage``, ``cost_pico``, ``charge_pico`` and ``saved_pico``.

    Raises MeteringUnavailable.
    """
    event: UsageEvent | None = None
    if exchange.hit is None and not exchange.attempts:
        refuse(exchange, services)
    try:
        if exchange.hit is not None:
            event = plausible(
                cache_event(exchange, recorded_us=services.now_us(), now=services.monotonic())
            )
        elif exchange.attempts:
            event = attempt_event(
                exchange, exchange.attempts[-1], recorded_us=services.now_us(), superseded=False
            )
        if event is not None:
            services.ledger.settle(event)
            exchange.usage = event.usage
            exchange.cost_pico = event.cost_pico
            charge = exchange.charge_pico = event.charge_pico
            if charge is not None and len(exchange.attempts) > 1:
                exchange.charge_pico = charge + _failed_pico(exchange, event.recorded_us)[0]
            if event.baseline_pico is not None and event.cost_pico is not None:
                exchange.saved_pico = event.baseline_pico - event.cost_pico - event.overhead_pico
    finally:
        _release(exchange, services, event)


def refuse(exchange: Exchange, services: Services) -> None:
    """Count a request that was turned away before any target was asked. Without a key: nobody's."""
    error = exchange.error
    if error is None or not hasattr(exchange, "tenant"):
        return
    services.ledger.refuse(
        Refused(
            ts_us=exchange.started_us,
            tenant_id=exchange.tenant.id,
            project_id=exchange.key.project_id,
            key_id=exchange.key.id,
            reason=error.code or error.type,
            status=error.status,
        )
    )


def _release(exchange: Exchange, services: Services, event: UsageEvent | None) -> None:
    """End both reservations, of rate and of money, at what was used."""
    if exchange.rate is not None:
        usage = exchange.usage
        if exchange.attempts and exchange.attempts[-1].unknown == "charged":
            tokens = exchange.rate.tokens
        else:
            tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
        exchange.rate.settle(tokens)
    if exchange.hold is not None:
        charge = pending = 0
        if event is not None:
            charge, pending = event.charge_pico or 0, event.possible_charge_pico
            if len(exchange.attempts) > 1:
                failed_charge, failed_pending = _failed_pico(exchange, event.recorded_us)
                charge, pending = charge + failed_charge, pending + failed_pending
        budgets, started_us = services.ledger.budgets, exchange.started_us
        budgets.settle(exchange.hold, charge, started_us, pending)
        for hold in exchange.more_holds:
            budgets.settle(hold, 0, started_us)


def _failed_pico(exchange: Exchange, recorded_us: int) -> tuple[int, int]:
    """(charged, pending) of the attempts before the last."""
    total = pending = 0
    for attempt in exchange.attempts[:-1]:
        if attempt.usage is None and attempt.unknown is None:
            continue
        event = attempt_event(exchange, attempt, recorded_us=recorded_us, superseded=True)
        total += event.charge_pico or 0
        pending += event.possible_charge_pico
    return total, pending
