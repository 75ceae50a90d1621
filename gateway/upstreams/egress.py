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
from gateway.policy.addresses import is_private, literal
from gateway.policy.addresses import may_reach as may_reach

_RESOLVED_SECONDS = 30.0


class Egress:
    """Resolves and checks one configured origin."""

    def __init__(self, host: str, port: int, *, private_names: bool = True) -> None:
        """private_names: whether a name may stand for a private address."""
        self.host = host
        self.port = port
        self._private_names = private_names
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
            raise _refused(f"The address of '{self.host}' is not one the gateway may connect to.")
        if itself is None and not self._private_names:
            permitted = [text for text in permitted if not is_private(ipaddress.ip_address(text))]
            if not permitted:
                raise _refused(
                    f"The address of '{self.host}' is private, and egress.private: deny in"
                    " tollhouse.yaml lets no name lead to one."
                )
        self._addresses, self._resolved = permitted, now
        return permitted

    async def _resolve(self) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the latter: no valid name at all
            raise UpstreamUnavailable(f"The name '{self.host}' cannot be resolved.") from None
        return [str(entry[4][0]).partition("%")[0] for entry in found]


def _refused(message: str) -> UpstreamUnavailable:
    error = UpstreamUnavailable(message)
    error.fault = "operator"  # until the policy names another host
    return error


def is_address(host: str) -> bool:
    """Whether a configured host is an address and no name."""
    return literal(host) is not None
