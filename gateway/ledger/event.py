"""What the ledger books: the intent before an upstream is called, and the event after it.

Both are records of the write-ahead log, as self-describing msgpack maps: a field may be added
with a default and must never change its meaning. Knows no file, no database, no HTTP.
"""

from typing import Literal

import msgspec

from gateway.wire.usage import Usage

Decision = Literal["easy", "hard", "pinned", "fallback", "downgraded", "cached", "refused"]
State = Literal["final", "estimated", "interrupted"]
CacheStatus = Literal["miss", "exact", "semantic", "bypass"]

# What one request can plausibly amount to. A provider that reports more is lying or broken, and
# must not be able to overflow the books: 10,000 USD, and a million million tokens.
EVENT_PICO_MAX = 10**16
EVENT_TOKENS_MAX = 10**12


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for what, and why it went where it went."""

    event_id: str  # request_id + "/" + attempt: the idempotency key, minted by us
    request_id: str
    attempt: int
    ts_us: int  # when the request began, UTC; decides its price and its billing period
    tenant_id: str
    project_id: str
    key_id: str
    end_user: str | None = None
    client_request_id: str | None = None
    tags: dict[str, str] = {}
    policy_version: str
    route: str
    decision: Decision
    reason: str = ""
    difficulty: float | None = None
    provider: str
    model_requested: str
    model_served: str
    price_id: str | None  # None: unpriced; shown as such, never zero
    baseline_price_id: str | None = None


class Intent(Identity, frozen=True, kw_only=True, tag="intent"):
    """Written before an upstream is called: enough to settle the attempt if we die during it."""

    prompt_tokens: int  # the estimate made before the call
    held_pico: int  # this attempt's part of the reservation
    markup_ppm: int = 0  # of cost, for the charge of an interrupted attempt


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint"):
    """How far a running answer has come."""

    event_id: str
    completion_tokens: int
    text_bytes: int = 0


class UsageEvent(Identity, frozen=True, kw_only=True, tag="final"):
    """One upstream attempt, cached answer or refusal, as booked. Never changed afterwards."""

    state: State = "final"
    recorded_us: int
    cache_status: CacheStatus = "miss"
    cache_ref: str | None = None
    similarity: float | None = None
    upstream_request_id: str | None = None
    usage: Usage
    list_pico: int | None = None  # at public list price
    cost_pico: int | None = None  # what we pay; None: unpriced
    charge_pico: int | None = None  # what the tenant pays
    baseline_pico: int | None = None  # the same tokens at the baseline model
    overhead_pico: int = 0  # own cost of deciding (embedding, judge): lowers the savings
    status: int  # HTTP status the attempt ended with
    error_type: str | None = None
    duration_us: int
    ttft_us: int | None = None
    superseded: bool = False  # a later attempt of the same request took over


Record = Intent | Checkpoint | UsageEvent
