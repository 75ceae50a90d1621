"""Which addresses the gateway may connect to: a rule for policies and for connections.

Resolves no name.
"""

import ipaddress

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


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def literal(host: str) -> Address | None:
    """The address that a configured host is; None: it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
