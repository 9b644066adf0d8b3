"""One run: causes outages one after the other in a cell under load, and checks the promises to its users."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from bench.outage.cell import PATIENCE_S, OutageCell
from bench.outage.messages import Command
from bench.outage.outages import Outage
from bench.outage.run_log import Figures, Window
from bench.record import Goal
from bench.workload import WrongResultError

SETTLE_S: Final = 10.0
"""Shortest time for which the cell is watched after an outage."""
FLUSHED_S: Final = 20.0
"""The same after an outage whose cause is over at once."""
TWICE_LIMIT_S: Final = 60.0
"""Time after which no instance may still be on two nodes."""
DRAIN_S: Final = 60.0
"""Time after which all instances must have ended, at the end of the run."""
STALE_GOAL_S: Final = 3.0
DIFFERENCES_COUNT: Final = 4
"""Number of differences between view and agents that the run shows."""


class Row(NamedTuple):
    """One outage or restart, and its effects until the cell was well again."""

    name: str
    outage_s: float
    """Seconds from the begin to the end of the outage."""
    healed_s: float
    """Seconds from the end of the outage until the cell was well; infinity if it was not."""
    lost: int
    """Events that agents published and that the view lacks."""
    window: Window
    figures: Figures


def run_outages(cell: OutageCell, outages: Sequence[Outage], outage_s: float) -> Iterator[Row]:
    """Cause outages of ``outage_s`` seconds one after the other, and yield the row of each.

    Violations are in the log of the cell.
    """
    for index, outage in enumerate(outages):
        cell.share_done = index / len(outages)
        yield _measure(cell, outage, outage_s)


def goals_of(row: Row) -> list[Goal]:
    """Return the goals of a row, each with its result."""
    seen = row.figures
    return [
        Goal.at_most(f"{row.name}: longest time without a fresh view", seen.longest_stale_s, STALE_GOAL_S, "s"),
        Goal.at_most(f"{row.name}: failed boots", seen.boots_failed, 0, "boots"),
        Goal.at_most(f"{row.name}: lost events", row.lost, 0, "events"),
    ]


def total_of(cell: OutageCell, rows: Sequence[Row]) -> Row:
    """Return the total of all rows, with the time between them."""
    window = Window(rows[0].window.began, rows[-1].window.ended)
    return Row(
        "total",
        sum(row.outage_s for row in rows),
        max(row.healed_s for row in rows),
        sum(row.lost for row in rows),
        window,
        cell.log.figures(window),
    )


def _measure(cell: OutageCell, outage: Outage, outage_s: float) -> Row:
    """Cause one outage, wait until the cell is well again, and return the effects."""
    log, name = cell.log, outage.name
    began = time.monotonic()
    end = outage.begin(cell)
    away_at = time.monotonic()
    if outage.lasts:
        cell.watch(outage_s, name)
    end()
    ended = time.monotonic()
    cell.report_step(f"{name}: waiting until the cell is well")
    try:
        cell.wait_until(cell.is_well, cell.problem, PATIENCE_S)
        healed_s = time.monotonic() - ended
    except WrongResultError as error:
        log.violate(f"{name}: the cell is not well: {error}")
        healed_s = math.inf
    settle_s = SETTLE_S if outage.lasts else FLUSHED_S
    cell.watch(max(0.0, settle_s - (time.monotonic() - ended)), f"{name}: settling")
    lost = cell.lost_events(PATIENCE_S)
    if lost:
        log.violate(f"{name}: the view lacks {lost} events")
    window = Window(began, time.monotonic())
    cell.report_step(f"{name}: waiting for logs")
    cell.wait_for_logs(window.ended)
    log.settle(window.ended)
    _require_no_copies(cell, name)
    return Row(name, ended - away_at if outage.lasts else 0.0, healed_s, lost, window, log.figures(window))


def _require_no_copies(cell: OutageCell, name: str) -> None:
    """Note a violation for each instance that is on two nodes and stays there."""
    log = cell.log
    copied = set(log.locations.twice)
    deadline = time.monotonic() + TWICE_LIMIT_S
    while copied and time.monotonic() < deadline:
        cell.wait_for_logs(moment := time.monotonic())
        log.settle(moment)
        copied &= set(log.locations.twice)
    for instance in sorted(copied):
        log.violate(f"{name}: {instance} stays on {' and '.join(sorted(log.locations.instances[instance]))}")


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
        cell.log.violate(f"at the end: {error}: {sorted(left().items())[:DIFFERENCES_COUNT]}")
    cell.report_step("comparing the view with the agents")
    for difference in cell.differences()[:DIFFERENCES_COUNT]:
        cell.log.violate(f"at the end: {difference}")
