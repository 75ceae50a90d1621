"""``/v1/*``: bytes in, an Exchange made, its answer sent. Implements ``server.Handler``.

Thin on purpose: what happens to a request is ``pipeline.py``.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from urllib.parse import unquote

import orjson

from gateway import pipeline, respond
from gateway.config import Limits
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    UnsupportedEncoding,
)
from gateway.exchange import JSON, Exchange
from gateway.listing import model_list, one_model
from gateway.respond import Responder
from gateway.services import Services
from gateway.stages.authenticate import authenticate
from gateway.stages.enter import enter
from gateway.stages.record import record_other
from gateway.stages.settle import refuse as count_refusal
from gateway.stores.body_room import BodyLease, BodyRoom
from gateway.wire import cors
from gateway.wire.dialects import MODELS, POST_PATHS, locate, meant, spoken_at, v1_path
from gateway.wire.openai import Endpoint
from gateway.wire.structure import LARGE_BYTES

_ENTERED = pipeline.FORWARD.index(enter) + 1  # the stage after it
# Where clients look whether there is anybody: Claude Code at / and /api/hello, others at the base.
_PROBED = frozenset({"/", "/v1", "/v1/", "/api/hello"})
_GREETING = b"This is a Tollhouse gateway. Models: GET /v1/models.\n"
_ASK, _LOOK = "POST, OPTIONS", "GET, HEAD, OPTIONS"
_IDENTITY = frozenset({b"identity", b""})
_CLIENT_ID_LENGTH_MAX = 128
_PRINTABLE = re.compile(rb"[\x21-\x7e]+")
_log = logging.getLogger("tollhouse.endpoints")


class Call(respond.Call, Protocol):
    """What ``server.py`` tells of a request."""

    method: bytes
    target: bytes  # path and query, as they came
    headers: dict[bytes, bytes]  # names in lower case; a repeated one's values as a list
    body: bytes | bytearray
    grow: Callable[[int], None] | None  # told of each part of a body; raises GatewayError
    context: object  # ours, from head to body


class V1:
    """What clients of the OpenAI interface talk to."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._responders: set[Responder] = set()
        limits = services.settings.limits
        self._room = BodyRoom(
            tenant_bytes_max=limits.tenant_body_bytes_max, bytes_max=limits.worker_body_bytes_max
        )
        self._since = services.now_us() // 1_000_000  # Unix time
        self.stopping = False  # not ready any more, and still serving
        self.draining = False  # serving what has begun, and nothing new

    @property
    def in_flight(self) -> int:
        """Requests whose head has come and whose answer is not complete."""
        return len(self._responders)

    def head(self, call: Call) -> bool:
        """Refuse, or say that the body is wanted."""
        request_id = self._services.new_id()
        endpoint, deployment = POST_PATHS.get(call.target.partition(b"?")[0]), None
        try:
            if endpoint is None:
                endpoint, deployment = locate(_path(call))
            if endpoint is None:
                self._other(call, request_id)
                return False
            if call.method != b"POST":
                if call.method == b"OPTIONS":
                    self._preflight(call, request_id, _ASK)
                    return False
                raise MethodNotAllowed(f"{_path(call)[:200]} takes POST only.", allow=_ASK)
            return self._begin(endpoint, deployment, call, request_id)
        except GatewayError as error:
            self._refuse(call, error, request_id, endpoint)
        except Exception as error:
            self._mistaken(call, error, request_id, endpoint)
        return False

    def body(self, call: Call) -> None:
        """Run the pipeline."""
        exchange = call.context
        assert isinstance(exchange, Exchange), "head keeps it there"
        body, call.body = call.body, b""
        exchange.raw = bytes(body) if len(body) <= LARGE_BYTES else body
        self._answer(exchange)

    def refuse(self, call: Call, error: GatewayError) -> None:
        """Answer a body that turned out too long, under the id that its request has."""
        exchange = call.context
        assert isinstance(exchange, Exchange), "head keeps it there"
        self._refuse(call, error, exchange.request_id, exchange.endpoint)

    def stop(self) -> None:
        """The drain deadline has passed: answer what waits with 503."""
        for responder in tuple(self._responders):
            responder.stop()

    def _begin(
        self, endpoint: Endpoint, deployment: str | None, call: Call, request_id: str
    ) -> bool:
        services = self._services
        limits = services.settings.limits
        if self.draining or len(self._responders) >= limits.requests_in_flight_max:
            raise Overloaded(
                "The gateway is stopping."
                if self.draining
                else f"{self.in_flight} requests are in progress; try again shortly.",
                retry_after_seconds=1.0,
            )
        responder = Responder(call, self._forget)
        exchange = self._exchange(endpoint, call, responder, request_id)
        exchange.deployment = deployment
        call.context = exchange
        self._responders.add(responder)
        # Else bodies that are refused anyway, or nobody's, could fill the memory.
        try:
            authenticate(exchange, services)
            size_bytes = _check_body(call.headers, limits)
            enter(exchange, services)
            responder.rate = exchange.rate
            lease = responder.lease = BodyLease(self._room, exchange.tenant.id, size_bytes or 0)
            if size_bytes is None:
                call.grow = lease.take  # chunked: as it comes
        except GatewayError as error:
            rest = pipeline.refuse(exchange, services, responder.release, error)
            self._keep(rest)
            return False
        return True

    def _forget(self, responder: Responder) -> None:
        """Its request has ended, or its client has left before it was asked."""
        self._responders.discard(responder)
        if responder.lease is not None:
            responder.lease.end()
        if responder.rate is not None:
            responder.rate.settle(0)  # nothing, where it was settled at what was used

    def _answer(self, exchange: Exchange) -> None:
        responder = exchange.client
        assert isinstance(responder, Responder), "made in _begin"
        self._keep(pipeline.run(exchange, self._services, responder.release, start=_ENTERED))

    def _keep(self, rest: Coroutine[Any, Any, None] | None) -> None:
        if rest is not None:
            # The responder keeps the task from being collected, and we the responder.
            asyncio.get_running_loop().create_task(rest)

    def _exchange(
        self, endpoint: Endpoint, call: Call, client: Responder, request_id: str
    ) -> Exchange:
        services = self._services
        headers = call.headers
        exchange = Exchange(
            request_id=request_id,
            endpoint=endpoint,
            headers=headers,
            raw=b"",
            client=client,
            policy=services.policies.current,
            started=services.monotonic(),
            started_us=services.now_us(),
        )
        theirs = headers.get(b"x-client-request-id") or headers.get(b"x-request-id")
        if theirs is not None and _PRINTABLE.fullmatch(theirs):
            exchange.client_request_id = theirs[:_CLIENT_ID_LENGTH_MAX].decode()
        return exchange

    # What asks no model

    def _other(self, call: Call, request_id: str) -> None:
        """Lists of models and what clients probe; anything else does not exist."""
        path = v1_path(_path(call))
        listed = path == MODELS or path.startswith(MODELS + "/")
        if not listed and path not in _PROBED and path != "*":
            hint, right = "", meant(path)
            if right is not None:
                hint = f" Did you mean {right}? The base URL ends in /v1, once, or for Anthropic's"
                hint += " clients without it."
            raise NotFound(f"Unknown request URL: {call.method.decode()} {path[:200]}.{hint}")
        if call.method == b"OPTIONS":
            methods = f"{_LOOK}, POST" if path == "*" else _LOOK
            self._preflight(call, request_id, methods)
        elif call.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(f"{path[:200]} takes GET only.", allow=_LOOK)
        elif listed:
            self._list(call, path, request_id)
        else:
            lines = self._cors_lines(call) + respond.id_lines(request_id, None)
            call.answer(200, b"content-type: text/plain\r\n" + lines, _GREETING)
            self._note(call, "probe", request_id, 200)

    def _list(self, call: Call, path: str, request_id: str) -> None:
        """The models, in the shape that the client's library reads."""
        exchange = self._exchange(
            "chat", call, Responder(call, self._responders.discard), request_id
        )
        call.context = exchange
        authenticate(exchange, self._services)
        dialect = spoken_at(path, call.headers)
        policy, tenant, name = exchange.policy, exchange.tenant, path.removeprefix(MODELS + "/")
        created, now_us, anthropic = self._since, exchange.started_us, dialect is not None
        document = (
            model_list(policy, tenant, created=created, now_us=now_us, anthropic=anthropic)
            if path == MODELS
            else one_model(
                policy, tenant, name, created=created, now_us=now_us, anthropic=anthropic
            )
        )
        lines = b"content-type: %b\r\n%b" % (JSON, respond.id_lines(request_id, dialect))
        if policy.cors_origins:
            lines += cors.answer_lines(call.headers, tenant.cors_origins)
        call.answer(200, lines, orjson.dumps(document))
        self._note(call, "models", request_id, 200, tenant=tenant.id)

    def _preflight(self, call: Call, request_id: str, methods: str) -> None:
        """OPTIONS: what the path takes and, where the policy names origins, who may ask."""
        origins = self._services.policies.current.cors_origins
        allow = methods.encode()
        lines = b"allow: %b\r\n%b" % (allow, respond.id_lines(request_id, None))
        if origins:
            lines += cors.preflight_lines(call.headers, origins, allow)
        call.answer(204, lines, b"")
        self._note(call, "preflight", request_id, 204)

    def _cors_lines(self, call: Call) -> bytes:
        origins = self._services.policies.current.cors_origins
        return cors.answer_lines(call.headers, origins) if origins else b""

    def _refuse(
        self, call: Call, error: GatewayError, request_id: str, endpoint: Endpoint | None
    ) -> None:
        """Answer a head that leads nowhere, in the shape that its sender reads."""
        exchange = call.context
        if isinstance(exchange, Exchange):
            exchange.error = error
            count_refusal(exchange, self._services)
        path = _path(call)
        shape = endpoint or spoken_at(path, call.headers)
        respond.refuse(call, error, request_id, shape, self._cors_lines(call))
        what = endpoint or ("models" if v1_path(path).startswith(MODELS) else "unknown")
        self._note(call, what, request_id, error.status, error)

    def _note(
        self,
        call: Call,
        what: str,
        request_id: str,
        status: int,
        error: GatewayError | None = None,
        tenant: str | None = None,
    ) -> None:
        record_other(
            self._services,
            what=what,
            request_id=request_id,
            method=call.method.decode("ascii", "replace"),
            path=_path(call),
            status=status,
            error=error,
            tenant=tenant,
        )

    def _mistaken(
        self, call: Call, error: Exception, request_id: str, endpoint: Endpoint | None
    ) -> None:
        """The outermost edge: even our mistakes have the shape that the client expects."""
        _log.error("request %s: %s", request_id, type(error).__name__, exc_info=error)
        mistake = "The gateway made a mistake; the request id names it in our log."
        respond.refuse(call, InternalError(mistake), request_id, endpoint)


def _check_body(headers: dict[bytes, bytes], limits: Limits) -> int | None:
    """The body's bytes, where the head tells. Raises BodyTooLarge or UnsupportedEncoding."""
    coding = headers.get(b"content-encoding")
    if coding and {part.strip().lower() for part in coding.split(b",")} - _IDENTITY:
        raise UnsupportedEncoding("Compressed bodies are not accepted: send plain JSON.")
    length = headers.get(b"content-length")
    if length is None:
        return None if b"transfer-encoding" in headers else 0
    size_bytes = int(length)
    bytes_max = min(
        limits.body_bytes_max, limits.tenant_body_bytes_max, limits.worker_body_bytes_max
    )
    if size_bytes > bytes_max:
        raise BodyTooLarge(f"The body has {size_bytes} bytes; the limit is {bytes_max}.")
    return size_bytes


def _path(call: Call) -> str:
    """The path as text, whatever its bytes."""
    return unquote(call.target.partition(b"?")[0].decode("ascii", "replace"))
