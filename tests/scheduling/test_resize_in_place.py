"""Resizes in place: only the growth must fit, because the agent would admit it; nothing else of the request counts."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.scheduler import Scheduler
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import boot, cell_of

TRAIT = "HW_CPU_X86_AVX2"
REQUEST = {"zone": "az1", "required_traits": [TRAIT], "force_nodes": ["n0"], "same_host": ["partner"]}


def change(cell: SchedulingCell, node: str, status: str = "up", **fields: Any) -> None:
    """Change a node's state; its agent reports it."""
    cell.fleet._nodes[node].fixed.update({"status": status, **fields})
    cell.fleet.revive(node)
    cell.run_for(2.0)


def cell_with_instance() -> tuple[SchedulingCell, Scheduler]:
    """A cell whose node n0 has the instances ``a`` (2 VCPU, 3,000 MB) and ``partner`` (2 VCPU, 4,000 MB)."""
    cell, (one,) = cell_of(2, schedulers=1)
    change(cell, "n0", zone="az1", traits=[TRAIT])
    scheduler = one.scheduler
    boot(scheduler, "partner", force_nodes=["n0"], resources={"VCPU": 2, "MEMORY_MB": 4_000})
    boot(scheduler, "a", resources={"VCPU": 2, "MEMORY_MB": 3_000}, **REQUEST)
    cell.run_for(2.0)
    return cell, scheduler


def shrink_memory(cell: SchedulingCell) -> None:
    """7,000 of 4,000 MB are used: a module failed, or the operator reserved more or lowered the ratio."""
    change(cell, "n0", inventory={"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000, "reserved": 4_000}})


def drain(cell: SchedulingCell) -> None:
    change(cell, "n0", "draining")


def maintain(cell: SchedulingCell) -> None:
    change(cell, "n0", "maintenance")


def rename_zone(cell: SchedulingCell) -> None:
    change(cell, "n0", zone="az9")


def lose_trait(cell: SchedulingCell) -> None:
    change(cell, "n0", traits=[])


def end_partner(cell: SchedulingCell) -> None:
    cell.processes[0].scheduler.terminations.terminate([("n0", "partner")])
    cell.run_for(2.0)


@pytest.mark.parametrize("spoil", [shrink_memory, drain, maintain, rename_zone, lose_trait, end_partner])
@pytest.mark.parametrize("wanted", [{"MEMORY_MB": 1_000}, {"VCPU": 3}, {"VCPU": 1, "MEMORY_MB": 2_000}])
def test_an_instance_is_resized_in_place_if_only_its_growth_fits(spoil: Any, wanted: dict[str, int]) -> None:
    """The node is over its memory, drains, or no longer meets the constraints of its boot."""
    cell, scheduler = cell_with_instance()
    spoil(cell)
    outcome = scheduler.migrations.resize("a", wanted)
    assert isinstance(outcome, Booted), outcome
    assert outcome.node == "n0"
    cell.run_for(2.0)
    assert cell.fleet.resources_of("n0").allocations["a"]["resources"] == {"VCPU": 2, "MEMORY_MB": 3_000, **wanted}


def test_a_resize_that_grows_beyond_the_free_room_is_not_asked_for_in_place() -> None:
    """No other node is allowed, so the reason names the node and the lack."""
    cell, scheduler = cell_with_instance()
    shrink_memory(cell)
    outcome = scheduler.migrations.resize("a", {"MEMORY_MB": 3_001})
    assert isinstance(outcome, Failed)
    assert outcome.refusals == ()
    assert cell.fleet.resources_of("n0").allocations["a"]["resources"]["MEMORY_MB"] == 3_000


def test_an_instance_is_not_resized_in_place_on_a_node_that_is_down() -> None:
    """Its agent may carry out nothing, so the instance gets its new size on another node."""
    cell, (one,) = cell_of(2, schedulers=1)
    node = boot(one.scheduler, "a").node
    change(cell, node, "down")
    outcome = one.scheduler.migrations.resize("a", {"VCPU": 2})
    assert isinstance(outcome, Booted)
    assert outcome.node != node


def test_two_resizes_at_once_do_not_take_the_same_room() -> None:
    """The claim of the first one counts against the growth of the second."""
    _, (one, two) = cell_of(1)
    for name in ("a", "b"):
        boot(one.scheduler, name, 2, force_nodes=["n0"])
    two.scheduler.refresh()
    first = two.scheduler.migrations.find("a")
    growing = two.scheduler.migrations.boot_of(first, two.scheduler.migrations._resized(first, {"VCPU": 5}))
    growing.pin_to(first.row)
    two.scheduler.placer.place([growing.placing])
    assert growing.placing.claim is not None
    assert growing.placing.claim.resources == {"VCPU": 3}
    outcome = one.scheduler.migrations.resize("b", {"VCPU": 4})
    assert isinstance(outcome, Failed)
    assert isinstance(one.scheduler.migrations.resize("b", {"VCPU": 3}), Booted)
