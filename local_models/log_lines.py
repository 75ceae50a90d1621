"""How every process of a gateway writes its log: one line per record, as text or as JSON.

The supervisor, a bare interpreter, and the model process, which knows no gateway, use this very
file. So nothing outside the standard library is imported, and nothing is known of a request.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """Each record as one JSON object, its fields always in the same order.

    time (UTC, ISO 8601), level, process, pid, logger, message; where there are any, ``fields`` (the
    request of an access line) and ``exception`` (a traceback) follow.
    """

    def __init__(self, process: str) -> None:
        """process: which of the gateway's it is."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = getattr(record, "fields", None)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage() if fields is None else "request",
        }
        if fields is not None:
            line["fields"] = fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(process: str, log_format: str, level: str) -> None:
    """Log to standard error from now on, warnings and uncaught exceptions included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # httpx logs every request at INFO, which is our business only when something is wrong.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.excepthook = _log_uncaught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        os._exit(130)
    logging.getLogger("tollhouse").critical(
        "uncaught %s: the process ends", kind.__name__, exc_info=(kind, error, traceback)
    )
