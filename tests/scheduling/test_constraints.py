"""Spread, taints and units through a whole cell: at the boot, in reservations, and in later migrations."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import STATE, boot, wanted

WEB = {"name": "web", "policy": "soft-affinity"}
"""A policy that pulls all members to one node."""
EVEN = {"group": WEB, "spread": {"by": "zone", "max_skew": 1}}


def cell_with(states: dict[str, dict[str, Any]]) -> tuple[SchedulingCell, SchedulerProcess]:
    """A cell of these nodes, with one scheduler; no claim record is unsure any longer."""
    cell = SchedulingCell({name: {**STATE, **state} for name, state in states.items()})
    cell.wait_until_complete()
    process = cell.start_scheduler("s0")
    process.scheduler.refresh()
    cell.run_for(12.0)
    return cell, process


def zones(cell: SchedulingCell) -> dict[str, int]:
    """How many instances each zone has; a node's zone is the first letter of its name."""
    return dict(Counter(node[0] for nodes in cell.nodes_by_instance().values() for node in nodes))


def test_members_of_one_request_are_spread_over_the_zones() -> None:
    """Also the ones that are placed on one view. The first zone has most room, and the policy pulls into one zone."""
    cell, one = cell_with({"a1": {"zone": "a"}, "a2": {"zone": "a"}, "b1": {"zone": "b"}, "c1": {"zone": "c"}})
    outcomes = one.scheduler.boot(parse({"resources": {"VCPU": 1, "MEMORY_MB": 10}, "count": 7, **EVEN}))
    assert all(isinstance(outcome, Booted) for outcome in outcomes)
    cell.run_for(2.0)
    assert sorted(zones(cell).values()) == [2, 2, 3]
    members = {"count": 5, "resources": {"VCPU": 1}, **EVEN}
    assert isinstance(one.scheduler.reservations.reserve(parse_group({"members": [members]})), Reservation)


def test_full_zone_stops_a_spread_group_instead_of_a_worse_spread() -> None:
    """The requirement is hard."""
    cell, one = cell_with({"a1": {"zone": "a"}, "b1": {"zone": "b"}, "c1": {"zone": "c"}})
    boot(one.scheduler, "large", 8, force_nodes=["c1"])
    cell.run_for(2.0)
    outcomes = one.scheduler.boot(parse({"resources": {"VCPU": 1, "MEMORY_MB": 10}, "count": 4, **EVEN}))
    assert Counter(type(outcome) for outcome in outcomes) == {Booted: 2, Failed: 2}
    assert "spread" in str(next(outcome.reason for outcome in outcomes if isinstance(outcome, Failed)))


def test_migration_keeps_the_spread_and_the_tolerations_of_the_boot() -> None:
    """Hints hold for life: the best node is in the wrong zone, and the only other node of its zone is tainted."""
    states = {"a1": {}, "a2": {"taints": ["gpu"]}, "b1": {}, "b2": {}}
    cell, one = cell_with({name: {"zone": name[0], **state} for name, state in states.items()})
    boot(one.scheduler, "x", tolerations=["gpu"], force_nodes=["a1"], **EVEN)
    cell.run_for(2.0)
    assert boot(one.scheduler, "y", **EVEN).node[0] == "b"
    cell.run_for(2.0)
    boot(one.scheduler, "y2", force_nodes=["a1"], **EVEN)
    cell.run_for(2.0)
    boot(one.scheduler, "y3", force_nodes=["b1", "b2"], **EVEN)
    cell.run_for(2.0)
    moved = one.scheduler.migrations.migrate("x")
    assert isinstance(moved, Booted)
    assert moved.node == "a2"


def test_tainted_node_gets_no_instance_and_keeps_the_ones_that_it_has() -> None:
    """An operator taints a node before its repair. Its instances can be resized there, and move away."""
    cell, one = cell_with({"n0": {}, "n1": {"taints": ["old"]}})
    assert boot(one.scheduler, "a").node == "n0"
    cell.fleet._nodes["n0"].fixed["taints"] = ["repair"]
    cell.fleet._nodes["n1"].fixed["taints"] = []
    for node in cell.fleet.nodes():
        cell.fleet.revive(node)
    cell.run_for(2.0)
    assert boot(one.scheduler, "b").node == "n1"
    assert boot(one.scheduler, "c", tolerations=["repair"], force_nodes=["n0"]).node == "n0"
    resized = one.scheduler.migrations.resize("a", {"VCPU": 2})
    assert isinstance(resized, Booted)
    assert resized.node == "n0"
    cell.run_for(2.0)
    [moved] = [outcome for outcome in one.scheduler.migrations.evacuate("n0") if outcome.instance == "a"]
    assert isinstance(moved, Booted)
    assert moved.node == "n1"


def test_node_that_was_tainted_after_the_last_view_refuses_and_another_one_is_found() -> None:
    """The agent decides by the present state of its node."""
    cell, one = cell_with({"n0": {}, "n1": {}, "n2": {}})
    one.scheduler.refresh()
    cell.fleet._nodes["n0"].fixed["taints"] = ["repair"]
    cell.fleet._nodes["n1"].fixed["taints"] = ["repair"]
    booted = [boot(one.scheduler, f"i{number}") for number in range(4)]
    assert {outcome.node for outcome in booted} == {"n2"}
    assert {refusal.reason for outcome in booted for refusal in outcome.refusals} == {"status"}


def test_amount_outside_the_units_of_all_nodes_fails_with_the_units() -> None:
    """Regression: 40 processors were built on 4 processors times 16."""
    inventory = {"VCPU": {"total": 4, "allocation_ratio": 16.0, "max_unit": 4}, "MEMORY_MB": {"total": 1_000}}
    _, one = cell_with({"n0": {"inventory": inventory}})
    [failed] = one.scheduler.boot(parse(wanted("a", 40)))
    assert isinstance(failed, Failed)
    assert str(failed.reason).startswith("no node gives 40 of VCPU to one instance; n0 has min_unit 1, max_unit 4")
    assert boot(one.scheduler, "b", 4).node == "n0"
    resized = one.scheduler.migrations.resize("b", {"VCPU": 5})
    assert isinstance(resized, Failed)
    assert isinstance(one.scheduler.migrations.resize("b", {"VCPU": 3}), Booted)
