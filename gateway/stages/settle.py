"""settle: true usage becomes money; what was held and not used is released.

The final record is in the log before the answer's last bytes leave. Never raises for a request
that is already answered: what cannot be booked is told to the client as an error.
"""

from gateway.booking import attempt_event, cache_event, charge_pico
from gateway.exchange import Exchange
from gateway.ledger.event import IMPLAUSIBLE, UsageEvent, plausible
from gateway.services import Services


def settle(exchange: Exchange, services: Services) -> None:
    """Set ``usage``, ``cost_pico`` and ``saved_pico``. Raises MeteringUnavailable."""
    event: UsageEvent | None = None
    try:
        if exchange.hit is not None:
            event = cache_event(exchange, recorded_us=services.now_us(), now=services.monotonic())
        elif exchange.attempts:
            event = attempt_event(
                exchange, exchange.attempts[-1], recorded_us=services.now_us(), superseded=False
            )
        if event is not None:
            event = plausible(event)  # before anything counts what the ledger would not book
            services.ledger.settle(event)
            exchange.usage = event.usage
            exchange.cost_pico = event.cost_pico
            if event.baseline_pico is not None and event.cost_pico is not None:
                exchange.saved_pico = event.baseline_pico - event.cost_pico - event.overhead_pico
    finally:
        _release(exchange, services, event)


def _release(exchange: Exchange, services: Services, event: UsageEvent | None) -> None:
    """End both reservations, of rate and of money, at what was used."""
    if exchange.rate is not None:
        usage = exchange.usage
        exchange.rate.settle(usage.prompt_tokens + usage.completion_tokens if usage else 0)
    if exchange.hold is not None:
        charge = 0
        if event is not None and event.error_type == IMPLAUSIBLE:
            # A count that nobody can believe spends what was held for it, no more and no less.
            charge = exchange.hold.amount_pico
        elif event is not None:
            charge = event.charge_pico or 0
            if len(exchange.attempts) > 1:
                charge += _failed_pico(exchange, event.recorded_us)
        services.ledger.budgets.settle(exchange.hold, charge, exchange.started_us)


def _failed_pico(exchange: Exchange, recorded_us: int) -> int:
    """What the attempts before the last were charged; of an absurd one, what was held for it."""
    total = 0
    for attempt in exchange.attempts[:-1]:
        if attempt.usage is None:
            continue
        event = plausible(
            attempt_event(exchange, attempt, recorded_us=recorded_us, superseded=True)
        )
        absurd = event.error_type == IMPLAUSIBLE
        charge = charge_pico(exchange, attempt.held_pico) if absurd else event.charge_pico
        total += charge or 0
    return total
