"""What ``tollhouse demo`` takes from its caller's environment, what it runs, and what it tells."""

import contextlib
import io
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from rich.console import Console

from gateway.cli import demo_tasks
from gateway.cli.demo_choice import SHORT, choose
from gateway.cli.demo_grid import Column, Grid
from gateway.cli.demo_processes import POLICIES, without_settings, write_config
from gateway.cli.demo_report import Report
from gateway.cli.demo_workload import Step
from gateway.config import load_settings
from gateway.policy.load import load_policy
from local_models.catalogue import ensure, load_catalogue
from local_models.exam.generate import tasks
from tests.gateway.running import ProviderThread, free_port, running_gateway
from tests.local_models.qwen import qwen_model_dir

ROOT = POLICIES.parents[1]
LINES_MAX = 40
SECONDS_MAX = 90.0


def test_the_demo_leaves_the_callers_own_gateway_alone(tmp_path: Path) -> None:
    """Variables that point a gateway to its state and ports do not reach the demo's."""
    config = tmp_path / "tollhouse.yaml"
    config.write_text(f"state_dir: {tmp_path / 'demo'}\nlisten: {{port: 9123}}\n")
    callers = {"TOLLHOUSE_STATE_DIR": "/srv/books", "TOLLHOUSE_LISTEN_PORT": "80"}
    assert load_settings(config, callers).listen.port == 80
    settings = load_settings(config, without_settings(callers))
    assert settings.state_dir == tmp_path / "demo"
    assert settings.listen.port == 9123


def test_the_demo_keeps_what_is_no_setting() -> None:
    """Where models are, and which key pays the large one."""
    kept = {"TOLLHOUSE_MODELS": "/srv/models", "OPENAI_API_KEY": "k", "PATH": "/bin"}
    kept |= {"TOLLHOUSE_MODELS_MIRROR": "/srv/mirror", "TOLLHOUSE_MODELS_SOURCES": "mirror"}
    assert without_settings(kept) == kept


@pytest.mark.slow
def test_the_demo_counts_every_refusal_that_it_lists(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """A flood of one kind reaches the books seconds later."""
    with running_gateway(tmp_path, provider.base_url) as gateway:
        headers = {"authorization": f"Bearer {gateway.key('acme')}"}
        body = {"model": "nothing", "messages": [{"role": "user", "content": "Hello"}]}
        steps = [
            Step(number=number, tenant="acme", shows="", asked="", status=httpx.post(
                gateway.base_url + "/chat/completions", json=body, headers=headers, trust_env=False
            ).status_code)
            for number in range(25)
        ]  # fmt: skip
        console = Console(record=True, width=200)
        report = Report(console, gateway.state_dir, simulated=True)
        report.requests(steps, heading=True)
        report.tenants()
    (row,) = [line for line in console.export_text().splitlines() if line.startswith("acme ")]
    assert row.split()[2] == "25"


@pytest.mark.parametrize(
    ("model", "pair", "environ", "large", "small"),
    [
        ("none", False, {}, "simulated", ""),
        ("default", False, {}, "simulated", "default"),
        ("default", False, {"OPENAI_API_KEY": "k"}, "openai", "default"),
        ("0.5B", False, {}, "simulated", SHORT["0.5b"]),
        ("smollm2-135m-instruct", False, {}, "simulated", SHORT["135m"]),
        ("default", True, {"OPENAI_API_KEY": "k"}, "pair", SHORT["0.5b"]),
        ("135m", True, {}, "pair", SHORT["135m"]),
    ],
)
def test_the_options_choose_the_models(
    tmp_path: Path, model: str, pair: bool, environ: dict[str, str], large: str, small: str
) -> None:
    """And the policy that the demo writes names them: a pair asks nobody outside."""
    choice = choose(model, pair, environ)
    assert (choice.large, choice.small) == (large, small)
    config = write_config(tmp_path, 1, 2, choice.large, choice.small)
    settings = load_settings(config, {})
    told = {"OPENAI_API_KEY": "x", "TOLLHOUSE_DEMO_BASE_URL": "http://127.0.0.1:9/v1"}
    policy = load_policy(list(settings.policies), environ=told, now_us=1)
    if small:
        assert policy.models["small"].provider.runtime.model == small
        assert policy.models["small"].upstream_model == small
    assert settings.local.enabled == ("auto" if small else "off")
    assert (policy.models["large"].provider.api == "local") == pair


def test_a_model_that_is_not_known_is_told_with_those_that_are() -> None:
    """A typo in --model gives one sentence with the four names to choose from."""
    with pytest.raises(click.ClickException, match=r"no model 'gpt-9' .* 135m, 0\.5b, 1\.5b, smol"):
        choose("gpt-9", False, {})


def test_each_task_of_the_demo_is_the_shortest_and_its_ideal_answer_is_right() -> None:
    """The rule that the demo prints chooses them; no answer had a say."""
    for task in demo_tasks.chosen():
        among = tasks(task.kind, demo_tasks.AMONG, demo_tasks.SEED)
        assert len(task.prompt) == min(len(other.prompt) for other in among)
        assert task.judge(task.truth.ideal()).lenient
        assert demo_tasks.form_of(task)


class Demo:
    """A running ``tollhouse demo``."""

    def __init__(
        self, options: tuple[str, ...], stdin: int, stdout: int, **environment: str
    ) -> None:
        environ = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
        ports = ["--port", str(free_port()), "--admin-port", str(free_port())]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "demo", *ports, *options],
            env=environ | environment,
            cwd=ROOT,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def read_to(self, start: str) -> str:
        """Read the output up to a line with this beginning, and return that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(start):
                return self.lines[-1]
        raise AssertionError("\n".join(self.lines))

    def stop(self) -> None:
        """As Ctrl-C does; it ends well."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def rows(self, head: str) -> list[list[str]]:
        """The cells of the table whose first line begins so."""
        at = next(n for n, line in enumerate(self.lines) if line.split()[:1] == [head])
        found = []
        for line in self.lines[at + 1 :]:
            if not line.strip() or line.startswith(("The same", "Cost by hand")):
                break
            found.append(re.split(r"\s{2,}", line.strip()))
        return found

    def seconds_to(self, what: str) -> float:
        """The time that the demo says something came after."""
        found = re.search(rf"{what} after ([\d.]+) s", self.text)
        assert found is not None, self.text
        return float(found[1])

    @property
    def verdicts(self) -> list[str]:
        """Right or wrong, of each task that it lists."""
        return [cell for row in self.rows("asked") for cell in row if cell in ("right", "wrong")]


@contextlib.contextmanager
def demo(
    *options: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    **environment: str,
) -> Iterator[Demo]:
    running = Demo(options, stdin, stdout, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.wait(30)
        if running.process.stdout is not None:
            running.process.stdout.close()


@pytest.mark.slow
def test_the_demo_shows_the_whole_job_and_its_arithmetic_can_be_done_by_hand() -> None:
    """Cost of the large model's answers by tokens, of the small one's by time; hits are free."""
    with demo("--model", "135m") as shown:
        shown.read_to("Your policy:")
        took = time.monotonic() - shown.began
        assert "OPENAI_API_KEY=sk-..." in shown.text
        (client,) = [line for line in shown.lines if line.startswith("Your client:")]
        answered = subprocess.run(
            client.removeprefix("Your client:"),
            shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "role='assistant'" in answered.stdout, answered.stderr
        shown.stop()
    assert len(shown.lines) <= LINES_MAX
    assert took <= SECONDS_MAX
    assert shown.seconds_to("first answer") <= 20.0
    requests = [row for row in shown.rows("#") if row[0].isdigit()]
    hits = [row for row in requests if row[4].endswith(" hit")]
    assert [row[4] for row in hits] == ["exact hit", "exact hit", "semantic hit"]
    assert {row[7] for row in hits} == {"0.000000"}
    paid = [row for row in requests if row[4] in ("miss", "-") and "+" in row[5]]
    assert len(paid) == 6
    for row in paid:
        prompt, answer = map(int, row[5].split("+"))
        assert float(row[7]) == pytest.approx((prompt * 2.5 + answer * 15) / 1e6, abs=6e-7)
    (refused,) = [row for row in requests if "HTTP 429" in row]
    assert "insufficient_quota" in refused[-1]
    local = [row for row in shown.rows("asked") if row[-1].startswith("0.")]
    assert len(local) == len(demo_tasks.KINDS)
    for row in local:
        assert float(row[-1]) == pytest.approx(float(row[-2]) * 0.08 / 3.6e6, abs=6e-7)
    for row in shown.rows("tenant"):
        if row[0] in ("acme", "globex", "initech"):
            cost, baseline, deciding, saved = map(float, row[5:9])
            assert saved == pytest.approx(baseline - cost - deciding, abs=2e-6)


@pytest.mark.slow
def test_the_demo_works_where_no_model_can_be_had_and_says_why(tmp_path: Path) -> None:
    """No network: one sentence, and all that the large model and the caches do."""
    with demo("--exit", TOLLHOUSE_MODELS=str(tmp_path), TOLLHOUSE_MODELS_SOURCES="none") as shown:
        shown.read_to("Your policy:")
        assert shown.process.wait(30) == 0
    assert "MB to fetch" in shown.text
    sentence = "no local model can be had, so the gateway answers without one: qwen2.5-coder-0.5b-"
    assert sentence in shown.text
    assert shown.text.count("exact hit") == 3  # in name and cache of one, in cache of another
    assert "HTTP 429" in shown.text
    assert len(shown.lines) <= LINES_MAX


@pytest.mark.slow
def test_the_demo_takes_the_smallest_model_where_the_better_one_cannot_be_had(
    tmp_path: Path,
) -> None:
    """And gives that model's name and that model's counts."""
    for name in (SHORT["135m"], "all-minilm-l6-v2"):
        for file in load_catalogue()[name].files:
            copy = tmp_path / name / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ensure(name) / file, copy)
    with demo("--exit", TOLLHOUSE_MODELS=str(tmp_path), TOLLHOUSE_MODELS_SOURCES="none") as shown:
        shown.read_to("Your policy:")
        assert shown.process.wait(30) == 0
    assert f"Pinned to {SHORT['135m']}," in shown.text
    assert len(shown.verdicts) == len(demo_tasks.KINDS)


@pytest.mark.slow
def test_enter_skips_a_download_that_takes_too_long(tmp_path: Path) -> None:
    """What is shown before and after needs no model; the gateway goes on loading."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never answers
        terminal, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, 170))
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {"TOLLHOUSE_MODELS": str(tmp_path), "TOLLHOUSE_MODELS_MIRROR": mirror}
        with demo("--exit", stdin=theirs, stdout=theirs, **environment) as shown:
            os.close(theirs)
            text = ""
            while "Your policy:" not in text:
                ready, _, _ = select.select([terminal], [], [], 60)
                assert ready, text
                text += os.read(terminal, 65_536).decode()
                if "HTTP 429" in text and "\n" not in text.partition("Enter skips)")[2]:
                    os.write(terminal, b"\n")
            assert shown.process.wait(30) == 0
        os.close(terminal)
    assert "491 MB to fetch" in text
    assert "default goes on by itself, without a show: loading" in text
    assert "Pinned to" not in text


def test_a_narrow_terminal_gets_fewer_columns_and_whole_ones() -> None:
    """The highest rank is left out first; a long word is folded, not lost."""
    columns = (
        Column("question", 12, rest=True, folds=True),
        Column("answer", 8, rank=1),
        Column("USD", 8, rank=2, right=True),
    )
    for width, expected in (
        (38, "question          answer         USD\na-very-long-word  abcdefg…  0.000001\n"),
        (24, "question      answer\na-very-long-  abcdefg…\nword\n"),
        (14, "question\na-very-long-\nword\n"),
    ):
        console = Console(record=True, width=width, file=io.StringIO())
        grid = Grid(columns, width)
        grid.add(("a-very-long-word", "abcdefghi", "0.000001"))
        grid.print(console)
        shown = "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())
        assert shown == expected


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "sizes", "memory_gib"),
    [
        ((), ("0.5b",), 1.3),
        (("--model", "1.5b"), ("1.5b",), 2.6),
        (("--pair", "local"), ("0.5b", "1.5b"), 3.9),
    ],
)
def test_every_answer_of_qwens_that_the_demo_shows_is_right(
    options: tuple[str, ...], sizes: tuple[str, ...], memory_gib: float
) -> None:
    """Alone or as a pair, all kinds of tasks are solved within the stated memory and 40 lines."""
    for size in sizes:
        qwen_model_dir(size)
    with demo("--exit", *options) as shown:
        shown.read_to("Your policy:")
        assert shown.process.wait(60) == 0
    assert f"Pinned to {SHORT[sizes[0]]}," in shown.text
    assert shown.verdicts == ["right"] * len(demo_tasks.KINDS)
    assert len(shown.lines) <= LINES_MAX
    found = re.search(r"gateway and models take ([\d.]+) GiB", shown.text)
    assert found is not None
    assert float(found[1]) <= memory_gib
