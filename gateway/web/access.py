"""Who may do what on the admin port: four roles, declared beside each route, checked in one place.

A route declares its ``Access`` in ``opt``; one that declares none stops the application from being
built. Programs come with ``Authorization: Bearer tha_…``, people with a session cookie; neither
door accepts the other's credential, so that no foreign page can call the API with a cookie.
"""

import ipaddress
from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers.base import BaseRouteHandler

from gateway.errors import AuthenticationFailed, MethodNotAllowed, NotFound, PermissionDenied
from gateway.stores.keys import ROLES, KeyRecord, Role
from gateway.web.services import AdminServices
from gateway.web.sessions import Sessions

SESSION_COOKIE = "tollhouse_session"
FORM_COOKIE = "tollhouse_form"  # binds the login form to the browser that was given it

Door = Literal["open", "bearer", "session", "loopback"]


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What a route asks of its caller."""

    door: Door
    roles: frozenset[Role] = frozenset()
    # False: the route concerns the whole gateway, so a key bound to one tenant may not use it.
    for_one_tenant: bool = False


_LOOK: frozenset[Role] = frozenset(ROLES)
_EXPORT: frozenset[Role] = frozenset(("finance", "admin"))
_OPERATE: frozenset[Role] = frozenset(("operator", "admin"))
_ADMINISTER: frozenset[Role] = frozenset(("admin",))

OPEN = {"access": Access(door="open", for_one_tenant=True)}
SCRAPE = {"access": Access(door="loopback", roles=_LOOK)}
LOOK_AT_PAGE = {"access": Access(door="session", roles=_LOOK, for_one_tenant=True)}
EXPORT_FROM_PAGE = {"access": Access(door="session", roles=_EXPORT, for_one_tenant=True)}
LOOK = {"access": Access(door="bearer", roles=_LOOK)}
LOOK_AT_TENANT = {"access": Access(door="bearer", roles=_LOOK, for_one_tenant=True)}
OPERATE = {"access": Access(door="bearer", roles=_OPERATE)}
ADMINISTER = {"access": Access(door="bearer", roles=_ADMINISTER)}


class SignInFirst(AuthenticationFailed):
    """A page was asked for without a session: the answer is the login form."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The caller: an admin key, by itself or through a session."""

    key: KeyRecord

    @property
    def role(self) -> Role:
        """The key's role."""
        assert self.key.role is not None, "an admin key has a role"
        return self.key.role

    @property
    def tenant(self) -> str | None:
        """The one tenant this caller sees; None: every tenant."""
        return self.key.tenant_id

    @property
    def may_export(self) -> bool:
        """Whether the CSV links are worth showing."""
        return self.role in _EXPORT

    def sees(self, tenant: str) -> bool:
        """Whether this tenant's figures may be shown."""
        return self.tenant is None or self.tenant == tenant

    def narrowed(self, tenant: str | None) -> str | None:
        """The tenant to ask the ledger for. Raises NotFound for one that is not the caller's.

        Not PermissionDenied: that would tell which tenants exist.
        """
        if self.tenant is None or tenant is None:
            return tenant if self.tenant is None else self.tenant
        if tenant != self.tenant:
            raise NotFound(f"there is no tenant {tenant!r}")
        return tenant


Caller = Request[Principal | None, Any, State]


def services_of(connection: ASGIConnection[Any, Any, Any, Any]) -> AdminServices:
    """The services this application was built with."""
    return cast(AdminServices, connection.app.state.services)


def sessions_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Sessions:
    """The sessions of this application."""
    return cast(Sessions, connection.app.state.sessions)


def principal_of(request: Caller) -> Principal:
    """The caller of a route that is not open; the guard has seen to it."""
    assert request.user is not None, "only routes with a role ask who is calling"
    return request.user


async def authorize(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Guard of every route: finds the caller and holds them against the route's ``Access``."""
    access = cast(Access | None, handler.opt.get("access"))
    if access is None:  # only Litestar's own OPTIONS handlers: create_admin_app refuses others
        raise MethodNotAllowed("this port does not answer OPTIONS", allow=_methods(connection))
    principal = _find(connection, access.door)
    connection.scope["user"] = principal
    if access.door == "open" or (access.door == "loopback" and _is_local(connection)):
        return
    if principal is None:
        if access.door == "session":
            raise SignInFirst("sign in first")
        raise AuthenticationFailed("send an admin key: Authorization: Bearer tha_…")
    if principal.role not in access.roles:
        allowed = " or ".join(sorted(access.roles))
        raise PermissionDenied(f"this needs the role {allowed}; the key has {principal.role}")
    if principal.tenant is not None and not access.for_one_tenant:
        raise PermissionDenied(
            f"this concerns the whole gateway; the key is bound to tenant {principal.tenant!r}"
        )


def session_principal(connection: ASGIConnection[Any, Any, Any, Any]) -> Principal | None:
    """Whoever the session cookie names, while the key behind it lives."""
    services = services_of(connection)
    now_us = services.now_us()
    session = sessions_of(connection).read(connection.cookies.get(SESSION_COOKIE, ""), now_us)
    if session is None:
        return None
    return principal_by_id(services, session.key_id)


def principal_by_id(services: AdminServices, key_id: str) -> Principal | None:
    """The live admin key of this id, as a caller."""
    now_us = services.now_us()
    for record in services.keys.list("admin"):
        if record.id == key_id and record.usable(now_us):
            return Principal(key=record)
    return None


def _find(connection: ASGIConnection[Any, Any, Any, Any], door: Door) -> Principal | None:
    if door == "session":
        return session_principal(connection)
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    services = services_of(connection)
    record = services.keys.authenticate(token.strip(), "admin", services.now_us())
    return None if record is None else Principal(key=record)


def _methods(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The methods that the path takes, as the ``allow`` header names them."""
    template = connection.scope["path_template"]
    found = {
        str(method)
        for route in connection.app.routes
        if route.path == template
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
    }
    return allowed(found)


def allowed(methods: Iterable[str]) -> str:
    """The ``allow`` header of a path of this port: what answers GET answers HEAD, too."""
    found = set(methods) - {"OPTIONS"}
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))


def _is_local(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """From this machine, and not by a foreign page whose name was pointed at this machine."""
    if connection.client is None:
        return False
    name = connection.headers.get("host", "")
    host = name[1:].split("]")[0] if name.startswith("[") else name.split(":")[0].lower()
    return _is_loopback(connection.client.host) and (host == "localhost" or _is_address(host))


def _is_loopback(text: str) -> bool:
    return _is_address(text) and ipaddress.ip_address(text).is_loopback


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
