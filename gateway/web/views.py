"""What each page shows, gathered from ledger, policy and budgets before a template sees it.

Knows no HTML and no HTTP. Money is pico-USD throughout.
"""

import calendar
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from gateway.errors import NotFound
from gateway.ledger import reports
from gateway.ledger.budgets import period_bounds
from gateway.ledger.reports import EventRow, Refusals, Summary
from gateway.policy.snapshot import Budget, Policy
from gateway.web.charts import NARROW, Bar, daily_chart, meter
from gateway.web.discretion import as_charged
from gateway.web.exports import total
from gateway.web.figures import month_name, month_of, months_before, parse_month, share, usd
from gateway.web.services import MONTHS_SHOWN, RECENT_EVENTS, AdminServices


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """How far the books have come."""

    as_of_us: int  # everything that ended before this moment is booked
    waiting_bytes: int  # of the write-ahead log, not yet booked


class Months(msgspec.Struct, frozen=True, kw_only=True):
    """The month picker: one is shown, its neighbours are a click away."""

    shown: str
    choices: tuple[str, ...]
    earlier: str
    later: str | None  # None: the month is still running
    running: bool


class BudgetUse(msgspec.Struct, frozen=True, kw_only=True):
    """How full one budget is, or was in the month shown."""

    name: str
    span: str  # the period that is meant: "November 2026", "today"
    used_ppm: int
    used: str
    meter: Markup


class TenantLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the overview."""

    id: str
    name: str
    cost_center: str
    figures: Summary
    share_meter: Markup
    budgets: tuple[BudgetUse, ...]  # the fullest of each length of period


class BudgetLine(msgspec.Struct, frozen=True, kw_only=True):
    """One budget in its running period, with its bar. Pico-USD."""

    budget: Budget
    spent_pico: int
    held_pico: int
    left_pico: int
    used_ppm: int
    used: str
    meter: Markup
    resets_us: int


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    """One model; ``simulated`` says that no real provider answered."""

    model: str
    provider: str
    simulated: bool
    figures: Summary


class DayLine(msgspec.Struct, frozen=True, kw_only=True):
    """One day of the chart's table."""

    day: str
    figures: Summary


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All tenants in one month."""

    months: Months
    completeness: Completeness
    total: Summary
    tenants: tuple[TenantLine, ...]
    chart: Markup
    days: tuple[DayLine, ...]
    refused: tuple[Refusals, ...]
    baseline: str
    simulated: bool


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant in one month."""

    id: str
    name: str
    cost_center: str
    months: Months
    completeness: Completeness
    total: Summary
    budgets: tuple[BudgetLine, ...]
    models: tuple[ModelLine, ...]
    routes: tuple[Summary, ...]
    chart: Markup
    days: tuple[DayLine, ...]
    refused: tuple[Refusals, ...]
    events: tuple[EventRow, ...]
    simulated_providers: frozenset[str]
    baseline: str
    simulated: bool


class RequestView(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its attempts."""

    request_id: str
    tenant: str
    first: EventRow
    last: EventRow
    attempts: tuple[EventRow, ...]
    simulated_providers: frozenset[str]
    sources: dict[str, str]  # by price: the list or contract it comes from
    charge_pico: int | None  # None: no attempt has a price
    cost_pico: int
    unpriced: bool
    took_us: int  # from the request's first byte to the end of its last attempt


def month(services: AdminServices, period: str) -> str:
    """The month asked for, the running one by default. Raises NotFound for text that is none."""
    if not period:
        return month_of(services.now_us())
    parsed = parse_month(period)
    if parsed is None:
        raise NotFound(f"{period!r} is not a month such as 2026-11")
    return parsed


def overview(services: AdminServices, period: str) -> Overview:
    """Everything on the costs page."""
    shown = month(services, period)
    policy = services.policies.current
    # Asked before the sums: the page may say less than it knows, never more.
    booked = completeness(services)
    store = services.ledger.store
    rows = reports.tenant_summary(store, shown)
    days = reports.daily(store, shown)
    models = reports.by_model(store, shown)
    budgets = _budgets_used(services, shown)
    sums = total(rows)
    known = {row.key for row in rows}
    idle = [Summary(key=tenant) for tenant in policy.tenants if tenant not in known]
    return Overview(
        months=_months(services, shown),
        completeness=booked,
        total=sums,
        tenants=tuple(
            _tenant_line(policy, row, sums, budgets.get(row.key, ())) for row in [*rows, *idle]
        ),
        chart=_chart(shown, days, "all tenants"),
        days=_day_lines(days),
        refused=tuple(reports.refusals(store, shown)),
        baseline=_baseline(policy),
        simulated=any(row.provider in _simulated(policy) for row in models),
    )


def tenant(
    services: AdminServices, tenant_id: str, period: str, own: str | None = None
) -> TenantView:
    """Everything on a tenant's page. Raises NotFound for a tenant nobody has heard of.

    own: the caller's tenant, who is not shown what we pay; None: the caller is one of us.
    """
    shown = month(services, period)
    booked = completeness(services)
    store = services.ledger.store
    rows = visible(services, own, require_tenant(services, tenant_id, shown))
    policy = services.policies.current
    known = policy.tenants.get(tenant_id)
    days = visible(services, own, reports.daily(store, shown, tenant_id))
    simulated = _simulated(policy)
    models = tuple(
        ModelLine(
            model=row.key,
            provider=row.provider,
            simulated=row.provider in simulated,
            figures=row,
        )
        for row in visible(services, own, reports.by_model(store, shown, tenant_id))
    )
    return TenantView(
        id=tenant_id,
        name=(known.name if known else "") or tenant_id,
        cost_center=known.cost_center if known else "",
        months=_months(services, shown),
        completeness=booked,
        total=total(rows),
        budgets=tuple(_budgets(services).get(tenant_id, ())),
        models=models,
        routes=tuple(visible(services, own, reports.by_route(store, shown, tenant_id))),
        chart=_chart(shown, days, tenant_id),
        days=_day_lines(days),
        refused=tuple(reports.refusals(store, shown, tenant_id)),
        events=_latest(
            reports.events(store, tenant_id, *reports.period_bounds(shown), limit=RECENT_EVENTS)
        ),
        simulated_providers=simulated,
        baseline=_baseline(policy),
        simulated=any(line.simulated for line in models),
    )


def request(services: AdminServices, request_id: str) -> RequestView | None:
    """Everything about one request; None where the ledger does not know it."""
    store = services.ledger.store
    attempts = reports.request(store, request_id)
    if not attempts:
        return None
    prices = {attempt.price_id for attempt in attempts if attempt.price_id is not None}
    found = {price_id: store.price(price_id) for price_id in prices}
    charges = [attempt.charge_pico for attempt in attempts if attempt.charge_pico is not None]
    return RequestView(
        request_id=request_id,
        tenant=attempts[0].tenant,
        first=attempts[0],
        last=attempts[-1],
        attempts=tuple(attempts),
        simulated_providers=_simulated(services.policies.current),
        sources={price_id: price.source for price_id, price in found.items() if price is not None},
        charge_pico=sum(charges) if charges else None,
        cost_pico=sum(attempt.cost_pico or 0 for attempt in attempts),
        unpriced=any(attempt.cost_pico is None for attempt in attempts),
        took_us=_took_us(attempts),
    )


def require_tenant(services: AdminServices, tenant_id: str, period: str) -> Sequence[Summary]:
    """The tenant's sums of a month. NotFound: not in the policy, and nothing booked."""
    rows = reports.tenant_summary(services.ledger.store, period, tenant_id)
    if not rows and tenant_id not in services.policies.current.tenants:
        raise NotFound(f"there is no tenant {tenant_id!r}")
    return rows


def visible(services: AdminServices, own: str | None, rows: Sequence[Summary]) -> Sequence[Summary]:
    """The rows as this caller may see them. own: as of ``tenant``."""
    if own is None:
        return rows
    known = services.policies.current.tenants.get(own)
    return [as_charged(row, known.charging if known is not None else None) for row in rows]


def _took_us(attempts: Sequence[EventRow]) -> int:
    """From the request's beginning to the end of its last attempt, waits between them included.

    An attempt that was settled after a crash was recorded long after it ended: there, only the
    times of the attempts themselves are known. Earlier releases booked no time of the request.
    """
    spent_us = sum(attempt.duration_us for attempt in attempts)
    last = attempts[-1]
    if last.state == "interrupted":
        return spent_us
    if last.request_us is not None:
        return max(spent_us, last.request_us)
    return max(spent_us, last.recorded_us - attempts[0].ts_us)


def _latest(events: Sequence[EventRow]) -> tuple[EventRow, ...]:
    """The latest begun first: what was booked last may have begun first."""
    return tuple(sorted(events, key=lambda event: (-event.ts_us, -event.seq)))


def _months(services: AdminServices, shown: str) -> Months:
    running = month_of(services.now_us())
    choices = months_before(running, MONTHS_SHOWN)
    if shown not in choices:
        choices = sorted({*choices, shown}, reverse=True)
    year, number = (int(part) for part in shown.split("-"))
    later = f"{year + number // 12:04d}-{number % 12 + 1:02d}"
    return Months(
        shown=shown,
        choices=tuple(choices),
        earlier=months_before(shown, 2)[1],
        later=later if later <= running else None,
        running=shown == running,
    )


def completeness(services: AdminServices) -> Completeness:
    """How far the books have come."""
    shipper = services.ledger.shipper
    lag_us = int(shipper.lag_seconds * 1_000_000)
    return Completeness(as_of_us=services.now_us() - lag_us, waiting_bytes=shipper.wal_bytes)


def _tenant_line(
    policy: Policy, row: Summary, sums: Summary, budgets: Sequence[BudgetUse]
) -> TenantLine:
    known = policy.tenants.get(row.key)
    part_ppm = row.charge_pico * 1_000_000 // sums.charge_pico if sums.charge_pico > 0 else 0
    part = share(row.charge_pico, sums.charge_pico)
    return TenantLine(
        id=row.key,
        name=(known.name if known else "") or row.key,
        cost_center=known.cost_center if known else "",
        figures=row,
        # A large share is no alarm, so it never gets the colour of one.
        share_meter=meter(part_ppm, f"{part} of all", alarming=False),
        budgets=_fullest(budgets),
    )


def _fullest(budgets: Sequence[BudgetUse]) -> tuple[BudgetUse, ...]:
    """Of each span the fullest budget: a day's and a month's do not compare."""
    found: dict[str, BudgetUse] = {}
    for use in budgets:
        if use.span not in found or use.used_ppm > found[use.span].used_ppm:
            found[use.span] = use
    return tuple(found.values())


def _budgets_used(services: AdminServices, shown: str) -> dict[str, list[BudgetUse]]:
    """How full the budgets of every tenant are, in the month shown.

    The running month is asked of the counters, with what is reserved. Of a past month only the
    monthly budgets can be told: the charges of that month against the limit of today's policy.
    """
    now_us = services.now_us()
    found: dict[str, list[BudgetUse]] = {}
    if shown == month_of(now_us):
        for tenant_id, budget, spent_pico, held_pico in services.budgets_used(now_us):
            span = month_name(shown) if budget.period == "calendar_month" else "today"
            use = _budget_use(budget, span, spent_pico + held_pico)
            found.setdefault(tenant_id, []).append(use)
        return found
    middle_us = sum(reports.period_bounds(shown)) // 2
    if middle_us > now_us:
        return found
    spent_in = services.ledger.store.period_spent
    for known in services.policies.current.tenants.values():
        for budget in known.budgets:
            if budget.period == "calendar_month":
                # What was pending is over with its period.
                spent = spent_in(known.id, *period_bounds(budget, middle_us), budget.tags)
                use = _budget_use(budget, month_name(shown), spent.charged_pico)
                found.setdefault(known.id, []).append(use)
    return found


def _budget_use(budget: Budget, span: str, used_pico: int) -> BudgetUse:
    used_ppm, used = _part(budget, used_pico)
    label = f"budget {budget.name}, {span}: {used} of {usd(budget.amount_pico)}"
    return BudgetUse(
        name=budget.name, span=span, used_ppm=used_ppm, used=used, meter=meter(used_ppm, label)
    )


def _part(budget: Budget, used_pico: int) -> tuple[int, str]:
    """How much of a budget is used: in parts per million, and as people read it."""
    limit_pico = budget.amount_pico
    used_ppm = used_pico * 1_000_000 // limit_pico if limit_pico > 0 else 1_000_000
    return used_ppm, share(used_pico, limit_pico)


def _budgets(services: AdminServices) -> dict[str, list[BudgetLine]]:
    """The budgets of every tenant in their running periods."""
    now_us = services.now_us()
    found: dict[str, list[BudgetLine]] = {}
    for tenant_id, budget, spent_pico, held_pico in services.budgets_used(now_us):
        line = _budget_line(budget, spent_pico, held_pico, period_bounds(budget, now_us)[1])
        found.setdefault(tenant_id, []).append(line)
    return found


def _budget_line(budget: Budget, spent_pico: int, held_pico: int, resets_us: int) -> BudgetLine:
    limit_pico = budget.amount_pico
    used_pico = spent_pico + held_pico
    used_ppm, used = _part(budget, used_pico)
    return BudgetLine(
        budget=budget,
        spent_pico=spent_pico,
        held_pico=held_pico,
        left_pico=max(0, limit_pico - used_pico),
        used_ppm=used_ppm,
        used=used,
        meter=meter(used_ppm, f"budget {budget.name}: {used} of {usd(limit_pico)}"),
        resets_us=resets_us,
    )


def _chart(shown: str, days: Sequence[Summary], whose: str) -> Markup:
    by_day = {row.key: row for row in days}
    year, number = (int(part) for part in shown.split("-"))
    bars = []
    for day in range(1, calendar.monthrange(year, number)[1] + 1):
        row = by_day.get(f"{shown}-{day:02d}", Summary(key=""))
        bars.append(
            Bar(
                label=str(day),
                title=f"{day} {month_name(shown)}",
                spent_pico=row.charge_pico,
                saved_pico=row.saved_pico,
            )
        )
    title = f"Charged and saved per day in {month_name(shown)}, {whose}"
    return daily_chart(bars, title) + daily_chart(bars, title, NARROW)


def _day_lines(days: Sequence[Summary]) -> tuple[DayLine, ...]:
    return tuple(DayLine(day=row.key, figures=row) for row in days)


def _simulated(policy: Policy) -> frozenset[str]:
    return frozenset(name for name, provider in policy.providers.items() if provider.simulated)


def _baseline(policy: Policy) -> str:
    return policy.baseline.name if policy.baseline is not None else ""
