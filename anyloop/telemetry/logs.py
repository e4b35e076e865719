"""Structured logs: one JSON object per line on stderr."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from anyloop.telemetry import context

# One line for every request that a service has answered; silent unless ANYLOOP_ACCESS_LOG is on.
ACCESS = logging.getLogger("anyloop.access")

# What every LogRecord has; the rest came in by `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `service`, `logger`, `message`, then the ids of the request in work, the fields of `extra=` and,
    on errors, `exception`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        own = {name: value for name, value in vars(record).items() if name not in _STANDARD and name not in fields}
        fields |= {**context.bound(), **own}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


def configure(service: str, level: str = "INFO", access: bool = False) -> None:
    """Sends all logging of the process to stderr as JSON. Raises ValueError on an unknown level. Idempotent."""
    ACCESS.setLevel(logging.INFO if access else logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    # Libraries that install handlers of their own would otherwise write plain lines in between.
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
