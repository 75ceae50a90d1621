"""Bring one file of known size and sha256 to disk: resumable, verified, or one clear sentence.

Knows HTTP ranges, plain files and the room on a disk. Does not know which models there are.
"""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from local_models.messages import ModelUnavailable

if TYPE_CHECKING:
    import httpx  # 8 MB and 0.1 s, which whoever only reads the catalogue is spared

CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_SECONDS = 15.0
READ_TIMEOUT_SECONDS = 60.0
ATTEMPTS_MAX = 4
"""Attempts in a row that bring less than a chunk; one that brings more starts the count anew."""

DOWNLOADS_MAX = 4
"""Files of one model that are on their way at once."""


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be: its exact size and the sha256 of its bytes, in hexadecimal."""

    size_bytes: int
    sha256: str


class Received(msgspec.Struct, frozen=True):
    """How far a download is. source: where the bytes come from, such as ``hub``."""

    name: str
    source: str
    received_bytes: int
    total_bytes: int


Progress = Callable[[Received], None]
"""Called after each chunk, by one thread at a time; what it raises ends the download."""


def matches(path: Path, digest: Digest) -> bool:
    """Whether the file is there with the promised size and bytes."""
    if not path.is_file() or path.stat().st_size != digest.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest.sha256


def part_of(target: Path) -> Path:
    """Where the first bytes of an unfinished file are kept, whichever source they came from."""
    return target.with_name(target.name + ".part")


def kept_bytes(target: Path) -> int:
    """Bytes of an unfinished file that an earlier call left."""
    part = part_of(target)
    return part.stat().st_size if part.is_file() else 0


def require_room(folder: Path, needed_bytes: int, name: str) -> None:
    """Refuse to start what the disk cannot hold. Raises ModelUnavailable with both numbers."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise ModelUnavailable(
            f"{name} needs {needed_bytes:,} bytes on the disk that holds {folder}, which has"
            f" {free_bytes:,}"
        )


def fetch(
    location: str,
    target: Path,
    digest: Digest,
    *,
    name: str,
    source: str = "file",
    progress: Progress | None = None,
) -> None:
    """Put the verified file at ``target``. location: a path, or a file, http or https address.

    Bytes gather in ``target`` + ``.part``, which an interrupted call leaves for the next one to go
    on from. Raises ModelUnavailable: unreachable, wrong bytes, or no room.
    """
    part = part_of(target)
    resumed = part.exists()
    wire = _Wire(location, part, digest, name, source, progress)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        wire.receive()
        if resumed and not matches(part, digest):
            # What an earlier call left may be at fault: once more, from nothing.
            part.unlink()
            wire.receive()
        if not matches(part, digest):
            part.unlink()
            raise ModelUnavailable(
                f"{name}: what {shown(location)} sent is not the pinned file (size or sha256"
                " differs)"
            )
        os.replace(part, target)
    except OSError as error:
        raise ModelUnavailable(f"{name}: {reason(error, part)}") from error


class _Wire:
    """One file's way from a location into its part."""

    def __init__(
        self,
        location: str,
        part: Path,
        digest: Digest,
        name: str,
        source: str,
        progress: Progress | None,
    ) -> None:
        self._location = location
        self._part = part
        self._digest = digest
        self._name = name
        self._source = source
        self._progress = progress

    def receive(self) -> None:
        """Fill the part. Raises ModelUnavailable or OSError."""
        if urlsplit(self._location).scheme in ("http", "https"):
            self._receive_http()
        else:
            self._receive_local()

    def _receive_local(self) -> None:
        address = urlsplit(self._location)
        path = (
            Path(unquote(address.path))
            if address.scheme == "file"
            else Path(self._location).expanduser()
        )
        with path.open("rb") as source, self._part.open("wb") as sink:
            self._copy(iter(lambda: source.read(CHUNK_BYTES), b""), sink, 0)

    def _receive_http(self) -> None:
        import httpx

        failure = ""
        fruitless = 0
        with _client() as client:
            while fruitless < ATTEMPTS_MAX:
                had_bytes = self._have_bytes()
                try:
                    self._receive_rest(client)
                    return
                except httpx.HTTPStatusError as error:
                    failure = f"answers with status {error.response.status_code}"
                    if error.response.status_code < 500:
                        break
                except httpx.HTTPError as error:
                    failure = f"cannot be read ({str(error) or type(error).__name__})"
                    failure += "; is there a network?"
                    if isinstance(error, httpx.ConnectTimeout) and not fruitless:
                        break  # Nobody is there: three more times would take a minute.
                grown = self._have_bytes() - had_bytes >= CHUNK_BYTES
                fruitless = 0 if grown else fruitless + 1
        raise ModelUnavailable(f"{self._name}: {shown(self._location)} {failure}")

    def _have_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _receive_rest(self, client: "httpx.Client") -> None:
        have_bytes = self._have_bytes()
        if have_bytes >= self._digest.size_bytes:
            return
        headers = {"accept-encoding": "identity"}
        if have_bytes:
            headers["range"] = f"bytes={have_bytes}-"
        with client.stream("GET", self._location, headers=headers) as response:
            response.raise_for_status()
            range_start = f"bytes {have_bytes}-"
            goes_on = response.status_code == HTTPStatus.PARTIAL_CONTENT and response.headers.get(
                "content-range", ""
            ).startswith(range_start)
            if not goes_on:
                have_bytes = 0
            with self._part.open("ab" if goes_on else "wb") as sink:
                self._copy(response.iter_bytes(CHUNK_BYTES), sink, have_bytes)

    def _copy(self, chunks: Iterator[bytes], sink: IO[bytes], have_bytes: int) -> None:
        for chunk in chunks:
            have_bytes += len(chunk)
            sink.write(chunk)
            if have_bytes > self._digest.size_bytes:
                return  # Longer than promised: the verification refuses it, the disk is spared.
            if self._progress:
                total = self._digest.size_bytes
                self._progress(Received(self._name, self._source, have_bytes, total))


def _client() -> "httpx.Client":
    import httpx

    timeout = httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    return httpx.Client(timeout=timeout, follow_redirects=True)


def published_digest(url: str, sha256: str, *, name: str) -> Digest:
    """Size and sha256 of a file as the hub itself states them; a given sha256 goes before its own.

    The hub answers ``HEAD`` with a redirect that has ``x-linked-size`` and, as ``x-linked-etag``,
    the sha256 of a large file. Raises ModelUnavailable where neither names a sha256.
    """
    import httpx

    try:
        with _client() as client:
            response = client.head(url, follow_redirects=False)
        if response.is_error:
            raise ModelUnavailable(
                f"{name}: {shown(url)} answers with status {response.status_code}"
            )
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ModelUnavailable(
            f"{name}: {shown(url)} cannot be read ({why}); is there a network?"
        ) from error
    stated = response.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
    is_sha256 = len(stated) == 64 and all(digit in "0123456789abcdef" for digit in stated)
    size = response.headers.get("x-linked-size") or response.headers.get("content-length", "")
    if not size.isdecimal():
        raise ModelUnavailable(f"{name}: {shown(url)} does not say how large the file is")
    if sha256 and is_sha256 and stated != sha256:
        raise ModelUnavailable(
            f"{name}: the file of {shown(url)} has the sha256 {stated}, not {sha256}"
        )
    if not sha256 and not is_sha256:
        raise ModelUnavailable(
            f"{name}: {shown(url)} states no sha256 of the file: write it beside the reference"
        )
    return Digest(int(size), sha256 or stated)


class Tally:
    """Adds up what several downloads of one model report, and stops all when one has failed."""

    def __init__(self, name: str, source: str, total_bytes: int, progress: Progress | None) -> None:
        self._name = name
        self._source = source
        self._total_bytes = total_bytes
        self._progress = progress
        self._lock = threading.Lock()
        self._received: dict[str, int] = {}  # guarded by _lock
        self._stopped = False

    def of(self, key: str) -> Progress:
        """The progress of one download among them."""

        def advance(received: Received) -> None:
            self.count(key, received.received_bytes)

        return advance

    def count(self, key: str, received_bytes: int) -> None:
        """Note how many bytes of one download are here. Raises ModelUnavailable once stopped."""
        if self._stopped:
            raise ModelUnavailable(f"{self._name}: stopped, because another download failed")
        with self._lock:
            self._received[key] = received_bytes
            if self._progress:
                total = sum(self._received.values())
                self._progress(Received(self._name, self._source, total, self._total_bytes))

    def stop(self) -> None:
        """End the downloads at their next chunk."""
        self._stopped = True


def fetch_all(
    locations: dict[Path, tuple[str, Digest]],
    *,
    name: str,
    source: str,
    progress: Progress | None,
) -> None:
    """Fetch several files, DOWNLOADS_MAX at once. locations: target -> location and digest.

    Raises the ModelUnavailable of the first that fails; what the others have is kept.
    """
    total_bytes = sum(digest.size_bytes for _, digest in locations.values())
    tally = Tally(name, source, total_bytes, progress)
    with ThreadPoolExecutor(DOWNLOADS_MAX, thread_name_prefix="download") as pool:
        try:
            running = [
                pool.submit(
                    fetch,
                    location,
                    target,
                    digest,
                    name=f"{name}/{target.name}",
                    source=source,
                    progress=tally.of(str(target)),
                )
                for target, (location, digest) in locations.items()
            ]
            for finished in wait(running, return_when=FIRST_EXCEPTION).done:
                finished.result()
        finally:
            tally.stop()
            pool.shutdown(wait=False, cancel_futures=True)


def largest_together(sizes: Sequence[int]) -> int:
    """The most bytes that any DOWNLOADS_MAX neighbours have."""
    return max((sum(sizes[i : i + DOWNLOADS_MAX]) for i in range(len(sizes))), default=0)


def reason(error: OSError, part: Path) -> str:
    """Why the operating system refused, in words for the operator."""
    if error.errno == errno.ENOSPC:
        return f"no room left on the disk that holds {part.parent}"
    return str(error)


def shown(location: str) -> str:
    """The location without user, password and query, fit for a message."""
    address = urlsplit(location)
    return f"{address.hostname}{address.path}" if address.hostname else location
