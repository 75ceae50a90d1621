"""The demo's tables: what the client saw, and what the ledger says it cost."""

import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from gateway.cli.demo_workload import TENANTS, Step
from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from gateway.money import format_usd

_SHIPPED_SECONDS = 10.0
_METHOD = (
    "Saved is what the large model would have cost, less cost and deciding. A cached answer counts"
    " whole.\nOf an answer by the small model only the prompt counts.\n"
    "Not measured: whether the small model's answers are as good as the large one's, and which"
    " share of semantic hits is wrong.\nThe demo switches both on to show them; the default"
    " policy leaves both off."
)
_CACHE = {"hit-exact": "exact hit", "hit-semantic": "semantic hit", "miss": "miss", "bypass": "-"}


def print_report(
    console: Console, steps: list[Step], admin: httpx.Client, state_dir: Path, *, simulated: bool
) -> None:
    """Both tables. ``simulated`` labels the large model wherever it is named."""
    store = LedgerStore(state_dir / "ledger.sqlite")
    try:
        rows = _booked(steps, store)
        console.print(_requests(steps, rows, simulated))
        console.print(_tenants(store))
        console.print(_METHOD)
    finally:
        store.close()


def _booked(steps: list[Step], store: LedgerStore) -> dict[str, reports.EventRow]:
    """The last ledger event of each request, once the shipper has carried them over.

    Refusals too: many of one kind are logged together, every few seconds.
    """
    wanted = {step.request_id for step in steps if step.model}
    refused = sum(step.status >= 400 for step in steps)
    deadline = time.monotonic() + _SHIPPED_SECONDS
    while True:
        found = {
            request_id: rows[-1]
            for request_id in wanted
            if (rows := reports.request(store, request_id))
        }
        counted = sum(row.refused for row in reports.tenant_summary(store, _this_month()))
        complete = len(found) == len(wanted) and counted >= refused
        if complete or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _this_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _requests(steps: list[Step], rows: dict[str, reports.EventRow], simulated: bool) -> Table:
    table = Table(title="Requests, as the client saw them and as the ledger booked them")
    for name in ("#", "tenant", "what it shows", "answered by", "cache", "tokens", "ms", "USD"):
        table.add_column(
            name, justify="right" if name in ("#", "ms", "USD") else "left", no_wrap=True
        )
    table.add_column("why", overflow="ellipsis", no_wrap=True, max_width=44)
    for step in steps:
        row = rows.get(step.request_id)
        model = step.model + (" (simulated)" if simulated and step.model == "large" else "")
        why = row.reason if row is not None else step.answer
        style = "red" if step.status >= 400 else "green" if "hit" in step.cache else None
        table.add_row(
            str(step.number),
            step.tenant,
            step.shows,
            model if step.status < 400 else f"HTTP {step.status}",
            _CACHE.get(step.cache, step.cache),
            step.tokens,
            f"{step.milliseconds:.0f}",
            _usd(row.cost_pico) if row is not None else "",
            why,
            style=style,
        )
    return table


def _tenants(store: LedgerStore) -> Table:
    table = Table(title="Tenants this month, from the ledger")
    names = (
        "tenant,requests,refused,prompt tokens,answer tokens,cost USD,baseline USD,deciding USD,"
        "saved USD"
    )
    for name in (*names.split(","), "exact", "semantic", "small"):
        table.add_column(name, justify="left" if name == "tenant" else "right")
    summaries = {row.key: row for row in reports.tenant_summary(store, _this_month())}
    for tenant in TENANTS:
        row = summaries.get(tenant)
        if row is None:
            continue
        table.add_row(
            tenant,
            str(row.requests),
            str(row.refused),
            str(row.prompt_tokens),
            str(row.completion_tokens),
            _usd(row.cost_pico),
            _usd(row.baseline_pico),
            _usd(row.overhead_pico),
            _usd(row.saved_pico),
            str(row.exact_hits),
            str(row.semantic_hits),
            str(row.small),
        )
    return table


def _usd(pico: int | None) -> str:
    return "unpriced" if pico is None else format_usd(pico, 6)
