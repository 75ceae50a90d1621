"""``tollhouse models exam``: a real model, a pause, and a table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import cli
from local_models.catalogue import ensure


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """A folder of its own with SmolLM2, so that progress is the test's own."""
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(ensure("smollm2-135m-instruct") / "model.gguf")
    return tmp_path


@pytest.mark.slow
def test_an_exam_pauses_goes_on_and_ends_with_a_table(models_dir: Path) -> None:
    """The second run of the same command asks what the first left, and shows both forms."""
    command = ["models", "exam", "smollm2-135m-instruct", "--kinds", "sentiment,capital"]
    command += ["--tasks", "3", "--models-dir", str(models_dir)]
    assert "the same command goes on" in _run([*command, "--minutes", "0"])
    shown = _run([*command, "--out", str(models_dir / "results")])
    assert re.search(r"^sentiment +\| +3 +\d\.\d{3} +\d\.\d{3} +\d\.\d{3}\| +3 ", shown, re.M)
    assert "free, lenient, mean over kinds:" in shown
    assert [path.name for path in (models_dir / "results").iterdir()] == ["b179c9523d0e6a0f.json"]


def _run(command: list[str]) -> str:
    # A process of its own: an exam lowers its priority, and there is no way back up.
    tollhouse = Path(sys.executable).with_name("tollhouse")
    return subprocess.run([tollhouse, *command], capture_output=True, text=True, check=True).stdout


def test_an_unknown_kind_or_model_is_one_sentence(tmp_path: Path) -> None:
    """It names what there is."""
    command = ["models", "exam", "smollm2-135m-instruct", "--kinds", "poetry"]
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1
    assert "Error: there is no kind 'poetry'; known are extract_email" in refused.output
    absent = CliRunner().invoke(cli, ["models", "exam", "gpt-9", "--models-dir", str(tmp_path)])
    assert absent.exit_code == 1
    assert "Error: there is no model 'gpt-9'; known are " in absent.output


def test_a_shipped_result_is_shown_without_asking_anything() -> None:
    """And a model that brought none, or answers nothing, is one sentence."""
    shown = CliRunner().invoke(cli, ["models", "exam", "smollm2-135m-instruct", "--shipped"])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^capital +\| +\d+ +\d\.\d{3} ", shown.output, re.M)
    refused = CliRunner().invoke(cli, ["models", "exam", "all-minilm-l6-v2", "--shipped"])
    assert refused.exit_code == 1
    assert "Error: there is no model 'all-minilm-l6-v2' that answers; known are " in refused.output
