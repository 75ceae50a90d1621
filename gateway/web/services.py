"""What the admin application needs, and its limits.

Built by the composition root; tests build their own. Knows no HTTP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.ledger import Books, Ledger
from gateway.policy.holder import PolicyHolder
from gateway.policy.snapshot import Budget
from gateway.policy.switches import Switches
from gateway.stores.keys import KeyStore

LINKS_MAX = 1_000  # one-time login links open at a time
SESSIONS_ENDED_MAX = 10_000  # signed-out sessions remembered until they would have expired
SESSION_SECONDS = 8 * 3_600
LINK_SECONDS = 15 * 60
BODY_BYTES_MAX = 65_536
RECENT_EVENTS = 25
MONTHS_SHOWN = 12


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a health question; ``checks`` names each part and its state."""

    ok: bool
    checks: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminServices:
    """Everything behind the admin port."""

    keys: KeyStore
    ledger: Books | Ledger
    budgets_used: Callable[[int], Sequence[tuple[str, Budget, int, int]]]  # at a moment
    policies: PolicyHolder
    switches: Switches
    metrics: Callable[[], bytes]  # Prometheus text; may wait, so not in the event loop
    purge: Callable[[str | None], int]  # drops cached answers of one tenant or all; how many
    live: Callable[[], Probe]
    ready: Callable[[], Probe]
    started: Callable[[], Probe]
    stats: Callable[[], Mapping[str, object]]
    now_us: Callable[[], int]
    cookie_secret: bytes  # 32 bytes; sessions end when it changes
    environment: str = ""  # shown on each page, such as "staging"
