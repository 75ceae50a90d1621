"""Every error a client can see: one tree, one owner, one wire form.

    GatewayError
    ├── InvalidRequest            400   the body or a header is not acceptable
    │   ├── ContextTooLong        400   the prompt exceeds the model's window
    │   └── MissingTags           400   the tenant requires tags that are absent
    ├── AuthenticationFailed      401   no key, or one we do not know
    ├── PermissionDenied          403   a known key that may not do this
    ├── NotFound                  404   no such path
    │   └── ModelNotFound         404   no such model for this key
    ├── MethodNotAllowed          405
    ├── RequestTimeout            408   the request did not arrive in time
    ├── BodyTooLarge              413
    ├── UnsupportedEncoding       415
    │   └── UnsupportedMediaType  415
    ├── HeadersTooLarge           431   too many headers, or too long
    ├── RateLimited               429   requests, tokens or concurrency; may be retried
    ├── BudgetExhausted           429   money; must not be retried
    ├── ClientClosed              499   the client has left: booked, never sent
    ├── InternalError             500   our own mistake
    ├── UpstreamError             502   the provider failed
    │   ├── UpstreamUnavailable   502   no connection, or it broke before the first byte
    │   ├── UpstreamProtocolError 502   an answer that is no valid HTTP or JSON
    │   ├── UpstreamNonsense      502   the local model's answer was none, and was ended
    │   ├── UpstreamOverloaded    503   every target is ejected, full or shedding
    │   ├── UpstreamTimeout       504
    │   └── UpstreamStatus        *     the provider's own error, passed on
    ├── Overloaded                503   we are shedding load or draining
    ├── BudgetUnavailable         503   a hard budget cannot be checked just now
    ├── BudgetUnenforceable       403   a hard budget covers a model without a price
    ├── MeteringUnavailable       503   the write-ahead log cannot be written
    ├── StateUnwritable           507   the disk takes no change (admin interface)
    └── NotCached                 504   ``only-if-cached`` and there is no entry

Each class fixes its status, its OpenAI ``type`` and ``code``, whose fault it is and whether a
retry may help. This module makes an error OpenAI's bytes; for a client of another dialect
``wire/dialects.py`` does.
"""

import math
from typing import Literal, get_args

import orjson

# client: the request; tenant: its limits and money; operator: settings and policies, until changed.
Fault = Literal["client", "tenant", "operator", "upstream", "gateway"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# OpenAI's and Anthropic's clients ignore advice of over 60; ours for a rate rounds up to 61.
_CLIENTS_WAIT_SECONDS_MAX = 90.0


class GatewayError(Exception):
    """Base of all a client can be told. ``message`` names the thing, the limit, the way out."""

    status: int = 500
    type: str = "api_error"
    code: str | None = None
    fault: Fault = "gateway"
    retryable: bool = False
    frame: bytes | None = None  # the provider's own event that says so, without secrets

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def outcome(self) -> str:
        """A word for metrics: one of a few, never text that a provider or a client chose."""
        return type(self).code or "error"

    def body(self) -> bytes:
        """The OpenAI error document as JSON bytes."""
        return orjson.dumps(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the status obliges to say (RFC 9110 §15), and the retry advice that clients read."""
        found: list[tuple[bytes, bytes]] = []
        if self.retry_after_seconds is not None:
            # Rounded up: a client that waits exactly as long as told must not be too early.
            seconds = max(0.0, self.retry_after_seconds)
            found.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
            found.append((b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))))
        if self.status in (408, 409, 429) or self.status >= 500:
            # Told to wait longer than they ever do, the clients would come back within seconds.
            far = (self.retry_after_seconds or 0.0) > _CLIENTS_WAIT_SECONDS_MAX
            found.append((b"x-should-retry", b"true" if self.retryable and not far else b"false"))
        return found

    def event(self) -> bytes:
        """The server-sent event that ends a broken stream. No ``[DONE]`` may follow it."""
        return b"data: " + self.body() + b"\n\n"


class InvalidRequest(GatewayError):
    """The request itself is wrong; sending it again changes nothing."""

    status, type, fault = 400, "invalid_request_error", "client"

    @property
    def outcome(self) -> str:
        """A word for metrics."""
        return self.code or "invalid_request"


class ContextTooLong(InvalidRequest):
    """The prompt does not fit the model's context window."""

    code = "context_length_exceeded"


class MissingTags(InvalidRequest):
    """The tenant's policy requires tags that the request does not carry."""

    code = "missing_tags"


class AuthenticationFailed(GatewayError):
    """No API key, a malformed one, or one that is unknown, revoked or expired."""

    status, type, code, fault = 401, "invalid_request_error", "invalid_api_key", "client"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """How to say who one is (RFC 9110 §15.5.2)."""
        return [*super().headers(), (b"www-authenticate", b"Bearer")]


class PermissionDenied(GatewayError):
    """The key is known but its tenant or role may not do this."""

    status, type, code, fault = 403, "invalid_request_error", "permission_denied", "client"


class NotFound(GatewayError):
    """There is nothing at this path."""

    status, type, code, fault = 404, "invalid_request_error", "not_found", "client"


class ModelNotFound(NotFound):
    """The model does not exist, or this key may not use it."""

    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The path exists but not with this method. allow: the methods that it takes."""

    status, type, code, fault = 405, "invalid_request_error", "method_not_allowed", "client"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The methods that the path takes (RFC 9110 §15.5.6)."""
        return [*super().headers(), (b"allow", self.allow.encode())]


class RequestTimeout(GatewayError):
    """The request's headers or body did not arrive in time."""

    status, type, code, fault, retryable = (
        408,
        "invalid_request_error",
        "request_timeout",
        "client",
        True,
    )


class BodyTooLarge(GatewayError):
    """The body exceeds the configured limit."""

    status, type, code, fault = 413, "invalid_request_error", "request_too_large", "client"


class UnsupportedEncoding(GatewayError):
    """The body is compressed."""

    status, type, code, fault = 415, "invalid_request_error", "unsupported_media_type", "client"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The coding that is taken (RFC 9110 §15.5.16)."""
        return [*super().headers(), (b"accept-encoding", b"identity")]


class UnsupportedMediaType(UnsupportedEncoding):
    """The body is not JSON."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The type that is taken (RFC 9110 §15.5.16)."""
        return [*GatewayError.headers(self), (b"accept", b"application/json")]


class HeadersTooLarge(GatewayError):
    """The request's headers are too many or too long."""

    status, type, code, fault = 431, "invalid_request_error", "headers_too_large", "client"


class RateLimited(GatewayError):
    """Too many requests, tokens or concurrent requests; ``retry_after_seconds`` says when."""

    status, type, code, fault, retryable = (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        "tenant",
        True,
    )


class BudgetExhausted(GatewayError):
    """The tenant's money for this period is spent or reserved."""

    status, type, code, fault = 429, "insufficient_quota", "insufficient_quota", "tenant"
    budget_name: str | None = None  # the one that lacks the money


class ClientClosed(GatewayError):
    """The client left before its answer was complete. Booked as 499, never sent."""

    status, type, code, fault = 499, "client_closed_request", "client_closed_request", "client"


class InternalError(GatewayError):
    """Our own mistake. The message never carries the exception's text."""

    code = "internal_error"


class UpstreamError(GatewayError):
    """The provider failed. Subclasses say how."""

    code: str | None = "upstream_error"
    fault: Fault = "upstream"
    status, type, retryable = 502, "api_error", True
    unsent: bool = False  # the provider has not seen the request, or refused it: it costs nothing
    stale: bool = False  # a kept connection ended before a byte of the answer: ask on a new one


class UpstreamUnavailable(UpstreamError):
    """No connection to the provider, or it was lost before the first byte of the answer."""

    code = "upstream_unavailable"


class UpstreamProtocolError(UpstreamError):
    """The provider's answer is not valid HTTP, JSON or SSE, or is over a limit."""

    code, retryable = "upstream_protocol_error", False


class UpstreamNonsense(UpstreamError):
    """The local model's answer became a loop or another script, and was ended."""

    code, retryable = "upstream_nonsense", False


class UpstreamOverloaded(UpstreamError):
    """Every target is ejected, at its concurrency limit, or shedding load."""

    status, code = 503, "upstream_overloaded"


class UpstreamTimeout(UpstreamError):
    """Connect, first byte, idle or total deadline passed."""

    status, code = 504, "upstream_timeout"


# What a provider says of a request that is wrong; 401, 402, 403 and 429 are about our account.
_CLIENTS_MISTAKES = frozenset((400, 404, 405, 406, 409, 410, 411, 413, 414, 415, 416, 422, 451))


class UpstreamStatus(UpstreamError):
    """The provider answered with its own error; its (redacted) text and status are passed on."""

    passed_on: tuple[tuple[bytes, bytes], ...] = ()  # headers of the provider's that clients act on

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str = "api_error",
        code: str | None = "upstream_error",
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_seconds=retry_after_seconds)
        self.retryable = False  # unless whoever read the provider's answer knows better
        self.status = status
        self.type = type
        self.code = code
        if status in _CLIENTS_MISTAKES:
            self.fault = "client"

    @property
    def outcome(self) -> str:
        """A word for metrics: the provider's own code stays out of them."""
        if self.status == 429:
            return "upstream_rate_limited"
        return "upstream_refused" if self.fault == "client" else "upstream_error"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As of any error, and what the provider told the client beside it."""
        return [*super().headers(), *self.passed_on]


class Overloaded(GatewayError):
    """We shed load, or are draining, before doing any work for this request."""

    status, code, retryable = 503, "overloaded", True


class BudgetUnavailable(GatewayError):
    """A hard budget cannot be checked just now, so nothing may be spent."""

    status, code, retryable = 503, "budget_unavailable", True


class BudgetUnenforceable(GatewayError):
    """A hard budget covers a model without a price: no request passes until the policy changes."""

    status, code, fault = 403, "budget_unenforceable", "operator"


class MeteringUnavailable(GatewayError):
    """The write-ahead log cannot be written; unmetered traffic would be a loss."""

    status, code, retryable = 503, "metering_unavailable", True


class StateUnwritable(GatewayError):
    """The state folder's disk is full or takes no writes, so a change cannot be kept."""

    status, code = 507, "state_unwritable"


class NotCached(GatewayError):
    """The client sent ``cache-control: only-if-cached`` and no entry exists."""

    status, code, fault = 504, "not_cached", "client"


class PolicyError(Exception):
    """A settings or policy file is not acceptable. Carries every problem found, never just one."""

    def __init__(self, problems: "tuple[str, ...]") -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
