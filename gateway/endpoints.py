"""``/v1/*``: bytes in, an Exchange made, its answer sent. Implements ``server.Handler``.

Thin on purpose: what happens to a request is ``pipeline.py``.
"""

import asyncio
import logging
import re
from typing import Any, Protocol
from urllib.parse import unquote

import orjson

from gateway import pipeline, respond
from gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Overloaded,
    UnsupportedEncoding,
)
from gateway.exchange import Exchange
from gateway.policy.snapshot import AUTO, Policy, Tenant
from gateway.respond import Responder
from gateway.services import Services
from gateway.stages.authenticate import authenticate
from gateway.wire.dialects import POST_PATHS, locate, v1_path
from gateway.wire.openai import Endpoint

_KNOWN = pipeline.FORWARD.index(authenticate) + 1  # the stage after it
_MODELS = "/v1/models"
_CLIENT_ID_LENGTH_MAX = 128
_PRINTABLE = re.compile(rb"[\x21-\x7e]+")
_log = logging.getLogger("tollhouse.endpoints")


class Call(respond.Call, Protocol):
    """What ``server.py`` tells of a request."""

    method: bytes
    target: bytes  # path and query, as they came
    headers: dict[bytes, bytes]  # names in lower case; a repeated one's values as a list
    body: bytes | bytearray
    context: object  # ours, from head to body


class V1:
    """What clients of the OpenAI interface talk to."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._responders: set[Responder] = set()
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
                raise MethodNotAllowed(f"{_path(call)} takes POST only.")
            return self._begin(endpoint, deployment, call, request_id)
        except GatewayError as error:
            respond.refuse(call, error, request_id, endpoint)
        except Exception as error:
            self._mistaken(call, error, request_id, endpoint)
        return False

    def body(self, call: Call) -> None:
        """Run the pipeline."""
        exchange = call.context
        assert isinstance(exchange, Exchange), "head keeps it there"
        exchange.raw = bytes(call.body)
        self._answer(exchange, _KNOWN)

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
        responder = Responder(call, self._responders.discard)
        exchange = self._exchange(endpoint, call, responder, request_id)
        exchange.deployment = deployment
        call.context = exchange
        # Nobody else's body is read, or a few idle connections without a key could fill the house.
        try:
            authenticate(exchange, services)
        except GatewayError:
            self._responders.add(responder)
            self._answer(exchange, 0)  # the stage refuses again, and the request is recorded
            return False
        _check_body(call.headers, limits.body_bytes_max)
        self._responders.add(responder)
        return True

    def _answer(self, exchange: Exchange, start: int) -> None:
        responder = exchange.client
        assert isinstance(responder, Responder), "made in _begin"
        rest = pipeline.run(exchange, self._services, responder.release, start=start)
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

    def _other(self, call: Call, request_id: str) -> None:
        """``GET /v1/models`` and ``/v1/models/{id}``; anything else does not exist."""
        path = v1_path(_path(call))
        if path != _MODELS and not path.startswith(_MODELS + "/"):
            raise NotFound(f"Unknown request URL: {call.method.decode()} {path[:200]}.")
        if call.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(f"{_MODELS} takes GET only.")
        exchange = self._exchange(
            "chat", call, Responder(call, self._responders.discard), request_id
        )
        authenticate(exchange, self._services)
        listed = [
            _model_document(exchange.policy, name)
            for name in _permitted(exchange.policy, exchange.tenant)
        ]
        if path == _MODELS:
            document: dict[str, Any] = {"object": "list", "data": listed}
        else:
            name = path.removeprefix(_MODELS + "/")
            found = [model for model in listed if model["id"] == name]
            if not found:
                raise ModelNotFound(f"The model '{name[:200]}' does not exist.", param="model")
            document = found[0]
        lines = b"content-type: application/json\r\nx-request-id: %b\r\n" % request_id.encode()
        call.answer(200, lines, orjson.dumps(document))

    def _mistaken(
        self, call: Call, error: Exception, request_id: str, endpoint: Endpoint | None
    ) -> None:
        """The outermost edge: even our mistakes have the shape that the client expects."""
        _log.error("request %s: %s", request_id, type(error).__name__, exc_info=error)
        mistake = "The gateway made a mistake; the request id names it in our log."
        respond.refuse(call, InternalError(mistake), request_id, endpoint)


def _check_body(headers: dict[bytes, bytes], bytes_max: int) -> None:
    """What the head tells of the body. Raises BodyTooLarge or UnsupportedEncoding."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedEncoding("Compressed bodies are not accepted: send plain JSON.")
    length = headers.get(b"content-length")
    if length is not None and int(length) > bytes_max:
        raise BodyTooLarge(f"The body has {int(length)} bytes; the limit is {bytes_max}.")


def _path(call: Call) -> str:
    """The path as text, whatever its bytes."""
    return unquote(call.target.partition(b"?")[0].decode("ascii", "replace"))


def _permitted(policy: Policy, tenant: Tenant) -> list[str]:
    allowed = tenant.allow_models
    return sorted(name for name in policy.known_models if allowed is None or name in allowed)


def _model_document(policy: Policy, name: str) -> dict[str, Any]:
    model = policy.models.get(name)
    owner = "tollhouse" if name == AUTO or model is None else model.provider.name
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
