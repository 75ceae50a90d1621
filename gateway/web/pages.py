"""Pages for people: sign in, what a tenant costs, why a request cost what it did.

Plain HTML and forms, complete without script. Handlers run in threads, because the ledger and the
templates may take longer than the event loop can wait.
"""

import secrets
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect

from gateway.errors import NotFound, PermissionDenied
from gateway.ledger import reports
from gateway.web import figures, views
from gateway.web.access import (
    EXPORT_FROM_PAGE,
    FORM_COOKIE,
    LOOK_AT_PAGE,
    OPEN,
    SESSION_COOKIE,
    Caller,
    Principal,
    principal_by_id,
    principal_of,
    services_of,
    session_principal,
    sessions_of,
)
from gateway.web.csv_export import CONTENT_TYPE as CSV
from gateway.web.exports import figures_csv
from gateway.web.services import SESSION_SECONDS

_templates = Environment(
    loader=PackageLoader("gateway.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    usd=figures.usd,
    usd_exact=figures.usd_exact,
    count=figures.count,
    duration=figures.duration,
    moment=figures.moment,
    month_name=figures.month_name,
)
_templates.filters["aligned"] = figures.usd_aligned
_templates.globals.update(share=figures.share, places_of=figures.places_of)


@get("/", opt=LOOK_AT_PAGE, include_in_schema=False, sync_to_thread=False)
def home() -> Redirect:
    """The costs are what people come for."""
    return Redirect("/costs", status_code=303)


@get("/login", opt=OPEN, include_in_schema=False, sync_to_thread=False)
def login_form(
    request: Caller, link: FromQuery[str] = "", next: FromQuery[str] = "/costs"
) -> Response[str]:
    """The form for an admin key, or for a one-time link: one button.

    A link is not used up by being looked at, so that a preview of it harms nothing.
    """
    return _login_page(request, link=link, goal=next)


@post("/login", opt=OPEN, include_in_schema=False, status_code=303)
async def log_in(request: Caller) -> Response[Any]:
    """Check key or link, set the session cookie, go on to where the visitor wanted to be."""
    form = {name: str(value) for name, value in (await request.form()).items()}
    sessions = sessions_of(request)
    if not sessions.form_token_matches(
        request.cookies.get(FORM_COOKIE, ""), form.get("form_token", "")
    ):
        return _login_page(request, problem="This form was too old. Please try again.", status=403)
    services = services_of(request)
    now_us = services.now_us()
    if link := form.get("link", ""):
        key_id = sessions.use_link(link, now_us)
        problem = "This link was used before or is older than fifteen minutes."
    else:
        record = services.keys.authenticate(form.get("key", "").strip(), "admin", now_us)
        key_id = None if record is None else record.id
        problem = "That is no admin key of this gateway, or it has expired or been revoked."
    if key_id is None or principal_by_id(services, key_id) is None:
        return _login_page(request, problem=problem, status=403, goal=form.get("next", ""))
    response: Response[Any] = Redirect(_local_path(form.get("next", "")), status_code=303)
    _set_cookie(request, response, SESSION_COOKIE, sessions.issue(key_id, now_us), SESSION_SECONDS)
    response.delete_cookie(FORM_COOKIE)
    return response


@post("/logout", opt=LOOK_AT_PAGE, include_in_schema=False, status_code=303)
async def log_out(request: Caller) -> Response[Any]:
    """End the session, here and for every copy of its cookie."""
    await _check_form(request)
    sessions = sessions_of(request)
    now_us = services_of(request).now_us()
    session = sessions.read(request.cookies[SESSION_COOKIE], now_us)
    if session is not None:
        sessions.end(session, now_us)
    response: Response[Any] = Redirect("/login", status_code=303)
    response.delete_cookie(SESSION_COOKIE)
    return response


@get("/costs", opt=LOOK_AT_PAGE, include_in_schema=False, sync_to_thread=True)
def costs(request: Caller, period: FromQuery[str] = "") -> Response[Any]:
    """All tenants in one month. A tenant's own viewer goes to that tenant."""
    principal = principal_of(request)
    if principal.tenant is not None:
        return Redirect(_tenant_path(principal.tenant, period), status_code=303)
    view = views.overview(services_of(request), period)
    return _page(request, "costs.html", principal, view=view)


@get("/costs/{tenant:str}", opt=LOOK_AT_PAGE, include_in_schema=False, sync_to_thread=True)
def tenant_costs(
    request: Caller, tenant: FromPath[str], period: FromQuery[str] = ""
) -> Response[Any]:
    """One tenant in one month. ``/costs/acme.csv`` leads to the export."""
    services = services_of(request)
    if tenant.endswith(".csv") and tenant not in services.policies.current.tenants:
        query = urlencode({"tenant": tenant.removesuffix(".csv"), "period": period})
        return Redirect(f"/costs.csv?{query}", status_code=303)
    principal = principal_of(request)
    if not principal.sees(tenant):
        raise NotFound(f"there is no tenant {tenant!r}")
    view = views.tenant(services, tenant, period, principal.tenant)
    return _page(request, "tenant.html", principal, view=view)


@get("/costs.csv", opt=EXPORT_FROM_PAGE, include_in_schema=False, sync_to_thread=True)
def costs_csv(
    request: Caller, period: FromQuery[str] = "", tenant: FromQuery[str] = ""
) -> Response[str]:
    """One month with exact amounts: every tenant in one row, or one tenant in every grouping."""
    services = services_of(request)
    month = views.month(services, period)
    own = principal_of(request).tenant
    wanted = principal_of(request).narrowed(tenant or None)
    groupings: tuple[reports.Grouping, ...] = ("tenant",)
    if wanted is not None:
        views.require_tenant(services, wanted, month)
        groupings = ("tenant", "project", "key", "model", "route", "day")
    sections = [
        (
            by,
            views.visible(services, own, reports.summary(services.ledger.store, month, wanted, by)),
        )
        for by in groupings
    ]
    name = quote(f"tollhouse-{wanted or 'costs'}-{month}.csv", safe="")
    return Response(
        figures_csv(month, sections, whole=own is None),
        headers={
            "content-type": CSV,
            "content-disposition": f"attachment; filename*=UTF-8''{name}",
        },
    )


@get("/requests", opt=LOOK_AT_PAGE, include_in_schema=False, sync_to_thread=False)
def find_request(id: FromQuery[str] = "") -> Redirect:
    """The search field of every page."""
    return Redirect(
        f"/requests/{quote(id.strip(), safe='')}" if id.strip() else "/costs", status_code=303
    )


@get("/requests/{request_id:str}", opt=LOOK_AT_PAGE, include_in_schema=False, sync_to_thread=True)
def show_request(request: Caller, request_id: FromPath[str]) -> Response[Any]:
    """One request: what was decided and why, what it used, what it cost."""
    principal = principal_of(request)
    view = views.request(services_of(request), request_id)
    if view is None or not principal.sees(view.tenant):
        raise NotFound(f"there is no request {request_id!r} in the ledger")
    return _page(request, "request.html", principal, view=view)


def login_address(request: Request[Any, Any, Any]) -> str:
    """The login form that leads back to the page that was asked for."""
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return "/login" if path == "/" else f"/login?{urlencode({'next': path})}"


def render_error(
    request: Request[Any, Any, Any], status: int, message: str, headers: dict[str, str]
) -> Response[Any]:
    """A page that says what is wrong; it shows who is signed in only if someone is."""
    response = _page(
        request, "error.html", session_principal(request), status=status, message=message
    )
    response.status_code = status
    response.headers.update(headers)
    return response


def _page(
    request: Request[Any, Any, Any], template: str, principal: Principal | None, **context: object
) -> Response[Any]:
    cookie = request.cookies.get(SESSION_COOKIE, "")
    html = _templates.get_template(template).render(
        principal=principal,
        form_token=sessions_of(request).form_token(cookie) if principal else "",
        environment=services_of(request).environment,
        **context,
    )
    return Response(html, media_type=MediaType.HTML)


def _login_page(
    request: Caller, *, link: str = "", goal: str = "", problem: str = "", status: int = 200
) -> Response[Any]:
    cookie = secrets.token_urlsafe(24)
    response = _page(
        request,
        "login.html",
        None,
        link=link,
        goal=_local_path(goal),
        problem=problem,
        login_token=sessions_of(request).form_token(cookie),
    )
    response.status_code = status
    _set_cookie(request, response, FORM_COOKIE, cookie, 3_600)
    return response


async def _check_form(request: Caller) -> None:
    form = await request.form()
    cookie = request.cookies.get(SESSION_COOKIE, "")
    if not sessions_of(request).form_token_matches(cookie, str(form.get("form_token", ""))):
        raise PermissionDenied("this form did not come from our page, or is too old: load it again")


def _set_cookie(
    request: Caller, response: Response[Any], name: str, value: str, seconds: int
) -> None:
    response.set_cookie(
        Cookie(
            key=name,
            value=value,
            max_age=seconds,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    )


def _local_path(path: str) -> str:
    """``path`` where it stays on this site, else the costs."""
    harmless = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if harmless and path.isprintable() and len(path) <= 500 else "/costs"


def _tenant_path(tenant: str, period: str) -> str:
    query = f"?{urlencode({'period': period})}" if period else ""
    return f"/costs/{quote(tenant, safe='')}{query}"


HANDLERS = (
    home,
    login_form,
    log_in,
    log_out,
    costs,
    tenant_costs,
    costs_csv,
    find_request,
    show_request,
)
