"""``tollhouse models`` shows, fetches and checks, and its exit status can be scripted."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.models import models
from local_models.catalogue import ensure, load_catalogue

MODEL = "all-minilm-l6-v2"


@pytest.fixture
def copied_models_dir(tmp_path: Path) -> Path:
    """A models folder with one complete model, whose files may be spoilt."""
    source, target = ensure(MODEL), tmp_path / MODEL
    for name in load_catalogue()[MODEL].files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((source / name).read_bytes())
    return tmp_path


def test_the_list_says_what_is_here_and_what_is_not(copied_models_dir: Path) -> None:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(
        models, ["list", "--models-dir", str(copied_models_dir)]
    )
    assert result.exit_code == 0
    rows = {line.split()[1]: line for line in result.output.splitlines() if line.count("│") > 5}
    assert "complete" in rows[MODEL]
    assert "absent" in rows["smollm2-135m-instruct"]
    assert str(copied_models_dir) in result.output


def test_verify_names_the_damaged_file_and_fails(copied_models_dir: Path) -> None:
    arguments = ["verify", MODEL, "--models-dir", str(copied_models_dir)]
    sound = CliRunner().invoke(models, arguments)
    assert (sound.exit_code, sound.output) == (0, f"{MODEL}: sound\n")
    (copied_models_dir / MODEL / "config.json").write_text("{}")
    damaged = CliRunner().invoke(models, arguments)
    assert damaged.exit_code == 1
    assert "missing or damaged: config.json" in damaged.output


def test_pull_of_a_complete_model_fetches_nothing(copied_models_dir: Path) -> None:
    result = CliRunner().invoke(models, ["pull", MODEL, "--models-dir", str(copied_models_dir)])
    assert result.exit_code == 0
    assert f"{MODEL}: complete in {copied_models_dir / MODEL}" in result.output


@pytest.mark.parametrize("verb", ["pull", "verify"])
def test_an_unknown_name_is_told_with_the_known_ones(tmp_path: Path, verb: str) -> None:
    result = CliRunner().invoke(models, [verb, "gpt-9", "--models-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no model 'gpt-9'; known are" in result.output
