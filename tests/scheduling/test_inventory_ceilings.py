"""Ceilings on inventories: a node that reports more than the operator believes attracts nothing."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.config import Config, load
from nodestate.errors import ConfigError
from nodestate.findings.agent_checks import examine_inventories
from nodestate.findings.finding import FAIL
from nodestate.model.inventory_ceilings import NO_CEILING, InventoryCeilings
from nodestate.scheduling.fleet import Fleet, OutstandingClaims
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse_group
from nodestate.scheduling.reservations import NotReserved
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.plugins import own
from tests.scheduling.cells import VCPU, boot, cell_of, wanted
from tests.scheduling.fleets import ChangingPartition, asked, chosen, host

HUGE = 2**40


def test_the_first_ceiling_that_fits_a_node_and_a_class_counts() -> None:
    ceilings = InventoryCeilings(["gpu-*/VCPU=1024", "VCPU=512", "n?/DISK_GB=7"])
    assert [ceilings.of(node, "VCPU") for node in ("gpu-1", "n1", "a-gpu-1")] == [1024, 512, 512]
    assert [ceilings.of(node, "DISK_GB") for node in ("n1", "n10")] == [7, NO_CEILING]
    assert ceilings.classes == ("VCPU", "DISK_GB")


@pytest.mark.parametrize("value", ["VCPU", "VCPU=", "VCPU=-1", "vcpu=1", "a b/VCPU=1", "[a]/VCPU=1", "VCPU=1e9"])
def test_a_malformed_ceiling_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError, match="inventory_ceilings"):
        load(environ={"NODESTATE_INVENTORY_CEILINGS": f"MEMORY_MB=8,{value}"})
    assert load(environ={"NODESTATE_INVENTORY_CEILINGS": "A=1, b-*/C=2"}).inventory_ceilings == ("A=1", "b-*/C=2")


@pytest.mark.parametrize("inventory", [{"total": HUGE}, {"total": 8, "allocation_ratio": 9_999.0}])
def test_a_node_above_a_ceiling_is_not_chosen_until_it_reports_less(inventory: dict[str, Any]) -> None:
    lie = host("liar", instances={"a": None}, inventory={"VCPU": inventory})
    cell = ChangingPartition(host("n1", vcpu=8, used=4), lie)
    fleet = Fleet(ceilings=InventoryCeilings(["VCPU=64"]))
    selector = Selector(fleet, own(), 1)
    fleet.advance(cell.view)
    assert chosen(selector, asked(2)) == ["n1"]
    assert chosen(selector, asked(2, force_nodes=["liar"])) == [None]
    assert fleet.instances.reporting_rows("a") == [1]
    fleet.overlay(0, OutstandingClaims({"VCPU": 4}, {}, blocked=True))
    assert fleet.in_service[fleet.all].tolist() == [True, False]
    assert chosen(selector, asked(2)) == [None]
    fleet.overlay(1, OutstandingClaims({"VCPU": 1}, {}))
    assert chosen(selector, asked(2)) == [None]
    cell.change(host("liar", 2, vcpu=64, instances={"a": None}), host("n2", inventory={"DISK_GB": {"total": HUGE}}))
    fleet.advance(cell.view)
    assert chosen(selector, asked(2)) == ["liar"]
    assert not fleet.limits.exceeding


def test_neither_a_boot_nor_a_reservation_nor_a_resize_goes_to_a_node_above_a_ceiling() -> None:
    cell, [one] = cell_of(2, schedulers=1, inventory_ceilings=("VCPU=8",))
    on_liar = boot(one.scheduler, "a", vcpu=2).node
    [honest] = {"n0", "n1"} - {on_liar}
    fixed = cell.fleet._nodes[on_liar].fixed
    fixed["inventory"] = {**fixed["inventory"], "VCPU": {"total": HUGE}}
    cell.fleet.kill(on_liar)
    cell.fleet.revive(on_liar)
    cell.run_for(2.0)
    assert boot(one.scheduler, "b").node == honest
    group = {"name": "apart", "policy": "anti-affinity"}
    apart = parse_group({"members": [wanted("c"), wanted("d")], "group": group})
    assert isinstance(one.scheduler.reservations.reserve(apart, timeout_s=1.0), NotReserved)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": VCPU}), Failed)
    moved = one.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert moved.node == honest


def test_doctor_counts_the_nodes_above_a_ceiling_and_names_one() -> None:
    view = ChangingPartition(host("n1"), host("n2", vcpu=HUGE), host("n3", vcpu=HUGE)).view
    [finding] = examine_inventories(Config(inventory_ceilings=("n3/VCPU=2000000000000", "VCPU=64")), view)
    assert finding.level == FAIL
    assert "1 of 3 nodes" in finding.says
    assert "n2: 1,099,511,627,776 of VCPU, 64 are allowed" in finding.says
    assert list(examine_inventories(Config(), view)) == []
