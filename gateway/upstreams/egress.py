"""The one way out: which addresses the gateway may connect to. Deny by default.

Only origins named by the policy are ever asked for; their names are resolved here, and the
connection goes to the very address that was checked, so that a name cannot change its mind in
between. Link-local and cloud-metadata addresses are never reached, and loopback only where the
configured host is itself a loopback address.
"""

import asyncio
import ipaddress
import socket
import time

from gateway.errors import UpstreamUnavailable
from gateway.policy.addresses import literal
from gateway.policy.addresses import may_reach as may_reach

_RESOLVED_SECONDS = 30.0


class Egress:
    """Resolves and checks one configured origin."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._addresses: list[str] = []
        self._resolved = 0.0

    async def addresses(self) -> list[str]:
        """The permitted addresses, best first. Raises UpstreamUnavailable where there is none."""
        now = time.monotonic()
        if self._addresses and now - self._resolved < _RESOLVED_SECONDS:
            return self._addresses
        itself = literal(self.host)
        found = [str(itself)] if itself is not None else await self._resolve()
        permitted = [text for text in found if may_reach(self.host, ipaddress.ip_address(text))]
        if not permitted:
            error = UpstreamUnavailable(
                f"The address of '{self.host}' is not one the gateway may connect to."
            )
            error.fault = "operator"  # until the policy names another host
            raise error
        self._addresses, self._resolved = permitted, now
        return permitted

    async def _resolve(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter: no valid name at all
            raise UpstreamUnavailable(f"The name '{self.host}' cannot be resolved.") from None
        return [str(entry[4][0]).partition("%")[0] for entry in found]


def is_address(host: str) -> bool:
    """Whether a configured host is an address and no name."""
    return literal(host) is not None
