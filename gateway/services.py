"""``Services``: everything a stage may use, built once by ``app.py`` and handed to each stage.

Holds parts, does nothing itself. What a stage needs and does not find here it must not do.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.caches.exact import ExactCache
from gateway.caches.repeats import Repeats
from gateway.caches.semantic import SemanticCache
from gateway.caches.shared_exact import SharedExactCache
from gateway.caches.single_flight import SingleFlight
from gateway.config import Settings
from gateway.ids import UlidFactory
from gateway.ledger import Journal
from gateway.policy.follower import PolicyFollower
from gateway.policy.holder import PolicyHolder
from gateway.policy.lane import Lanes
from gateway.policy.snapshot import Provider
from gateway.policy.switches import Switches
from gateway.routing import Router
from gateway.stores.keys import KeyStore
from gateway.stores.limits import Limiter
from gateway.stores.redis import Redis
from gateway.stores.shared_limits import SharedLimiter
from gateway.telemetry import Metrics
from gateway.upstreams.base import Upstream

if TYPE_CHECKING:
    from gateway.upstreams.local_vectors import Vectors


class Embed(Protocol):
    """Texts to unit vectors [texts, 384], token counts and microseconds, in the model process."""

    def __call__(self, texts: Sequence[str]) -> "Awaitable[tuple[Vectors, list[int], int]]":
        """Raises UpstreamUnavailable or UpstreamTimeout."""


class Services(msgspec.Struct, kw_only=True):
    """The parts of one gateway worker."""

    settings: Settings
    policies: PolicyHolder | PolicyFollower
    switches: Switches
    keys: KeyStore
    limiter: Limiter
    ledger: Journal
    lanes: Lanes
    repeats: Repeats
    exact: ExactCache
    flights: SingleFlight
    semantic: SemanticCache
    router: Router
    upstream: Callable[[Provider], Upstream]  # one instance per provider, made on first use
    embed: Embed | None  # None: no model process is configured
    embedding_ready: Callable[[], bool]
    local_states: Callable[[], Mapping[str, str]]  # per model: "ok", "ok: which", or why not
    local_sha256: Callable[[Provider], str]  # of a local provider's file; empty: not known
    metrics: Metrics
    new_id: UlidFactory
    now_us: Callable[[], int]  # UTC microseconds
    monotonic: Callable[[], float]  # seconds
    # None, all three: the settings name no Redis
    redis: Redis | None = None
    shared_limiter: SharedLimiter | None = None
    shared_exact: SharedExactCache | None = None
