"""The server's log lines: plain ones for people, or one JSON object a line for log collectors."""

from __future__ import annotations

import datetime
import json
import logging

from spact_models.errors import RunStopped, UserError


class JsonFormatter(logging.Formatter):
    """``{"time": ..., "level": ..., "logger": ..., "message": ...}``, with ``error`` where there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        told = {"time": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def show_log(log_format: str = "text") -> None:
    """Our lines on stderr, which Flower streams back to ``flwr run --stream``; called again, nothing changes."""
    logger = logging.getLogger("fedspact")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    flower = logging.getLogger("flwr")
    flower.addFilter(_without_traceback)
    if log_format == "json":
        for its in flower.handlers:
            its.setFormatter(JsonFormatter())


def _without_traceback(record: logging.LogRecord) -> bool:
    """Flower logs every exception of a ServerApp with its traceback; for a user's mistake the sentence is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError | RunStopped):
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (str(error),), None, None
    return True
