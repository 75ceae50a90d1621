"""The way to a provider: own authorities, client certificates, a proxy's tunnel; real TLS."""

import asyncio
import contextlib
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from gateway.policy.network import read_ca, read_proxy
from gateway.policy.snapshot import Network, Proxy, Secret
from gateway.upstreams.base import UpstreamRequest
from gateway.upstreams.connect import TUNNEL_BYTES_MAX
from gateway.upstreams.openai import OpenAIUpstream
from tests.certificates import Authority
from tests.fakes import Peer, RawUpstream, Script

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def answering(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(ANSWER)


class TunnelProxy:
    """A proxy that grants every tunnel to 127.0.0.1, and keeps what passes through it."""

    def __init__(self) -> None:
        self.passed = b""

    async def __call__(self, peer: Peer) -> None:
        head = await peer.request()
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await peer.send(ESTABLISHED)

        async def back() -> None:
            while data := await reader.read(65_536):
                self.passed += data
                await peer.send(data)

        task = asyncio.create_task(back())
        try:
            while data := await peer.read():
                self.passed += data
                writer.write(data)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def upstream_at(
    base_url: str, network: Network | None = None
) -> AsyncIterator[OpenAIUpstream]:
    upstream = OpenAIUpstream(
        name="provider", base_url=base_url, authorization="Bearer sk-secret", connect_seconds=0.5,
        concurrent_max=8, window_seconds=10.0, min_requests=2, error_rate=0.5, eject_seconds=5.0,
        answer_bytes_max=1 << 20, network=network,
    )  # fmt: skip
    try:
        yield upstream
    finally:
        await upstream.close()


async def ask(upstream: OpenAIUpstream) -> bytes:
    now = time.monotonic()
    response = await upstream.send(
        UpstreamRequest(
            request_id="r/1", path="/chat/completions", body=b'{"model":"m"}',
            first_byte_deadline=now + 2, idle_seconds=2.0, deadline=now + 5,
        )
    )  # fmt: skip
    return await response.receive()


async def refusal(upstream: OpenAIUpstream) -> UpstreamError:
    """The error of a request that never reached the provider."""
    with pytest.raises(UpstreamError) as caught:
        await ask(upstream)
    assert caught.value.unsent
    return caught.value


def proxy_at(port: int, **options: Any) -> Network:
    return Network(proxy=Proxy(host="127.0.0.1", port=port), **options)


async def test_a_provider_of_ones_own_authority_is_trusted_only_where_the_policy_says(
    authority: Authority,
) -> None:
    """Without its ca_file the connection fails in TLS, and the key is never sent."""
    own = Network(ca_pem=read_ca(str(authority.certificate)))
    async with RawUpstream(answering, tls=authority.server("127.0.0.1")) as provider:
        url = f"https://127.0.0.1:{provider.port}/v1"
        async with upstream_at(url, own) as upstream:
            assert await ask(upstream) == b"{}"
        async with upstream_at(url) as upstream:
            assert "certificate verify failed" in (await refusal(upstream)).message
        assert sum(len(peer.requests) for peer in provider.peers) == 1


async def test_a_certificate_for_another_name_is_refused(authority: Authority) -> None:
    """A trusted authority is not enough: a provider must not read another provider's requests."""
    own = Network(ca_pem=read_ca(str(authority.certificate)))
    async with RawUpstream(answering, tls=authority.server("other.example")) as provider:
        async with upstream_at(f"https://127.0.0.1:{provider.port}/v1", own) as upstream:
            assert "certificate verify failed" in (await refusal(upstream)).message
        assert not any(peer.requests for peer in provider.peers)


async def test_a_client_certificate_is_shown_to_a_provider_that_asks(authority: Authority) -> None:
    """Mutual TLS works with the policy's certificate; without it no request arrives."""
    certificate, key = authority.issue("tollhouse-client")
    pem = Secret(certificate.read_text() + key.read_text())
    ca = read_ca(str(authority.certificate))
    tls = authority.server("127.0.0.1", asks_clients=True)
    async with RawUpstream(answering, tls=tls) as provider:
        url = f"https://127.0.0.1:{provider.port}/v1"
        async with upstream_at(url, Network(ca_pem=ca, client_pem=pem)) as upstream:
            assert await ask(upstream) == b"{}"
        async with upstream_at(url, Network(ca_pem=ca)) as upstream:
            with pytest.raises(UpstreamUnavailable):
                await ask(upstream)
        assert sum(len(peer.requests) for peer in provider.peers) == 1


async def test_a_proxy_tunnels_tls_and_sees_neither_key_nor_body(authority: Authority) -> None:
    """It gets the one request CONNECT and its own password; TLS ends at the provider."""
    proxy = TunnelProxy()
    tls = authority.server("localhost")
    async with RawUpstream(answering, tls=tls) as provider, RawUpstream(proxy) as front:
        network = Network(
            proxy=read_proxy(f"http://us%40corp:p%3Ass@127.0.0.1:{front.port}"),
            ca_pem=read_ca(str(authority.certificate)),
        )
        async with upstream_at(f"https://localhost:{provider.port}/v1", network) as upstream:
            for _ in range(3):
                assert await ask(upstream) == b"{}"
        token = b64encode(b"us@corp:p:ss")
        assert front.peers[0].requests == [
            b"CONNECT localhost:%d HTTP/1.1\r\nhost: localhost:%d\r\nproxy-authorization: Basic %b"
            b"\r\n\r\n" % (provider.port, provider.port, token)
        ]
        assert len(front.peers) == 1, "the tunnel is kept"
        requests = provider.peers[0].requests
    assert len(requests) == 3
    assert b"sk-secret" in requests[0]
    assert b"proxy-authorization" not in requests[0]
    assert proxy.passed
    assert b"sk-secret" not in proxy.passed


async def test_a_proxy_cannot_pass_for_the_provider(authority: Authority) -> None:
    """The certificate is checked against the provider's name, though we speak to the proxy."""
    proxy = TunnelProxy()
    ca = read_ca(str(authority.certificate))
    tls = authority.server("other.example")
    async with RawUpstream(answering, tls=tls) as provider, RawUpstream(proxy) as front:
        url = f"https://localhost:{provider.port}/v1"
        async with upstream_at(url, proxy_at(front.port, ca_pem=ca)) as upstream:
            assert "certificate verify failed" in (await refusal(upstream)).message
        assert not any(peer.requests for peer in provider.peers)


async def test_a_tunnel_carries_plain_http_too() -> None:
    """Two requests share one tunnel, so a plain-HTTP model server can stand behind a proxy."""
    async with RawUpstream(answering) as provider, RawUpstream(TunnelProxy()) as front:
        url = f"http://127.0.0.1:{provider.port}/v1"
        async with upstream_at(url, proxy_at(front.port)) as upstream:
            assert await ask(upstream) == b"{}"
            assert await ask(upstream) == b"{}"
        assert len(provider.peers[0].requests) == 2


def saying(answer: bytes, *, close: bool = False) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        if close:
            peer.close()
        await peer.gone()

    return script


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (saying(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), "with status 407"),
        (saying(b"HTTP/1.0 403 Forbidden\r\ncontent-length: 9\r\n\r\nsk-secret"), "status 403"),
        (saying(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n\r\n"), "status 302"),
        (saying(b"220 mail.example ESMTP\r\n\r\n"), "did not answer in HTTP"),
        (saying(b"", close=True), "closed the connection"),
        (saying(b"HTTP/1.1 200 OK\r\n", close=True), "did not answer in HTTP"),
        (saying(ESTABLISHED + b"more"), "more than its answer"),
        (saying(b"HTTP/1.1 200 OK\r\nx: " + b"x" * TUNNEL_BYTES_MAX), "did not answer in HTTP"),
    ],
)
async def test_a_proxy_that_refuses_is_named_and_nothing_was_sent(
    script: Script, message: str
) -> None:
    """Each of eight bad answers is told without the key in it, and may be retried elsewhere."""
    async with RawUpstream(script) as front:
        network = proxy_at(front.port)
        async with upstream_at("https://api.example.com/v1", network) as upstream:
            error = await refusal(upstream)
        assert type(error) is UpstreamUnavailable
        assert "The proxy '127.0.0.1'" in error.message
        assert message in error.message
        assert "sk-secret" not in error.message
        assert len(front.peers) == 1
        await front.finished()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", ESTABLISHED])
async def test_a_proxy_that_falls_silent_is_given_up_at_the_connect_deadline(
    answer: bytes,
) -> None:
    """Also where the tunnel stands and TLS does not: one deadline for all of it."""
    async with RawUpstream(saying(answer)) as front:
        network = proxy_at(front.port)
        began = time.monotonic()
        async with upstream_at("https://api.example.com/v1", network) as upstream:
            assert type(await refusal(upstream)) is UpstreamTimeout
        assert 0.45 < time.monotonic() - began < 1.0
        await front.finished()  # it has seen us close


async def test_a_request_cancelled_in_a_tunnels_making_closes_it() -> None:
    """The proxy's socket closes within a tenth of a second of the client's leaving."""
    async with RawUpstream(saying(b"")) as front:
        network = proxy_at(front.port)
        async with upstream_at("https://api.example.com/v1", network) as upstream:
            task = asyncio.create_task(ask(upstream))
            await front.until(lambda: any(peer.requests for peer in front.peers))
            left = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await front.finished()
            assert (front.peers[0].closed_at or 0) - left < 0.1


async def test_nobody_at_the_proxys_address_is_said_so() -> None:
    """The error names the proxy, so that its operator does not search at the provider."""
    async with upstream_at("https://api.example.com/v1", proxy_at(9)) as upstream:
        assert "Cannot connect to the proxy '127.0.0.1'" in (await refusal(upstream)).message


@pytest.mark.parametrize("host", ["169.254.169.254", "fe80::1", "0.0.0.0"])
async def test_the_proxys_address_is_checked_like_any_other(host: str) -> None:
    """A proxy setting must not be a way to the cloud's metadata or to link-local addresses."""
    network = Network(proxy=Proxy(host=host, port=3128))
    async with upstream_at("https://api.example.com/v1", network) as upstream:
        assert "may connect to" in (await refusal(upstream)).message


async def test_a_proxy_is_not_asked_for_an_address_we_may_not_reach() -> None:
    """The proxy might reach the metadata for us, so the target is checked before we call it."""
    async with RawUpstream(TunnelProxy()) as front:
        async with upstream_at("http://169.254.169.254/v1", proxy_at(front.port)) as upstream:
            assert "may connect to" in (await refusal(upstream)).message
        assert front.peers == []


def test_no_tls_context_ever_trusts_without_a_check(authority: Authority) -> None:
    """Host names and chains are always verified, with TLS 1.2 at least, also with a ca_file."""
    from gateway.policy.network import tls_context

    for network in (Network(), Network(ca_pem=read_ca(str(authority.certificate)))):
        context = tls_context(network)
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_bundle_may_hold_words_between_its_certificates(
    authority: Authority, tmp_path: Path
) -> None:
    """Comments, as bundles of distributions have them, are skipped, umlauts included."""
    bundle = tmp_path / "bundle.pem"
    text = authority.certificate.read_text()
    bundle.write_text(f"# Größe\n{text}\n# once more\n{text}", encoding="utf-8")
    assert read_ca(str(bundle)).count("BEGIN") == 2
