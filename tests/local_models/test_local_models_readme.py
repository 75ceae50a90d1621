"""What local_models/README.md shows runs, and what it states is so."""

import importlib
import re
from pathlib import Path

import pytest

import local_models
from local_models.exam.report import markdown, shipped_results
from local_models.origins import ORIGIN_FILE

README = (Path(local_models.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader who copies it gets an answer and its time on the first try."""
    examples = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], "README.md", "exec"), {})
    answer, _, end = capsys.readouterr().out.rstrip().rpartition("\n")
    assert answer
    assert re.fullmatch(r"(stop|length): \d+ tokens in \d+ ms", end)


def test_the_table_of_limits_is_the_codes() -> None:
    """The limits that users plan with are those in force, number by number."""
    rows = re.findall(r"^\| .+? \| ([\d,]+) \| `(\w+)\.(\w+)` \|$", README, re.MULTILINE)
    assert len(rows) == 30
    for number, module, name in rows:
        value = getattr(importlib.import_module(f"local_models.{module}"), name)
        assert value == int(number.replace(",", "")), name


def test_every_file_it_names_exists() -> None:
    """A reader who follows a name in the page finds a file."""
    folder = Path(local_models.__file__).parent
    named = set(re.findall(r"`(\w+\.(?:py|yaml))`", README)) - {ORIGIN_FILE}
    assert len(named) > 10
    assert [name for name in named if not (folder / name).is_file()] == []


def test_the_exams_table_is_that_of_the_shipped_results() -> None:
    """Regenerate with ``python -m local_models.exam.report``."""
    _, _, rest = README.partition("<!-- exam: python -m local_models.exam.report -->\n")
    shown, end, _ = rest.partition("<!-- end -->")
    assert end
    assert shown == markdown(shipped_results())
