"""``tollhouse usage`` and ``tollhouse ledger`` on a real state folder."""

import csv
import io
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway.cli.usage import ledger, usage
from gateway.ledger import Ledger
from gateway.ledger.event import Intent, UsageEvent
from gateway.prices import all_prices, from_contract
from gateway.wire.usage import Usage

PRICES = from_contract(
    contract_id="T",
    provider="openai",
    model="large",
    currency="USD",
    per_mtok={"input": "2.5", "output": "10"},
)
NOW_US = 1_795_168_800_000_000  # 2026-11-20T10:00:00Z


def event(request_id: str, tenant: str) -> UsageEvent:
    """0.002 dollars of cost, 0.001 saved."""
    return UsageEvent(
        **identity(request_id, tenant),
        recorded_us=NOW_US,
        usage=Usage(prompt_tokens=400, completion_tokens=100),
        cost_pico=2_000_000_000,
        charge_pico=2_200_000_000,
        baseline_pico=3_000_000_000,
        status=200,
        duration_us=5,
    )


def identity(request_id: str, tenant: str) -> dict[str, Any]:
    """What intents and events share."""
    return {
        "event_id": f"{request_id}/1",
        "request_id": request_id,
        "attempt": 1,
        "ts_us": NOW_US,
        "tenant_id": tenant,
        "project_id": "default",
        "key_id": "k",
        "policy_version": "v",
        "route": "chat",
        "decision": "hard",
        "provider": "openai",
        "model_requested": "auto",
        "model_served": "large",
        "price_id": PRICES.prices[0].price_id,
    }


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder that a gateway has used and left."""
    opened = Ledger.open(tmp_path)
    opened.store.register_prices(all_prices([PRICES]))
    opened.settle(event("r1", "acme"))
    opened.settle(event("r2", "=cmd()"))
    opened.close()
    return tmp_path


def run(command: Any, state_dir: Path, *arguments: str) -> Result:
    """The command on this folder."""
    return CliRunner().invoke(command, [*arguments, "--state-dir", str(state_dir)])


def test_a_report_as_json_is_exact(state: Path) -> None:
    """Amounts are decimal text: no reader's floats round them."""
    done = run(usage, state, "report", "--period", "2026-11", "--format", "json")
    rows = {row["tenant"]: row for row in json.loads(done.output)}
    assert rows["acme"]["cost_usd"] == "0.002000000000"
    assert rows["acme"]["saved_usd"] == "0.001000000000"
    assert rows["acme"]["requests"] == 1


def test_a_report_as_csv_opens_without_running_anything(state: Path) -> None:
    """A tenant named like a formula is text to a spreadsheet."""
    done = run(usage, state, "report", "--period", "2026-11", "--format", "csv")
    names = [row["tenant"] for row in csv.DictReader(io.StringIO(done.output))]
    assert sorted(names) == ["'=cmd()", "acme"]


@pytest.mark.parametrize("by", ["tenant", "project", "key", "model", "route", "day"])
def test_a_table_has_a_row_per_group(state: Path, by: str) -> None:
    """Two requests of a tenth of a cent each, however they are grouped."""
    done = run(usage, state, "report", "--period", "2026-11", "--by", by)
    assert done.exit_code == 0
    assert len(done.output.splitlines()) == 1 + (2 if by == "tenant" else 1)


def test_without_a_period_the_report_is_of_this_month(state: Path) -> None:
    """What is booked now is in it, what was booked in another month is not."""
    now_us = time.time_ns() // 1000
    opened = Ledger.open(state)
    opened.settle(msgspec.structs.replace(event("r3", "now"), ts_us=now_us, recorded_us=now_us))
    past_us = now_us - 62 * 86_400_000_000
    opened.settle(msgspec.structs.replace(event("r4", "then"), ts_us=past_us, recorded_us=past_us))
    opened.close()
    done = run(usage, state, "report", "--format", "json")
    tenants = {row["tenant"] for row in json.loads(done.output)}
    assert "now" in tenants
    assert "then" not in tenants


def test_a_period_that_is_no_month_is_wrong_usage(state: Path) -> None:
    """Exit status 2, as documented."""
    done = run(usage, state, "report", "--period", "November")
    assert done.exit_code == 2
    assert "is no month such as 2026-11" in done.output


def test_an_event_is_found_by_its_id_and_by_its_request(state: Path) -> None:
    """And what is not there is said not to be."""
    by_request = run(usage, state, "event", "r1")
    assert json.loads(by_request.output)["tenant"] == "acme"
    assert run(usage, state, "event", "r1/1").output == by_request.output
    assert run(usage, state, "event", "r1/2").exit_code == 1


def test_verify_exits_with_one_where_the_books_are_wrong(state: Path) -> None:
    """And rebuild repairs what can be repaired."""
    assert run(ledger, state, "verify").output == "The books are in order.\n"
    connection = sqlite3.connect(state / "ledger.sqlite", isolation_level=None)
    connection.execute("DELETE FROM rollup")
    connection.close()
    found = run(ledger, state, "verify")
    assert (found.exit_code, "rebuild" in found.output) == (1, True)
    assert run(ledger, state, "rebuild").exit_code == 0
    assert run(ledger, state, "verify").exit_code == 0


def test_rebuilding_under_a_running_gateway_is_refused(state: Path) -> None:
    """With a sentence, not a traceback."""
    running = Ledger.open(state)
    done = run(ledger, state, "rebuild")
    running.close()
    assert done.exit_code == 1
    assert "another Tollhouse process" in done.output


def test_ship_books_what_a_dead_gateway_left(state: Path) -> None:
    """An attempt without an end gets one."""
    opened = Ledger.open(state)
    opened.intend(Intent(**identity("r3", "acme"), prompt_tokens=1, held_pico=5))
    opened._wal.close()  # as its death would
    opened.shipper.stop()
    opened.store.close()
    os.close(opened.books.lock)
    assert run(ledger, state, "ship").exit_code == 0
    assert json.loads(run(usage, state, "event", "r3").output)["state"] == "estimated"


def test_ship_says_when_a_record_of_the_log_cannot_be_booked(state: Path) -> None:
    """What is readable is booked, the exit status is 1, and the audit names the place."""
    ledger_now = Ledger.open(state)
    ledger_now.intend(Intent(**identity("r3", "acme"), prompt_tokens=1, held_pico=5))
    ledger_now.close()
    log = max((state / "wal").glob("*.wal"))
    damaged = state / "wal" / "usage-dead0-1-00000001.wal"
    content = bytearray(log.read_bytes()) * 2
    content[30] ^= 1
    damaged.write_bytes(content)
    done = run(ledger, state, "ship")
    assert done.exit_code == 1
    assert "1 record of the log cannot be booked" in done.output
    assert "Everything" not in done.output
    assert damaged.name in run(ledger, state, "verify").output
    again = run(ledger, state, "ship")
    assert (again.exit_code, again.output) == (0, "Everything in the log is booked.\n")


def test_a_segment_is_dumped_as_json_lines(state: Path) -> None:
    """Damage is reported with its place, and in the exit status."""
    (segment,) = (state / "wal").glob("*.wal")
    done = CliRunner().invoke(ledger, ["wal", "dump", str(segment)])
    assert [json.loads(line)["request_id"] for line in done.stdout.splitlines()] == ["r1", "r2"]
    content = bytearray(segment.read_bytes())
    content[30] ^= 1
    segment.write_bytes(content)
    damaged = CliRunner().invoke(ledger, ["wal", "dump", str(segment)])
    assert damaged.exit_code == 1
    assert "damage at byte 0" in damaged.stderr


def test_a_folder_without_books_is_said_to_have_none(tmp_path: Path) -> None:
    """And no empty ones are made by looking."""
    done = run(usage, tmp_path, "report", "--period", "2026-11")
    assert done.exit_code == 1
    assert "there is no ledger" in done.output
    assert list(tmp_path.iterdir()) == []
