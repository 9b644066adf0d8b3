"""Simulated cells and short calls, for tests that need agents, a consumer and several schedulers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import UNSET, structs

from nodestate.model.orders import decode_answer, encode
from nodestate.scheduling.claims import UNSURE_S
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.scheduler import Scheduler
from nodestate.testing import TransitMessage
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell

VCPU = 8
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 8_000}}}


def cell_of(nodes: int = 3, schedulers: int = 2, **more: Any) -> tuple[SchedulingCell, list[SchedulerProcess]]:
    """Return a cell with nodes n0, n1, … and its schedulers s0, s1, …; no claim record is unsure any longer."""
    cell = SchedulingCell({f"n{number}": STATE for number in range(nodes)}, **more)
    cell.wait_until_complete()
    processes = [cell.start_scheduler(f"s{number}") for number in range(schedulers)]
    for process in processes:
        process.scheduler.refresh()
    cell.run_for(UNSURE_S + 2.0)
    return cell, processes


def zoned_cell(zones: dict[str, str], schedulers: int = 2) -> tuple[SchedulingCell, list[SchedulerProcess]]:
    """A cell whose nodes n0, n1, … are in these zones."""
    cell = SchedulingCell({name: {**STATE, "zone": zone} for name, zone in zones.items()})
    cell.wait_until_complete()
    processes = [cell.start_scheduler(f"s{number}") for number in range(schedulers)]
    cell.run_for(12.0)
    return cell, processes


def wanted(instance: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    """Return a request for one instance."""
    return {"instances": [instance], "resources": {"VCPU": vcpu, "MEMORY_MB": 100}, **more}


def boot(scheduler: Scheduler, instance: str, vcpu: int = 1, **more: Any) -> Booted:
    """Boot one instance that is expected to find a node."""
    [outcome] = scheduler.boot(parse(wanted(instance, vcpu, **more)))
    assert isinstance(outcome, Booted), outcome
    return outcome


def reserve(scheduler: Scheduler, *instances: str, vcpu: int = 1, hold_s: float = 60.0) -> Reservation:
    """Reserve a node for each of these instances, all of them on different nodes."""
    group = {"name": "apart", "policy": "anti-affinity"}
    members = [wanted(instance, vcpu) for instance in instances]
    held = scheduler.reservations.reserve(parse_group({"members": members, "group": group, "hold_s": hold_s}))
    assert isinstance(held, Reservation), held
    return held


def freeze_view(cell: SchedulingCell, process: SchedulerProcess) -> None:
    """Let a scheduler decide on its present view from now on, as long as that is within its bounds."""
    cell.run_for(2.0)
    process.scheduler.refresh()
    process.reader.lagging = True


def tell_no_time(cell: SchedulingCell) -> None:
    """Let the agents answer like agents of earlier versions, which tell nothing of their clock."""
    arrive = cell.broker.transit.arrive

    def arrive_without_time(message: TransitMessage) -> None:
        if message.kind == "answer":
            answer = structs.replace(decode_answer(message.body), at=0.0, clock_origin=UNSET)
            message = dataclasses.replace(message, body=encode(answer))
        arrive(message)

    cell.broker.transit.arrive = arrive_without_time  # type: ignore[method-assign]  # for this test alone


@contextmanager
def losing_answers(cell: SchedulingCell) -> Iterator[None]:
    """Lose all answers of agents within the block; orders arrive."""
    arrive = cell.broker.transit.arrive

    def arrive_unless_answer(message: TransitMessage) -> None:
        if message.kind != "answer":
            arrive(message)

    cell.broker.transit.arrive = arrive_unless_answer  # type: ignore[method-assign]  # for this block alone
    yield
    cell.broker.transit.arrive = arrive  # type: ignore[method-assign]  # as it was
