"""Inspection of the cell beyond its view: the heads of all designs, and the queues.

An inspection reads stores and the broker, so it runs in a thread of its own. Requests within ``REUSE_S`` share one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import structlog

from nodestate.broker import QueueDepth, queue_depths
from nodestate.config import Config
from nodestate.designs.connections import configured
from nodestate.designs.control import Control
from nodestate.designs.inspection import CellInspector, DesignStatus
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import NodestateError
from nodestate.serve.problems import problem

REUSE_S: Final = 2.0
"""Seconds for which an inspection is used again."""
TIMEOUT_S: Final = 8.0
"""Longest wait of a request for an inspection."""
BROKER_PAUSE_S: Final = 30.0
"""Seconds after which a broker that did not answer is asked for its queues again."""

_log: Final = structlog.get_logger("nodestate.serve.cell_inspection")


class InspectedCell(NamedTuple):
    """The result of an inspection."""

    designs: Sequence[DesignStatus]
    """The designs that consumers write, as far as the settings name their stores."""
    queues: Sequence[QueueDepth]
    """The queues of the partitions; empty if the broker does not answer, or the settings name none."""
    at: float
    """Monotonic time of its end."""


class CellInspection:
    """Inspects the cell when requests ask for it. Belongs to the event loop, but for its thread.

    Args:
        config: settings of the cell.
        open_inspector: opens the inspector of some designs; None: by the settings.
    """

    def __init__(
        self, config: Config, open_inspector: Callable[[Sequence[StoredDesign]], CellInspector] | None = None
    ) -> None:
        self._config = config
        self._open_inspector = open_inspector or (lambda designs: CellInspector(config, designs))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nodestate-inspect")
        # The inspection that runs or ended last; None before the first one.
        self._last: asyncio.Future[InspectedCell] | None = None
        # Of the thread: the inspector and its designs, and when to ask the broker again.
        self._inspector: CellInspector | None = None
        self._designs: tuple[StoredDesign, ...] = ()
        self._broker_from = 0.0

    async def latest(self, control: Control) -> InspectedCell:
        """Return the inspection of the designs that a control record names, at most ``REUSE_S`` old.

        Raises:
            ProblemError: overloaded, if the stores do not answer within ``TIMEOUT_S``.
            NodestateError: if the inspection failed.
        """
        last = self._last
        if last is None or (last.done() and (last.exception() is not None or last.result().at < _oldest())):
            names = configured(self._config)
            designs = tuple(stored for stored in control.writes if not names or stored.design in names)
            last = asyncio.get_running_loop().run_in_executor(self._pool, self._inspect, designs)
            self._last = last
        done, _ = await asyncio.wait([last], timeout=TIMEOUT_S)
        if not done:
            raise problem("overloaded", f"the stores did not answer within {TIMEOUT_S:g} s; repeat the request later")
        return last.result()

    def close(self) -> None:
        """Close the connections after the present inspection."""
        self._pool.submit(self._close)
        self._pool.shutdown(wait=False)

    def _close(self) -> None:
        if self._inspector is not None:
            self._inspector.close()
            self._inspector = None

    def _inspect(self, designs: tuple[StoredDesign, ...]) -> InspectedCell:
        if self._inspector is None or self._designs != designs:
            self._close()
            self._inspector, self._designs = self._open_inspector(designs), designs
        statuses = self._inspector.inspect()
        queues: list[QueueDepth] = []
        if not self._config.broker.startswith("memory:") and time.monotonic() >= self._broker_from:
            try:
                queues = queue_depths(self._config)
            except NodestateError as error:
                self._broker_from = time.monotonic() + BROKER_PAUSE_S
                _log.warning("cannot read the queues", why=str(error))
        return InspectedCell(statuses, queues, time.monotonic())


def _oldest() -> float:
    return time.monotonic() - REUSE_S
