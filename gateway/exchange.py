"""``Exchange``: one request and all that is learned about it, from its first byte to its booking.

The one thing that changes while a request runs. Each field has one writer, named beside it; a
field is read only by stages that come later. Knows no socket: ``client`` is a ``Client``.
"""

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.caches.single_flight import Flight
from gateway.errors import GatewayError
from gateway.ledger.budgets import Hold
from gateway.policy.lane import Lane, Way
from gateway.policy.snapshot import Model, Policy, RequestFacts, Route, Scope, Tenant
from gateway.policy.targets import Decision
from gateway.stores.keys import KeyRecord
from gateway.stores.limits import Reservation
from gateway.wire.assemble import replay
from gateway.wire.openai import Endpoint, ParsedRequest
from gateway.wire.usage import Usage
from gateway.wire.verbatim import encode

if TYPE_CHECKING:
    from gateway.caches.semantic.index import Vector

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

_ANSWER_PREFIX: dict[Endpoint, str] = {
    "chat": "chatcmpl-",
    "completions": "cmpl-",
    "embeddings": "",
    "decisions": "",
}  # no other endpoint's answers are stored

CacheStatus = Literal["miss", "hit-exact", "hit-semantic", "bypass"]


class Cancellable(Protocol):
    """A task, or what decides when one is cancelled."""

    def cancel(self) -> object:
        """Nobody waits for its result."""


class Client(Protocol):
    """The other end of the connection, as the stages see it."""

    gone: bool

    def start(self, exchange: "Exchange", status: int, content_type: bytes) -> None:
        """Send the head. At most once."""

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Send bytes of the body; what to wait for while the client does not read."""

    def watch(self, task: Cancellable | None) -> None:
        """Cancel ``task`` when the client leaves; None: nobody wants to know any more."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which targets are tried, in which order, and why."""

    candidates: tuple[Model, ...]  # first is tried first; never empty
    decision: str  # easy | hard | pinned | downgraded
    reason: str  # shown to admins verbatim
    output_tokens_max: int  # worst case of one choice
    worst_pico: tuple[int, ...]  # what each candidate costs at most
    instead: str = ""  # why another one than a policy's first or large is tried first, for a header
    stand_in: Model | None = None  # the last candidate, asked only where the large model is away


class Attempt(msgspec.Struct, kw_only=True):
    """One call of one target. Booked as one ledger event."""

    number: int
    target: Model
    started_us: int
    started_monotonic: float
    held_pico: int = 0
    output_cap: int | None = None  # the limit that we set, because the client set none
    usage: Usage | None = None
    # Where nobody but the provider knows what was used: charged is what was held, or possible.
    unknown: Literal["charged", "possible"] | None = None
    fresh: bool = False  # on a new connection, because a kept one ended under the attempt before
    upstream_request_id: str | None = None
    identity: dict[str, Any] | None = None  # as its intent has it: its event has nearly the same
    error: GatewayError | None = None
    ended_monotonic: float = 0.0  # 0.0: still running


class Exchange:
    """One request on its way through the stages."""

    __slots__ = (
        "answer", "answered", "attempts", "bypass", "cache_id", "cache_key", "cache_status",
        "charge_pico", "client", "client_request_id", "cost_pico", "deciding_us", "decision",
        "degraded", "deployment", "endpoint", "error", "facts", "first_byte", "flight", "forced",
        "headers", "hit", "hit_similarity", "hold", "key", "lane", "large", "marks", "more_holds",
        "next_sequence", "partition", "plan", "policy", "rate", "raw", "request",
        "request_id", "route", "saved_pico", "semantic_reason", "started", "started_us", "tags",
        "tail", "tail_content_type", "tail_status", "tenant", "usage", "vector", "way",
    )  # fmt: skip

    def __init__(
        self,
        *,
        request_id: str,
        endpoint: Endpoint,
        headers: Mapping[bytes, bytes],
        raw: bytes | bytearray,
        client: Client,
        policy: Policy,
        started: float,
        started_us: int,
    ) -> None:
        # endpoints
        self.request_id = request_id  # ULID, ours
        self.endpoint: Endpoint = endpoint
        self.headers = headers  # names in lower case; a repeated one's values as a list
        self.raw = raw  # the body as it came
        self.client = client
        self.policy = policy  # the one version this request sees
        self.started = started  # seconds, monotonic
        self.started_us = started_us  # microseconds UTC
        self.client_request_id: str | None = None
        self.deployment: str | None = None  # Azure's name of the model, where the path says it

        # authenticate
        self.key: KeyRecord
        self.tenant: Tenant

        # resolve
        self.request: ParsedRequest
        self.tags: Mapping[str, str] = {}
        self.facts: RequestFacts  # what the policy's conditions look at
        self.lane: Lane
        self.way: Way  # the route, as the lane meets it
        self.route: Route
        self.large = False  # what is done with the body is done beside the event loop

        # enter, admit
        self.rate: Reservation | None = None

        # exact
        self.bypass: str | None = None  # why no cache may answer or learn from this
        self.cache_key: bytes | None = None
        self.flight: Flight | None = None  # others follow this request

        # assess (deciding_us: semantic adds to it)
        self.forced: str | None = None  # why the small model is not even considered
        self.decision: Decision | None = None
        self.semantic_reason: str | None = None  # why the semantic tier was not asked
        self.partition: bytes | None = None
        self.vector: Vector | None = None
        self.deciding_us = 0  # own compute: features, embedding, and the semantic look-up

        # exact, semantic
        self.cache_status: CacheStatus = "bypass"
        self.hit: StoredAnswer | None = None
        self.hit_similarity: float | None = None
        self.cache_id: str | None = None

        # plan
        self.plan: Plan | None = None

        # plan, generate
        self.degraded = ""  # what is not as the policy wants it, for the header

        # reserve
        self.hold: Hold | None = None

        # generate (attempts: the first by reserve; first_byte of a shared stream by exact)
        self.attempts: list[Attempt] = []
        self.more_holds: tuple[Hold, ...] = ()  # for calls that the plan did not foresee
        self.first_byte: float | None = None  # monotonic, of the answer's first byte
        self.answer: dict[str, Any] | None = None  # the complete answer, where it may be stored
        self.next_sequence = 0  # of an event after those sent, where the dialect numbers them

        # exact, semantic, generate: what is released after settling
        self.answered = False  # there is an answer; what follows is closing
        self.tail = b""
        self.tail_status = 200
        self.tail_content_type = JSON

        # pipeline
        self.error: GatewayError | None = None
        self.marks: list[tuple[str, float]] = []  # (stage, monotonic at its end)

        # settle
        self.usage: Usage | None = None
        self.cost_pico: int | None = None  # None: unpriced
        self.charge_pico: int | None = None  # of all attempts; all that a client is told of money
        self.saved_pico: int | None = None

    def answer_from_cache(
        self, entry: StoredAnswer, status: CacheStatus, similarity: float | None = None
    ) -> None:
        """Make a stored answer the answer to this request, as JSON or as a stream."""
        self._render(entry)
        # Last: an entry that cannot be rendered is no hit, and is not booked as one.
        self.answered, self.hit, self.hit_similarity = True, entry, similarity
        self.cache_status, self.cache_id = status, entry.cache_id

    def _render(self, entry: StoredAnswer) -> None:
        if not self.request.stream and not _ANSWER_PREFIX[self.endpoint]:
            self.tail = entry.answer  # vectors: megabytes, and nothing in them to renew
            return
        document = entry.document()
        answer_id = _ANSWER_PREFIX[self.endpoint] + self.request_id
        created = self.started_us // 1_000_000
        if self.request.stream:
            self.tail_content_type = EVENT_STREAM
            self.tail = b"".join(
                replay(
                    self.endpoint,
                    document,
                    include_usage=self.request.include_usage,
                    answer_id=answer_id,
                    created=created,
                )
            )
        else:
            if "id" in document:
                document |= {"id": answer_id, "created": created}
            self.tail = encode(document)

    def scope(self, kind: Scope) -> str:
        """Within the tenant: everyone, one key, or one user of one key."""
        if kind == "tenant":
            return self.tenant.id
        if kind == "key":
            return f"{self.tenant.id}\0{self.key.id}"
        return f"{self.tenant.id}\0{self.key.id}\0{self.request.user}"

    @property
    def deviation(self) -> str:
        """Why another model answers than the one that should: ``x-tollhouse-decision``."""
        plan, attempts = self.plan, self.attempts
        if plan is None:
            return ""
        if len(attempts) > 1 and attempts[-1].target is not attempts[0].target:
            first = attempts[0]
            kind = "escalated" if first.target is self.route.small else "fallback"
            because = first.error.status if first.error is not None else "unknown"
            return f"{kind}; from={first.target.name}; because={because}"
        return plan.instead

    @property
    def status(self) -> int:
        """What the client is told, or would have been told had it stayed."""
        return self.error.status if self.error is not None else self.tail_status
