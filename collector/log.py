"""Logs: one JSON object a line, or coloured text on a terminal. What a client sent is in none of them."""

import logging
import logging.config
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog

_SHOWN_FRAMES = 20


def configure_logging(kind: str, level: str, **always: object) -> None:
    """Send the whole process's logs, the standard library's too, to standard error.

    Args:
        kind: json, console, or auto: console where standard error is a terminal.
        level: of the standard library: DEBUG, INFO, WARNING, ERROR.
        always: fields of every line.
    """
    as_text = kind == "console" or (kind == "auto" and sys.stderr.isatty())
    show: Any = structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()

    def add_always(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**always, **event}

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_always,
        _where_it_failed,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, show]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def frames_of(error: BaseException) -> list[str]:
    """Return where an exception was raised, innermost last, without its message: that may quote what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


def _where_it_failed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put an exception's type and place for the exception."""
    given = event.pop("exc_info", None)
    record = event.get("_record")
    if given is None and record is not None and record.exc_info:
        given, record.exc_info, record.exc_text = record.exc_info, None, None
    error = given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["where"] = frames_of(error)
    return event
