"""A hosted provider's requests, byte for byte, and its health."""

import time
from typing import Any

import pytest

from gateway import __version__
from gateway.errors import UpstreamUnavailable
from gateway.upstreams.base import UpstreamRequest
from gateway.upstreams.openai import OpenAIUpstream
from tests.fakes import Peer, RawUpstream

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def upstream_at(base_url: str, **options: Any) -> OpenAIUpstream:
    settings: dict[str, Any] = {
        "name": "provider", "authorization": "Bearer sk-secret", "connect_seconds": 1.0,
        "concurrent_max": 8, "window_seconds": 10.0, "min_requests": 2, "error_rate": 0.5,
        "eject_seconds": 5.0, "answer_bytes_max": 1 << 20,
    }  # fmt: skip
    return OpenAIUpstream(base_url=base_url, **{**settings, **options})


def request(**fields: Any) -> UpstreamRequest:
    now = time.monotonic()
    settings: dict[str, Any] = {
        "request_id": "r/1", "path": "/chat/completions", "body": b'{"model":"m"}',
        "first_byte_deadline": now + 2, "idle_seconds": 2.0, "deadline": now + 5,
    }  # fmt: skip
    return UpstreamRequest(**{**settings, **fields})


async def answering(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(ANSWER)


async def sent(base_path: str, outgoing: UpstreamRequest, **options: Any) -> tuple[int, bytes]:
    """The port, and the request as the provider sees it."""
    async with RawUpstream(answering) as provider:
        upstream = upstream_at(f"http://127.0.0.1:{provider.port}{base_path}", **options)
        try:
            response = await upstream.send(outgoing)
            assert await response.receive() == b"{}"
            assert await response.receive() == b""
        finally:
            await upstream.close()
        return provider.port, provider.peers[0].requests[0]


async def test_a_request_is_exactly_this() -> None:
    """Compared byte for byte: the provider gets these seven headers, the body and no more."""
    port, seen = await sent("/v1", request(headers=((b"x-request-id", b"r/1"),)))
    assert seen == (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        b"host: 127.0.0.1:%d\r\n"
        b"content-type: application/json\r\n"
        b"accept-encoding: identity\r\n"
        b"user-agent: tollhouse/%s\r\n"
        b"authorization: Bearer sk-secret\r\n"
        b"x-request-id: r/1\r\n"
        b"content-length: 13\r\n\r\n"
        b'{"model":"m"}' % (port, __version__.encode())
    )


@pytest.mark.parametrize(
    ("base_path", "line"),
    [
        ("", b"POST /embeddings HTTP/1.1"),
        ("/", b"POST /embeddings HTTP/1.1"),
        ("/v1/", b"POST /v1/embeddings HTTP/1.1"),
        ("/openai/v1", b"POST /openai/v1/embeddings HTTP/1.1"),
    ],
)
async def test_paths_are_joined_to_the_base_url(base_path: str, line: bytes) -> None:
    """With or without a trailing slash in base_url there is never a double or missing slash."""
    _, seen = await sent(base_path, request(path="/embeddings"))
    assert seen.partition(b"\r\n")[0] == line


async def test_a_provider_without_a_key_gets_no_authorization() -> None:
    """An empty header would make some servers refuse what they serve without one."""
    _, seen = await sent("/v1", request(), authorization=None)
    assert b"authorization" not in seen


async def test_a_connection_serves_one_request_after_the_other() -> None:
    """Three requests to two endpoints pay for one handshake."""
    async with RawUpstream(answering) as provider:
        upstream = upstream_at(f"http://127.0.0.1:{provider.port}/v1")
        for path in ("/chat/completions", "/embeddings", "/chat/completions"):
            response = await upstream.send(request(path=path))
            assert await response.receive() == b"{}"
            assert await response.receive() == b""
        assert len(provider.peers) == 1
        assert len(provider.peers[0].requests) == 3
        await upstream.close()


async def test_https_to_a_server_that_speaks_plain_http_sends_nothing_and_no_key() -> None:
    """A wrong scheme fails in TLS, before a single byte of the request leaves."""

    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await peer.gone()

    async with RawUpstream(plain) as provider:
        upstream = upstream_at(f"https://127.0.0.1:{provider.port}/v1")
        with pytest.raises(UpstreamUnavailable) as caught:
            await upstream.send(request())
        assert caught.value.unsent
        assert provider.peers[0].requests == []
        await upstream.close()


async def test_reported_failures_make_it_unhealthy() -> None:
    """Two failures of two eject the provider, so that the router goes elsewhere."""
    upstream = upstream_at("http://127.0.0.1:9/v1")
    assert upstream.name == "provider"
    for _ in range(2):
        assert upstream.healthy
        with pytest.raises(UpstreamUnavailable):
            await upstream.send(request())
        upstream.report("failed")
    assert not upstream.healthy
    await upstream.close()
