"""Which addresses the gateway may connect to: a rule for policies and for connections.

Resolves no name.
"""

import ipaddress
import re
import socket

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
_METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})
# In-house networks: RFC 1918, 6598 (carriers, overlays), 4193 and the older 3513.
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
        "fec0::/10",
    )
)
_NUMBERS = re.compile(r"[0-9][0-9a-fx.]*", re.IGNORECASE)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def may_reach(host: str, address: Address) -> bool:
    """Whether a connection for the configured ``host`` may go to ``address``."""
    address = _plain(address)
    if address.is_loopback:
        itself = literal(host)
        return host == "localhost" or (itself is not None and _plain(itself).is_loopback)
    return not (
        address in _METADATA
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    )


def is_private(address: Address) -> bool:
    """Whether an address belongs to a network of one's own and not to the open net."""
    address = _plain(address)
    return any(address in network for network in _PRIVATE)


def never_reached(host: str) -> str | None:
    """Why nothing can be asked at a configured host, whatever its name stands for; None: it can."""
    address = literal(host)
    if host.rstrip(".") in _METADATA_NAMES:
        return f"the gateway never connects to {host}, a name of cloud metadata"
    if address is None or may_reach(host, address):
        return None
    return (
        f"the gateway never connects to {address}: addresses of cloud metadata, link-local,"
        " multicast and reserved ones are refused"
    )


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def literal(host: str) -> Address | None:
    """The address that a configured host is, ``2130706433`` and ``127.1`` too; None: it is a name.

    The system's resolver reads the older ways to write one, and would turn them into an address.
    """
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        if _NUMBERS.fullmatch(host) is None:
            return None
    try:
        return ipaddress.ip_address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None
