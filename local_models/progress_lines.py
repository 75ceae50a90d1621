"""How far a download is, as a plain line every few seconds: for logs, and where no terminal is.

Knows reports of downloads and a clock. Does not know who reads the lines.
"""

import time
from collections.abc import Callable

from local_models.download import Received

LINE_SECONDS = 5.0


class ProgressLines:
    """A ``Progress`` that writes one line each LINE_SECONDS, and one when all bytes are here."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._running = ("", "")
        self._began_seconds = 0.0
        self._began_bytes = 0
        self._wrote_seconds = 0.0

    def __call__(self, received: Received) -> None:
        """Take note of a report, and write a line where one is due."""
        now_seconds = self._clock()
        if (received.name, received.source) != self._running:
            self._running = (received.name, received.source)
            self._began_seconds = self._wrote_seconds = now_seconds
            self._began_bytes = received.received_bytes
        complete = received.received_bytes >= received.total_bytes
        if complete or now_seconds - self._wrote_seconds >= LINE_SECONDS:
            self._wrote_seconds = now_seconds
            passed_seconds = max(now_seconds - self._began_seconds, 1e-3)
            rate = (received.received_bytes - self._began_bytes) / passed_seconds
            self._write(
                f"{received.name}: {received.received_bytes / 1e6:,.0f} of"
                f" {received.total_bytes / 1e6:,.0f} MB from {received.source},"
                f" {rate / 1e6:,.1f} MB/s"
            )
