"""Cells with agents, a consumer and schedulers, for tests of what spans several of them (see ``tests.machines.scheduling_cell``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nodestate.scheduling.claims import UNSURE_S
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.scheduler import Scheduler
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell

VCPU = 8
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 8_000}}}


def cell_of(nodes: int = 3, schedulers: int = 2, **more: Any) -> tuple[SchedulingCell, list[SchedulerProcess]]:
    """Nodes n0, n1, … and schedulers s0, s1, …, where no record is unsure any more."""
    cell = SchedulingCell({f"n{number}": STATE for number in range(nodes)}, **more)
    cell.wait_until_complete()
    processes = [cell.start_scheduler(f"s{number}") for number in range(schedulers)]
    for process in processes:
        process.scheduler.refresh()
    cell.run_for(UNSURE_S + 2.0)
    return cell, processes


def wanted(instance: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    """A request of one instance."""
    return {"instances": [instance], "resources": {"VCPU": vcpu, "MEMORY_MB": 100}, **more}


def boot(scheduler: Scheduler, instance: str, vcpu: int = 1, **more: Any) -> Booted:
    """Boot one instance; gives where it is."""
    [outcome] = scheduler.boot(parse(wanted(instance, vcpu, **more)))
    assert isinstance(outcome, Booted), outcome
    return outcome


def reserve(scheduler: Scheduler, *instances: str, vcpu: int = 1, hold_s: float = 60.0) -> Reservation:
    """Hold a node of its own for each of these."""
    group = {"name": "apart", "policy": "anti-affinity"}
    members = [wanted(instance, vcpu) for instance in instances]
    held = scheduler.reservations.reserve(parse_group({"members": members, "group": group, "hold_s": hold_s}))
    assert isinstance(held, Reservation), held
    return held


def behind(cell: SchedulingCell, process: SchedulerProcess) -> None:
    """From now on the process decides on what it sees now, within its bounds."""
    cell.run_for(2.0)
    process.scheduler.refresh()
    process.reader.lagging = True


@contextmanager
def losing_answers(cell: SchedulingCell) -> Iterator[None]:
    """Orders come, and what agents say of them does not."""
    arrive = cell.broker.transit.arrive
    cell.broker.transit.arrive = lambda letter: None if letter.kind == "answer" else arrive(letter)  # type: ignore[method-assign]
    yield
    cell.broker.transit.arrive = arrive  # type: ignore[method-assign]
