"""A hosted provider over HTTP, whatever its dialect. Implements ``base.Upstream``."""

import time
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from gateway import __version__
from gateway.policy.network import tls_context
from gateway.policy.snapshot import Network
from gateway.upstreams.base import UpstreamRequest, UpstreamResponse
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.connect import Connector
from gateway.upstreams.egress import Egress
from gateway.upstreams.health import CircuitBreaker, Outcome
from gateway.upstreams.http1 import Http1Pool
from gateway.upstreams.retry_budget import RetryBudget


class OpenAIUpstream:
    """One provider: its pool of connections and its health."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        authorization: str | None,
        authorization_header: str = "authorization",
        connect_seconds: float,
        concurrent_max: int,
        window_seconds: float,
        min_requests: int,
        error_rate: float,
        eject_seconds: float,
        answer_bytes_max: int,
        tenant_share: float = 1.0,
        network: Network | None = None,
        private_names: bool = True,
    ) -> None:
        """base_url: "https://host[:port]/v1"; authorization: the header's whole value.

        private_names: whether the host's name may stand for a private address.
        """
        url = urlsplit(base_url)
        host = url.hostname or ""
        secure = url.scheme == "https"
        self._name = name
        self._path = url.path.rstrip("/")
        lines = [f"host: {url.netloc.rpartition('@')[2]}", "content-type: application/json"]
        lines += ["accept-encoding: identity", f"user-agent: tollhouse/{__version__}"]
        if authorization is not None:
            lines.append(f"{authorization_header}: {authorization}")
        self._fixed_headers = "\r\n".join(lines).encode("latin-1") + b"\r\n"
        self._heads: dict[str, bytes] = {}  # by path: all of a head that never changes
        way = network or Network()
        self._pool = Http1Pool(
            Connector(
                Egress(host, url.port or (443 if secure else 80), private_names=private_names),
                tls=tls_context(way) if secure else None,
                connect_seconds=connect_seconds,
                proxy=way.proxy,
            ),
            connections_max=concurrent_max,
            answer_bytes_max=answer_bytes_max,
        )
        self.slots = Bulkhead(name, slots_max=concurrent_max, tenant_share=tenant_share)
        self.retries = RetryBudget()
        self._breaker = CircuitBreaker(
            window_seconds=window_seconds,
            min_requests=min_requests,
            error_rate=error_rate,
            eject_seconds=eject_seconds,
            clock=time.monotonic,
        )

    @property
    def name(self) -> str:
        """The provider's name in the policy."""
        return self._name

    @property
    def healthy(self) -> bool:
        """False while the circuit breaker is open."""
        return self._breaker.healthy

    def send(self, request: UpstreamRequest) -> Coroutine[Any, Any, UpstreamResponse]:
        """As ``Upstream.send``. Returns the pool's coroutine itself, to save a wrapper's frames."""
        head = self._heads.get(request.path)
        if head is None:
            line = f"POST {self._path}{request.path} HTTP/1.1\r\n".encode("latin-1")
            head = self._heads[request.path] = line + self._fixed_headers
        for header in request.headers:
            head += b"%b: %b\r\n" % header
        body = request.body
        self._breaker.begin()
        return self._pool.send(
            b"%bcontent-length: %d\r\n\r\n" % (head, len(body)),
            body,
            fresh=request.fresh,
            first_byte_deadline=request.first_byte_deadline,
            idle_seconds=request.idle_seconds,
            deadline=request.deadline,
        )

    def report(self, outcome: Outcome) -> None:
        """Feed the circuit breaker."""
        self._breaker.report(outcome)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()
