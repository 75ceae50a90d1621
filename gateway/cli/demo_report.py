"""The demo's tables: what the client saw, and what the ledger says it cost."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli import demo_tasks
from gateway.cli.demo_workload import TENANTS, Step
from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from gateway.money import format_usd

_SHIPPED_SECONDS = 10.0
_CACHE = {"hit-exact": "exact hit", "hit-semantic": "semantic hit", "miss": "miss", "bypass": "-"}


class Report:
    """Prints what the ledger has of the demo's requests."""

    def __init__(self, console: Console, state_dir: Path, *, simulated: bool) -> None:
        """simulated: label the large model so, wherever it is named."""
        self._console = console
        self._state_dir = state_dir
        self._large = "large (simulated)" if simulated else "large"

    def requests(self, steps: list[Step], *, heading: bool) -> None:
        """Print one line per request: where it went and why, and what it cost."""
        rows = self._booked(steps)
        table = _table(
            "#>:2,tenant:7,what it shows:30,answered by:17,cache:12,tokens:6,ms>:5,USD>:8,why"
        )
        table.show_header = heading
        # By hand: else a long reason makes all other columns narrower.
        room = self._console.width - sum((column.width or 0) + 2 for column in table.columns)
        for step in steps:
            row = rows.get(step.request_id)
            table.add_row(
                str(step.number),
                step.tenant,
                step.shows,
                self._name(step.model) if step.status < 400 else f"HTTP {step.status}",
                _CACHE.get(step.cache, step.cache),
                step.tokens,
                f"{step.milliseconds:.0f}",
                _usd(row.cost_pico) if row is not None else "",
                Text(shorten(row.reason if row is not None else step.answer, max(room, 12))),
                style="red" if step.status >= 400 else "green" if "hit" in step.cache else None,
            )
        self._console.print(table)

    def local(self, pairs: list[tuple[Step, Step]], model: str) -> None:
        """Print the small model's answers with their verdicts, and whom ``auto`` asked."""
        rows = self._booked([step for pair in pairs for step in pair])
        table = _table("asked,small answers,which is,exam,computed ms>,USD>")
        table.columns[0].no_wrap = False
        by_exam: list[str] = []
        for pinned, routed in pairs:
            task, row = pinned.task, rows.get(pinned.request_id)
            assert task is not None, "these steps are tasks"
            answer = demo_tasks.answer_of(task, pinned.answer)
            right = pinned.status < 400 and task.judge(answer).lenient
            proof = rows.get(routed.request_id)
            if proof is not None and routed.model == "small":
                by_exam.append(proof.reason.removeprefix("by exam: "))
            table.add_row(
                Text(" ".join(task.prompt.split())),
                Text(answer),
                "right" if right else "wrong",
                demo_tasks.counted(model, task.kind),
                f"{row.compute_us / 1e3:.0f}" if row is not None else "",
                _usd(row.cost_pico) if row is not None else "",
                style=None if right else "red",
            )
        self._console.print(table)
        proven = f", by exam: {'; '.join(by_exam)}" if by_exam else ""
        self._console.print(
            f"The same left to auto: {len(by_exam)} of {len(pairs)} went to small{proven};"
            f" the others to {self._large}, for no exam proves them to 95 %.",
            soft_wrap=True,
        )

    def tenants(self) -> None:
        """Print what each tenant's month came to."""
        table = _table(
            "tenant,requests>,refused>,prompt tokens>,answer tokens>,cost USD>,baseline USD>,"
            "deciding USD>,saved USD>,exact>,semantic>,small>"
        )
        store = LedgerStore(self._state_dir / "ledger.sqlite")
        try:
            summaries = {row.key: row for row in reports.tenant_summary(store, _this_month())}
        finally:
            store.close()
        for row in (summaries[tenant] for tenant in TENANTS if tenant in summaries):
            table.add_row(
                row.key,
                *map(str, (row.requests, row.refused, row.prompt_tokens, row.completion_tokens)),
                *map(_usd, (row.cost_pico, row.baseline_pico, row.overhead_pico, row.saved_pico)),
                *map(str, (row.exact_hits, row.semantic_hits, row.small)),
            )
        self._console.print(table)

    def _booked(self, steps: list[Step]) -> dict[str, reports.EventRow]:
        """The last ledger event of each request, once the shipper has carried them over.

        Refusals too: many of one kind are logged together, every few seconds.
        """
        wanted = {step.request_id for step in steps if step.model}
        refused = sum(step.status >= 400 for step in steps)
        deadline = time.monotonic() + _SHIPPED_SECONDS
        store = LedgerStore(self._state_dir / "ledger.sqlite")
        try:
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
        finally:
            store.close()

    def _name(self, model: str) -> str:
        return self._large if model == "large" else model


def _table(columns: str) -> Table:
    """Columns by ``name``; ``name>`` is right-aligned, ``name:7`` so wide."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns.split(","):
        name, _, width = column.partition(":")
        table.add_column(
            name.rstrip(">"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=True,
            width=int(width) if width else None,
        )
    return table


def shorten(text: str, width: int) -> str:
    """Cut a text to a width, with an ellipsis where something is missing."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _this_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _usd(pico: int | None) -> str:
    return "unpriced" if pico is None else format_usd(pico, 6)
