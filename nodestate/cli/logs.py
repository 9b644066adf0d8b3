"""Logging with structlog on stderr, as text or as one JSON object a line. Logs of libraries are included."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from nodestate.config import Config
from nodestate.masking import safe_text
from nodestate.text import LINES, printable

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("console", "json")
_OF_SEVERAL_LINES: Final = frozenset({"exception", "stack"})

_settings = Config()
"""Settings whose passwords are masked in tracebacks, which quote errors of other libraries."""


def mask_secrets_of(config: Config) -> None:
    """Mask the passwords of these settings in all tracebacks that are printed from now on."""
    global _settings  # noqa: PLW0603 - as the hook and the loggers that use it, one for the process
    _settings = config


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
        renderer = structlog.processors.JSONRenderer(serializer=_dumps, default=str)
        shared.append(structlog.processors.ExceptionRenderer(_format_exception))
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_format_printable_traceback
        )
        shared.append(_make_printable)
    masked: Any = _MaskingRenderer(renderer)
    sys.excepthook = _print_exception
    stderr: Any = _Stderr()
    structlog.configure(
        processors=[*shared, masked],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=stderr),
        cache_logger_on_first_use=False,
    )
    _route_library_logs(stderr, max(number, logging.WARNING), shared, masked)


def _make_printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make texts of a log event printable, each on one line. The renderer prints other values as ``repr`` does."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable(value, keep=LINES if name in _OF_SEVERAL_LINES else "")
    return event


class _MaskingRenderer:
    """Renders log entries without the passwords of URLs in any of their values."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        """Renders an entry as text."""

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        return safe_text(self._renderer(logger, method, event))


def _dumps(event: object, **options: Any) -> str:
    return printable(json.dumps(event, **options))


def _format_printable_traceback(stream: TextIO, error: Any) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    stream.write(printable(_without_secrets(text.getvalue())))


def _format_exception(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    return _without_secrets("".join(traceback.format_exception(*exc_info)).rstrip())


def _without_secrets(text: str) -> str:
    return safe_text(text, *_settings.urls, passwords=_settings.passwords)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback with which a process ends."""
    sys.stderr.write(printable(_format_exception((kind, error, trace))) + "\n")


def _route_library_logs(stderr: TextIO, level: int, shared: list[Any], renderer: Any) -> None:
    """Print warnings and errors of kombu and other libraries, from the module ``logging``, in the same format."""
    form = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
    )
    to_stderr = logging.StreamHandler(stderr)
    to_stderr.setFormatter(form)
    logging.basicConfig(level=level, handlers=[to_stderr], force=True)
