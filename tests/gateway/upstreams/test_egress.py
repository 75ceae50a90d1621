"""Where the gateway may connect to: only where the policy says, never inside the machine."""

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from gateway.app import UpstreamPool
from gateway.config import Egress as EgressSettings
from gateway.config import Settings
from gateway.errors import UpstreamUnavailable
from gateway.policy.snapshot import Provider
from gateway.upstreams.base import UpstreamRequest
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
        ("127.1", "127.0.0.1", True),
        ("2130706433", "127.0.0.1", True),
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
    """Names that resolve to loopback or metadata are refused, also in IPv6 disguise."""
    assert may_reach(host, ipaddress.ip_address(address)) is permitted


async def test_localhost_resolves_to_loopback_addresses() -> None:
    """A model server on the same machine is reached by its usual name."""
    addresses = await Egress("localhost", 80).addresses()
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


PRIVATE = ["10.255.255.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1",
           "::ffff:10.255.255.1", "2002:a00:1::"]  # fmt: skip


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the running loop's resolver find these addresses behind every name."""

    async def getaddrinfo(_: str, port: int, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("address", PRIVATE)
async def test_the_setting_decides_whether_a_name_may_stand_for_a_private_address(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """An address that the policy writes is meant; so is a public one beside a private one."""
    resolving(monkeypatch, address)
    assert await Egress("vllm.internal", 80).addresses() == [address]
    denying = Egress("vllm.internal", 80, private_names=False)
    with pytest.raises(UpstreamUnavailable, match=r"egress\.private: deny") as caught:
        await denying.addresses()
    assert caught.value.fault == "operator"
    assert await Egress(f"[{address}]", 80, private_names=False).addresses()
    resolving(monkeypatch, address, "93.184.216.34")
    assert await denying.addresses() == ["93.184.216.34"]


async def test_no_setting_lets_a_name_stand_for_loopback_or_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only ``localhost`` and loopback addresses themselves are loopback."""
    resolving(monkeypatch, "127.0.0.1", "169.254.169.254", "fd00:ec2::254")
    for private_names in (True, False):
        with pytest.raises(UpstreamUnavailable, match="may connect to"):
            await Egress("vllm.internal", 80, private_names=private_names).addresses()
        assert await Egress("localhost", 80, private_names=private_names).addresses()


async def test_a_provider_whose_name_is_private_is_not_asked_where_the_settings_deny_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The setting holds on a real pool, and the error names it to the operator."""
    resolving(monkeypatch, "10.255.255.1")
    pool = UpstreamPool(Settings(egress=EgressSettings(private="deny")), None)
    upstream = pool(Provider(name="vllm", api="openai", base_url="http://vllm.internal/v1"))
    later = asyncio.get_running_loop().time() + 5.0
    with pytest.raises(UpstreamUnavailable, match=r"egress\.private: deny"):
        await upstream.send(
            UpstreamRequest(
                request_id="r", path="/chat/completions", body=b"{}",
                first_byte_deadline=later, idle_seconds=1.0, deadline=later,
            )
        )  # fmt: skip
    await pool.close()


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "2852039166"])
async def test_a_forbidden_address_is_refused_by_name(host: str) -> None:
    """Metadata, link-local and unspecified addresses fail, also written as one decimal number."""
    with pytest.raises(UpstreamUnavailable, match="may connect to"):
        await Egress(host, 80).addresses()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70])
async def test_a_name_that_cannot_be_resolved_is_unavailable(host: str) -> None:
    """Unknown, malformed or too long, the name fails as an outage and not as an internal error."""
    with pytest.raises(UpstreamUnavailable, match="cannot be resolved"):
        await Egress(host, 80).addresses()
