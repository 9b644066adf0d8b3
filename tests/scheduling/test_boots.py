"""Boots: each has its outcome in the end, and what was told to end ends."""

from __future__ import annotations

import pytest

from nodestate.agent.admission import allocation_of
from nodestate.orders import Build, decode_order
from nodestate.scheduling.boots import ENDING_S, Booted, Failed
from nodestate.scheduling.request import parse
from nodestate.testing import Letter
from tests.scheduling.cells import boot, cell_of


def test_who_cancels_a_boot_that_is_under_way_stops_nobody() -> None:
    """``Future.cancel`` would make its outcome an error in ``step``, and others of the batch would never have theirs."""
    _, (one, _) = cell_of(2)
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    assert not boots[0].future.cancel()
    one.scheduler.run(lambda: all(boot.future.done() for boot in boots), 5.0)
    assert all(isinstance(boot.outcome, Booted) for boot in boots)


def test_a_filter_that_fails_costs_no_boot_its_outcome() -> None:
    """The error is its author's to see, and who waits for the boots hears of it, too."""
    tenancy, (one, _) = cell_of(2)

    def faulty(*_: object) -> bool:
        raise ZeroDivisionError("as its author did not foresee")

    filters = one.scheduler.selector.policies.filters
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    filters["faulty"] = faulty
    with pytest.raises(ZeroDivisionError):
        one.scheduler.step()
    del filters["faulty"]
    whys = [str(outcome.why) for boot in boots if isinstance(outcome := boot.future.result(0), Failed)]
    assert whys == ["no node could be chosen: ZeroDivisionError('as its author did not foresee')"] * 2
    tenancy.rest(2.0)
    assert [claim for node in ("n0", "n1") for claim in tenancy.claims(node)] == []


def test_what_a_dead_node_built_is_ended_when_it_comes_back() -> None:
    """Its agent died between storing and saying so. The user was told that the move failed, so the instance stays where it was."""
    tenancy, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    other = "n1" if at == "n0" else "n0"
    tenancy.rest(2.0)
    tenancy.fleet.kill(other)
    taken: list[Build] = []
    arrive = tenancy.broker.arrive

    def watched(letter: Letter) -> None:
        order = decode_order(letter.body) if letter.kind == "order" else None
        if isinstance(order, Build) and order.node == other:
            taken.append(order)
        arrive(letter)

    tenancy.broker.arrive = watched  # type: ignore[method-assign]
    assert isinstance(one.scheduler.move("a", to=other), Failed)
    [order] = taken
    tenancy.rest(2 * ENDING_S)
    tenancy.fleet.build(other, "a", allocation_of(order))
    tenancy.fleet.revive(other)
    tenancy.rest(2 * tenancy.config.claim_s)
    assert tenancy.placed() == {"a": [at]}
