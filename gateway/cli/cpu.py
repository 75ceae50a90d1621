"""Say what a CPU lacks, before a library that was built for a newer one dies of SIGILL."""

from pathlib import Path

import click

NEEDED = ("cx16", "popcnt", "sse4_1", "sse4_2", "ssse3")
"""x86-64-v2, as Linux spells it: what NumPy's wheels are built for. Every x86 server since 2011."""

_CPU_INFO = Path("/proc/cpuinfo")


def lacking(cpu_info: str) -> list[str]:
    """What is missing of NEEDED, by the text of ``/proc/cpuinfo``; nothing on other families."""
    for line in cpu_info.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return [flag for flag in NEEDED if flag not in value.split()]
    return []


def check(cpu_info: Path = _CPU_INFO) -> None:
    """Exit with a sentence where this CPU is too old."""
    try:
        with cpu_info.open() as file:
            text = file.read(8192)  # the first CPU speaks for all
    except OSError:
        return
    if missing := lacking(text):
        raise click.ClickException(
            f"this CPU lacks {', '.join(missing)}: Tollhouse needs x86-64-v2 (any server CPU since"
            " 2011), because NumPy and ONNX Runtime do. A virtual machine may hide it: let it see"
            " the host's CPU."
        )
