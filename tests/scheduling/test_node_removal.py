"""Removal of nodes: an operator forgets nodes that are gone, in all designs, and no live node by mistake."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.designs.reader import Reader
from nodestate.errors import NotFoundError
from nodestate.scheduling import NodeAliveError, NotForgottenError, forget_node, node_details
from nodestate.store.round_trips import Stores
from nodestate.testing import MemoryStore
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import boot, cell_of

DESIGNS = ("snapshot", "journal")


def reader_of(cell: SchedulingCell, design: str) -> Reader:
    stores = Stores([MemoryStore(server) for server in cell.servers])
    return Reader(cell.config, design=design, stores=stores, clock=cell.clock)


def forget(cell: SchedulingCell, node: str, **more: Any) -> int:
    return forget_node(cell.config, cell.processes[0].reader, cell.sink, node, clock=cell.clock, **more)


def shown(cell: SchedulingCell, node: str) -> list[bool]:
    cell.run_for(3.0)
    return [node in reader_of(cell, design).read(max_age=5.0, timeout=10.0).nodes for design in DESIGNS]


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_node_that_is_gone_is_forgotten_in_all_designs(leaves: bool, is_empty: bool) -> None:
    cell, [process] = cell_of(2, 1, designs=DESIGNS)
    if not is_empty:
        boot(process.scheduler, "i", 1, force_nodes=["n0"])
    if leaves:
        cell.agent.publishers["n0"].leave()
    cell.power_off("n0")
    cell.run_for(60.0)
    if leaves and is_empty:
        with pytest.raises(NotFoundError):
            forget(cell, "n0")
        return
    assert shown(cell, "n0") == [True, True]
    assert forget(cell, "n0") == (0 if is_empty else 1)
    assert shown(cell, "n0") == [False, False]
    assert shown(cell, "n1") == [True, True]
    cell.powered_off.clear()
    cell.restart_agent()
    assert shown(cell, "n0") == [True, True]


def test_a_live_node_is_not_forgotten_without_force() -> None:
    cell, _ = cell_of(1, 1)
    with pytest.raises(NodeAliveError, match=r"n0 gave a sign of life .* ago") as refused:
        forget(cell, "n0")
    assert refused.value.age_s < 20.0
    assert cell.processes[0].scheduler.refresh().nodes["n0"]


def test_a_running_agent_whose_node_was_forgotten_by_force_reports_it_again() -> None:
    cell, _ = cell_of(1, 1)
    forget(cell, "n0", force=True)
    for status in ("maintenance", "up", "maintenance", "up"):
        cell.fleet.set_status("n0", status)
        cell.run_for(2.0)
    cell.run_for(30.0)
    view = cell.processes[0].scheduler.refresh()
    assert view.nodes["n0"].state["status"] == "up"
    assert view.incomplete == frozenset()


def test_an_incomplete_node_is_forgotten() -> None:
    cell, [process] = cell_of(1, 1)
    boot(process.scheduler, "i", 1)
    publisher = cell.agent.publishers["n0"]
    cell.consumer_frozen = True
    publisher.change({"metrics": {"a": 1.0}})
    for partition in range(2):
        while cell.broker.queued(partition):
            cell.broker.drop(partition)
    publisher.heartbeat()
    cell.agent_frozen = True
    cell.consumer_frozen = False
    cell.run_for(60.0)
    assert "n0" in process.reader.read(max_age=10.0, on_stale="flag").incomplete
    assert forget(cell, "n0", force=True) == 1


def test_a_cell_without_a_consumer_says_that_the_node_is_still_shown() -> None:
    cell, _ = cell_of(1, 1)
    cell.agent_frozen = True
    cell.run_for(60.0)
    cell.consumer_frozen = True
    with pytest.raises(NotForgottenError, match="views still show n0"):
        forget(cell, "n0", timeout_s=2.0)


def test_details_of_a_node_have_its_claims_and_conditions() -> None:
    cell, [process] = cell_of(2, 1)
    boot(process.scheduler, "i", 2, force_nodes=["n0"], group={"name": "web", "policy": "anti-affinity"})
    cell.run_for(3.0)
    details = node_details(process.scheduler.session, "n0")
    assert (details.classes["VCPU"].used, details.classes["VCPU"].free) == (2, 6)
    assert details.allocations["i"]["group"] == "web"
    assert (details.status, details.is_open, details.conditions) == ("up", True, [])
    assert details.last_seen_s is not None
    cell.agent.publishers["n0"].leave()
    cell.run_for(3.0)
    details = node_details(process.scheduler.session, "n0")
    assert (details.status, details.is_open, "left" in details.conditions) == ("down", False, True)
    with pytest.raises(NotFoundError):
        node_details(process.scheduler.session, "nowhere")
