"""The claim of an instance that was booted and terminated is dropped, so its room is free for others at once.

Regression: the claim stayed in a record that no scheduler edited, and once no view showed the instance it counted again
until its deadline. A replay of real tasks found it: rooms stood empty for half a minute.
"""

from __future__ import annotations

from typing import Any

from nodestate.scheduling.claims import REASSERT_S
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import Request
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell

ROOM = {"VCPU": 4, "MEMORY_MB": 4_096}


def one_node() -> SchedulingCell:
    state: dict[str, Any] = {"status": "up", "inventory": {name: {"total": amount} for name, amount in ROOM.items()}}
    cell = SchedulingCell({"node-0": {**state, "usage": {}}}, servers=1)
    cell.wait_until_complete()
    return cell


def boot(process: SchedulerProcess, instance: str) -> Booted | Failed:
    [outcome] = process.scheduler.boot(Request(resources=ROOM, instances=(instance,)))
    return outcome


def run_agents_for(cell: SchedulingCell, seconds: float) -> None:
    """Let time pass for the agent and the consumer alone."""
    for _ in range(int(seconds * 10)):
        cell.clock.advance(0.1)
        cell.step_agents()


def test_terminating_an_instance_drops_its_claim() -> None:
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    run_agents_for(cell, 0.3)
    one.scheduler.refresh()
    assert [claim.instance for claim in cell.claims("node-0")] == ["a"]
    one.scheduler.terminations.terminate([("node-0", "a")])
    assert cell.claims("node-0") == []
    run_agents_for(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)
    assert set(cell.nodes_by_instance()) == {"b"}


def test_terminating_an_instance_before_a_view_shows_it_drops_its_claim() -> None:
    """The agent's answer named the node state that shows the instance."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    one.scheduler.terminations.terminate([("node-0", "a")])
    assert cell.claims("node-0") == []
    run_agents_for(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)


def test_a_termination_by_another_scheduler_before_a_view_shows_the_instance_drops_the_claim_soon() -> None:
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    two.scheduler.terminations.terminate([("node-0", "a")])
    run_agents_for(cell, REASSERT_S + 0.2)
    one.scheduler.step()
    assert cell.claims("node-0") == []


def test_a_scheduler_regularly_drops_its_claims_that_became_allocations() -> None:
    """So they no longer count if another scheduler terminates the instance."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    run_agents_for(cell, REASSERT_S + 0.2)
    one.scheduler.step()
    assert cell.claims("node-0") == []
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([("node-0", "a")])
    run_agents_for(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)


def test_before_a_request_fails_only_the_claims_of_other_schedulers_are_read_again() -> None:
    """Regression: reading all own claims again made each request that fits nowhere cost milliseconds."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    [placing] = one.scheduler.claim([Request(resources=ROOM, instances=("a",))])
    assert placing.node == "node-0"
    assert one.scheduler.claim_table.records.nodes_claimed_by_others("one") == []
    two.scheduler.refresh()
    assert two.scheduler.claim_table.records.nodes_claimed_by_others("two") == ["node-0"]
    one.scheduler.placer.give_back([placing])
    [placing] = two.scheduler.claim([Request(resources=ROOM, instances=("b",))])
    assert placing.node == "node-0", (
        "the record is read again when no node is left, so the dropped claim of the other is seen"
    )


def test_a_claim_is_not_dropped_because_of_an_earlier_lifetime_of_its_instance() -> None:
    """The scheduler that booted the first lifetime still has a view that shows it."""
    cell = one_node()
    one, two, three = (cell.start_scheduler(name) for name in ("one", "two", "three"))
    half = {name: amount // 2 for name, amount in ROOM.items()}
    [booted] = one.scheduler.boot(Request(resources=half, instances=("a",)))
    assert isinstance(booted, Booted)
    run_agents_for(cell, 0.3)
    one.scheduler.refresh()
    one.reader.lagging = True
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([("node-0", "a")])
    run_agents_for(cell, 0.3)
    two.scheduler.refresh()
    [again] = two.scheduler.claim([Request(resources=half, instances=("a",))])
    assert again.claim is not None
    one.scheduler.claim_table.read_records(["node-0"])
    one.scheduler.drop_allocated_claims()
    assert [claim.id for claim in cell.claims("node-0")] == [again.claim.id]
    [refused] = three.scheduler.claim([Request(resources=ROOM, instances=("b",))])
    assert refused.claim is None
