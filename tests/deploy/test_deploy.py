"""Deployment files: linted by their own tools, and hardened as the README says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config import load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ANALYZE = shutil.which("systemd-analyze")


def dockerfile_environment() -> dict[str, str]:
    """The variables that the image sets."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, str] = {}
    for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE):
        found |= dict(pair.split("=", 1) for pair in shlex.split(line))
    return found


def gateway_service() -> dict[str, Any]:
    """The one service of the compose file."""
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert list(services) == ["gateway"]
    service: dict[str, Any] = services["gateway"]
    return service


def unit() -> dict[str, list[str]]:
    """The unit's settings; a key may come more than once."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "tollhouse.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """The linter's exceptions stand in the file, each with its reason."""
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(DEPLOY / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_image_takes_every_package_by_hash_and_runs_as_nobody() -> None:
    """Only the wheel we just built is installed without one."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    for command in re.findall(r"pip install[^&\n]*", text):
        assert "--require-hashes" in command or "/wheel/" in command, command
    last_stage = text.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER \d+$", last_stage, re.MULTILINE)
    assert "apt-get" not in last_stage


def test_the_image_copies_only_what_exists() -> None:
    """A moved file is noticed here and not in somebody's build."""
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_the_image_and_the_unit_set_only_settings_that_exist() -> None:
    """The gateway refuses variables it does not know, so a misspelt one would not start."""
    image = dockerfile_environment()
    image["TOLLHOUSE_CONFIG"] = str(DEPLOY / "tollhouse.yaml")
    settings = load_settings(environ=image)
    assert settings.state_dir == Path("/var/lib/tollhouse")
    assert settings.listen.host == settings.admin.host == "0.0.0.0"
    of_unit = dict(pair.split("=", 1) for pair in unit()["Environment"])
    settings = load_settings(DEPLOY / "tollhouse.yaml", of_unit)
    assert settings.models_dir == Path("/var/cache/tollhouse/models")


def test_the_container_can_write_nowhere_but_to_its_state() -> None:
    """Read-only root, no capability, no new privileges, a bounded temporary folder."""
    service = gateway_service()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert [volume for volume in service["volumes"] if not volume.endswith(":ro")] == [
        "state:/var/lib/tollhouse"
    ]
    assert all("size=" in mount for mount in service["tmpfs"])


def test_no_port_is_published_beyond_the_machine() -> None:
    """Whoever wants that puts TLS in front."""
    assert gateway_service()["ports"] == ["127.0.0.1:8080:8080", "127.0.0.1:8081:8081"]


def test_stopping_waits_longer_than_draining() -> None:
    """Else the last answers would be cut by the very thing that was to let them end."""
    drain_seconds = load_settings(DEPLOY / "tollhouse.yaml", {}).drain_seconds
    assert int(gateway_service()["stop_grace_period"].removesuffix("s")) > drain_seconds
    assert int(unit()["TimeoutStopSec"][0]) > drain_seconds


def test_the_unit_is_told_by_the_worker_that_it_is_ready() -> None:
    """The worker is a child of the supervisor, so every process of the unit may notify."""
    assert (unit()["Type"], unit()["NotifyAccess"]) == (["notify"], ["all"])


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Verified by systemd itself, with a program that exists here in the place of ours."""
    text = (DEPLOY / "tollhouse.service").read_text()
    copy = tmp_path / "tollhouse.service"
    copy.write_text(text.replace("/opt/tollhouse/bin/tollhouse", sys.executable))
    checked = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in checked.stderr.splitlines() if "tollhouse.service" in line]
    assert (checked.returncode, ours) == (0, []), checked.stderr


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_the_unit_is_well_shut_in() -> None:
    """systemd's own exposure score stays below 2.0 of 10, "OK" and better."""
    checked = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", "--threshold=20",
         str(DEPLOY / "tollhouse.service")],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout[-600:] + checked.stderr
