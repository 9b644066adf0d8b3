"""A claim of an instance that was booted and ended counts no longer: its room is free for others at once.

Nobody else drops it from a record that nobody edits, and when no view shows the instance any more it would count again
until its deadline: a regression that a replay of real tasks found, as rooms that stood empty for half a minute.
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


def live_until(cell: SchedulingCell, seconds: float) -> None:
    """Time passes for the agent and the consumer alone."""
    for _ in range(int(seconds * 10)):
        cell.clock.advance(0.1)
        cell.step_agents()


def test_who_ends_an_instance_drops_its_claim() -> None:
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    live_until(cell, 0.3)
    one.scheduler.refresh()
    assert [claim.instance for claim in cell.claims("node-0")] == ["a"]
    one.scheduler.terminations.terminate([("node-0", "a")])
    assert cell.claims("node-0") == []
    live_until(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)
    assert set(cell.nodes_by_instance()) == {"b"}


def test_an_instance_that_ends_before_a_view_showed_it_leaves_no_claim() -> None:
    """Its agent's answer said which state showed it."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    one.scheduler.terminations.terminate([("node-0", "a")])
    assert cell.claims("node-0") == []
    live_until(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)


def test_one_that_somebody_else_ended_before_a_view_showed_it_leaves_none_for_long() -> None:
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    two.scheduler.terminations.terminate([("node-0", "a")])
    live_until(cell, REASSERT_S + 0.2)
    one.scheduler.step()
    assert cell.claims("node-0") == []


def test_a_scheduler_drops_claims_that_became_allocations_now_and_then() -> None:
    """So that they count no more, whoever ends the instance."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    assert isinstance(boot(one, "a"), Booted)
    live_until(cell, REASSERT_S + 0.2)
    one.scheduler.step()
    assert cell.claims("node-0") == []
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([("node-0", "a")])
    live_until(cell, 0.3)
    assert isinstance(boot(two, "b"), Booted)


def test_only_claims_of_others_are_read_again_for_want_of_a_node() -> None:
    """A scheduler knows its own; reading all that it ever claimed made each request that fits nowhere cost milliseconds."""
    cell = one_node()
    one, two = cell.start_scheduler("one"), cell.start_scheduler("two")
    [placing] = one.scheduler.claim([Request(resources=ROOM, instances=("a",))])
    assert placing.node == "node-0"
    assert one.scheduler.claim_table.records.nodes_claimed_by_others("one") == []
    two.scheduler.refresh()
    assert two.scheduler.claim_table.records.nodes_claimed_by_others("two") == ["node-0"]
    one.scheduler.placer.give_back([placing])
    [placing] = two.scheduler.claim([Request(resources=ROOM, instances=("b",))])
    assert placing.node == "node-0", "that the other's claim has gone is seen when there is no other node"


def test_a_claim_of_an_instance_that_was_there_before_is_not_settled_by_what_it_had_then() -> None:
    """Who had claimed it the first time decides on a view that shows that one."""
    cell = one_node()
    one, two, three = (cell.start_scheduler(name) for name in ("one", "two", "three"))
    half = {name: amount // 2 for name, amount in ROOM.items()}
    [booted] = one.scheduler.boot(Request(resources=half, instances=("a",)))
    assert isinstance(booted, Booted)
    live_until(cell, 0.3)
    one.scheduler.refresh()
    one.reader.lagging = True
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([("node-0", "a")])
    live_until(cell, 0.3)
    two.scheduler.refresh()
    [again] = two.scheduler.claim([Request(resources=half, instances=("a",))])
    assert again.claim is not None
    one.scheduler.claim_table.read_records(["node-0"])
    one.scheduler.drop_allocated_claims()
    assert [claim.id for claim in cell.claims("node-0")] == [again.claim.id]
    [refused] = three.scheduler.claim([Request(resources=ROOM, instances=("b",))])
    assert refused.claim is None
