"""``tollhouse models`` shows, fetches and checks, and its exit status can be scripted."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli.models import models
from gateway.config import override_names
from local_models.catalogue import ensure, load_catalogue, verify
from local_models.origins import read_origin
from local_models.references import DEFAULT_MODELS

MODEL = "all-minilm-l6-v2"
SMALLEST = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tollhouse.yaml nor variables of the machine say where models are."""
    monkeypatch.chdir(tmp_path)
    for variable in (*override_names(), "TOLLHOUSE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def copied_models_dir(tmp_path: Path) -> Path:
    """A models folder with one complete model, whose files may be spoilt."""
    source, target = ensure(MODEL), tmp_path / MODEL
    for name in load_catalogue()[MODEL].files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((source / name).read_bytes())
    return tmp_path


def test_the_list_says_what_is_here_and_what_is_not(copied_models_dir: Path) -> None:
    """State, size, licence, publisher and source of each model are shown, fetched or not."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        models, ["list", "--models-dir", str(copied_models_dir)]
    )
    assert result.exit_code == 0
    rows = {
        cells[0]: cells[1:]
        for line in result.output.splitlines()
        if len(cells := re.split(" {2,}", line.strip())) > 5
    }
    state, size, license, publisher, _, source = rows[MODEL]
    assert (state, size, source) == ("complete", "92 MB", "this machine")
    assert (license, publisher) == ("Apache-2.0", "sentence-transformers")
    large = ["absent", "1,117 MB", "Apache-2.0", "Qwen", "f86cb2c1fa58", "(hub, parts)"]
    assert rows["qwen2.5-coder-1.5b-instruct"] == large
    assert rows[SMALLEST][0] == "absent"
    assert str(copied_models_dir) in result.output


def test_a_narrow_terminal_still_shows_names_that_can_be_typed(tmp_path: Path) -> None:
    """Two models whose names begin alike are told apart in 80 columns, too."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        models, ["list", "--models-dir", str(tmp_path)]
    )
    assert all(name in result.output for name in load_catalogue())
    assert "…" not in result.output


def test_verify_names_the_damaged_file_and_fails(copied_models_dir: Path) -> None:
    """A script can rely on the exit status, and a person sees the file to fetch again."""
    arguments = ["verify", MODEL, "--models-dir", str(copied_models_dir)]
    sound = CliRunner().invoke(models, arguments)
    assert (sound.exit_code, sound.output) == (0, f"{MODEL}: sound\n")
    (copied_models_dir / MODEL / "config.json").write_text("{}")
    damaged = CliRunner().invoke(models, arguments)
    assert damaged.exit_code == 1
    assert "missing or damaged: config.json" in damaged.output


def modified(folder: Path) -> dict[str, int]:
    """When each file of a model changed last, but for the note on its origin."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in folder.iterdir()
        if path.name != "origin.yaml"
    }


def test_pull_of_a_complete_model_fetches_nothing(copied_models_dir: Path) -> None:
    """Repeating the command is harmless: it says where the model is and succeeds."""
    before = modified(copied_models_dir / MODEL)
    result = CliRunner().invoke(models, ["pull", MODEL, "--models-dir", str(copied_models_dir)])
    assert result.exit_code == 0
    assert f"{MODEL}: complete in {copied_models_dir / MODEL}" in result.output
    after = modified(copied_models_dir / MODEL)
    assert after == before


def _mirror(tmp_path: Path) -> Path:
    """A folder laid out as a mirror, with the smallest model alone."""
    folder = tmp_path / "mirror" / SMALLEST
    folder.mkdir(parents=True)
    (folder / "model.gguf").symlink_to(ensure(SMALLEST) / "model.gguf")
    return folder.parent


def test_pull_takes_the_mirror_and_the_folder_of_the_settings(tmp_path: Path) -> None:
    """Without a terminal, progress is plain lines that say how much, from where and how fast."""
    mirror = _mirror(tmp_path)
    text = f"models_dir: here\nmodels: {{mirror: {mirror}, sources: [mirror]}}\n"
    Path("tollhouse.yaml").write_text(text)
    result = CliRunner().invoke(models, ["pull", SMALLEST])
    assert result.exit_code == 0, result.output
    assert verify(SMALLEST, models_dir=tmp_path / "here") == ()
    assert re.search(rf"{SMALLEST}: 98 of 98 MB from mirror, [\d,.]+ MB/s", result.output)
    origin = read_origin(tmp_path / "here" / SMALLEST)
    assert origin is not None
    assert origin.source == f"mirror {mirror}"
    assert origin.revision == "ab810cf68114990406fdf996510dd3d3c6adbdf5"


def test_pull_without_names_takes_what_the_settings_use(tmp_path: Path) -> None:
    """Not the whole catalogue, which has models for larger machines; ``all`` is that."""
    arguments = ["--mirror", str(_mirror(tmp_path)), "--models-dir", str(tmp_path / "here")]
    variables = {"TOLLHOUSE_LOCAL_EMBEDDING": "", "TOLLHOUSE_MODELS_SOURCES": "mirror"}
    result = CliRunner(env=variables).invoke(models, ["pull", *arguments])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "here").glob("[!.]*")) == [SMALLEST]
    everything = CliRunner(env=variables).invoke(models, ["pull", "all", *arguments])
    assert everything.exit_code == 1
    assert "qwen2.5-coder-0.5b-instruct cannot be fetched: mirror: " in everything.output


def test_pull_with_every_source_off_says_which_are(tmp_path: Path) -> None:
    """An offline site reads which setting forbids it; a mistyped source lists the known ones."""
    arguments = ["pull", SMALLEST, "--sources", "none", "--models-dir", str(tmp_path)]
    result = CliRunner().invoke(models, arguments)
    assert result.exit_code == 1
    assert "cannot be fetched: parts is left out by models.sources" in result.output
    wrong = CliRunner().invoke(models, ["pull", SMALLEST, "--sources", "hub,usb"])
    assert wrong.exit_code == 1
    assert "there is no source 'usb'; known are mirror, hub, parts and none" in wrong.output


@pytest.mark.parametrize("verb", ["pull", "verify"])
def test_an_unknown_name_is_told_with_the_known_ones(tmp_path: Path, verb: str) -> None:
    """Pulling and verifying gpt-9 fail with the list of models instead of a traceback."""
    result = CliRunner().invoke(models, [verb, "gpt-9", "--models-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no model 'gpt-9'; known are" in result.output


def test_the_default_can_be_fetched_before_it_is_needed(tmp_path: Path) -> None:
    """An image is filled with the model that the default policy will ask for, by that word."""
    command = ["pull", "default", "--models-dir", str(tmp_path), "--sources", "none"]
    result = CliRunner().invoke(models, command)
    assert result.exit_code == 1
    assert "there is no model" not in result.output
    assert any(name in result.output for name in DEFAULT_MODELS)
