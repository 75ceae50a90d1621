"""What each page shows, gathered from ledger, policy and budgets before a template sees it.

Knows no HTML and no HTTP. Money is pico-USD throughout.
"""

import calendar
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from gateway.errors import NotFound
from gateway.policy.snapshot import Policy
from gateway.web.charts import Bar, daily_chart, meter
from gateway.web.exports import total
from gateway.web.figures import month_name, month_of, months_before, parse_month, share, usd
from gateway.web.services import (
    MONTHS_SHOWN,
    RECENT_EVENTS,
    AdminServices,
    BudgetState,
    Completeness,
    EventRow,
    Figures,
)


class Months(msgspec.Struct, frozen=True, kw_only=True):
    """The month picker: one is shown, its neighbours are a click away."""

    shown: str
    choices: tuple[str, ...]
    earlier: str
    later: str | None  # None: the month is still running
    running: bool


class TenantLine(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the overview."""

    id: str
    name: str
    cost_center: str
    figures: Figures
    share_meter: Markup
    budget_used: str  # of the fullest budget
    budget_meter: Markup | None


class BudgetLine(msgspec.Struct, frozen=True, kw_only=True):
    """One budget with its bar."""

    state: BudgetState
    left_pico: int
    used: str
    meter: Markup


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    """One model; ``simulated`` says that no real provider answered."""

    model: str
    provider: str
    simulated: bool
    figures: Figures


class DayLine(msgspec.Struct, frozen=True, kw_only=True):
    """One day of the chart's table."""

    day: str
    figures: Figures


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All tenants in one month."""

    months: Months
    completeness: Completeness
    total: Figures
    tenants: tuple[TenantLine, ...]
    chart: Markup
    days: tuple[DayLine, ...]
    baseline: str
    simulated: bool


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant in one month."""

    id: str
    name: str
    cost_center: str
    months: Months
    completeness: Completeness
    total: Figures
    budgets: tuple[BudgetLine, ...]
    models: tuple[ModelLine, ...]
    routes: tuple[Figures, ...]
    chart: Markup
    days: tuple[DayLine, ...]
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
    charge_pico: int
    cost_pico: int
    unpriced: bool


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
    completeness = services.reports.completeness()
    rows = services.reports.by_tenant(shown)
    days = services.reports.by_day(shown, None)
    models = services.reports.by_model(shown, None)
    sums = total(rows)
    known = {row.key for row in rows}
    idle = [Figures(key=tenant) for tenant in policy.tenants if tenant not in known]
    return Overview(
        months=_months(services, shown),
        completeness=completeness,
        total=sums,
        tenants=tuple(_tenant_line(services, row, sums) for row in [*rows, *idle]),
        chart=_chart(shown, days, "all tenants"),
        days=_day_lines(days),
        baseline=_baseline(policy),
        simulated=any(row.provider in _simulated(policy) for row in models),
    )


def tenant(services: AdminServices, tenant_id: str, period: str) -> TenantView:
    """Everything on a tenant's page. Raises NotFound for a tenant nobody has heard of."""
    shown = month(services, period)
    completeness = services.reports.completeness()
    rows = require_tenant(services, tenant_id, shown)
    policy = services.policies.current
    known = policy.tenants.get(tenant_id)
    days = services.reports.by_day(shown, tenant_id)
    simulated = _simulated(policy)
    models = tuple(
        ModelLine(
            model=row.key,
            provider=row.provider,
            simulated=row.provider in simulated,
            figures=row,
        )
        for row in services.reports.by_model(shown, tenant_id)
    )
    return TenantView(
        id=tenant_id,
        name=(known.name if known else "") or tenant_id,
        cost_center=known.cost_center if known else "",
        months=_months(services, shown),
        completeness=completeness,
        total=total(rows),
        budgets=tuple(_budget_line(state) for state in services.budgets(tenant_id)),
        models=models,
        routes=tuple(services.reports.by_route(shown, tenant_id)),
        chart=_chart(shown, days, tenant_id),
        days=_day_lines(days),
        events=tuple(services.reports.events(shown, tenant_id, RECENT_EVENTS)),
        simulated_providers=simulated,
        baseline=_baseline(policy),
        simulated=any(line.simulated for line in models),
    )


def request(services: AdminServices, request_id: str) -> RequestView | None:
    """Everything about one request; None where the ledger does not know it."""
    attempts = services.reports.request(request_id)
    if not attempts:
        return None
    return RequestView(
        request_id=request_id,
        tenant=attempts[0].tenant,
        first=attempts[0],
        last=attempts[-1],
        attempts=tuple(attempts),
        simulated_providers=_simulated(services.policies.current),
        charge_pico=sum(attempt.charge_pico or 0 for attempt in attempts),
        cost_pico=sum(attempt.cost_pico or 0 for attempt in attempts),
        unpriced=any(attempt.cost_pico is None for attempt in attempts),
    )


def require_tenant(services: AdminServices, tenant_id: str, period: str) -> Sequence[Figures]:
    """The tenant's sums of a month. NotFound: not in the policy, and nothing booked."""
    rows = services.reports.by_tenant(period, tenant_id)
    if not rows and tenant_id not in services.policies.current.tenants:
        raise NotFound(f"there is no tenant {tenant_id!r}")
    return rows


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


def _tenant_line(services: AdminServices, row: Figures, sums: Figures) -> TenantLine:
    known = services.policies.current.tenants.get(row.key)
    fullest = max(services.budgets(row.key), key=_used_ppm, default=None)
    part_ppm = row.charge_pico * 1_000_000 // sums.charge_pico if sums.charge_pico > 0 else 0
    return TenantLine(
        id=row.key,
        name=(known.name if known else "") or row.key,
        cost_center=known.cost_center if known else "",
        figures=row,
        share_meter=meter(
            min(part_ppm, 799_999), f"{share(row.charge_pico, sums.charge_pico)} of all"
        ),
        budget_used="" if fullest is None else _used(fullest),
        budget_meter=None if fullest is None else _budget_meter(fullest),
    )


def _budget_line(state: BudgetState) -> BudgetLine:
    return BudgetLine(
        state=state,
        left_pico=max(0, state.limit_pico - state.spent_pico - state.reserved_pico),
        used=_used(state),
        meter=_budget_meter(state),
    )


def _used_ppm(state: BudgetState) -> int:
    used_pico = state.spent_pico + state.reserved_pico
    return used_pico * 1_000_000 // state.limit_pico if state.limit_pico > 0 else 1_000_000


def _used(state: BudgetState) -> str:
    return share(state.spent_pico + state.reserved_pico, state.limit_pico)


def _budget_meter(state: BudgetState) -> Markup:
    return meter(
        _used_ppm(state), f"budget {state.name}: {_used(state)} of {usd(state.limit_pico)}"
    )


def _chart(shown: str, days: Sequence[Figures], whose: str) -> Markup:
    by_day = {row.key: row for row in days}
    year, number = (int(part) for part in shown.split("-"))
    bars = []
    for day in range(1, calendar.monthrange(year, number)[1] + 1):
        row = by_day.get(f"{shown}-{day:02d}", Figures())
        bars.append(
            Bar(
                label=str(day),
                title=f"{day} {month_name(shown)}",
                spent_pico=row.charge_pico,
                saved_pico=row.saved_pico,
            )
        )
    return daily_chart(bars, f"Charged and saved per day in {month_name(shown)}, {whose}")


def _day_lines(days: Sequence[Figures]) -> tuple[DayLine, ...]:
    return tuple(DayLine(day=row.key, figures=row) for row in days)


def _simulated(policy: Policy) -> frozenset[str]:
    return frozenset(name for name, provider in policy.providers.items() if provider.simulated)


def _baseline(policy: Policy) -> str:
    return policy.baseline.name if policy.baseline is not None else ""
