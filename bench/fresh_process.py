"""One call in one new process, like a scheduler that has just been started: caches are cold and the heap is small."""

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
    """Log warnings and errors only, to stderr, because stdout is for the result."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def run_in_fresh_process(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process; return its result or raise its exception."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=log_warnings_only) as process:
        return process.submit(function, *args, **kwargs).result()
