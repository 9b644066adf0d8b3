"""A thread for work that would stop the event loop for too long, such as encoding all nodes.

It is one thread: Python runs one of them at a time, and several would keep the event loop waiting for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from nodestate.serve.problems import problem

P = ParamSpec("P")
R = TypeVar("R")

MAX_PENDING_COUNT: Final = 64
"""Most pieces of work that run or wait; further requests are refused."""


class Workers:
    """A thread with a bounded queue. Belongs to the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nodestate-encode")
        # Pieces of work that run or wait.
        self._pending = 0

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in a thread. Raises ``ProblemError`` of the type ``overloaded`` if too many wait."""
        if self._pending >= MAX_PENDING_COUNT:
            raise problem("overloaded", f"{self._pending} answers are being encoded; repeat the request later")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        finally:
            self._pending -= 1

    def close(self) -> None:
        """End the threads after their present work; drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
