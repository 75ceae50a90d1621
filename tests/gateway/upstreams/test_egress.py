"""Where the gateway may connect to: only where the policy says, never inside the machine."""

import ipaddress

import pytest

from gateway.errors import UpstreamUnavailable
from gateway.upstreams.egress import Egress, may_reach


@pytest.mark.parametrize(
    ("host", "address", "permitted"),
    [
        ("api.example.com", "93.184.216.34", True),
        ("api.example.com", "2606:2800:220:1::1", True),
        ("models.internal", "10.1.2.3", True),
        ("models.internal", "fd12:3456::1", True),
        ("api.example.com", "127.0.0.1", False),
        ("api.example.com", "::1", False),
        ("api.example.com", "::ffff:127.0.0.1", False),
        ("api.example.com", "2002:7f00:1::", False),
        ("localhost.example.com", "127.0.0.1", False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("[::1]", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("10.1.2.3", "127.0.0.1", False),
        ("169.254.169.254", "169.254.169.254", False),
        ("api.example.com", "169.254.169.254", False),
        ("api.example.com", "::ffff:169.254.169.254", False),
        ("api.example.com", "2002:a9fe:a9fe::", False),
        ("api.example.com", "64:ff9b::a9fe:a9fe", False),
        ("api.example.com", "fd00:ec2::254", False),
        ("api.example.com", "100.100.100.200", False),
        ("api.example.com", "168.63.129.16", False),
        ("api.example.com", "::ffff:168.63.129.16", False),
        ("api.example.com", "192.0.0.192", False),
        ("api.example.com", "fe80::1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("::", "::", False),
        ("api.example.com", "224.0.0.1", False),
        ("api.example.com", "255.255.255.255", False),
    ],
)
def test_an_address_is_reached_only_where_it_is_what_the_policy_meant(
    host: str, address: str, permitted: bool
) -> None:
    assert may_reach(host, ipaddress.ip_address(address)) is permitted


async def test_localhost_resolves_to_loopback_addresses() -> None:
    addresses = await Egress("localhost", 80).addresses()
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0"])
async def test_a_forbidden_address_is_refused_by_name(host: str) -> None:
    with pytest.raises(UpstreamUnavailable, match="may connect to"):
        await Egress(host, 80).addresses()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70])
async def test_a_name_that_cannot_be_resolved_is_unavailable(host: str) -> None:
    with pytest.raises(UpstreamUnavailable, match="cannot be resolved"):
        await Egress(host, 80).addresses()
