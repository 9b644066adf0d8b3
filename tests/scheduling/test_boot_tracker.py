"""Boots: each has its outcome in the end, and what was told to end ends."""

from __future__ import annotations

import pytest

from nodestate.agent.admission import allocation_of
from nodestate.errors import PolicyError
from nodestate.model.orders import Build, decode_order
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S
from nodestate.scheduling.request import parse
from nodestate.testing import TransitMessage
from tests.scheduling.cells import behind, boot, cell_of


def test_who_cancels_a_boot_that_is_under_way_stops_nobody() -> None:
    """``Future.cancel`` would make its outcome an error in ``step``, and others of the batch would never have theirs."""
    _, (one, _) = cell_of(2)
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    assert not boots[0].future.cancel()
    one.scheduler.run(lambda: all(boot.future.done() for boot in boots), 5.0)
    assert all(isinstance(boot.outcome, Booted) for boot in boots)


def test_a_filter_that_fails_costs_no_boot_its_outcome() -> None:
    """The error is its author's to see, and who waits for the boots hears of it, too."""
    cell, (one, _) = cell_of(2)

    def faulty(*_: object) -> bool:
        raise ZeroDivisionError("as its author did not foresee")

    filters = one.scheduler.selector.policies.filters
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    filters["faulty"] = faulty
    told = (
        f"filter 'faulty' ({__name__}:{faulty.__qualname__}) failed: ZeroDivisionError('as its author did not foresee')"
    )
    with pytest.raises(PolicyError) as raised:
        one.scheduler.step()
    assert str(raised.value) == told
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    del filters["faulty"]
    whys = [str(outcome.reason) for boot in boots if isinstance(outcome := boot.future.result(0), Failed)]
    assert whys == [f"no node could be chosen: {told}"] * 2
    cell.run_for(2.0)
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node)] == []


def test_what_a_dead_node_built_is_ended_when_it_comes_back() -> None:
    """Its agent died between storing and saying so. The user was told that the move failed, so the instance stays where it was."""
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    other = "n1" if at == "n0" else "n0"
    cell.run_for(2.0)
    cell.fleet.kill(other)
    taken: list[Build] = []
    arrive = cell.broker.transit.arrive

    def watched(letter: TransitMessage) -> None:
        order = decode_order(letter.body) if letter.kind == "order" else None
        if isinstance(order, Build) and order.node == other:
            taken.append(order)
        arrive(letter)

    cell.broker.transit.arrive = watched  # type: ignore[method-assign]
    assert isinstance(one.scheduler.migrations.migrate("a", to=other), Failed)
    [order] = taken
    cell.run_for(2 * TERMINATION_RETRY_S)
    cell.fleet.build(other, "a", allocation_of(order))
    cell.fleet.revive(other)
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [at]}


def test_what_is_ended_before_a_view_shows_it_is_told_again() -> None:
    """The first order to end it is lost."""
    cell, (one, _) = cell_of(2)
    behind(cell, one)
    booted = boot(one.scheduler, "a")
    cell.broker.transit.holding = True
    one.scheduler.terminations.terminate([(booted.node, "a")])
    cell.broker.transit.under_way.clear()
    cell.broker.transit.holding = False
    one.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_what_was_moved_is_ended_by_who_names_the_node_that_it_was_on() -> None:
    """It is the instance that its user is done with."""
    cell, (one, two) = cell_of(2)
    booted = boot(one.scheduler, "a")
    cell.run_for(2.0)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    cell.run_for(2.0)
    one.scheduler.terminations.terminate([(booted.node, "a")])
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_an_instance_that_moves_while_it_is_ended_is_ended() -> None:
    cell, (one, two) = cell_of(3)
    boot(one.scheduler, "a")
    behind(cell, one)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    cell.clock.run_others = lambda: (setattr(one.reader, "lagging", False), cell.step_agents())[1]
    one.scheduler.terminations.terminate_everywhere(["a"], 20.0)
    assert cell.nodes_by_instance() == {}


def test_who_waits_in_vain_for_an_end_is_told_where_the_instance_is() -> None:
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.agent_frozen = True
    with pytest.raises(TimeoutError, match=f"views still show a on {at} 5 s after the termination"):
        one.scheduler.terminations.terminate_everywhere(["a"], 5.0)
