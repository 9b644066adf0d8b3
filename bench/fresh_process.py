"""One call in one new process, as a scheduler or consumer that has just been started: nothing warm, a small heap."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import structlog

P = ParamSpec("P")
T = TypeVar("T")


def log_warnings_only() -> None:
    """Log warnings and worse only, and to stderr: stdout is for the result."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def run_in_fresh_process(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it in a process of its own; its result or its exception comes back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=log_warnings_only) as process:
        return process.submit(function, *args, **kwargs).result()
