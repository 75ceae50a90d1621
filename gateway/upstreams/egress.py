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

_RESOLVED_SECONDS = 30.0
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # nearly all of them
        "fd00:ec2::254",  # Amazon
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
    )
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


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
        literal = _literal(self.host)
        found = [str(literal)] if literal is not None else await self._resolve()
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


def may_reach(host: str, address: Address) -> bool:
    """Whether a connection for the configured ``host`` may go to ``address``."""
    address = _plain(address)
    if address.is_loopback:
        literal = _literal(host)
        return host == "localhost" or (literal is not None and _plain(literal).is_loopback)
    return not (
        address in _METADATA
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


def is_address(host: str) -> bool:
    """Whether a configured host is an address and no name."""
    return _literal(host) is not None


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
