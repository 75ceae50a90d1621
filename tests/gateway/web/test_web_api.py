"""The admin API: keys, switches, policy, usage, cache; every answer in one shape."""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.web.services import BODY_BYTES_MAX, Probe
from tests.gateway.web.admin_world import NOW_US, USD, World, attempt, served


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A served admin port."""
    with served(tmp_path) as made:
        yield made


@pytest.fixture
def admin(world: World) -> Iterator[httpx.Client]:
    """A program with an admin's key."""
    with world.client(world.key("admin")[1]) as client:
        yield client


def test_a_made_key_works_until_it_is_revoked(world: World, admin: httpx.Client) -> None:
    """Its text is in the answer to its making and never again."""
    made = admin.post("/admin/keys", json={"kind": "admin", "name": "ops", "role": "viewer"})
    assert made.status_code == 201
    token, key_id = made.json()["token"], made.json()["key"]["id"]
    assert token not in admin.get("/admin/keys").text
    with world.client(token) as viewer:
        assert viewer.get("/admin/policy").status_code == 200
        assert admin.delete(f"/admin/keys/{key_id}").status_code == 204
        assert viewer.get("/admin/policy").status_code == 401
    assert admin.delete(f"/admin/keys/{key_id}").status_code == 404


def test_an_api_key_is_made_for_a_tenant_of_the_policy(world: World, admin: httpx.Client) -> None:
    """It belongs to tenant and project, and opens nothing here."""
    wanted = {"kind": "api", "name": "web", "tenant": "acme", "project": "shop"}
    made = admin.post("/admin/keys", json=wanted).json()
    assert made["token"].startswith("th_")
    record = world.keys.authenticate(made["token"], "api", NOW_US)
    assert record is not None
    assert (record.tenant_id, record.project_id) == ("acme", "shop")
    assert [key["id"] for key in admin.get("/admin/keys?kind=api").json()] == [record.id]


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"kind": "api", "name": "x"}, "tenant"),
        ({"kind": "api", "name": "x", "tenant": "nobody"}, "nobody"),
        ({"kind": "api", "name": "x", "tenant": "acme", "role": "admin"}, "role"),
        ({"kind": "admin", "name": "x"}, "role"),
        ({"kind": "admin", "name": "x", "role": "emperor"}, "emperor"),
        ({"kind": "admin", "name": "", "role": "viewer"}, "name"),
        ({"kind": "admin", "name": "x", "role": "viewer", "rolle": "admin"}, "rolle"),
    ],
)
def test_a_wrong_wish_for_a_key_is_refused_by_name(
    admin: httpx.Client, wanted: dict[str, str], word: str
) -> None:
    """The message names the field or the value that is wrong."""
    answer = admin.post("/admin/keys", json=wanted)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert word in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"name": NaN}', b"[" * 10_000])
def test_malformed_bodies_are_the_clients_fault(admin: httpx.Client, body: bytes) -> None:
    """Never a 500, always the common shape."""
    answer = admin.post("/admin/keys", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_large_body_is_refused(admin: httpx.Client) -> None:
    """Nothing on this port needs one."""
    answer = admin.post("/admin/switches", content=b" " * (BODY_BYTES_MAX + 1))
    assert answer.status_code == 413


def test_a_switch_is_thrown_for_a_while_or_for_good(world: World, admin: httpx.Client) -> None:
    """A mistyped name is answered with the names there are."""
    wanted = {"name": "semantic", "thrown": True, "for_seconds": 3600}
    thrown = admin.post("/admin/switches", json=wanted).json()
    assert (thrown["thrown"], thrown["until_us"]) == (True, NOW_US + 3_600_000_000)
    assert [s["name"] for s in admin.get("/admin/switches").json() if s["thrown"]] == ["semantic"]
    world.now_us += 3_600_000_000
    assert not any(switch["thrown"] for switch in admin.get("/admin/switches").json())
    admin.post("/admin/switches", json={"name": "exact", "thrown": True})
    back = admin.post("/admin/switches", json={"name": "exact", "thrown": False}).json()
    assert back["thrown"] is False
    wrong = admin.post("/admin/switches", json={"name": "semantics", "thrown": True})
    assert wrong.status_code == 404
    assert "semantic" in wrong.json()["error"]["message"]


def test_a_broken_policy_is_refused_with_its_place(world: World, admin: httpx.Client) -> None:
    """The old one stays in force, and the status says so until the file is mended."""
    version = admin.get("/admin/policy").json()["version"]
    good = world.policy_file.read_text()
    world.policy_file.write_text(good.replace("to: large", "too: large"))
    answer = admin.post("/admin/policy/reload")
    assert answer.status_code == 400
    assert re.search(r"policy\.yaml:\d+:\d+: .*too", answer.json()["error"]["message"])
    status = admin.get("/admin/config/status").json()
    assert (status["successful"], status["version"]) == (False, version)
    assert "too" in status["problems"][0]
    world.policy_file.write_text(good)
    assert admin.post("/admin/policy/reload").json()["successful"] is True


def test_an_earlier_policy_can_be_returned_to(world: World, admin: httpx.Client) -> None:
    """By version, or simply the one before; an unknown one is not found."""
    first = admin.get("/admin/policy").json()["version"]
    assert admin.post("/admin/policy/rollback", json={}).status_code == 404
    world.policy_file.write_text(world.policy_file.read_text().replace("50.00", "60.00"))
    second = admin.post("/admin/policy/reload").json()["version"]
    assert second != first
    status = admin.post("/admin/policy/rollback", json={}).json()
    assert (status["version"], status["pinned"]) == (first, first)
    assert admin.get("/admin/policy").json()["versions"][:2] == [first, second]
    assert admin.post("/admin/policy/rollback", json={"version": "999"}).status_code == 404
    assert (
        admin.post("/admin/policy/rollback", json={"version": second}).json()["version"] == second
    )


def test_usage_is_exact_text_and_follows_the_ledger(world: World, admin: httpx.Client) -> None:
    """By any grouping the same money; no binary fraction in between."""
    world.book(attempt(9, charge_pico=9_007_199_254_740_993))
    booked_pico = 127_160_493 + 12_345_679 + 2 * USD + 9_007_199_254_740_993
    for by in ("tenant", "project", "key", "model", "route", "day"):
        rows = admin.get(f"/admin/usage?by={by}").json()["rows"]
        charged = sum((Decimal(row["charge_usd"]) for row in rows), Decimal(0))
        assert charged.scaleb(12) == booked_pico
    assert admin.get("/admin/usage?period=2026-10").json()["rows"] == []
    for wrong in ("period=october", "by=colour"):
        assert admin.get(f"/admin/usage?{wrong}").status_code == 400


def test_the_cache_is_purged_for_one_tenant_or_all(world: World, admin: httpx.Client) -> None:
    """And the answer says how much went."""
    assert admin.delete("/admin/cache?tenant=acme").json() == {"entries": 7}
    assert admin.delete("/admin/cache").json() == {"entries": 7}
    assert world.purged == ["acme", None]


def test_probes_say_which_part_fails(world: World, admin: httpx.Client) -> None:
    """503 with the reason, as soon as it is so."""
    assert admin.get("/readyz").json() == {"status": "ok", "checks": {"ledger": "ok"}}
    world.ready = Probe(ok=False, checks={"ledger": "disk full"})
    answer = admin.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]) == (503, {"ledger": "disk full"})
    assert admin.get("/livez").status_code == 200
    assert admin.get("/startupz").status_code == 200


def test_metrics_are_what_prometheus_expects(world: World, admin: httpx.Client) -> None:
    """The right content type, and text its parser reads."""
    world.metrics.requests_total.inc(("support-chat", "small", "ok"), 3)
    answer = admin.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    [family] = [
        family
        for family in text_string_to_metric_families(answer.text)
        if family.name == "tollhouse_requests"
    ]
    assert family.samples[0].value == 3


def test_the_openapi_document_describes_the_api_and_only_it(admin: httpx.Client) -> None:
    """Every operation has a name, words, its key, its refusals and words for each parameter; pages
    and probes are left out.
    """
    document = admin.get("/schema/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {path.split("/")[1] for path in document["paths"]} == {"admin"}
    names: list[str] = []
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["description"]
            assert "callable" not in operation["description"]
            assert operation["security"] == [{"adminKey": []}]
            assert operation["tags"]
            assert {"401", "403", "404"} <= set(operation["responses"])
            names.append(operation["operationId"])
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description"), (operation["operationId"], parameter["name"])
    assert "listKeys" in names
    assert len(set(names)) == len(names)


def test_unknown_paths_answer_in_the_common_shape(admin: httpx.Client) -> None:
    """JSON for programs, a page for people."""
    assert admin.get("/admin/nothing").json()["error"]["code"] == "not_found"
    page = admin.get("/nothing")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
