"""What the admin application needs, and the seams it needs it through.

Built by the composition root; tests build their own. Knows no HTTP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.policy.snapshot import Policy
from gateway.stores.keys import KeyStore
from gateway.telemetry import Metrics

LINKS_MAX = 1_000  # one-time login links open at a time
SESSIONS_ENDED_MAX = 10_000  # signed-out sessions remembered until they would have expired
SESSION_SECONDS = 8 * 3_600
LINK_SECONDS = 15 * 60
BODY_BYTES_MAX = 65_536
RECENT_EVENTS = 50
MONTHS_SHOWN = 12


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over one group of requests in one month. Money in pico-USD."""

    key: str = ""  # the tenant, model, route or day; empty for a total
    provider: str = ""  # of a model
    requests: int = 0
    errors: int = 0  # answered with status 400 or above
    prompt_tokens: int = 0
    cached_tokens: int = 0  # part of prompt_tokens
    completion_tokens: int = 0
    cost_pico: int = 0  # owed to providers
    charge_pico: int = 0  # charged to the tenant
    saved_cache_pico: int = 0  # baseline less cost of answers from our caches
    saved_routing_pico: int = 0  # baseline less cost of all other answers; may be negative
    overhead_pico: int = 0  # own cost of deciding, not yet taken off the savings
    cache_hits: int = 0
    small: int = 0  # answered by the small model
    unpriced: int = 0
    estimated: int = 0  # settled from a checkpoint or a reservation, not by the provider's count

    @property
    def saved_pico(self) -> int:
        """Net: what deciding itself cost is taken off."""
        return self.saved_cache_pico + self.saved_routing_pico - self.overhead_pico


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """One booked attempt, as the pages show it."""

    event_id: str
    request_id: str
    attempt: int
    ts_us: int
    tenant: str
    project: str
    key_id: str
    route: str
    decision: str
    reason: str
    difficulty: float | None
    policy_version: str
    cache_status: str
    similarity: float | None
    provider: str
    model_requested: str
    model_served: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    usage_source: str
    price_id: str | None
    cost_pico: int | None
    charge_pico: int | None
    baseline_pico: int | None
    overhead_pico: int
    status: int
    error_type: str | None
    duration_us: int
    ttft_us: int | None
    state: str
    superseded: bool


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """How far the ledger has come."""

    as_of_us: int  # everything that ended before this moment is booked
    waiting_bytes: int  # of the write-ahead log, not yet booked


class Reports(Protocol):
    """Questions to the ledger. ``period`` is a UTC month, ``2026-11``; ``tenant`` None means all.

    Called from worker threads.
    """

    def by_tenant(self, period: str, tenant: str | None = None) -> Sequence[Figures]:
        """One row per tenant, dearest first."""

    def by_model(self, period: str, tenant: str | None) -> Sequence[Figures]:
        """One row per provider and model, dearest first."""

    def by_route(self, period: str, tenant: str | None) -> Sequence[Figures]:
        """One row per route, dearest first."""

    def by_day(self, period: str, tenant: str | None) -> Sequence[Figures]:
        """One row per UTC day that has requests, ``2026-11-21``, oldest first."""

    def events(self, period: str, tenant: str | None, limit: int) -> Sequence[EventRow]:
        """The newest attempts first."""

    def request(self, request_id: str) -> Sequence[EventRow]:
        """The attempts of one request, first to last; empty where it is unknown."""

    def completeness(self) -> Completeness:
        """How much of the traffic the answers above contain."""


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """A budget in its running period. Pico-USD."""

    name: str
    limit_pico: int
    spent_pico: int
    reserved_pico: int
    period: str
    enforce: str  # hard or soft
    resets_us: int


class SwitchState(msgspec.Struct, frozen=True, kw_only=True):
    """One switch an operator can throw without editing a policy."""

    name: str
    on: bool
    until_us: int | None = None  # None: until it is thrown again
    meaning: str = ""


class Switches(Protocol):
    """The switches of this gateway."""

    def states(self) -> Sequence[SwitchState]:
        """All of them."""

    def throw(self, name: str, on: bool, until_us: int | None) -> SwitchState:
        """Throw one. Raises KeyError where there is none of that name."""


class ReloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the last attempt to load the policy files came to."""

    version: str  # in force
    successful: bool
    loaded_us: int  # when the version in force was swapped in
    tried_us: int
    problems: tuple[str, ...] = ()  # of the last attempt: "routing.yaml:12:5: …"


class Policies(Protocol):
    """The policy in force and its history. ``reload`` and ``rollback`` run in worker threads."""

    @property
    def current(self) -> Policy:
        """The policy in force."""

    def status(self) -> ReloadStatus:
        """The last attempt to load."""

    def versions(self) -> Sequence[str]:
        """Versions that can be rolled back to, newest first."""

    def reload(self) -> ReloadStatus:
        """Load the files again. Raises PolicyError and keeps the old policy if they are wrong."""

    def rollback(self, version: str | None) -> ReloadStatus:
        """Put an earlier version in force, the last but one by default. KeyError: unknown."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a health question; ``checks`` names each part and its state."""

    ok: bool
    checks: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminServices:
    """Everything behind the admin port."""

    keys: KeyStore
    reports: Reports
    policies: Policies
    switches: Switches
    metrics: Metrics
    budgets: Callable[[str], Sequence[BudgetState]]  # of one tenant
    purge: Callable[[str | None], int]  # drops cached answers of one tenant or all; how many
    live: Callable[[], Probe]
    ready: Callable[[], Probe]
    started: Callable[[], Probe]
    stats: Callable[[], Mapping[str, object]]
    now_us: Callable[[], int]
    cookie_secret: bytes  # 32 bytes; sessions end when it changes
    environment: str = ""  # shown on each page, such as "staging"
