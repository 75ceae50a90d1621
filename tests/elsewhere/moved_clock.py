"""Other days: environment variables that move the wall clock of a process and of its children."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

SOURCE = Path(__file__).parent / "moved_clock.c"
COMPILERS = ("cc", "gcc", "clang")


def compiler() -> str | None:
    """A C compiler, or None."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def build(folder: Path, source: Path = SOURCE) -> Path:
    """Compile a library that is preloaded. Needs a compiler."""
    library = folder / f"{source.stem}.so"
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler() or "cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return library


def environment(library: Path, moved: timedelta) -> dict[str, str]:
    """What a process needs to believe that it is ``moved`` later than it is."""
    seconds = moved.days * 86_400 + moved.seconds
    return {"LD_PRELOAD": str(library), "MOVED_CLOCK_SECONDS": str(seconds)}


def days(now: datetime) -> dict[str, timedelta]:
    """The days on which the suite is run, by name: how far each is from now."""
    month = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    month = month.replace(hour=0, minute=0, second=0, microsecond=0)
    leap = datetime(2028, 2, 29, 12, tzinfo=UTC)
    while leap <= now:
        leap = leap.replace(year=leap.year + 4)
    return {
        "today": timedelta(0),
        "in 9 days": timedelta(days=9),
        "in 40 days": timedelta(days=40),
        "over a month's end": month - timedelta(minutes=1) - now,
        "on a leap day": leap - now,
        "in a year": timedelta(days=365),
    }
