"""The cell that a fault hits, and the time until its views are complete, fresh and right again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from bench.environments import Environment
from bench.workload import require
from harness.cell import Cell
from harness.servers import RabbitServer
from harness.waiting import wait_until
from nodestate.broker import Topology, queue_depths
from nodestate.model import Version
from nodestate.view.view import View

BOUND_S: Final = 5.0
"""Age up to which a view counts as fresh: a new reader knows ages to two seconds only, and owners renew every
second."""
PROBES_COUNT: Final = 3
"""Nodes of each partition that change right after the fault."""
PAUSE_S: Final = 0.02
PATIENCE_S: Final = 90.0


class FaultTarget(NamedTuple):
    """The cell that a fault hits."""

    cell: Cell
    environment: Environment
    rabbit: RabbitServer
    state_bytes: int

    @property
    def design(self) -> str:
        """The only design of the cell."""
        [design] = self.environment.designs
        return design


def wait_until_at_rest(cell: Cell) -> None:
    """Wait until views are fresh and complete, and each consumer stands by for every partition that it does not own."""
    cell.wait_until_well(PATIENCE_S)
    queues = [queue for _, queue in Topology.of(cell.config).queues()]

    def all_stand_by() -> bool:
        consumers = {depth.queue: depth.consumers for depth in queue_depths(cell.config)}
        return all(consumers[queue] == len(cell.members) for queue in queues)

    wait_until(all_stand_by, "a consumer does not stand by", PATIENCE_S)


class RecoveryTimes(NamedTuple):
    """Seconds from the fault until two views were complete and fresh again."""

    following_s: float
    """The view of a reader that existed before the fault."""
    new_s: float
    """The view of a new reader, which is read after the other."""


def measure_recovery(target: FaultTarget) -> RecoveryTimes:
    """Let some nodes of each partition change, and wait until views show it and are complete and fresh."""
    cell, began = target.cell, time.monotonic()
    wanted = cell.fleet.call(lambda: _change_some(cell), PATIENCE_S)

    def until_whole(look: Callable[[], View]) -> float:
        while True:
            view = look()
            took_s = time.monotonic() - began
            lacks = _lacks(view, wanted)
            if not lacks:
                return took_s
            require(took_s < PATIENCE_S, f"a view had not recovered after {PATIENCE_S:g} s: {lacks}")
            time.sleep(PAUSE_S)

    following_s = until_whole(lambda: cell.read(target.design, BOUND_S))
    return RecoveryTimes(following_s, until_whole(lambda: cell.read_cold(target.design, BOUND_S)))


def _change_some(cell: Cell) -> dict[str, Version]:
    """Change the first nodes of each partition; return the versions of all nodes that a view must show."""
    for names in cell.fleet.names_of_partition.values():
        for name in names[:PROBES_COUNT]:
            cell.fleet.change(name)
    return {name: one.version for name, one in cell.fleet.publishers.items()}


def _lacks(view: View, wanted: Mapping[str, Version]) -> str:
    """Return the reason why a view has not recovered; empty if it has."""
    if view.incomplete:
        return f"it is incomplete: {sorted(view.incomplete)[:4]}"
    if view.stale or view.age > BOUND_S:
        return f"it is {view.age:.1f} s old"
    behind = [
        name
        for name, version in wanted.items()
        if (record := view.nodes.record(name)) is None or record.version < version
    ]
    return f"{len(behind)} nodes have old versions, such as {behind[0]}" if behind else ""
