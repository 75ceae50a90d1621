"""What the admin application needs, and the seams it needs it through.

Built by the composition root; tests build their own. Knows no HTTP.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.ledger import Ledger
from gateway.policy.snapshot import Policy
from gateway.stores.keys import KeyStore
from gateway.telemetry import Metrics

LINKS_MAX = 1_000  # one-time login links open at a time
SESSIONS_ENDED_MAX = 10_000  # signed-out sessions remembered until they would have expired
SESSION_SECONDS = 8 * 3_600
LINK_SECONDS = 15 * 60
BODY_BYTES_MAX = 65_536
RECENT_EVENTS = 25
MONTHS_SHOWN = 12


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
    ledger: Ledger
    policies: Policies
    switches: Switches
    metrics: Metrics
    purge: Callable[[str | None], int]  # drops cached answers of one tenant or all; how many
    live: Callable[[], Probe]
    ready: Callable[[], Probe]
    started: Callable[[], Probe]
    stats: Callable[[], Mapping[str, object]]
    now_us: Callable[[], int]
    cookie_secret: bytes  # 32 bytes; sessions end when it changes
    environment: str = ""  # shown on each page, such as "staging"
