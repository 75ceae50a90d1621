"""Opening a connection to one origin: to an address that was checked, or in a proxy's tunnel.

Knows addresses, TLS and the one request CONNECT. What is said over the connection is the business
of the protocol that it is handed to.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from typing import TypeVar, cast

from gateway.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from gateway.policy.snapshot import Proxy
from gateway.upstreams.egress import Egress, is_address

TUNNEL_BYTES_MAX = 16 * 1024  # of a proxy's answer
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
P = TypeVar("P", bound=asyncio.BaseProtocol)


class Connector:
    """The way to one origin."""

    def __init__(
        self,
        egress: Egress,
        *,
        tls: ssl.SSLContext | None,
        connect_seconds: float,
        proxy: Proxy | None = None,
    ) -> None:
        self.host = egress.host
        self._egress = egress
        self._tls = tls
        self._seconds = connect_seconds
        self._proxy = proxy
        self._to_proxy = Egress(proxy.host, proxy.port) if proxy is not None else None

    async def open(self, make: Callable[[], P], deadline: float) -> P:
        """A protocol whose connection, tunnel and TLS stand. deadline: monotonic seconds.

        Raises UpstreamUnavailable or UpstreamTimeout, both ``unsent``.
        """
        seconds = min(self._seconds, deadline - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                if self._to_proxy is None:
                    return await self._direct(make)
                return await self._through(self._to_proxy, make)
        except TimeoutError:
            error: UpstreamError = UpstreamTimeout(
                f"No connection to '{self.host}' in {max(0.0, seconds):.1f} s."
            )
        except OSError as failure:
            reason = failure.strerror or type(failure).__name__
            error = UpstreamUnavailable(f"Cannot connect to '{self.host}': {reason}.")
        except UpstreamError as failure:
            error = failure
        error.unsent = True
        raise error from None

    async def _direct(self, make: Callable[[], P]) -> P:
        name = self.host if self._tls is not None else None
        return await _first(self._egress, make, ssl=self._tls, server_hostname=name)

    async def _through(self, to_proxy: Egress, make: Callable[[], P]) -> P:
        """The proxy resolves the origin's name; an origin that is an address is checked here."""
        assert self._proxy is not None, "the caller has looked"
        if is_address(self.host):
            await self._egress.addresses()
        request = _request(self.host, self._egress.port, self._proxy)
        try:
            tunnel = await _first(to_proxy, lambda: _Tunnel(request))
        except OSError as failure:
            reason = failure.strerror or type(failure).__name__
            message = f"Cannot connect to the proxy '{to_proxy.host}': {reason}."
            raise UpstreamUnavailable(message) from None
        transport = tunnel.transport
        protocol = make()
        try:
            await tunnel.opened(f"The proxy '{to_proxy.host}'", self.host)
            if self._tls is not None:
                loop = asyncio.get_running_loop()
                secured = await loop.start_tls(
                    transport, protocol, self._tls, server_hostname=self.host
                )
                assert secured is not None, "start_tls raises or returns a transport"
                protocol.connection_made(secured)
            else:
                transport.set_protocol(protocol)
                protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return protocol


async def _first(egress: Egress, make: Callable[[], P], **options: object) -> P:
    """A connection to the first permitted address that answers. Raises OSError of the last."""
    loop = asyncio.get_running_loop()
    failure = OSError("no address")
    for address in await egress.addresses():
        try:
            _, protocol = await loop.create_connection(make, address, egress.port, **options)  # type: ignore[call-overload] # its overloads know no **options
        except OSError as error:
            failure = error
        else:
            return cast(P, protocol)
    raise failure


def _request(host: str, port: int, proxy: Proxy) -> bytes:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"host: {authority}"]
    if proxy.authorization is not None:
        lines.append(f"proxy-authorization: {proxy.authorization.reveal()}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel and reads the head of its answer, which it keeps to itself."""

    def __init__(self, request: bytes) -> None:
        self.transport: asyncio.Transport
        self._request = request
        self._received = b""
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def opened(self, proxy: str, host: str) -> None:
        """Wait for the tunnel. Raises UpstreamUnavailable where the proxy refuses it."""
        await self._ended
        status = _STATUS.match(self._received)
        if not self._received:
            problem = "closed the connection"
        elif status is None or b"\r\n\r\n" not in self._received:
            problem = "did not answer in HTTP"
        elif not status[1].startswith(b"2"):
            problem = f"refused with status {int(status[1])}"
        elif not self._received.endswith(b"\r\n\r\n") or self._received.count(b"\r\n\r\n") > 1:
            problem = "sent more than its answer"
        elif self.transport.is_closing():
            problem = "closed the connection"
        else:
            return
        raise UpstreamUnavailable(f"{proxy} {problem}; no tunnel to '{host}'.")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if b"\r\n\r\n" in self._received or len(self._received) > TUNNEL_BYTES_MAX:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
