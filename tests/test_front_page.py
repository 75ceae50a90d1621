"""README.md is short, and what it tells people to run, to read and to expect is there."""

import re
from pathlib import Path

from gateway.cli import demo_tasks
from gateway.cli.demo import demo
from gateway.cli.demo_choice import SHORT
from local_models.catalogue import load_catalogue
from local_models.sources import PartsSource, WheelSource

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_it_is_read_in_one_sitting() -> None:
    """A newcomer decides within 120 lines whether the project is of use."""
    assert len(README.splitlines()) <= 120


def test_every_make_target_and_every_link_exists() -> None:
    """A newcomer's first command must not fail, nor a link lead to nothing."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z-]+):", makefile))
    named = set(re.findall(r"make\s+([a-z-]+)", "\n".join(re.findall(r"`([^`]+)`", README))))
    assert {"demo", "test", "test-elsewhere", "bench-gateway"} <= named
    assert named <= targets
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_it_shows_has_the_options_it_shows() -> None:
    """Of ``tollhouse demo``, which gets them from ``make demo``."""
    _, _, section = README.partition("## See it work")
    named = set(re.findall(r"--[a-z]+", section.partition("\n## ")[0]))
    options = {option for parameter in demo.params for option in parameter.opts}
    assert named == {"--exit", "--model", "--pair"}
    assert named <= options
    assert set(re.findall(r"`--model ([\w.]+)`", README)) <= set(SHORT)


def test_what_the_demo_fetches_is_what_the_catalogue_has() -> None:
    """In megabytes, as wheels of the package index, the encoder with each."""
    encoder = _wheel_megabytes("all-minilm-l6-v2")
    small, large = (_wheel_megabytes(SHORT[size]) for size in ("0.5b", "1.5b"))
    rows = dict(re.findall(r"(?m)^\| (?:`(--[^`]+)`|as it is) \| ([\d,]+) MB \|", README))
    fetched = {options: int(size.replace(",", "")) for options, size in rows.items()}
    assert fetched == {
        "": round(small + encoder),
        "--model 1.5b": round(large + encoder),
        "--pair local": round(small + large + encoder),
        "--model 135m": round(_wheel_megabytes(SHORT["135m"]) + encoder),
    }


def test_it_says_how_many_answers_the_demo_shows() -> None:
    """The page names one answer for each kind of task in the demo, as a word."""
    numbers = {6: "six"}
    assert f"{numbers[len(demo_tasks.KINDS)]} answers of the small model" in README


def _wheel_megabytes(name: str) -> float:
    for source in load_catalogue()[name].sources:
        if isinstance(source, WheelSource):
            return source.size_bytes / 1e6
        if isinstance(source, PartsSource):
            return sum(wheel.size_bytes for wheel in source.wheels) / 1e6
    raise AssertionError(f"{name} has no wheels")
