"""Tenants that leave the policy: what was theirs must not pass to the next tenant of that name.

Runs where the state folder is kept. Knows keys, a policy's tenants and how to drop cached answers.
"""

import logging
import sqlite3
from collections.abc import Callable

from gateway.errors import GatewayError
from gateway.policy.snapshot import Policy
from gateway.stores.keys import KeyStore

_log = logging.getLogger("tollhouse")


class Departures:
    """Ends keys and cached answers of tenants that have left.

    While a tenant is gone its keys are refused, since the policy does not know it. A name that
    comes back soon was left out by mistake, and its keys work again. A tenant that stays away
    loses them: whoever gets the name later is somebody else. Cached answers never come back.
    """

    def __init__(
        self,
        keys: KeyStore,
        purge: Callable[[str], int],
        *,
        grace_seconds: float,
        now_us: Callable[[], int],
        policy: Policy,
    ) -> None:
        """policy: the one in force. purge: drops a tenant's cached answers; raises GatewayError
        where it cannot now.
        """
        self._keys = keys
        self._purge = purge
        self._grace_us = round(grace_seconds * 1e6)
        self._now_us = now_us
        self._named = frozenset(policy.tenants)  # by the policy seen last

    def look(self, policy: Policy) -> None:
        """Compare a policy that comes into force, or is in force, with those who were there.

        Waits for a purge: not for the event loop. Never raises: a policy comes into force anyway.
        """
        try:
            self._compare(policy)
        except (sqlite3.Error, GatewayError) as error:
            _log.error("tenants that left the policy are looked at again later: %s", error)

    def _compare(self, policy: Policy) -> None:
        now_us, departed = self._now_us(), self._keys.departed()
        for tenant_id, since_us in departed.items():
            forgiven = now_us - since_us < self._grace_us
            if forgiven and tenant_id not in policy.tenants:
                continue
            self._purge(tenant_id)  # also what was stored while its last answers ended
            if not forgiven:
                self._end_keys(tenant_id, now_us)
            self._keys.note_departure(tenant_id, None)
        for tenant_id in (self._named | self._keys.tenants()) - policy.tenants.keys():
            if tenant_id not in departed:
                self._keys.note_departure(tenant_id, now_us)
                _log.warning(
                    "tenant %s is not in the policy: its keys are refused, and revoked unless it"
                    " is back within %d s",
                    tenant_id, self._grace_us // 1_000_000,
                )  # fmt: skip
        self._named = frozenset(policy.tenants)

    def _end_keys(self, tenant_id: str, now_us: int) -> None:
        revoked = self._keys.revoke_tenant(tenant_id, now_us=now_us)
        if revoked:
            _log.warning(
                "tenant %s was not in the policy for %d s: %d keys are revoked",
                tenant_id, self._grace_us // 1_000_000, revoked,
            )  # fmt: skip
