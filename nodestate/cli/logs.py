"""Logging with structlog on stderr, as text or as one JSON object a line. Logs of libraries are included."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, TextIO

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("console", "json")


class _Stderr:
    """The present ``sys.stderr``: while a live table is shown, rich replaces it and prints logs above the table."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def set_up_logs(level: str, form: str) -> None:
    """Print log events of ``level`` and above in the format ``form``, one of ``FORMATS``."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if form == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
        shared.append(structlog.processors.format_exc_info)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    stderr: Any = _Stderr()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=stderr),
        cache_logger_on_first_use=False,
    )
    _route_library_logs(stderr, max(number, logging.WARNING), shared, renderer)


def _route_library_logs(stderr: TextIO, level: int, shared: list[Any], renderer: Any) -> None:
    """Print warnings and errors of kombu and other libraries, from the module ``logging``, in the same format."""
    form = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
    )
    to_stderr = logging.StreamHandler(stderr)
    to_stderr.setFormatter(form)
    logging.basicConfig(level=level, handlers=[to_stderr], force=True)
