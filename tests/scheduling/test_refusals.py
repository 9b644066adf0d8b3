"""The reason of a failed boot: it names the refusals of the nodes that were asked."""

from __future__ import annotations

from typing import Any

from nodestate.scheduling.claims import NoHostFound
from nodestate.scheduling.orders.boot import Failed, NodeRefusal
from nodestate.scheduling.orders.refusals import with_refusals
from nodestate.scheduling.request import parse
from nodestate.scheduling.selection import Remaining
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import cell_of, wanted

LEFT = NoHostFound((Remaining("all", 2), Remaining("force_nodes", 0)), known=3)


def reason_of(cell: SchedulingCell, **request: Any) -> str:
    """The reason of a boot that fails because no agent listens."""
    cell.broker.transit.listeners.clear()
    scheduler = cell.processes[0].scheduler
    [outcome] = scheduler.boot(parse(wanted("a", **request)))
    assert isinstance(outcome, Failed), outcome
    return str(outcome.reason)


def test_a_forced_node_that_refused_is_named_with_its_refusal() -> None:
    cell, _ = cell_of(3)
    assert reason_of(cell, force_nodes=["n1"]) == "n1 refused it: no-agent no agent listens for this node"


def test_a_failed_boot_names_the_nodes_that_refused_and_says_that_no_other_is_left() -> None:
    cell, _ = cell_of(1)
    assert reason_of(cell) == (
        "no node is left to try: the only known node was tried before or excluded; "
        "n0 refused it: no-agent no agent listens for this node"
    )


def test_the_reason_of_a_failure_names_some_of_many_refusals() -> None:
    refusals = [NodeRefusal(f"n{number}", "no-room", "VCPU") for number in range(5)]
    forced = parse(wanted("a", force_nodes=["n4", "n9"]))
    assert str(with_refusals(LEFT, forced, refusals, 5.0)) == "n4 refused it: no-room VCPU"
    assert str(with_refusals(LEFT, parse(wanted("a")), refusals, 5.0)) == (
        "the filter force_nodes removed the last 2 of 2 nodes; n0 refused it: no-room VCPU; "
        "n1 refused it: no-room VCPU; n2 refused it: no-room VCPU; 2 more nodes did not take it"
    )
    silent = [NodeRefusal("n1", "silent")]
    assert str(with_refusals(LEFT, parse(wanted("a", force_nodes=["n1"])), silent, 5.0)) == (
        "n1 did not answer within 5 s"
    )


def test_a_failure_that_no_filter_caused_keeps_its_reason() -> None:
    reason = NoHostFound(reason="a is on n2 already")
    assert with_refusals(reason, parse(wanted("a")), [NodeRefusal("n1", "silent")], 5.0) is reason
