"""What the wheel carries: everything the installed command needs, and nothing that is not ours."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_installs_two_packages_with_their_data(names: set[str]) -> None:
    """A user who installs it has pages, policies and the catalogue, and no tests of ours."""
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"gateway", "local_models"}
    for needed in (
        "gateway/py.typed",
        "gateway/routing/prior.json",
        "gateway/web/static/tollhouse.css",
        "gateway/default_policies/routing.yaml",
        "local_models/catalogue.yaml",
    ):
        assert needed in names, needed
    assert any(name.startswith("gateway/web/templates/") for name in names)


def test_the_wheel_carries_no_weights(names: set[str]) -> None:
    """Weights have licences and sizes of their own; they are fetched when they are wanted."""
    assert not [n for n in names if n.endswith((".gguf", ".safetensors", ".onnx", ".data"))]


def test_lock_files_name_no_host() -> None:
    """Installing works from any mirror, and hashes guard every package."""
    locks = list(ROOT.glob("requirements*.lock"))
    assert len(locks) >= 3
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text
        assert "--hash=sha256:" in text


def _pinned(lock: str) -> dict[str, set[str]]:
    """Each requirement of a lock file and its versions, which may differ by Python or platform."""
    pinned: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if found := re.match(r"([a-z0-9][\w.-]*)==([^ ;\\]+)", line):
            pinned.setdefault(found[1], set()).add(found[2])
    return pinned


def test_the_demo_installs_the_run_time_and_a_client_in_the_tests_versions() -> None:
    """So `make demo` and `make test` share an environment and neither undoes the other's."""
    runtime, demo, dev = (_pinned(f"requirements{kind}.lock") for kind in ("", "-demo", "-dev"))
    assert runtime.keys() | {"openai", "hatchling", "editables"} <= demo.keys()
    assert {name: dev.get(name) for name in demo} == demo
    assert not {"mypy", "ruff", "pytest", "playwright", "hypothesis"} & demo.keys()
