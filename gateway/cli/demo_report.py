"""The demo's tables: what the client saw, and what the ledger says it cost."""

import time
from pathlib import Path

from rich.console import Console

from gateway.cli import demo_tasks
from gateway.cli.demo_grid import Column, Grid
from gateway.cli.demo_workload import TENANTS, Step
from gateway.ledger import reports
from gateway.ledger.store import LedgerStore
from gateway.money import format_usd

_SHIPPED_SECONDS = 10.0
_REQUESTS = (
    Column("#", 2, rank=6, right=True),
    Column("tenant", 7, rank=4),
    Column("what it shows", 30),
    Column("answered by", 17),
    Column("cache", 12),
    Column("tokens", 6, rank=1),
    Column("ms", 5, rank=5, right=True),
    Column("USD", 8, right=True),
    Column("why", 14, rank=7, rest=True),
)
_TASKS = (
    Column("asked", 24, rest=True, folds=True),
    Column("small answers", 30, folds=True),
    Column("which is", 8),
    Column("exam", 10, rank=1),
    Column("computed ms", 11, rank=3, right=True),
    Column("USD", 8, rank=2, right=True),
)
_TENANTS = (
    Column("tenant", 7),
    *(Column(name, 8, right=True) for name in ("requests", "refused")),
    *(Column(name, 13, rank=2, right=True) for name in ("prompt tokens", "answer tokens")),
    Column("cost USD", 9, right=True),
    Column("baseline USD", 12, right=True),
    Column("deciding USD", 12, rank=3, right=True),
    Column("saved USD", 9, right=True),
    Column("exact", 5, rank=1, right=True),
    Column("semantic", 8, rank=4, right=True),
    Column("small", 5, rank=1, right=True),
)
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
        grid = Grid(_REQUESTS, self._console.width, heading=heading)
        for step in steps:
            row = rows.get(step.request_id)
            grid.add(
                (
                    str(step.number),
                    step.tenant,
                    step.shows,
                    self._name(step.model) if step.status < 400 else f"HTTP {step.status}",
                    _CACHE.get(step.cache, step.cache),
                    step.tokens,
                    f"{step.milliseconds:.0f}",
                    _usd(row.cost_pico) if row is not None else "",
                    row.reason if row is not None else step.answer,
                ),
                style="red" if step.status >= 400 else "green" if "hit" in step.cache else None,
            )
        grid.print(self._console)

    def local(self, pairs: list[tuple[Step, Step]], model: str) -> None:
        """Print the small model's answers with their verdicts, and whom ``auto`` asked."""
        rows = self._booked([step for pair in pairs for step in pair])
        grid = Grid(_TASKS, self._console.width)
        by_exam: list[str] = []
        for pinned, routed in pairs:
            task, row = pinned.task, rows.get(pinned.request_id)
            assert task is not None, "these steps are tasks"
            answer = demo_tasks.answer_of(task, pinned.answer)
            right = pinned.status < 400 and task.judge(answer).lenient
            proof = rows.get(routed.request_id)
            if proof is not None and routed.model == "small":
                by_exam.append(proof.reason.removeprefix("by exam: "))
            grid.add(
                (
                    " ".join(task.prompt.split()),
                    answer,
                    "right" if right else "wrong",
                    demo_tasks.counted(model, task.kind),
                    f"{row.compute_us / 1e3:.0f}" if row is not None else "",
                    _usd(row.cost_pico) if row is not None else "",
                ),
                style=None if right else "red",
            )
        grid.print(self._console)
        proven = f", by exam: {'; '.join(by_exam)}" if by_exam else ""
        self._console.print(
            f"The same left to auto: {len(by_exam)} of {len(pairs)} went to small{proven};"
            f" the others to {self._large}, for no exam proves them to 95 %.",
            soft_wrap=True,
        )

    def tenants(self) -> None:
        """Print what each tenant's month came to."""
        grid = Grid(_TENANTS, self._console.width)
        store = LedgerStore(self._state_dir / "ledger.sqlite")
        try:
            summaries = {row.key: row for row in reports.tenant_summary(store, _this_month())}
        finally:
            store.close()
        for row in (summaries[tenant] for tenant in TENANTS if tenant in summaries):
            counts = (row.requests, row.refused, row.prompt_tokens, row.completion_tokens)
            money = (row.cost_pico, row.baseline_pico, row.overhead_pico, row.saved_pico)
            small = (row.exact_hits, row.semantic_hits, row.small)
            grid.add((row.key, *map(str, counts), *map(_usd, money), *map(str, small)))
        grid.print(self._console)

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


def _this_month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _usd(pico: int | None) -> str:
    return "unpriced" if pico is None else format_usd(pico, 6)
