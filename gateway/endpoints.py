"""``/v1/*`` as a bare ASGI application: bytes in, an Exchange made, its answer sent.

Thin on purpose: what happens to a request is ``pipeline.py``. Dispatched before any framework,
because a framework costs more than everything here together.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from gateway.errors import (
    BodyTooLarge,
    ClientClosed,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Overloaded,
    UnsupportedEncoding,
)
from gateway.exchange import Exchange
from gateway.policy.snapshot import AUTO, Policy, Tenant
from gateway.respond import Message, Receive, Responder, Send, refuse, respond
from gateway.services import Services
from gateway.stages.authenticate import authenticate
from gateway.wire.openai import Endpoint

Scope = Message

POST_PATHS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
_MODELS = "/v1/models"
_CLIENT_ID_LENGTH_MAX = 128
_PRINTABLE = re.compile(rb"[\x21-\x7e]+")
_log = logging.getLogger("tollhouse.endpoints")


class V1:
    """The application that clients of the OpenAI interface talk to."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.in_flight = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        request_id = self._services.new_id()
        try:
            endpoint = POST_PATHS.get(scope["path"])
            if endpoint is None:
                await self._other(scope, send, request_id)
                return
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['path']} takes POST only.")
            await self._complete(endpoint, scope, receive, send, request_id)
        except ClientClosed:
            return
        except GatewayError as error:
            await refuse(send, error, request_id)
        except Exception as error:  # the outermost edge: even our mistakes have OpenAI's shape
            _log.error("request %s: %s", request_id, type(error).__name__, exc_info=error)
            mistake = "The gateway made a mistake; the request id names it in our log."
            await refuse(send, InternalError(mistake), request_id)

    async def _complete(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send, request_id: str
    ) -> None:
        services = self._services
        limits = services.settings.limits
        if self.draining or self.in_flight >= limits.requests_in_flight_max:
            raise Overloaded(
                "The gateway is stopping."
                if self.draining
                else f"{self.in_flight} requests are in progress; try again shortly.",
                retry_after_seconds=1.0,
            )
        exchange = self._exchange(endpoint, scope, send, request_id)
        known = self._knows(exchange)
        self.in_flight += 1
        try:
            if known:
                exchange.raw = await read_body(exchange.headers, receive, limits.body_bytes_max)
            await respond(exchange, services, exchange.client)  # type: ignore[arg-type] # ours
        finally:
            self.in_flight -= 1

    def _knows(self, exchange: Exchange) -> bool:
        """Whether the caller has a key. Nobody else's body is read, or a few idle connections
        without one could fill the house. The stage refuses, and records it.
        """
        try:
            authenticate(exchange, self._services)
        except GatewayError:
            return False
        return True

    def _exchange(self, endpoint: Endpoint, scope: Scope, send: Send, request_id: str) -> Exchange:
        services = self._services
        headers: dict[bytes, bytes] = dict(scope["headers"])
        exchange = Exchange(
            request_id=request_id,
            endpoint=endpoint,
            headers=headers,
            raw=b"",
            client=Responder(scope["extensions"]["tollhouse"], send),
            policy=services.policies.current,
            started=services.monotonic(),
            started_us=services.now_us(),
        )
        theirs = headers.get(b"x-client-request-id") or headers.get(b"x-request-id")
        if theirs is not None and _PRINTABLE.fullmatch(theirs):
            exchange.client_request_id = theirs[:_CLIENT_ID_LENGTH_MAX].decode()
        return exchange

    async def _other(self, scope: Scope, send: Send, request_id: str) -> None:
        """``GET /v1/models`` and ``/v1/models/{id}``; anything else does not exist."""
        path: str = scope["path"]
        if path != _MODELS and not path.startswith(_MODELS + "/"):
            raise NotFound(f"Unknown request URL: {scope['method']} {path[:200]}.")
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{_MODELS} takes GET only.")
        exchange = self._exchange("chat", scope, send, request_id)
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
        await _send_json(send, document, request_id)


async def read_body(headers: dict[bytes, bytes] | Any, receive: Receive, bytes_max: int) -> bytes:
    """The whole body. Raises BodyTooLarge, UnsupportedEncoding, InvalidRequest or ClientClosed."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedEncoding("Compressed bodies are not accepted: send plain JSON.")
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and int(length) > bytes_max:
        raise BodyTooLarge(f"The body has {int(length)} bytes; the limit is {bytes_max}.")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = message.get("body", b"")
        if len(body) > bytes_max:
            raise BodyTooLarge(f"The body is larger than the limit of {bytes_max} bytes.")
    else:
        body = await _read_rest(message, receive, bytes_max)
    if not body:
        raise InvalidRequest("The body is empty; it must be a JSON object.")
    return bytes(body)


async def _read_rest(message: Message, receive: Receive, bytes_max: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientClosed("The client left while it was sending.")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > bytes_max:
            raise BodyTooLarge(f"The body is larger than the limit of {bytes_max} bytes.")
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def _permitted(policy: Policy, tenant: Tenant) -> list[str]:
    allowed = tenant.allow_models
    return sorted(name for name in policy.known_models if allowed is None or name in allowed)


def _model_document(policy: Policy, name: str) -> dict[str, Any]:
    model = policy.models.get(name)
    owner = "tollhouse" if name == AUTO or model is None else model.provider.name
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def _send_json(send: Send, document: dict[str, Any], request_id: str) -> None:
    body = orjson.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


Application = Callable[[Scope, Receive, Send], Awaitable[None]]
