"""The seam between the gateway and whoever answers: ``Upstream``.

A hosted provider over HTTP and the node's own model process look alike from here: both give an
answer's status and headers, then its bytes. Knows no tenant, no policy, no money.
"""

from typing import Protocol

import msgspec

from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.health import Outcome
from gateway.upstreams.retry_budget import RetryBudget

Headers = tuple[tuple[bytes, bytes], ...]
UNSENT = "unsent"
"""Argument of the CancelledError that leaves ``send`` before the provider could see anything."""

COMPUTE_HEADER = b"x-tollhouse-compute-us"
"""Of an answer of the local model, once it has ended: processor time in µs, for metering alone."""


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. Deadlines are absolute, in seconds of the monotonic clock."""

    request_id: str  # of the attempt; the model process uses it to cancel
    path: str  # below the provider's base URL, e.g. "/chat/completions"
    body: bytes
    model: str = ""  # its name in the policy, by which an answer of our own may call it
    headers: Headers = ()  # to pass on, e.g. traceparent; authorization is the upstream's own
    scope: str = ""  # requests of one may share what the model has read; empty: none may
    stream: bool = False
    fresh: bool = False  # on a new connection, not on a kept one
    first_byte_deadline: float
    idle_seconds: float  # longest silence between two chunks of the answer
    deadline: float


class UpstreamResponse(Protocol):
    """An answer whose head has arrived. Bytes are read until ``receive`` gives ``b""``."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Headers:
        """Names in lower case; hop-by-hop headers removed."""

    def header(self, name: bytes) -> bytes | None:
        """One header, by its name in lower case; cheaper than looking through all."""

    async def receive(self) -> bytes:
        """The next bytes as they came (an SSE frame may be split anywhere); ``b""`` at a clean end.

        Raises UpstreamUnavailable when the connection breaks, UpstreamTimeout when idle or total
        deadline passes, UpstreamProtocolError when framing or a size limit is violated.
        """

    def close(self) -> None:
        """Stop at once: close the connection or cancel the generation. Idempotent, never awaits."""


class Upstream(Protocol):
    """A provider. One instance per provider of the policy, shared by all requests."""

    @property
    def name(self) -> str:
        """The provider's name in the policy."""

    @property
    def healthy(self) -> bool:
        """False while the model process is away or the circuit breaker is open."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send and wait for the answer's head.

        Raises UpstreamUnavailable (nothing was sent, or the connection broke before the head),
        UpstreamTimeout, UpstreamOverloaded (at the concurrency limit) or UpstreamProtocolError.
        Cancelling the awaiting task closes the connection before ``CancelledError`` leaves.
        """

    @property
    def slots(self) -> Bulkhead:
        """One is taken for each attempt, until its answer has ended."""

    @property
    def retries(self) -> RetryBudget:
        """How many of its requests may be tried again."""

    def report(self, outcome: Outcome) -> None:
        """Feed the circuit breaker when the answer has ended, well or not."""

    async def close(self) -> None:
        """Close every connection."""
