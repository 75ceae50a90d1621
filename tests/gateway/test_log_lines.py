"""The log: in every process the same lines, as text or as JSON with its fields in one order."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for
from tests.redis_server import RedisServer

ORDER = ["time", "level", "process", "pid", "logger", "message", "fields", "exception"]
JSON = "log: {format: json}\naccess_log: true\n"


def lines(gateway: RunningGateway) -> list[dict[str, object]]:
    """Each line of the log; one that is no JSON object fails."""
    return [json.loads(line) for line in gateway.log.read_text().splitlines() if line]


def ask(gateway: RunningGateway, key: str) -> httpx.Response:
    return httpx.post(
        gateway.base_url + "/chat/completions", trust_env=False, timeout=10,
        headers={"authorization": f"Bearer {key}"},
        json={"model": "uncached", "messages": [{"role": "user", "content": "Hello"}]},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_writes_json_with_its_fields_in_one_order(
    tmp_path: Path, provider: ProviderThread, redis_server: RedisServer, workers: int
) -> None:
    """From the start to the end, a request included."""
    settings = JSON
    if workers > 1:
        settings += f"workers: {workers}\nredis: {{url: '{redis_server.url}'}}\n"
    with running_gateway(tmp_path, provider.base_url, settings=settings) as gateway:
        answer = ask(gateway, gateway.key("acme"))
        assert answer.is_success
    found = lines(gateway)
    for line in found:
        names = list(line)
        assert names == [name for name in ORDER if name in line], line
        assert names[:6] == ORDER[:6]
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line["time"]))
    processes = {line["process"] for line in found}
    assert processes == (
        {"supervisor", "worker"} if workers == 1 else
        {"supervisor", "admin", "worker 0", "worker 1"}
    )  # fmt: skip
    requests = [line["fields"] for line in found if line["message"] == "request"]
    assert [r for r in requests if r["request_id"] == answer.headers["x-request-id"]]  # type: ignore[index]
    said = [str(line["message"]) for line in found]
    assert any(message.startswith("told to stop") for message in said)
    assert any(message.startswith("drained in") for message in said)


@pytest.mark.slow
def test_a_start_that_fails_is_one_json_line_too(tmp_path: Path) -> None:
    """A log collector parses the refused policy's place like any other line."""
    gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1", settings=JSON)
    gateway.policy_file.write_text("apiVersion: tollhouse/v1\nkind: Model\n")
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.config)],
        env=gateway.environment, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert ended.returncode == 1
    found = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line for line in found if "policy.yaml:2:" in line["message"]]


@pytest.mark.slow
def test_a_level_leaves_out_what_is_less_important(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """At level error, a start, a good request and a stop write nothing at all."""
    with running_gateway(tmp_path, provider.base_url, settings="log: {level: error}\n") as gateway:
        assert ask(gateway, gateway.key("acme")).is_success
    assert gateway.log.read_text() == ""


@pytest.mark.slow
def test_the_model_process_writes_the_same_lines(tmp_path: Path) -> None:
    """It cannot serve here, and says so in both forms."""
    said = {}
    for form in ("text", "json"):
        log = tmp_path / form
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "local_models.server", "--socket", str(tmp_path / "m.sock"),
                 "--generation", "no-such-model", "--models-dir", str(tmp_path), "--outlive-parent",
                 "--log-format", form],
                stderr=sink,
            )  # fmt: skip
            wait_for(lambda log=log: "generation failed" in log.read_text(), 30.0)  # type: ignore[misc]
            process.terminate()
            process.wait(10)
        said[form] = log.read_text().splitlines()
    text = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ local_models[\w.]*: "
    assert all(re.match(text, line) for line in said["text"])
    for line in said["json"]:
        assert list(json.loads(line))[:6] == ORDER[:6]
        assert json.loads(line)["process"] == "model"


@pytest.mark.slow
def test_a_log_that_cannot_be_written_to_is_told_when_usage_is_not_booked(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """The folder of the log is gone: an error at once, and a line when it is back."""
    from tests.gateway.test_unwritable_state import fill, small_disk

    with (
        small_disk(tmp_path / "state") as disk,
        running_gateway(tmp_path, provider.base_url) as gateway,
    ):
        key = gateway.key("acme")
        filler = fill(disk)

        def told(what: str) -> bool:
            ask(gateway, key)
            return what in gateway.log.read_text()

        wait_for(lambda: told("the disk of the state folder is full"), 20.0, gateway.describe)
        filler.unlink()
        wait_for(lambda: told("usage is booked again"), 20.0, gateway.describe)
