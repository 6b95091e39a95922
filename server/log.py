"""Logging: text or JSON lines on stderr, each with the id of the request it belongs to.

Prompts, answers and pictures never appear in a log line, unless `--log-content` asks for the text; sizes, counts and
times do.
"""

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Set for the time of an HTTP request; tasks and worker threads started meanwhile inherit it."""


def configure_logging(level: str, form: Literal["text", "json"]) -> None:
    """Every logger of this process writes to stderr from now on; earlier handlers are dropped.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" for people, "json" for collectors, one object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)  # libraries' warnings are lines like any others
    # uvicorn tells of its start and of each connection at INFO; the request line of `server.api` says it better.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # At DEBUG it logs headers, and those of redirects hold URLs with all their tokens.
    logging.getLogger("httpcore2").setLevel(logging.WARNING)


def tell(text: str, *, is_error: bool = False) -> None:
    """What whoever has started the program reads: plain text, or where logs are JSON a line among them."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger("server").log(logging.ERROR if is_error else logging.INFO, "%s", text)
    else:
        print(text, file=sys.stderr if is_error else sys.stdout, flush=True)


def with_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `extra` argument of a logging call that adds these fields to the line: `key=value`, or keys of the object."""
    return {"fields": dict(fields)}


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO server.api.chat [request id] message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = request_id_var.get()
        parts = [_time(record), record.levelname, record.name]
        if request_id is not None:
            parts.append(f"[{request_id}]")
        # One record is one line, whatever a message was made of; only a traceback takes more.
        parts.append(record.getMessage().replace("\r", "\\r").replace("\n", "\\n"))
        parts += [f"{key}={value}" for key, value in _fields(record).items() if value is not None]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": request_id_var.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Our own keys win over a field of the same name.
        return orjson.dumps(_fields(record) | line, default=str).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
