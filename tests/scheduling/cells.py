"""Cells with agents, a consumer and schedulers, for tests of what spans several of them (see ``tests.machines.tenancy``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nodestate.scheduling.claims import UNSURE_S
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.scheduler import Scheduler
from tests.machines.tenancy import Process, Tenancy

VCPU = 8
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": VCPU}, "MEMORY_MB": {"total": 8_000}}}


def cell_of(nodes: int = 3, schedulers: int = 2, **more: Any) -> tuple[Tenancy, list[Process]]:
    """Nodes n0, n1, … and schedulers s0, s1, …, where no record is unsure any more."""
    tenancy = Tenancy({f"n{number}": STATE for number in range(nodes)}, **more)
    tenancy.begin()
    processes = [tenancy.start(f"s{number}") for number in range(schedulers)]
    for process in processes:
        process.scheduler.refresh()
    tenancy.rest(UNSURE_S + 2.0)
    return tenancy, processes


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


def behind(tenancy: Tenancy, process: Process) -> None:
    """From now on the process decides on what it sees now, within its bounds."""
    tenancy.rest(2.0)
    process.scheduler.refresh()
    process.reader.lagging = True


@contextmanager
def losing_answers(tenancy: Tenancy) -> Iterator[None]:
    """Orders come, and what agents say of them does not."""
    arrive = tenancy.broker.transit.arrive
    tenancy.broker.transit.arrive = lambda letter: None if letter.kind == "answer" else arrive(letter)  # type: ignore[method-assign]
    yield
    tenancy.broker.transit.arrive = arrive  # type: ignore[method-assign]
