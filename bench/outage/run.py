"""One run: causes outages one after the other in a cell under load, and checks what users of the cell saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench.outage.cell import PATIENCE_S, OutageCell
from bench.outage.messages import Command
from bench.outage.outages import Outage
from bench.outage.run_log import Figures, Window
from bench.workload import WrongResultError

SETTLE_S: Final = 10.0
"""Time for which the cell is watched after an outage."""
FLUSHED_S: Final = 10.0
"""Time for which the cell is watched after an outage that is over at once, in addition to ``SETTLE_S``."""
DRAIN_S: Final = 60.0


class Row(NamedTuple):
    """One outage, and what users of the cell saw from its begin until the cell was well again."""

    name: str
    outage_s: float
    """Seconds from the begin to the end of the outage."""
    healed_s: float
    """Seconds from the end of the outage until the cell was well; infinity if it was not."""
    lost: int
    """Events that agents published and that the view lacks."""
    figures: Figures


def run_outages(cell: OutageCell, outages: Sequence[Outage], outage_s: float) -> list[Row]:
    """Cause outages one after the other. Violations are in the log of the cell."""
    rows = []
    for outage in outages:
        seconds = outage_s if outage.lasts else min(outage_s, FLUSHED_S)
        rows.append(_measure(cell, outage.name, outage.begin, seconds, lasts=outage.lasts))
    return rows


def _measure(
    cell: OutageCell,
    name: str,
    begin: Callable[[OutageCell], Callable[[], object]],
    seconds: float,
    *,
    lasts: bool,
) -> Row:
    """Cause one outage, wait until the cell is well again, and return what its users saw."""
    began = time.monotonic()
    end = begin(cell)
    if lasts:
        cell.watch(seconds, name)
    end()
    ended = time.monotonic()
    if not lasts:
        cell.watch(seconds, name)
    cell.report_step(f"{name}: waiting until the cell is well")
    try:
        cell.wait_until(cell.is_well, cell.problem, PATIENCE_S)
        healed_s = time.monotonic() - ended
    except WrongResultError as error:
        cell.log.violate(f"{name}: the cell is not well: {error}")
        healed_s = float("inf")
    cell.watch(max(0.0, SETTLE_S - (time.monotonic() - ended)), f"{name}: settling")
    lost = cell.lost_events(PATIENCE_S)
    if lost:
        cell.log.violate(f"{name}: the view lacks {lost} events")
    window = Window(began, time.monotonic())
    cell.report_step(f"{name}: waiting for logs")
    cell.wait_for_logs(window.ended)
    cell.log.settle(window.ended)
    for instance in cell.log.locations.twice:
        nodes = sorted(cell.log.locations.instances[instance])
        cell.log.violate(f"{name}: {instance} is on {' and '.join(nodes)} after the cell was well again")
    return Row(name, ended - began if lasts else 0.0, healed_s, lost, cell.log.figures(window))


def finish(cell: OutageCell) -> None:
    """End all load, and compare the view with the agents. Violations are in the log of the cell."""
    cell.report_step("ending all instances")
    cell.send("scheduler", Command.DRAIN)

    def left() -> dict[str, set[str]]:
        cell.wait_for_logs(moment := time.monotonic())
        cell.log.settle(moment)
        return cell.log.locations.instances

    try:
        cell.wait_until(lambda: not left(), lambda: f"{len(left())} instances do not end", DRAIN_S)
    except WrongResultError as error:
        cell.log.violate(f"at the end: {error}: {sorted(left().items())[:4]}")
    cell.report_step("comparing the view with the agents")
    for difference in cell.differences()[:4]:
        cell.log.violate(f"at the end: {difference}")
