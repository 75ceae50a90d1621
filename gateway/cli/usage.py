"""``tollhouse usage`` and ``tollhouse ledger``: what was used, and whether the books are right.

Reads the state folder directly, so it works while the gateway runs and when it does not; whatever
changes the books needs the gateway stopped.
"""

import sqlite3
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from gateway.cli.state import config_option, state_dir_option, state_folder
from gateway.errors import MeteringUnavailable
from gateway.ledger import Ledger, reports
from gateway.ledger.event import named
from gateway.ledger.frames import Corrupt, read_segment
from gateway.ledger.store import LedgerStore
from gateway.money import format_usd
from gateway.web.csv_export import write_csv

_COLUMNS = (
    "requests", "attempts", "errors", "refused", "prompt_tokens", "cached_tokens",
    "completion_tokens", "cost_usd", "charge_usd", "possible_cost_usd", "possible_charge_usd",
    "baseline_usd", "saved_usd", "exact_hits", "semantic_hits", "small", "unpriced", "estimated",
    "interrupted", "possible",
)  # fmt: skip

_NUMBERS = frozenset({*_COLUMNS, "status"})

_period = click.option(
    "--period",
    default=lambda: f"{datetime.now(UTC):%Y-%m}",
    show_default="this month",
    metavar="YYYY-MM",
    help="A UTC month.",
)
_output = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
)


@click.group()
def usage() -> None:
    """Report what was used and what it cost."""


@usage.command()
@click.option(
    "--by",
    "grouping",
    type=click.Choice(["tenant", "project", "key", "model", "route", "day"]),
    default="tenant",
    show_default=True,
)
@_period
@click.option("--tenant", help="Only this tenant.")
@_output
@state_dir_option
@config_option
def report(
    grouping: reports.Grouping,
    period: str,
    tenant: str | None,
    output: str,
    state_dir: Path | None,
    config: Path | None,
) -> None:
    """Sums of one month. Amounts are exact dollars; savings are net of the cost of deciding."""
    _check_period(period)
    store = _open_store(state_dir, config)
    rows = [
        _row(found, exact=output != "table")
        for found in reports.summary(store, period, tenant, grouping)
    ]
    header = ((grouping, "provider") if grouping == "model" else (grouping,)) + _COLUMNS
    if grouping != "model":
        rows = [(row[0], *row[2:]) for row in rows]
    _print(header, rows, output)


@usage.command()
@_period
@click.option("--tenant", help="Only this tenant.")
@_output
@state_dir_option
@config_option
def refused(
    period: str, tenant: str | None, output: str, state_dir: Path | None, config: Path | None
) -> None:
    """Requests of one month that were turned away before any model was asked, by reason."""
    _check_period(period)
    header = ("tenant", "reason", "status", "requests")
    found = reports.refusals(_open_store(state_dir, config), period, tenant)
    _print(header, [(row.tenant, row.reason, row.status, row.requests) for row in found], output)


@usage.command()
@click.argument("event_id")
@state_dir_option
@config_option
def event(event_id: str, state_dir: Path | None, config: Path | None) -> None:
    """Show one event, or all attempts of a request, as JSON."""
    request_id, _, attempt = event_id.partition("/")
    found = [
        row
        for row in reports.request(_open_store(state_dir, config), request_id)
        if not attempt or row.event_id == event_id
    ]
    if not found:
        raise click.ClickException(f"nothing is booked under {event_id}")
    for row in found:
        click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2))


@click.group()
def ledger() -> None:
    """Verify, rebuild and inspect the ledger."""


@ledger.command()
@state_dir_option
@config_option
def verify(state_dir: Path | None, config: Path | None) -> None:
    """Check that entries balance, rollups follow from events, and each cost from its price."""
    try:
        found = _open_store(state_dir, config).verify()
    except sqlite3.Error as error:
        raise click.ClickException(f"the ledger is damaged: {error}") from None
    for problem in found:
        click.echo(problem)
    if found:
        sys.exit(1)
    click.echo("The books are in order.")


@ledger.command()
@state_dir_option
@config_option
def rebuild(state_dir: Path | None, config: Path | None) -> None:
    """Recreate the rollups from the events. The gateway must be stopped."""
    books = _open_ledger(state_dir, config)
    try:
        books.store.rebuild_rollups()
    finally:
        books.close()
    click.echo("The rollups are rebuilt.")


@ledger.command()
@state_dir_option
@config_option
def ship(state_dir: Path | None, config: Path | None) -> None:
    """Book what a stopped gateway left in its log, and settle what it left open."""
    books = _open_ledger(state_dir, config)  # opening recovers
    books.close()
    if refused := books.shipper.refused:
        records = "1 record" if refused == 1 else f"{refused} records"
        click.echo(f"{records} of the log cannot be booked; tollhouse ledger verify shows which.")
        sys.exit(1)
    click.echo("Everything in the log is booked.")


@ledger.group()
def wal() -> None:
    """Look into the write-ahead log."""


@wal.command()
@click.argument("segment", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def dump(segment: Path) -> None:
    """Print the records of one segment as JSON lines; exit 1 where it is damaged."""
    damaged = False
    for record, next_offset in read_segment(segment):
        if isinstance(record, Corrupt):
            damaged = True
            click.echo(
                f"damage at byte {record.offset}, up to {next_offset}: {record.reason}", err=True
            )
        else:
            click.echo(msgspec.json.encode(named(record)))
    if damaged:
        sys.exit(1)


def _open_store(state_dir: Path | None, config: Path | None) -> LedgerStore:
    path = state_folder(state_dir, config) / "ledger.sqlite"
    if not path.exists():
        raise click.ClickException(f"there is no ledger at {path}; has the gateway ever run?")
    try:
        return LedgerStore(path)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _open_ledger(state_dir: Path | None, config: Path | None) -> Ledger:
    try:
        return Ledger.open(state_folder(state_dir, config))
    except (MeteringUnavailable, sqlite3.Error, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _row(found: reports.Summary, *, exact: bool) -> tuple[str | int, ...]:
    places = 12 if exact else 6
    amounts = {
        "cost_usd": found.cost_pico,
        "charge_usd": found.charge_pico,
        "possible_cost_usd": found.possible_cost_pico,
        "possible_charge_usd": found.possible_charge_pico,
        "baseline_usd": found.baseline_pico,
        "saved_usd": found.saved_pico,
    }
    values = (
        format_usd(amounts[name], places) if name in amounts else getattr(found, name)
        for name in _COLUMNS
    )
    return (found.key, found.provider, *values)


def _check_period(period: str) -> None:
    try:
        reports.period_bounds(period)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--period") from None


def _print(header: Sequence[str], rows: Sequence[Sequence[str | int]], output: str) -> None:
    if output == "csv":
        click.echo(write_csv(header, rows), nl=False)
    elif output == "json":
        click.echo(msgspec.json.encode([dict(zip(header, row, strict=True)) for row in rows]))
    else:
        _print_table(header, rows)


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str | int]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in header:
        numeric = name in _NUMBERS
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    Console(width=None if sys.stdout.isatty() else 320).print(table)
