"""Pages, as a program reads them and as a real browser shows them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, sync_playwright

from gateway.ledger.event import Refused
from tests.gateway.web.admin_world import (
    EVIL,
    NOW_US,
    PRICE_ID,
    UNPRICED,
    USD,
    World,
    attempt,
    served,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A served admin port."""
    with served(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the whole file."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def sign_in(context: BrowserContext, world: World) -> Page:
    """A page of a person who typed an admin key."""
    page = context.new_page()
    page.goto(world.address + "/")
    page.fill("#key", world.key()[1])
    page.click("button.main")
    page.wait_for_url("**/costs")
    return page


def test_the_overview_shows_every_tenant_and_the_exact_total(world: World) -> None:
    """Also tenants without a request; each amount carries its exact value."""
    world.book(attempt(9, charge_pico=1_234_567_890_123_456, tenant_id="globex"))
    with world.visitor("finance") as visitor:
        html = visitor.get("/costs").text
    assert "$1,236.57" in html
    assert 'value="1236.567890123456"' in html
    for name in ("Acme Support", "Globex Research", "CC-4711", "November 2026"):
        assert name in html


def test_a_tenants_page_shows_budget_models_routes_days_and_requests(world: World) -> None:
    """Everything a statement needs, with its as-of time and its method."""
    world.book(attempt(9, charge_pico=44_120_000_000_000))
    with world.visitor("finance", "acme") as visitor:
        html = visitor.get("/costs/acme").text
    for part in (
        "$44.12",
        "$5.88",
        "Budgets now",
        "By model",
        "By route",
        "Day by day",
        "01REQ000001",
    ):
        assert part in html, part
    assert "As of <time>2026-11-21 09:30:00 UTC</time>; everything is booked" in html
    assert "baseline model <strong>large</strong>" in html


def test_a_tenants_viewer_is_not_told_what_providers_charge_us(world: World) -> None:
    """Its own charge is its business; our purchase price and other tenants are not."""
    with world.visitor("finance", "acme") as visitor:
        html = visitor.get("/costs/acme").text
    assert "providers cost" not in html
    assert "Globex" not in html


def test_simulated_providers_are_called_simulated_wherever_they_appear(world: World) -> None:
    """Nobody may take a rehearsal for an invoice."""
    with world.visitor() as visitor:
        assert "simulated provider" in visitor.get("/costs").text
        assert "(simulated)" in visitor.get("/costs/globex").text
        assert "(simulated)" in visitor.get("/requests/01REQ000004").text
        assert "(simulated)" not in visitor.get("/costs/acme").text


def test_an_unpriced_request_is_shown_as_such_and_not_as_free(world: World) -> None:
    """A missing price is a gap in the books, never a gift."""
    world.book(attempt(9, **UNPRICED))
    with world.visitor() as visitor:
        assert "1 unpriced" in visitor.get("/costs/acme").text
        assert "unpriced" in visitor.get("/requests/01REQ000009").text


def test_nothing_without_a_price_is_shown_as_zero_dollars(world: World) -> None:
    """Neither on the request's page nor in a row, nor in the tile of a tenant without more."""
    world.book(attempt(9, tenant_id="lonely", **UNPRICED))
    with world.visitor() as visitor:
        for path in ("/requests/01REQ000009", "/costs/lonely"):
            html = visitor.get(path).text
            tile = html.partition("tile first")[2].partition("</div>")[0]
            assert "unpriced" in tile, path
            assert "$0.00" not in tile, path
        row = visitor.get("/costs").text.partition(">lonely<")[2].partition("</td>")[0]
    assert "1 unpriced" in row
    assert "$0.00" not in row


def test_a_past_month_shows_its_own_use_of_a_budget(world: World) -> None:
    """Charged then, against the limit of today; a month without traffic used nothing."""
    world.book(attempt(9, charge_pico=10 * USD, ts_us=NOW_US - 40 * 86_400_000_000))
    with world.visitor() as visitor:
        used = {
            month: visitor.get(f"/costs?period={month}").text for month in ("2026-10", "2026-05")
        }
    assert "budget monthly, October 2026: 20.0 % of $50.00" in used["2026-10"]
    assert "budget monthly, May 2026: 0.0 % of $50.00" in used["2026-05"]
    assert "November" not in used["2026-05"].partition("By tenant")[2]


def test_a_day_and_a_month_are_told_apart_in_the_column_of_budgets(world: World) -> None:
    """Each has its name and its span; a past month has no use of today's budget."""
    text = world.policy_file.read_text()
    daily = "{name: daily, amount: '200.00', period: day, enforce: soft}"
    world.policy_file.write_text(text.replace("budgets: [{", f"budgets: [{daily}, {{"))
    assert world.policies.reload()
    world.ledger.budgets.configure(world.policies.current, NOW_US)
    with world.visitor() as visitor:
        now, past = (visitor.get(f"/costs{query}").text for query in ("", "?period=2026-10"))
    assert "monthly, November 2026" in now
    assert "daily, today" in now
    assert "monthly, October 2026" in past
    assert "daily, today" not in past


def test_the_latest_requests_stand_in_the_order_of_time(world: World) -> None:
    """Whatever the order in which they were booked."""
    for number in (9, 12, 10, 11):
        world.book(attempt(number))
    with world.visitor() as visitor:
        html = visitor.get("/costs/acme").text.partition('id="events"')[2]
    places = [html.index(f"01REQ{number:06d}") for number in (9, 10, 11, 12)]
    assert places == sorted(places)


def test_a_request_took_as_long_as_all_its_attempts(world: World) -> None:
    """The tile counts from the request's beginning, waits between attempts included."""
    begun = NOW_US - 2_000_000
    for number in (1, 2):
        world.book(
            attempt(30, ts_us=begun, attempt=number, duration_us=800_000, ttft_us=None,
                    superseded=number == 1)
        )  # fmt: skip
    with world.visitor() as visitor:
        html = visitor.get("/requests/01REQ000030").text
    took = html.partition("<dt>Took</dt>")[2].partition("</div>")[0]
    assert "2.00 s" in took
    assert "no token came" in took


def test_who_was_turned_away_is_told_apart_from_what_failed(world: World) -> None:
    """On both pages and in the interface, by reason; a tenant sees its own. None is a request."""
    before = world_figures(world)
    world.turn_away(
        *(
            Refused(
                ts_us=NOW_US, tenant_id=tenant, project_id="default", key_id="k", reason=reason,
                status=429, requests=count,
            )
            for tenant, reason, count in (
                ("acme", "insufficient_quota", 41), ("globex", "rate_limit_exceeded", 7),
            )
        )
    )  # fmt: skip
    with world.visitor() as visitor:
        html = visitor.get("/costs").text
        assert "48 more refused" in html
        assert "insufficient_quota" in html
        assert "rate_limit_exceeded" in html
        own = visitor.get("/costs/acme").text
        assert "41 more refused" in own
        assert "rate_limit_exceeded" not in own
    with world.client(world.key("finance", "acme")[1]) as client:
        (refused,) = client.get("/admin/usage").json()["refused"]
    assert refused == {
        "tenant": "acme", "reason": "insufficient_quota", "status": 429, "requests": 41,
    }  # fmt: skip
    assert world_figures(world) == before


def world_figures(world: World) -> tuple[object, ...]:
    """(requests, failed, charged) of all tenants."""
    with world.client(world.key()[1]) as client:
        rows = client.get("/admin/usage").json()["rows"]
    return tuple((row["requests"], row["errors"], row["charge_usd"]) for row in rows)


def test_a_possible_cost_is_shown_beside_the_charge(world: World) -> None:
    """A timeout may still cost the tenant 3 USD, told apart from the charges of its month."""
    world.book(
        attempt(31, state="possible", status=504, cost_pico=0, charge_pico=0, baseline_pico=0,
                possible_cost_pico=2 * USD, possible_charge_pico=3 * USD)
    )  # fmt: skip
    with world.visitor() as visitor:
        assert "possible cost, not charged" in visitor.get("/costs/acme").text
        html = visitor.get("/requests/01REQ000031").text
    assert "possibly" in html
    assert "3.00" in html


def test_the_contract_behind_a_price_is_shown_to_us_alone(world: World) -> None:
    """Whoever checks an invoice sees the contract's number; a tenant does not."""
    with world.visitor() as visitor:
        assert "contract:T" in visitor.get("/requests/01REQ000001").text
    with world.visitor("finance", "acme") as visitor:
        assert "contract:T" not in visitor.get("/requests/01REQ000001").text


def test_a_request_shows_why_it_went_where_it_went(world: World) -> None:
    """Decision, reason, policy, tokens and price of each attempt."""
    world.book(
        attempt(1, attempt=2, decision="fallback", reason="bigco answered 503", provider="pretend")
    )
    with world.visitor() as visitor:
        found = visitor.get("/requests?id=%2001REQ000001%20")
        assert found.headers["location"] == "/requests/01REQ000001"
        html = visitor.get("/requests/01REQ000001").text
        assert visitor.get("/requests/nothing").status_code == 404
    for part in (
        "fallback",
        "bigco answered 503",
        "abc123abc123",
        "1,200",
        PRICE_ID,
    ):
        assert part in html, part


def test_months_are_picked_and_nonsense_is_not_found(world: World) -> None:
    """The picker leads back and forth; the running month has no later one."""
    with world.visitor() as visitor:
        october = visitor.get("/costs?period=2026-10").text
        assert 'href="/costs?period=2026-09"' in october
        assert 'href="/costs?period=2026-11"' in october
        assert 'href="/costs?period=2026-12"' not in visitor.get("/costs").text
        assert visitor.get("/costs?period=2026-99").status_code == 404
        assert visitor.get("/costs/acme?period=<script>").status_code == 404
        assert visitor.get("/costs/nobody").status_code == 404


def test_the_export_is_a_file_with_exact_amounts(world: World) -> None:
    """The short address of a tenant's file leads to it; its formulas are defused."""
    with world.visitor("finance") as visitor:
        everything = visitor.get("/costs.csv?period=2026-11")
        assert everything.headers["content-type"] == "text/csv; charset=utf-8"
        assert "attachment" in everything.headers["content-disposition"]
        assert "2026-11,tenant,globex,,1,1,0,0," in everything.text
        assert ",2.000000000000," in everything.text
        short = visitor.get("/costs/acme.csv?period=2026-11")
        assert short.headers["location"] == "/costs.csv?tenant=acme&period=2026-11"
        own = visitor.get(short.headers["location"]).text
        assert "globex" not in own
        groupings = {line.split(",")[1] for line in own.split("\r\n")[1:-1]}
        assert groupings == {"tenant", "project", "key", "model", "route", "day"}


def test_hostile_names_are_text_on_every_page(world: World) -> None:
    """Tenant, model, route, reason: no tag of theirs becomes a tag of ours."""
    with world.visitor() as visitor:
        for path in ("/costs", "/costs/evil", "/requests/01REQ000005", f"/costs/{quote(EVIL, '')}"):
            html = visitor.get(path).text
            assert "<script" not in html
            assert "<img" not in html
            assert "alert(1)" in html


@needs_browser
@pytest.mark.slow
def test_no_hostile_name_runs_in_a_real_browser(world: World, browser: Browser) -> None:
    """Scripts are on, dialogs and policy violations are recorded: there are none of either."""
    context = browser.new_context()
    page = sign_in(context, world)
    noticed: list[str] = []

    def refuse(dialog: Dialog) -> None:
        noticed.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", refuse)
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    for path in ("/costs", "/costs/evil", "/requests/01REQ000005"):
        page.goto(world.address + path)
        assert page.locator("script").count() == 0
        assert page.locator("[onerror]").count() == 0
    assert noticed == []
    context.close()


@needs_browser
@pytest.mark.slow
def test_everything_works_without_script(world: World, browser: Browser) -> None:
    """Sign in, pick a month, open a tenant and a request, unfold a table, sign out."""
    world.book(attempt(400, ts_us=NOW_US - 40 * 86_400_000_000, charge_pico=7 * USD))
    context = browser.new_context(java_script_enabled=False)
    page = sign_in(context, world)
    page.select_option("#period", "2026-10")
    page.click("text=Show")
    page.wait_for_url("**/costs?period=2026-10")
    assert page.locator(".tile.first .figure").inner_text() == "$7.00"
    page.goto(world.address + "/costs")
    page.click("text=Acme Support")
    page.wait_for_url("**/costs/acme?period=2026-11")
    page.click("summary")
    assert page.locator("details table").is_visible()
    page.click("text=01REQ000001")
    assert page.locator("h1").inner_text() == "01REQ000001"
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    page.goto(world.address + "/costs")
    assert page.locator("#key").count() == 1
    context.close()


@needs_browser
@pytest.mark.slow
def test_pages_can_be_used_by_everyone(world: World, browser: Browser) -> None:
    """Language, headings, captions, scopes, labels; the keyboard reaches the content first."""
    context = browser.new_context()
    page = sign_in(context, world)
    for path in ("/costs", "/costs/acme", "/requests/01REQ000001"):
        page.goto(world.address + path)
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("h1").count() == 1
        assert page.locator("table").count() == page.locator("table > caption").count()
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("svg:not([aria-label])").count() == 0
        for field in page.locator("input:not([type=hidden]), select").all():
            name = field.get_attribute("id")
            assert page.locator(f"label[for={name}]").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    context.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_every_figure_lies_inside_the_window(world: World, browser: Browser, width: int) -> None:
    """From a phone to a wall: no page, table or chart is wider than its place, long names too."""
    world.book(attempt(9, tenant_id="x" * 60, model_served="m" * 60, charge_pico=1_234_567 * USD))
    world.book(attempt(10, attempt=1, error_type="upstream_unavailable", status=502))
    world.book(attempt(12, tenant_id="thrift", charge_pico=15_300_000, cost_pico=15_300_000))
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = sign_in(context, world)
    for path in ("/costs", f"/costs/{'x' * 60}", "/costs/acme", "/costs/thrift",
                 "/requests/01REQ000010"):  # fmt: skip
        page.goto(world.address + path)
        wide: list[str] = page.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll('.scroll, .tile')]
            .filter((e) => e.scrollWidth > e.clientWidth)
            .map((e) => `${e.tagName}.${e.className} ${e.scrollWidth} > ${e.clientWidth}`)"""
        )
        assert wide == [], path
        assert page.locator("svg.chart:visible").count() == page.locator("#daily").count()
    context.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(world: World, browser: Browser, scheme: str) -> None:
    """WCAG AA, measured on what is shown: 4.5 to 1 for every piece of text, in both schemes."""
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    page = sign_in(context, world)
    for path in ("/costs", "/costs/globex", "/requests/01REQ000004"):
        page.goto(world.address + path)
        faint: list[str] = page.evaluate(CONTRAST)
        assert faint == []
    context.close()


# Each element with text of its own against the nearest opaque ground; returns the failures.
CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest(".quiet, .skip") || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = rgb(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)} ${ratio}`);
  }
  return faint;
}"""
