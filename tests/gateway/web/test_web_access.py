"""Access: every route says who may use it, and nobody else gets in by any door."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from litestar import Litestar, get

from gateway.stores.keys import ROLES, Role
from gateway.web import api
from gateway.web.access import SESSION_COOKIE, Access
from gateway.web.app import SECURITY_HEADERS, create_admin_app, declared_access
from gateway.web.services import LINK_SECONDS, SESSION_SECONDS
from tests.gateway.web.admin_world import NOW_US, World, form_token, served


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A served admin port."""
    with served(tmp_path) as made:
        yield made


# Written out by hand, so that a change of anyone's rights is a change of this table.
LOOK = frozenset(ROLES)
RIGHTS: dict[tuple[str, str], frozenset[str] | None] = {  # None: no key needed
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    ("GET", "/startupz"): None,
    ("GET", "/metrics"): None,  # from this machine
    ("GET", "/schema"): None,
    ("GET", "/schema/openapi.json"): None,
    ("GET", "/schema/{path:str}"): None,
    ("GET", "/static/{name:str}"): None,
    ("GET", "/login"): None,
    ("POST", "/login"): None,
    ("GET", "/"): LOOK,
    ("POST", "/logout"): LOOK,
    ("GET", "/costs"): LOOK,
    ("GET", "/costs/{tenant:str}"): LOOK,
    ("GET", "/costs.csv"): frozenset({"finance", "admin"}),
    ("GET", "/requests"): LOOK,
    ("GET", "/requests/{request_id:str}"): LOOK,
    ("GET", "/admin/keys"): frozenset({"admin"}),
    ("POST", "/admin/keys"): frozenset({"admin"}),
    ("DELETE", "/admin/keys/{key_id:str}"): frozenset({"admin"}),
    ("GET", "/admin/switches"): LOOK,
    ("POST", "/admin/switches"): frozenset({"operator", "admin"}),
    ("GET", "/admin/policy"): LOOK,
    ("POST", "/admin/policy/reload"): frozenset({"operator", "admin"}),
    ("POST", "/admin/policy/rollback"): frozenset({"operator", "admin"}),
    ("GET", "/admin/config/status"): LOOK,
    ("GET", "/admin/stats"): LOOK,
    ("GET", "/admin/usage"): LOOK,
    ("POST", "/admin/login-links"): LOOK,
    ("DELETE", "/admin/cache"): frozenset({"operator", "admin"}),
}
FOR_ONE_TENANT = {"/admin/usage", "/admin/login-links"}  # of the bearer routes
BODIES = {
    ("POST", "/admin/keys"): {"kind": "admin", "name": "x", "role": "viewer"},
    ("POST", "/admin/switches"): {"name": "semantic", "thrown": True},
    ("POST", "/admin/policy/rollback"): {},
}
BEARER = sorted(route for route in RIGHTS if route[1].startswith("/admin"))
PAGES = sorted(
    route for route, roles in RIGHTS.items() if roles is not None and route not in BEARER
)


def call(client: httpx.Client, route: tuple[str, str]) -> httpx.Response:
    """Call a route with harmless values for its parts."""
    method, path = route
    path = path.replace("{key_id:str}", "key_none").replace("{tenant:str}", "acme")
    path = path.replace("{request_id:str}", "01REQ000001")
    return client.request(method, path, json=BODIES.get(route))


def test_the_table_of_rights_is_the_application(world: World) -> None:
    """A new route must be added to this table; a route may not silently change its roles."""
    declared: dict[tuple[str, str], Access | None] = declared_access(world.app)
    assert declared.keys() == RIGHTS.keys()
    for route, access in declared.items():
        assert access is not None
        roles = RIGHTS[route]
        if roles is None:
            assert access.door in ("open", "loopback")
        else:
            assert access.roles == roles, route


def test_a_route_that_declares_no_role_stops_the_build(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgetting is not possible: the application does not come into being."""

    @get("/forgotten", sync_to_thread=False)
    def forgotten() -> None: ...

    monkeypatch.setattr(api, "HANDLERS", (*api.HANDLERS, forgotten))
    with pytest.raises(LookupError, match="/forgotten"):
        create_admin_app(world.services)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_can_call_exactly_its_part_of_the_api(world: World, role: Role) -> None:
    """Allowed is never 401 or 403; forbidden is always 403."""
    token = world.key(role)[1]
    with world.client(token) as client:
        for route in BEARER:
            status = call(client, route).status_code
            allowed = role in (RIGHTS[route] or ())
            assert (status not in (401, 403)) if allowed else status == 403, (route, status)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_can_open_exactly_its_pages(world: World, role: Role) -> None:
    """The same, for people who signed in."""
    with world.visitor(role) as visitor:
        for route in PAGES:
            if route == ("POST", "/logout"):
                continue
            status = call(visitor, route).status_code
            allowed = role in (RIGHTS[route] or ())
            assert (status in (200, 303)) if allowed else status == 403, (route, status)


def test_without_a_key_nothing_but_the_open_routes_answers(world: World) -> None:
    """The API says 401 in the OpenAI shape; pages lead to the login form."""
    with world.client() as client:
        for route in BEARER:
            answer = call(client, route)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for route in PAGES:
            answer = call(client, route)
            if route[0] == "GET":
                assert answer.status_code == 303
                assert answer.headers["location"].startswith("/login")
            else:
                assert answer.status_code == 401


def test_a_tenants_key_cannot_touch_the_gateway_whatever_its_role(world: World) -> None:
    """Even an admin of one tenant: keys, policy, switches and cache belong to all tenants."""
    with world.client(world.key("admin", "acme")[1]) as client:
        for route in BEARER:
            status = call(client, route).status_code
            assert (status < 300) if route[1] in FOR_ONE_TENANT else status == 403, route


def test_a_tenants_viewer_sees_that_tenant_only(world: World) -> None:
    """Other tenants' pages, exports and requests are not there; 404, as for tenants unheard of."""
    with world.visitor("finance", "acme") as visitor:
        home = visitor.get("/costs")
        assert (home.status_code, home.headers["location"]) == (303, "/costs/acme")
        assert visitor.get("/costs/acme").status_code == 200
        assert visitor.get("/requests/01REQ000001").status_code == 200
        for path in ("/costs/globex", "/costs/nobody", "/requests/01REQ000004"):
            assert visitor.get(path).status_code == 404
        assert visitor.get("/costs.csv?tenant=globex").status_code == 404
        assert "globex" not in visitor.get("/costs.csv").text
    with world.client(world.key("finance", "acme")[1]) as client:
        assert [row["key"] for row in client.get("/admin/usage").json()["rows"]] == ["acme"]
        assert client.get("/admin/usage?tenant=globex").status_code == 404


def test_a_session_cookie_opens_no_door_of_the_api(world: World) -> None:
    """So that no foreign page can make a signed-in browser call it; nor does a key open pages."""
    with world.visitor("admin") as visitor:
        assert visitor.get("/costs").status_code == 200
        assert visitor.get("/admin/keys").status_code == 401
    with world.client(world.key("admin")[1]) as client:
        assert client.get("/costs").status_code == 303


def test_an_api_key_is_no_admin_key(world: World) -> None:
    """``th_`` keys belong to applications."""
    token = world.keys.create_api("acme", "default", "app", now_us=NOW_US)[1]
    with world.client(token) as client:
        assert client.get("/admin/usage").status_code == 401


def test_every_form_refuses_to_be_posted_without_its_token(world: World) -> None:
    """No token, a wrong one, or one of another session: 403, and nothing happens."""
    with world.visitor("viewer") as visitor, world.visitor("admin") as other:
        foreign = form_token(other.get("/costs").text)
        for token in ("", "0" * 64, foreign, "ü"):
            assert visitor.post("/logout", data={"form_token": token}).status_code == 403
        assert visitor.get("/costs").status_code == 200
    with world.client() as client:
        key = world.key("admin")[1]
        client.get("/login")
        for token in ("", "0" * 64, foreign):
            answer = client.post("/login", data={"form_token": token, "key": key})
            assert answer.status_code == 403
            assert SESSION_COOKIE not in answer.cookies


def test_signing_out_ends_every_copy_of_the_session(world: World) -> None:
    """The cookie itself is worthless afterwards, not just forgotten by one browser."""
    with world.visitor("viewer") as visitor, world.client() as thief:
        copy = visitor.cookies[SESSION_COOKIE]
        thief.cookies.set(SESSION_COOKIE, copy)
        assert thief.get("/costs").status_code == 200
        token = form_token(visitor.get("/costs").text)
        assert visitor.post("/logout", data={"form_token": token}).status_code == 303
        assert visitor.get("/costs").status_code == 303
        assert thief.get("/costs").status_code == 303


def test_revoking_a_key_ends_its_sessions(world: World) -> None:
    """The next page asks for a key again."""
    with world.visitor("viewer") as visitor, world.client(world.key("admin")[1]) as admin:
        [viewer] = [key for key in world.keys.list("admin") if key.role == "viewer"]
        assert admin.delete(f"/admin/keys/{viewer.id}").status_code == 204
        assert visitor.get("/costs").status_code == 303


def test_a_session_ends_after_eight_hours(world: World) -> None:
    """By the gateway's clock, whatever the browser keeps."""
    with world.visitor("viewer") as visitor:
        world.now_us += SESSION_SECONDS * 1_000_000 - 1
        assert visitor.get("/costs").status_code == 200
        world.now_us += 1
        assert visitor.get("/costs").status_code == 303


def test_a_login_link_works_once_and_for_fifteen_minutes(world: World) -> None:
    """Looking at it uses nothing up; pressing its button does."""
    with world.client(world.key("finance", "acme")[1]) as program:
        link = program.post("/admin/login-links").json()["url"]
        late = program.post("/admin/login-links").json()["url"]
    assert link.startswith(world.address + "/login?link=")
    for expected in (303, 403):
        with world.client() as client:
            page = client.get(link)
            form = {"form_token": form_token(page.text), "link": link.split("link=")[1]}
            answer = client.post("/login", data=form)
            assert answer.status_code == expected
            assert (client.get("/costs/acme").status_code == 200) == (expected == 303)
    world.now_us += LINK_SECONDS * 1_000_000
    with world.client() as client:
        form = {"form_token": form_token(client.get(late).text), "link": late.split("link=")[1]}
        assert client.post("/login", data=form).status_code == 403


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        ("/costs/acme?period=2026-10", "/costs/acme?period=2026-10"),
        ("https://elsewhere.example/", "/costs"),
        ("//elsewhere.example/", "/costs"),
        ("/\\elsewhere.example/", "/costs"),
        ("/\t/elsewhere.example/", "/costs"),
        ("javascript:alert(1)", "/costs"),
    ],
)
def test_signing_in_leads_back_on_this_site_only(world: World, asked: str, reached: str) -> None:
    """``next`` comes from the address bar, so it may not lead elsewhere."""
    with world.client() as client:
        page = client.get("/login", params={"next": asked})
        form = {"form_token": form_token(page.text), "next": asked, "key": world.key()[1]}
        assert client.post("/login", data=form).headers["location"] == reached


def test_the_session_cookie_is_out_of_reach(world: World) -> None:
    """Of scripts, and of requests that other sites start."""
    with world.client() as client:
        page = client.get("/login")
        form = {"form_token": form_token(page.text), "key": world.key()[1]}
        cookies = client.post("/login", data=form).headers.get_list("set-cookie")
    [session] = [cookie.lower() for cookie in cookies if cookie.startswith(SESSION_COOKIE)]
    assert "httponly" in session
    assert "samesite=strict" in session


def test_every_answer_carries_the_strict_headers(world: World) -> None:
    """Pages, errors, redirects and files alike; no inline script or style is allowed."""
    with world.visitor("admin") as client:
        for path in ("/costs", "/login", "/nowhere", "/admin/keys", "/static/tollhouse.css", "/"):
            answer = client.get(path)
            for name, value in SECURITY_HEADERS.items():
                assert answer.headers[name] == value
    policy = SECURITY_HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.fixture
def wide_open(world: World) -> Iterator[httpx.Client]:
    """A client on this machine, without a key."""
    with world.client() as client:
        yield client


def test_metrics_need_no_key_on_this_machine_but_do_for_a_foreign_name(
    world: World, wide_open: httpx.Client
) -> None:
    """A page whose name was re-pointed at this machine (DNS rebinding) is not this machine."""
    for name in ("127.0.0.1", "localhost:8081", "[::1]:8081", "[::1]"):
        assert wide_open.get("/metrics", headers={"host": name}).status_code == 200
    rebound = {"host": "evil.example"}
    assert wide_open.get("/metrics", headers=rebound).status_code == 401
    token = world.key("viewer")[1]
    allowed = rebound | {"authorization": f"Bearer {token}"}
    assert wide_open.get("/metrics", headers=allowed).status_code == 200


def test_options_and_unknown_methods_are_refused_in_the_common_shape(
    wide_open: httpx.Client,
) -> None:
    """No cross-origin page is ever told that it may call."""
    for method in ("OPTIONS", "PUT", "PATCH"):
        answer = wide_open.request(method, "/admin/keys")
        assert answer.status_code == 405
        assert answer.json()["error"]["code"] == "method_not_allowed"
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_guarded_application_is_one_litestar_application(world: World) -> None:
    """Nothing is mounted beside it that the guard would not see."""
    assert isinstance(world.app, Litestar)
    assert not [route for route in world.app.routes if not hasattr(route, "route_handlers")]
