"""What ``tollhouse demo`` takes from its caller's environment, and what it tells."""

from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gateway.cli.demo import without_settings
from gateway.cli.demo_report import print_report
from gateway.cli.demo_workload import Step
from gateway.config import load_settings
from tests.gateway.running import ProviderThread, running_gateway


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
        with httpx.Client() as admin:
            print_report(console, steps, admin, gateway.state_dir, simulated=True)
    (row,) = [line for line in console.export_text().splitlines() if line.startswith("│ acme ")]
    assert row.split("│")[3].strip() == "25"
