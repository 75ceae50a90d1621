"""A CPU that is too old is told so."""

from pathlib import Path

import click
import pytest

from gateway.cli import cpu

CORE_2 = "processor\t: 0\nmodel name\t: Core 2\nflags\t\t: fpu sse2 ssse3 cx16\n\nprocessor\t: 1\n"


def test_an_old_cpu_gets_a_sentence_that_names_what_it_lacks(tmp_path: Path) -> None:
    """Without it the first model call would end in an illegal instruction without a word."""
    (tmp_path / "cpuinfo").write_text(CORE_2)
    with pytest.raises(click.ClickException, match=r"lacks popcnt, sse4_1, sse4_2: .* x86-64-v2"):
        cpu.check(tmp_path / "cpuinfo")


@pytest.mark.parametrize(
    "text",
    ["flags\t\t: " + " ".join(cpu.NEEDED) + " avx2\n", "Features\t: fp asimd\n", ""],
    ids=["new enough", "another family", "empty"],
)
def test_any_other_is_let_pass(tmp_path: Path, text: str) -> None:
    """An ARM machine, an empty cpuinfo or none at all is no proof of an old CPU."""
    (tmp_path / "cpuinfo").write_text(text)
    cpu.check(tmp_path / "cpuinfo")
    cpu.check(tmp_path / "none")
