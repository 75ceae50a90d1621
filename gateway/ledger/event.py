"""What the ledger books: the intent before an upstream is called, and the event after it.

Both are records of the write-ahead log, as msgpack arrays in the order of their fields: a field
may be added with a default at the very end of ``Intent``, ``Checkpoint``, ``UsageEvent`` or
``Refused``; none may move, go or change its meaning. Knows no file, no database, no HTTP.
"""

from typing import Any, Literal

import msgspec

from gateway.money import scale_half_even
from gateway.prices import Price
from gateway.wire.usage import Usage

Decision = Literal["easy", "hard", "pinned", "fallback", "downgraded", "cached", "refused"]
# possible: it was sent and failed without an answer, so nobody but the provider knows the cost
State = Literal["final", "estimated", "interrupted", "possible"]
CacheStatus = Literal["miss", "exact", "semantic", "bypass"]

# What one request can plausibly amount to. A provider that reports more is lying or broken, and
# must not be able to overflow the books: 10,000 USD, and a million million tokens.
EVENT_PICO_MAX = 10**16
EVENT_TOKENS_MAX = 10**12
IMPLAUSIBLE = "implausible_usage"  # the error of an event beyond them


class Identity(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Who asked for what, and why it went there. Add no field: positions in the log would shift."""

    event_id: str  # request_id + "/" + attempt: the idempotency key, minted by us
    tags: dict[str, str] = {}
    request_id: str
    attempt: int
    ts_us: int  # when the request began, UTC; decides its price and its billing period
    end_user: str | None = None
    client_request_id: str | None = None
    reason: str = ""
    difficulty: float | None = None
    # The fields below depend on policy and key only: many events share them.
    tenant_id: str
    project_id: str
    key_id: str
    policy_version: str
    route: str
    decision: Decision
    provider: str
    model_requested: str
    model_served: str
    price_id: str | None  # None: unpriced; shown as such, never zero
    baseline_price_id: str | None = None


class Intent(Identity, frozen=True, kw_only=True, gc=False, tag="intent"):
    """Written before an upstream is called: enough to settle the attempt if we die during it."""

    prompt_tokens: int  # the estimate made before the call
    held_pico: int  # this attempt's part of the reservation
    markup_ppm: int = 0  # of cost, for the charge of an interrupted attempt


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="checkpoint"):
    """How far a running answer has come."""

    event_id: str
    completion_tokens: int
    text_bytes: int = 0


class UsageEvent(Identity, frozen=True, kw_only=True, gc=False, tag="final"):
    """One upstream attempt, cached answer or refusal, as booked. Never changed afterwards."""

    state: State = "final"
    cache_status: CacheStatus = "miss"
    status: int  # HTTP status the attempt ended with
    error_type: str | None = None
    superseded: bool = False  # a later attempt of the same request took over
    # From here on what this event alone has.
    recorded_us: int
    cache_ref: str | None = None
    similarity: float | None = None
    upstream_request_id: str | None = None
    list_pico: int | None = None  # at public list price
    cost_pico: int | None = None  # what we pay; None: unpriced
    charge_pico: int | None = None  # what the tenant pays
    baseline_pico: int | None = None  # the same tokens at the baseline model
    overhead_pico: int = 0  # own cost of deciding (embedding, judge): lowers the savings
    duration_us: int  # of this attempt
    ttft_us: int | None = None
    usage: Usage
    # Pending: what a possible attempt costs at most, where it is not charged.
    possible_cost_pico: int = 0
    possible_charge_pico: int = 0
    request_us: int | None = None  # of the whole request, up to the end of its last attempt


class Refused(msgspec.Struct, kw_only=True, array_like=True, tag="refused"):
    """Requests of a tenant that were turned away before any target was asked: they cost nothing."""

    ts_us: int  # when the first of them came
    tenant_id: str
    project_id: str
    key_id: str
    reason: str  # the error's code
    status: int
    requests: int = 1

    @property
    def kind(self) -> tuple[str, str, str, str, int]:
        """What is counted together."""
        return self.tenant_id, self.project_id, self.key_id, self.reason, self.status


Record = Intent | Checkpoint | UsageEvent | Refused


def named(record: Record) -> dict[str, Any]:
    """A record's fields by name, with its kind as ``type``: for people, not for the log."""
    return {"type": record.__struct_config__.tag, **msgspec.structs.asdict(record)}


def plausible(event: UsageEvent) -> UsageEvent:
    """The event itself, or, where its amounts cannot be true, the event without them.

    Such an event is booked as unpriced and ``estimated`` with the error ``implausible_usage``, so
    that it is seen and questioned, and neither stops nor distorts the books.
    """
    usage = event.usage
    if (
        0 <= usage.prompt_tokens <= EVENT_TOKENS_MAX
        and 0 <= usage.completion_tokens <= EVENT_TOKENS_MAX
        and 0 <= usage.compute_us <= EVENT_TOKENS_MAX
        and 0 <= usage.web_searches <= EVENT_TOKENS_MAX
        and -EVENT_PICO_MAX <= (event.list_pico or 0) <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= (event.cost_pico or 0) <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= (event.charge_pico or 0) <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= (event.baseline_pico or 0) <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= event.overhead_pico <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= event.possible_cost_pico <= EVENT_PICO_MAX
        and -EVENT_PICO_MAX <= event.possible_charge_pico <= EVENT_PICO_MAX
    ):
        return event
    return msgspec.structs.replace(
        event,
        state="estimated",
        usage=Usage(source="none"),
        list_pico=None,
        cost_pico=None,
        charge_pico=None,
        baseline_pico=None,
        overhead_pico=0,
        possible_cost_pico=0,
        possible_charge_pico=0,
        error_type=IMPLAUSIBLE,
    )


def gross_saved_pico(event: UsageEvent) -> int | None:
    """Baseline minus cost, before the cost of deciding; None where one of them is not priced.

    A superseded attempt saves nothing: what it cost is a loss, whatever its baseline. A possible
    cost is neither a saving nor a loss.
    """
    if event.cost_pico is None:
        return None
    if event.state == "possible":
        return 0
    if event.superseded:
        return -event.cost_pico
    return None if event.baseline_pico is None else event.baseline_pico - event.cost_pico


def unpriced(event: UsageEvent) -> bool:
    """Whether something was consumed whose cost is not known."""
    usage = event.usage
    return event.cost_pico is None and (
        event.state != "final" or usage.prompt_tokens + usage.completion_tokens > 0
    )


def interrupted(
    intent: Intent,
    completion_tokens: int | None,
    *,
    price: Price | None,
    baseline: Price | None,
    recorded_us: int,
) -> UsageEvent:
    """What is booked for an attempt whose process died during it.

    With a checkpoint its tokens are priced (``interrupted``); without one, or where the price is
    not in the price book, the reservation is what it may have cost (``estimated``). An attempt at
    an unpriced model stays unpriced.
    """
    usage = Usage(source="none")
    state: State = "estimated"
    cost = intent.held_pico if intent.price_id is not None else None
    if completion_tokens is not None and (price is not None or intent.price_id is None):
        usage = Usage(
            prompt_tokens=intent.prompt_tokens,
            completion_tokens=completion_tokens,
            source="partial_stream",
        )
        state = "interrupted"
        cost = price.cost_pico(usage) if price is not None else None
    identity = {name: getattr(intent, name) for name in Identity.__struct_fields__}
    charge = None if cost is None else cost + scale_half_even(cost, intent.markup_ppm, 10**6)
    return plausible(
        UsageEvent(
            **identity,
            state=state,
            recorded_us=recorded_us,
            usage=usage,
            list_pico=cost,
            cost_pico=cost,
            charge_pico=charge,
            baseline_pico=_baseline_pico(usage, cost, baseline),
            status=500,
            error_type="interrupted",
            duration_us=0,
        )
    )


def _baseline_pico(usage: Usage, cost: int | None, baseline: Price | None) -> int | None:
    """The counterfactual of an interrupted attempt. Unknown tokens save and lose nothing."""
    if usage.source == "none":
        return cost
    return None if baseline is None else baseline.cost_pico(usage)
