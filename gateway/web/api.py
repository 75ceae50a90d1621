"""The admin API: JSON, bearer keys, described by the OpenAPI document at ``/schema``.

Every change is logged with the id of the key that made it. Amounts are decimal dollars as text.
"""

import logging
from typing import Annotated

import msgspec
from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody, PathParameter, QueryParameter

from gateway.errors import InvalidRequest, NotFound, PolicyError
from gateway.ledger import reports
from gateway.policy.switches import SWITCHES, SwitchState
from gateway.stores.keys import KeyRecord, Kind, Role
from gateway.web.access import (
    ADMINISTER,
    LOOK,
    LOOK_AT_TENANT,
    OPERATE,
    Caller,
    principal_of,
    services_of,
    sessions_of,
)
from gateway.web.exports import document
from gateway.web.figures import month_of, parse_month
from gateway.web.services import LINK_SECONDS
from gateway.web.views import completeness, visible

_ONE_TENANT = "Of this tenant; default: of all that the key sees"
_UNSAVED = (
    "The key is revoked and refused from now on, but the state folder cannot be written: it is kept"
    " as soon as there is space, and a restart before that brings the key back."
)
_log = logging.getLogger("tollhouse.admin")


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to make. An API key needs a tenant, an admin key a role."""

    kind: Kind
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    tenant: str | None = None
    project: str = "default"
    role: Role | None = None
    expires_us: int | None = None


class MadeKey(msgspec.Struct, kw_only=True):
    """A key just made. ``token`` is shown this once."""

    key: KeyRecord
    token: str


class Unsaved(msgspec.Struct, kw_only=True):
    """A change that is in force and not on disk yet."""

    message: str


class Throw(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A switch to throw, for good or for some seconds, or to set back (``thrown: false``)."""

    name: str
    thrown: bool
    for_seconds: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)] | None = None


class ReloadStatus(msgspec.Struct, kw_only=True):
    """The policy in force, and what the last attempt to load its files came to."""

    version: str
    successful: bool
    loaded_us: int  # when the version in force was swapped in
    tried_us: int
    problems: tuple[str, ...]  # of the last attempt: "routing.yaml:12:5: …"
    warnings: tuple[str, ...]  # of the policy in force: accepted, and worth a look
    pinned: str | None  # the version that a rollback keeps in force; None: the files are


class Rollback(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The version to return to; None: the last but one."""

    version: str | None = None


class PolicyView(msgspec.Struct, kw_only=True):
    """The policy in force, in outline."""

    version: str
    versions: list[str]
    providers: list[str]
    models: list[str]
    routes: list[str]
    tenants: list[str]


class UsageView(msgspec.Struct, kw_only=True):
    """Sums of one month."""

    period: str
    by: reports.Grouping
    as_of_us: int
    rows: list[dict[str, str | int]]
    refused: list[reports.Refusals]  # turned away before any model was asked, by tenant and reason


class LoginLink(msgspec.Struct, kw_only=True):
    """A page address that signs in as the calling key, once."""

    url: str
    expires_us: int


class Purged(msgspec.Struct, kw_only=True):
    """How many cached answers were dropped."""

    entries: int


@get("/admin/keys", opt=ADMINISTER, summary="List keys", sync_to_thread=True)
def list_keys(
    request: Caller,
    kind: Annotated[Kind | None, QueryParameter(description="Of this kind; default: both")] = None,
) -> list[KeyRecord]:
    """Every key made at run time, revoked ones too. The keys themselves are not kept."""
    return services_of(request).keys.list(kind)


@post("/admin/keys", opt=ADMINISTER, summary="Make a key", sync_to_thread=True)
def create_key(request: Caller, data: JSONBody[NewKey]) -> MadeKey:
    """Make a key. Its text is in this answer and nowhere else."""
    services = services_of(request)
    now_us = services.now_us()
    if data.tenant is not None and data.tenant not in services.policies.current.tenants:
        raise InvalidRequest(f"there is no tenant {data.tenant!r} in the policy", param="tenant")
    if data.kind == "api":
        if data.tenant is None:
            raise InvalidRequest("an API key needs a tenant", param="tenant")
        if data.role is not None:
            raise InvalidRequest("an API key has no role", param="role")
        record, token = services.keys.create_api(
            data.tenant, data.project, data.name, data.expires_us, now_us=now_us
        )
    else:
        if data.role is None:
            raise InvalidRequest("an admin key needs a role", param="role")
        record, token = services.keys.create_admin(
            data.role, data.tenant, data.name, data.expires_us, now_us=now_us
        )
    _note(request, f"made {record.kind} key {record.id}")
    return MadeKey(key=record, token=token)


@delete(
    "/admin/keys/{key_id:str}",
    opt=ADMINISTER,
    status_code=202,
    responses={204: ResponseSpec(None, description="The key is revoked, and that is on disk.")},
    summary="Revoke a key",
    sync_to_thread=True,
)
def revoke_key(
    request: Caller, key_id: Annotated[str, PathParameter(description="As listed: key_…")]
) -> Response[Unsaved | None]:
    """Revoke a key, and the sessions it signed in, at once; 202 where the disk is full."""
    services = services_of(request)
    if not services.keys.revoke(key_id, now_us=services.now_us()):
        raise NotFound(f"there is no live key {key_id!r}")
    if key_id in services.keys.unsaved:
        _note(request, f"revoked key {key_id}, which the full disk has not kept yet")
        return Response(Unsaved(message=_UNSAVED), status_code=202)
    _note(request, f"revoked key {key_id}")
    return Response(None, status_code=204)


@get("/admin/switches", opt=LOOK, summary="List switches", sync_to_thread=True)
def list_switches(request: Caller) -> list[SwitchState]:
    """The switches and how they stand."""
    services = services_of(request)
    return list(services.switches.states(services.now_us()))


@post(
    "/admin/switches", opt=OPERATE, status_code=200, summary="Throw a switch", sync_to_thread=True
)
def throw_switch(request: Caller, data: JSONBody[Throw]) -> SwitchState:
    """Throw a switch without editing a policy."""
    services = services_of(request)
    now_us = services.now_us()
    until_us = None if data.for_seconds is None else now_us + data.for_seconds * 1_000_000
    try:
        if data.thrown:
            services.switches.throw(data.name, until_us)
        else:
            services.switches.reset(data.name)
    except KeyError:
        raise NotFound(f"no switch {data.name!r}; there are {', '.join(SWITCHES)}") from None
    _note(request, f"switch {data.name}: {'thrown' if data.thrown else 'set back'}")
    return next(s for s in services.switches.states(now_us) if s.name == data.name)


@get("/admin/policy", opt=LOOK, summary="Show the policy in force", sync_to_thread=True)
def show_policy(request: Caller) -> PolicyView:
    """The policy in force, in outline, and the versions to return to."""
    policies = services_of(request).policies
    policy = policies.current
    return PolicyView(
        version=policy.version,
        versions=list(policies.versions()),
        providers=list(policy.providers),
        models=list(policy.models),
        routes=[route.name for route in policy.routes],
        tenants=list(policy.tenants),
    )


@post(
    "/admin/policy/reload",
    opt=OPERATE,
    status_code=200,
    summary="Load the policy files again",
    sync_to_thread=True,
)
def reload_policy(request: Caller) -> ReloadStatus:
    """Load the policy files again; if anything is wrong, the old policy stays and 400 says why."""
    try:
        services_of(request).policies.reload()
    except PolicyError as error:
        raise InvalidRequest(f"the policy files are not acceptable:\n{error}") from None
    status = _status(request)
    _note(request, f"reloaded the policy: {status.version}")
    return status


@post(
    "/admin/policy/rollback",
    opt=OPERATE,
    status_code=200,
    summary="Return to an earlier policy",
    sync_to_thread=True,
)
def roll_back_policy(request: Caller, data: JSONBody[Rollback]) -> ReloadStatus:
    """Put an earlier version in force."""
    try:
        services_of(request).policies.rollback(data.version)
    except KeyError:
        raise NotFound(f"there is no earlier policy {data.version or ''}".rstrip()) from None
    except PolicyError as error:
        raise InvalidRequest(f"that policy is not acceptable any more:\n{error}") from None
    status = _status(request)
    _note(request, f"rolled the policy back: {status.version}")
    return status


@get(
    "/admin/config/status",
    opt=LOOK,
    summary="Show the last load of the policy",
    sync_to_thread=True,
)
def config_status(request: Caller) -> ReloadStatus:
    """What the last attempt to load the policy came to."""
    return _status(request)


@get("/admin/stats", opt=LOOK, summary="Show numbers of this moment", sync_to_thread=True)
def stats(request: Caller) -> dict[str, object]:
    """Numbers of this moment, for a terminal."""
    return dict(services_of(request).stats())


@get("/admin/usage", opt=LOOK_AT_TENANT, summary="Sum the usage of a month", sync_to_thread=True)
def usage(
    request: Caller,
    period: Annotated[
        str | None, QueryParameter(description="UTC month, 2026-11; default: now")
    ] = None,
    by: Annotated[reports.Grouping, QueryParameter(description="What a row sums")] = "tenant",
    tenant: Annotated[str | None, QueryParameter(description=_ONE_TENANT)] = None,
) -> UsageView:
    """Sums of one month. A tenant's key sees that tenant, and not what we pay."""
    services = services_of(request)
    month = month_of(services.now_us()) if period is None else parse_month(period)
    if month is None:
        raise InvalidRequest(f"{period!r} is not a month such as 2026-11", param="period")
    principal = principal_of(request)
    tenant = principal.narrowed(tenant)
    as_of_us = completeness(services).as_of_us
    rows = visible(
        services, principal.tenant, reports.summary(services.ledger.store, month, tenant, by)
    )
    documents = [document(row, whole=principal.tenant is None) for row in rows]
    return UsageView(
        period=month,
        by=by,
        as_of_us=as_of_us,
        rows=documents,
        refused=reports.refusals(services.ledger.store, month, tenant),
    )


@post(
    "/admin/login-links",
    opt=LOOK_AT_TENANT,
    summary="Make a one-time login link",
    sync_to_thread=False,
)
def login_link(request: Caller) -> LoginLink:
    """A page address that signs in as the calling key, once, within fifteen minutes."""
    services = services_of(request)
    now_us = services.now_us()
    token = sessions_of(request).open_link(principal_of(request).key.id, now_us)
    return LoginLink(
        url=f"{str(request.base_url).rstrip('/')}/login?link={token}",
        expires_us=now_us + LINK_SECONDS * 1_000_000,
    )


@delete(
    "/admin/cache", opt=OPERATE, status_code=200, summary="Drop cached answers", sync_to_thread=True
)
def purge_cache(
    request: Caller,
    tenant: Annotated[str | None, QueryParameter(description=_ONE_TENANT)] = None,
) -> Purged:
    """Drop the cached answers of one tenant, or of all."""
    dropped = services_of(request).purge(tenant)
    _note(request, f"purged the cache of {tenant or 'all tenants'}: {dropped} entries")
    return Purged(entries=dropped)


def _status(request: Caller) -> ReloadStatus:
    policies = services_of(request).policies
    problems = policies.last_error
    return ReloadStatus(
        version=policies.current.version,
        successful=problems is None,
        loaded_us=policies.last_success_us,
        tried_us=policies.last_tried_us,
        problems=problems or (),
        warnings=policies.current.warnings,
        pinned=policies.pinned,
    )


def _note(request: Caller, what: str) -> None:
    _log.info("%s by %s", what, principal_of(request).key.id)


HANDLERS = (
    list_keys,
    create_key,
    revoke_key,
    list_switches,
    throw_switch,
    show_policy,
    reload_policy,
    roll_back_policy,
    config_status,
    stats,
    usage,
    login_link,
    purge_cache,
)
