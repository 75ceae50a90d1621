"""A provider that answers each call with what a test has put down, over a real socket."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ScriptedProvider(ThreadingHTTPServer):
    """Answers with ``status``, ``headers`` and ``body``; keeps what it was asked in ``asked``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.headers: Mapping[str, str] = {}
        self.body = b"{}"
        self.asked: list[tuple[str, dict[str, str], Any]] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        """From now on. Underscores in a header's name stand for hyphens."""
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.asked.clear()

    def stream(self, *events: Mapping[str, Any] | str) -> None:
        """From now on, a stream of these events; a text is passed as it is."""
        parts = [
            event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
            for event in events
        ]
        self.answer("".join(parts).encode(), content_type="text/event-stream")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedProvider

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        told = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.path, told, json.loads(raw)))
        self.send_response(self.server.status)
        given = {"content-type": "application/json", **self.server.headers}
        for name, value in given.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test says itself what it wants to see."""


@contextlib.contextmanager
def scripted_provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        thread = threading.Thread(target=provider.serve_forever, daemon=True)
        thread.start()
        try:
            yield provider
        finally:
            provider.shutdown()
            thread.join(5)
