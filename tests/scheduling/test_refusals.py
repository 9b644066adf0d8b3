"""The reason of a failed boot: it names the refusals of the nodes that were asked."""

from __future__ import annotations

from typing import Any

import pytest

from nodestate.scheduling.claims import NoHostFound
from nodestate.scheduling.orders.boot import Failed, NodeRefusal
from nodestate.scheduling.orders.refusals import with_refusals
from nodestate.scheduling.request import parse
from nodestate.scheduling.selection import Remaining
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import cell_of, wanted, zoned_cell

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
    assert reason_of(cell, force_nodes=["n1"]) == "the order to n1 came back (no agent listens for this node)"


def test_a_failed_boot_names_the_nodes_that_refused_and_says_that_no_other_is_left() -> None:
    cell, _ = cell_of(1)
    assert reason_of(cell) == (
        "the order to n0 came back (no agent listens for this node); "
        "no node is left to try: the only known node was tried before or excluded"
    )


def test_the_reason_of_a_failure_names_some_of_many_refusals() -> None:
    refusals = [NodeRefusal(f"n{number}", "no-room", "VCPU") for number in range(5)]
    forced = parse(wanted("a", force_nodes=["n4", "n9"]))
    assert str(with_refusals(LEFT, forced, refusals, 5.0)) == "n4 refused it: no-room (VCPU)"
    assert str(with_refusals(LEFT, parse(wanted("a")), refusals, 5.0)) == (
        "n0 refused it: no-room (VCPU); n1 refused it: no-room (VCPU); n2 refused it: no-room (VCPU); "
        "2 more nodes did not take it; then the filter force_nodes removed the last 2 of 2 nodes"
    )
    assert "; 1 more node did not take it; " in str(with_refusals(LEFT, parse(wanted("a")), refusals[:4], 5.0))
    silent = [NodeRefusal("n1", "silent")]
    assert str(with_refusals(LEFT, parse(wanted("a", force_nodes=["n1"])), silent, 5.0)) == (
        "n1 did not answer within 5 s"
    )


@pytest.mark.parametrize("breaks", [False, True])
def test_a_boot_without_an_answer_says_so_before_it_names_filters_and_says_if_the_connection_broke(
    breaks: bool,
) -> None:
    """Regression: the reason began with the filter that left no other node, as if the filter were the cause."""
    cell, [one] = zoned_cell({"n0": "az0", "n1": "az1", "n2": "az1"}, schedulers=1)
    cell.broker.transit.holding = True
    [boot] = one.scheduler.submit(parse(wanted("a", zone="az0")))
    one.scheduler.step()
    if breaks:
        cell.broker.stop()
        cell.broker.start()
    else:
        assert cell.broker.transit.lose().kind == "order"
    one.scheduler.run(lambda: boot.outcome is not None, 60.0)
    assert isinstance(boot.outcome, Failed)
    broke = " (the connection to the broker broke meanwhile)" if breaks else ""
    assert str(boot.outcome.reason) == (
        f"n0 did not answer within {one.scheduler.config.answer_timeout_s:g} s{broke}; "
        "then the filter zone removed the last 2 of 2 nodes"
    )


def test_a_failure_that_no_filter_caused_keeps_its_reason() -> None:
    reason = NoHostFound(reason="a is on n2 already")
    assert with_refusals(reason, parse(wanted("a")), [NodeRefusal("n1", "silent")], 5.0) is reason
