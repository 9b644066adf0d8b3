"""Examination of the whole cell: the findings of ``nodestate doctor``, for the routes of findings and of health.

An examination connects to the broker and to all stores, and asks the agents for a sign of life, so it takes seconds. It
runs in a thread of its own, and only when a request or a client of events asks for it. Requests within ``REUSE_S``
share one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from nodestate.config import Config
from nodestate.designs.connections import configured
from nodestate.designs.control import Control
from nodestate.findings import Finding, examine_cell
from nodestate.serve.problems import problem

REUSE_S: Final = 30.0
"""Seconds for which an examination is used again. Each one asks all agents of the cell to answer."""
TIMEOUT_S: Final = 25.0
"""Longest wait of a request for an examination."""


class Examination(NamedTuple):
    """The result of an examination."""

    findings: list[Finding]
    """All lines of the report, also those about parts that work."""
    ended_at: float
    """Monotonic time of its end."""


def examined(config: Config, control: Control) -> list[Finding]:
    """Examine the designs that consumers write and whose stores the settings name."""
    names = configured(config)
    designs = [stored for stored in control.writes if not names or stored.design in names]
    return list(examine_cell(config, control, designs))


class CellExamination:
    """Examines the cell when requests ask for it. Belongs to the event loop, but for its thread.

    Args:
        config: settings of the cell.
        examine: examines a cell; called in the thread.
        on_examined: called in the event loop with the findings of each examination that ended without an error.
    """

    def __init__(
        self,
        config: Config,
        examine: Callable[[Config, Control], Iterable[Finding]] | None = None,
        on_examined: Callable[[list[Finding]], None] = lambda _findings: None,
    ) -> None:
        self._config = config
        self._examine = examine or examined
        self._on_examined = on_examined
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nodestate-examine")
        # The examination that runs or ended last; None before the first one.
        self._last: asyncio.Future[Examination] | None = None

    async def latest(self, control: Control) -> Examination:
        """Return an examination that is at most ``REUSE_S`` old.

        Raises:
            ProblemError: overloaded, if the examination takes longer than ``TIMEOUT_S``; it goes on.
            NodestateError: if it failed as a whole.
        """
        last = self._last
        if last is None or (last.done() and (last.exception() is not None or _is_old(last.result()))):
            last = asyncio.get_running_loop().run_in_executor(self._pool, self._run, control)
            last.add_done_callback(self._report)
            self._last = last
        done, _ = await asyncio.wait([last], timeout=TIMEOUT_S)
        if not done:
            raise problem("overloaded", f"the examination takes longer than {TIMEOUT_S:g} s; repeat the request later")
        return last.result()

    def close(self) -> None:
        """End the thread after the present examination."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _report(self, ended: asyncio.Future[Examination]) -> None:
        if not ended.cancelled() and ended.exception() is None:
            self._on_examined(ended.result().findings)

    def _run(self, control: Control) -> Examination:
        return Examination(list(self._examine(self._config, control)), time.monotonic())


def _is_old(examination: Examination) -> bool:
    return examination.ended_at < time.monotonic() - REUSE_S
