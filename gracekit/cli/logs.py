"""Logs on stderr, as lines for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from gracekit.cli.terminal import LogLines

FIELDS = ("checkpoint", "step", "version", "error")
"""What a record may carry besides its message."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message; `FIELDS`; exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        content: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        content |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)  # in ASCII: nothing in it can steer a terminal


def configure(level: int, *, as_json: bool) -> None:
    """Send the logs of gracekit from `level` on, and warnings of others, to stderr.

    As JSON, also what Python itself would print there: warnings, and an error that is not caught.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else LogLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("gracekit").setLevel(level)
    logging.captureWarnings(as_json)
    sys.excepthook = _log_uncaught if as_json else sys.__excepthook__


def is_json() -> bool:
    """Whether the logs are JSON."""
    return any(isinstance(h.formatter, JsonLines) for h in logging.getLogger().handlers)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    logging.getLogger("gracekit").critical(
        "ended by an unexpected error", exc_info=(kind, error, where),
        extra={"error": kind.__name__},
    )  # fmt: skip
