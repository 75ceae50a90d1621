"""Records for the ledger's tests, and a look into its database that shares no code with it."""

import sqlite3
from pathlib import Path
from typing import Any

from gateway.ledger.event import Checkpoint, Intent, Record, UsageEvent
from gateway.ledger.wal import WriteAheadLog
from gateway.prices import PriceSchedule, from_contract
from gateway.wire.usage import Usage

NOW_US = 1_795_168_800_000_000  # 2026-11-20T10:00:00Z
PRICES: PriceSchedule = from_contract(
    contract_id="T",
    provider="openai",
    model="large",
    currency="USD",
    per_mtok={"input": "2.5", "cached_input": "1.25", "output": "10"},
)
PRICE = PRICES.prices[0]


def identity(request_id: str, attempt: int = 1) -> dict[str, Any]:
    """The fields that an intent and its event share."""
    return {
        "event_id": f"{request_id}/{attempt}",
        "request_id": request_id,
        "attempt": attempt,
        "ts_us": NOW_US,
        "tenant_id": "acme",
        "project_id": "default",
        "key_id": "key-1",
        "policy_version": "abcdef012345",
        "route": "chat",
        "decision": "hard",
        "provider": "openai",
        "model_requested": "auto",
        "model_served": "large",
        "price_id": PRICE.price_id,
        "baseline_price_id": PRICE.price_id,
    }


def intent(request_id: str, attempt: int = 1, **changes: Any) -> Intent:
    """An attempt about to be made: 100 prompt tokens, a cent held."""
    fields = {**identity(request_id, attempt), "prompt_tokens": 100, "held_pico": 10**10}
    return Intent(**(fields | changes))


def final(request_id: str, attempt: int = 1, **changes: Any) -> UsageEvent:
    """A settled attempt of 100 and 20 tokens, correctly priced."""
    usage = changes.get("usage", Usage(prompt_tokens=100, completion_tokens=20))
    cost = PRICE.cost_pico(usage)
    fields = {
        **identity(request_id, attempt),
        "recorded_us": NOW_US + 1_000_000,
        "usage": usage,
        "list_pico": cost,
        "cost_pico": cost,
        "charge_pico": cost + cost // 10,
        "baseline_pico": 2 * cost,
        "status": 200,
        "duration_us": 1_000_000,
    }
    return UsageEvent(**(fields | changes))


def append(log: WriteAheadLog, record: Record) -> None:
    """Append a record of any kind."""
    match record:
        case Intent():
            log.append_intent(record)
        case Checkpoint():
            log.append_checkpoint(record.event_id, record.completion_tokens, record.text_bytes)
        case UsageEvent():
            log.append_final(record)


def query(path: Path, question: str) -> list[tuple[Any, ...]]:
    """What the database file says, asked over a plain connection."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()
