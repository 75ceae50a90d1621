"""The policy in force in a worker whose admin process keeps the files: told, never read.

Knows no file and no socket.
"""

from collections.abc import Callable

from gateway.policy.snapshot import Policy


class PolicyFollower:
    """Holds ``current``; readers take the reference once per request."""

    def __init__(self, policy: Policy) -> None:
        self.current = policy
        self._subscribers: list[Callable[[Policy], None]] = []

    def subscribe(self, callback: Callable[[Policy], None]) -> None:
        """Call ``callback`` with each policy that comes into force from now on."""
        self._subscribers.append(callback)

    def adopt(self, policy: Policy) -> None:
        """Put it in force."""
        for callback in self._subscribers:
            callback(policy)
        self.current = policy
