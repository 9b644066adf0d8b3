"""The judge of all targets: no input may cause a traceback in the log, or the death of a thread."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog

TRACEBACK: Final = "Traceback (most recent call last)"


class Judge(logging.Handler):
    """Reads the logs of nodestate and of libraries, and the ends of threads. Keeps the faults of the present input."""

    def __init__(self) -> None:
        super().__init__()
        self._faults: list[str] = []
        """The faults since the last ``require_none``."""

    def require_none(self) -> None:
        """Raise ``AssertionError`` if there was a fault since the last call."""
        faults, self._faults = self._faults, []
        assert not faults, "\n".join(faults)

    def __call__(self, _logger: object, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        """Read an entry of structlog, which is not printed."""
        if event.get("exc_info") or TRACEBACK in str(event):
            self._faults.append(f"the log has a traceback: {event}")
        raise structlog.DropEvent

    def emit(self, record: logging.LogRecord) -> None:
        """Read an entry of the module ``logging``."""
        if record.exc_info or TRACEBACK in record.getMessage():
            self._faults.append(f"the log of {record.name} has a traceback: {record.getMessage()}")

    def on_lost_error(self, lost: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        """Note an exception that no caller can catch: it ended a thread, or was raised by a finalizer."""
        self._faults.append(f"an error was lost: {lost.exc_value!r}")


@contextmanager
def judged_logs() -> Iterator[Judge]:
    """Let a judge read all logs within the block."""
    judge, before, root = Judge(), structlog.get_config(), logging.getLogger()
    hooks = threading.excepthook, sys.unraisablehook
    structlog.configure(processors=[judge], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    root.addHandler(judge)
    threading.excepthook = sys.unraisablehook = judge.on_lost_error
    try:
        yield judge
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        root.removeHandler(judge)
        structlog.configure(**before)
