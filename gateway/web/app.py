"""The admin application: one Litestar app for pages, API, probes and metrics, on its own port.

Every response, errors included, carries the same strict headers; every route declares who may use
it, or the application is not built. Knows no route's work.
"""

import logging
from importlib import resources
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.datastructures import MutableScopeHeaders, State
from litestar.exceptions import HTTPException
from litestar.params import FromPath
from litestar.response import Redirect
from litestar.types import Message, Scope

from gateway import errors
from gateway.web import api, health, pages
from gateway.web.access import OPEN, Access, SignInFirst, allowed, authorize
from gateway.web.openapi import described, openapi_config
from gateway.web.pages import login_address, render_error
from gateway.web.services import BODY_BYTES_MAX, AdminServices
from gateway.web.sessions import Sessions

_log = logging.getLogger("tollhouse.admin")

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_MACHINE_PATHS = ("/admin", "/schema", "/livez", "/readyz", "/startupz", "/metrics")

_STATIC = {
    name: (
        resources.files("gateway.web").joinpath("static", name).read_bytes(),
        content_type,
    )
    for name, content_type in (
        ("tollhouse.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    )
}


@get("/static/{name:str}", opt=OPEN, include_in_schema=False, sync_to_thread=False)
def static(name: FromPath[str]) -> Response[bytes]:
    """The style sheet and the icon, from the package."""
    if name not in _STATIC:
        raise errors.NotFound(f"there is no file {name!r}")
    content, content_type = _STATIC[name]
    return Response(content, headers={"content-type": content_type, "cache-control": "max-age=300"})


def create_admin_app(services: AdminServices) -> Litestar:
    """The application behind the admin port. Raises LookupError if a route declares no access."""
    app = Litestar(
        route_handlers=[*health.HANDLERS, *described(api.HANDLERS), *pages.HANDLERS, static],
        guards=[authorize],
        state=State({"services": services, "sessions": Sessions(services.cookie_secret)}),
        before_send=[_add_headers],
        exception_handlers={
            errors.GatewayError: _answer_error,
            HTTPException: _answer_http_exception,
            RecursionError: _answer_too_deep,
            Exception: _answer_mistake,
        },
        openapi_config=openapi_config(),
        request_max_body_size=BODY_BYTES_MAX,
        logging_config=None,
    )
    _refuse_undeclared(app)
    return app


def declared_access(app: Litestar) -> dict[tuple[str, str], Access | None]:
    """Each route as (method, path) with what it asks of its caller. OPTIONS is Litestar's own."""
    return {
        (str(method), route.path): handler.opt.get("access")
        for route in app.routes
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
        if method != "OPTIONS"
    }


def _refuse_undeclared(app: Litestar) -> None:
    undeclared = [route for route, access in declared_access(app).items() if access is None]
    if undeclared:
        raise LookupError(f"these routes do not say who may use them: {undeclared}")


async def _add_headers(message: Message, scope: Scope) -> None:
    if message["type"] != "http.response.start":
        return
    headers = MutableScopeHeaders.from_message(message)
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    headers.setdefault("cache-control", "no-store")


def _answer_error(request: Request[Any, Any, Any], error: errors.GatewayError) -> Response[Any]:
    """JSON for programs; for people the login form or a page that says what is wrong."""
    if isinstance(error, SignInFirst) and request.method in ("GET", "HEAD"):
        return Redirect(login_address(request), status_code=303)
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    if request.url.path.startswith(_MACHINE_PATHS):
        return Response(
            error.body(),
            status_code=error.status,
            media_type="application/json",
            headers=headers,
        )
    return render_error(request, error.status, error.message, headers)


def _answer_http_exception(
    request: Request[Any, Any, Any], exception: HTTPException
) -> Response[Any]:
    """Litestar's own refusals, in our words and our shape."""
    if exception.status_code >= 500:
        return _answer_mistake(request, exception)
    known: dict[int, type[errors.GatewayError]] = {
        404: errors.NotFound,
        413: errors.BodyTooLarge,
        415: errors.UnsupportedMediaType,
    }
    kind = known.get(exception.status_code, errors.InvalidRequest)
    what = f"{request.method} {request.url.path}: {_explain(exception)}"
    if exception.status_code == 405:
        methods = (exception.headers or {}).get("allow", "").split(", ")
        return _answer_error(request, errors.MethodNotAllowed(what, allow=allowed(methods)))
    return _answer_error(request, kind(what))


def _answer_too_deep(request: Request[Any, Any, Any], exception: RecursionError) -> Response[Any]:
    """msgspec gives up on JSON nested some thousand levels deep; nothing of ours recurses."""
    return _answer_error(request, errors.InvalidRequest("the body is nested too deeply"))


def _explain(exception: HTTPException) -> str:
    details = exception.extra if isinstance(exception.extra, list) else []
    reasons = [
        f"{item.get('key', 'body')}: {item['message']}"
        for item in details
        if isinstance(item, dict) and "message" in item
    ]
    return "; ".join(reasons) or exception.detail


def _answer_mistake(request: Request[Any, Any, Any], exception: Exception) -> Response[Any]:
    """Our own mistake: the log gets the reason, the caller does not."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=exception)
    return _answer_error(request, errors.InternalError("the gateway made a mistake; see its log"))
