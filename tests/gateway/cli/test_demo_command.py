"""What ``tollhouse demo`` takes from its caller's environment."""

from pathlib import Path

from gateway.cli.demo import without_settings
from gateway.config import load_settings


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
    assert without_settings(kept) == kept
