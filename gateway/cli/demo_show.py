"""What the demo shows, in its order: the large model first, then what loaded meanwhile.

Knows the workload, its report and the terminal. Starts no process.
"""

import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console

from gateway.cli import demo_tasks
from gateway.cli.demo_choice import Choice
from gateway.cli.demo_processes import Admin, Large, memory_bytes
from gateway.cli.demo_report import Report
from gateway.cli.demo_workload import (
    TENANTS,
    Planned,
    Workload,
    with_embedder,
    with_small,
    without_small,
)
from gateway.node.messages import serves

_MODELS_SECONDS = 900.0
_POLL_SECONDS = 0.1
_LINE_SECONDS = 30.0
"""Between two lines on a download, where there is no terminal."""

_LARGE_PRICE: dict[Large, str] = {
    "simulated": "tokens x price (large: $2.50 in, $15.00 out a million); small: ",
    "openai": "tokens x OpenAI's price; small: ",
    "pair": "",
}
_METHOD = (
    "Cost by hand: {price}computed ms x $0.08 an hour; a hit and a refusal cost 0. Saved: what"
    " large would have cost,\nless cost and deciding; of an answer by small only its prompt counts."
    " Not measured: which share of semantic hits is wrong; the default policy leaves them off."
)


class Show:
    """One run of the demo against a gateway that answers."""

    def __init__(
        self,
        console: Console,
        choice: Choice,
        admin: Admin,
        base_url: str,
        state_dir: Path,
        process: int,
        began: float,
    ) -> None:
        """process: the gateway's id. began: seconds of the monotonic clock."""
        self._console = console
        self._choice = choice
        self._admin = admin
        self._base_url = base_url
        self._process = process
        self._began = began
        self._keys = {tenant: admin.key_of(tenant) for tenant in TENANTS}
        self._workload = Workload(base_url, self._keys)
        self._report = Report(console, state_dir, simulated=choice.large == "simulated")
        self._first_seconds = 0.0
        self._small = ""  # the name of the model that answers, once it does

    def run(self) -> None:
        """Send everything and print the tables."""
        if self._choice.large == "pair":
            self._wait_for_models()
        self._requests(without_small(), heading=True)
        if self._choice.large != "pair" and self._choice.small:
            self._wait_for_models()
        if self._choice.small:
            self._requests(with_embedder(), heading=False)
        if self._small:
            self._tasks()
        self._report.tenants()
        self._say(_METHOD.format(price=_LARGE_PRICE[self._choice.large]))

    def farewell(self) -> None:
        """Print what it came to, and where to go on."""
        took = time.monotonic() - self._began
        self._say(
            f"{len(self._workload.steps)} requests; first answer after {self._first_seconds:.1f} s,"
            f" {took:.0f} s in all; gateway and models take"
            f" {memory_bytes(self._process) / 2**30:.2f} GiB. Cost pages, signed in once:"
            f" {self._admin.login_link()}"
        )
        here = os.path.relpath(Path(sys.executable).parent)
        ask = (
            "import openai; print(openai.OpenAI().chat.completions.create("
            f'model="{"small" if self._small else "large"}",'
            ' messages=[{"role": "user", "content": "Is 14 an even number?"}]).choices[0].message)'
        )
        self._say(f"Your key:    OPENAI_API_KEY=sk-... {here}/tollhouse demo")
        self._say(
            f"Your client: OPENAI_BASE_URL={self._base_url} OPENAI_API_KEY={self._keys['acme']}"
            f" {here}/python -c '{ask}'"
        )
        self._say(
            "Your policy: cp -r policies/default mine &&"
            f" TOLLHOUSE_POLICIES=mine {here}/tollhouse serve"
        )

    def _requests(self, planned: Iterable[Planned], *, heading: bool) -> None:
        first = len(self._workload.steps)
        with self._console.status("") as status:
            for step in planned:
                self._workload.send(step, status.update)
                self._first_seconds = self._first_seconds or time.monotonic() - self._began
        self._report.requests(self._workload.steps[first:], heading=heading)

    def _tasks(self) -> None:
        with self._console.status("") as status:
            pairs = [
                (
                    self._workload.send(pinned, status.update, task),
                    self._workload.send(routed, status.update, task),
                )
                for task, pinned, routed in with_small()
            ]
        self._say(
            f"\nPinned to {self._small}, held to a form as applications do:"
            f" {demo_tasks.RULE}; exam: right of asked, of that kind."
        )
        self._report.local(pairs, self._small)

    def _wait_for_models(self) -> None:
        """Wait until each model serves or has failed, or the user skips it; say how it went."""
        states, fetched = self._watch()
        served = [name for name, state in states.items() if serves(state)]
        for name, state in states.items():
            if serves(state):
                continue
            loading = "" if state.startswith("failed") else "goes on by itself, without a show: "
            self._say(f"{name} {loading}{state.removeprefix('failed: ')}")
        small = states.get(self._choice.small, "")
        if serves(small):
            self._small = small.partition(": ")[2] or self._choice.small
        elif self._choice.large == "pair":
            raise click.ClickException("the pair cannot be shown without both of its models")
        if served:
            how = "".join(f" ({line})" for line in fetched.values())
            self._say(f"Local models ready after {time.monotonic() - self._began:.1f} s{how}.")

    def _watch(self) -> tuple[dict[str, str], dict[str, str]]:
        """What each model came to, and the last line of each download."""
        fetched: dict[str, str] = {}
        ends, said = time.monotonic() + _MODELS_SECONDS, time.monotonic()
        with self._console.status("") as status:
            while True:
                states = self._admin.models()
                for name, state in states.items():
                    if "fetching " in state:
                        fetched[name] = state.partition("fetching ")[2]
                busy = {n: s for n, s in states.items() if not serves(s) and s[:6] != "failed"}
                skipped = _entered()
                if (states and not busy) or skipped or time.monotonic() > ends:
                    return states, fetched
                line = "; ".join(f"{name} {state}" for name, state in busy.items())
                status.update(f"{line} (Enter skips)")
                if not self._console.is_terminal and time.monotonic() - said > _LINE_SECONDS:
                    said = time.monotonic()
                    self._say(line)
                time.sleep(_POLL_SECONDS)

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)


def _entered() -> bool:
    """Whether somebody at a terminal has pressed Enter; an end of input is no answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return bool(select.select([sys.stdin], [], [], 0)[0] and sys.stdin.readline())
