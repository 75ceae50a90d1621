"""The OpenAPI document of the admin interface: what each operation is called, needs and refuses.

Told beside the routes, once for all of them. Knows no route's work.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.router import Router

from gateway.web.access import OPEN

_KEY = "adminKey"
_REFUSALS = {
    400: "The request is not acceptable; the message says why.",
    401: "No admin key, or one that is unknown, revoked or expired.",
    403: "The key's role, or the tenant it is bound to, does not allow this.",
    404: "There is nothing of this name that the key may see.",
}


class Reason(msgspec.Struct, kw_only=True):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refused(msgspec.Struct, kw_only=True):
    """The body of every error."""

    error: Reason


def openapi_config() -> OpenAPIConfig:
    """Where the document is found, and how its operations say who they are."""
    return OpenAPIConfig(
        title="Tollhouse admin API",
        version="1",
        path="/schema",
        use_handler_docstrings=True,
        render_plugins=[JsonRenderPlugin()],
        openapi_router=Router(path="/schema", route_handlers=[], opt=OPEN, include_in_schema=False),
        components=Components(
            security_schemes={
                _KEY: SecurityScheme(
                    type="http", scheme="bearer", description="An admin key, tha_…"
                )
            }
        ),
    )


def described(handlers: Iterable[HTTPRouteHandler]) -> list[HTTPRouteHandler]:
    """The routes of the interface, each with its name, its words, its key and its refusals.

    The framework would take both from the wrapper that it puts around a function.
    """
    found = list(handlers)
    for handler in found:
        function: Any = handler.fn
        first, *others = function.__name__.split("_")
        handler.operation_id = first + "".join(word.title() for word in others)
        handler.description = inspect.getdoc(function)
        handler.security = [{_KEY: []}]
        handler.tags = [min(handler.paths).removeprefix("/admin/").partition("/")[0]]
        handler.responses = {
            status: ResponseSpec(Refused, generate_examples=False, description=words)
            for status, words in _REFUSALS.items()
        }
    return found
