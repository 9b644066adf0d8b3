"""Groups: all members or none, whoever dies, is silent or interferes meanwhile."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest

from nodestate.errors import NotFoundError, StaleViewError, StoreUnavailableError
from nodestate.model.orders import Build, decode_order
from nodestate.scheduling.orders.boot import Booted, Failed
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservations import Confirmed, NotConfirmed, NotReserved
from nodestate.testing import TransitMessage
from tests.scheduling.cells import behind, boot, cell_of, losing_answers, reserve, wanted


def test_an_instance_that_a_node_has_is_not_reserved_again() -> None:
    """It would be on two nodes in the end, and nobody could tell which one counts."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(1.0)
    held = two.scheduler.reservations.reserve(
        parse_group({"members": [wanted("a", force_nodes=["n0" if at == "n1" else "n1"])]})
    )
    assert isinstance(held, NotReserved)
    assert str(held.reason) == f"a is on {at} already"
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node) if claim.reservation] == []


def test_what_was_not_confirmed_is_not_held() -> None:
    """The claims of the members that were built are given back, as those are ended."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b", vcpu=8)
    [last] = [member.node for member in held.members if member.instance == "b"]
    cell.fleet.set_status(last, "draining")
    cell.step_agents()
    assert isinstance(one.scheduler.reservations.confirm(held.id), NotConfirmed)
    assert [claim for node in ("n0", "n1") for claim in cell.claims(node)] == []
    cell.run_for(2.0)
    assert two.scheduler.reservations.held() == []
    assert cell.nodes_by_instance() == {}


def test_what_was_released_does_not_come_back_with_a_lost_record() -> None:
    """Who made the reservation saw no loss, but that somebody else released it."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b", hold_s=600.0)
    two.scheduler.reservations.release(held.id)
    cell.run_for(5.0)
    for node in ("n0", "n1"):
        cell.evict_claims(node)
    cell.run_for(20.0)
    assert two.scheduler.reservations.held() == []


def test_nobody_ends_members_while_the_others_are_built() -> None:
    """It takes longer than the grace of who tidies up, and goes to nodes on which that one has read no claim yet."""
    cell, (one, two) = cell_of(9)
    held = reserve(one.scheduler, "a", "b")
    [at] = [member.node for member in held.members if member.instance == "a"]
    others = [node for node in cell.fleet.nodes() if node != at]
    for node in others:
        cell.fleet.kill(node)
    began = cell.clock.monotonic()

    def live() -> None:
        if cell.clock.monotonic() - began > cell.config.claim_ttl_s + 5.0:
            while others:
                cell.fleet.revive(others.pop())
        cell.step_agents()
        cell.clock.busy = True
        two.scheduler.step(0.0)
        cell.clock.busy = False

    cell.clock.run_others = live
    assert isinstance(one.scheduler.reservations.confirm(held.id, timeout_s=60.0), Confirmed)
    assert cell.clock.monotonic() - began > cell.config.claim_ttl_s
    assert cell.nodes_by_instance().keys() == {"a", "b"}


def test_a_member_that_is_ended_while_the_others_are_built_ends_them() -> None:
    """Whoever ended it: all members, or none."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    places = {member.instance: member.node for member in held.members}
    cell.fleet.kill(places["b"])
    ended: list[str] = []

    def live() -> None:
        cell.step_agents()
        if "a" in cell.nodes_by_instance() and not ended:
            ended.append("a")
            cell.clock.busy = True
            two.scheduler.refresh()
            two.scheduler.terminations.terminate([(places["a"], "a")])
            cell.clock.busy = False

    cell.clock.run_others = live
    outcome = one.scheduler.reservations.confirm(held.id)
    assert isinstance(outcome, NotConfirmed)
    assert [failed.instance for failed in outcome.failed] == ["a"]
    cell.run_for(2.0)
    assert cell.nodes_by_instance() == {}


def test_a_member_that_was_booted_elsewhere_meanwhile_is_not_built_again() -> None:
    """It would be on two nodes, neither of them the later one."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a")
    [member] = held.members
    elsewhere = boot(two.scheduler, "a", ignore_nodes=[member.node]).node
    cell.run_for(1.0)
    with pytest.raises(NotFoundError, match=f"a of {held.id} is on {elsewhere} already"):
        one.scheduler.reservations.confirm(held.id)
    assert cell.nodes_by_instance() == {"a": [elsewhere]}


@pytest.mark.parametrize("away", [0, 1])
def test_a_server_of_claims_that_is_away_costs_a_reservation_only_its_nodes(away: int) -> None:
    """Also where claims were known there."""
    cell, (one, two) = cell_of(8)
    reserve(two.scheduler, *"abcdef")
    one.scheduler.reservations.held()
    cell.servers[away].stop()
    full = parse_group({"members": [wanted(f"full {number}", vcpu=8) for number in range(8)]})
    assert isinstance(one.scheduler.reservations.reserve(full, timeout_s=1.0), NotReserved)
    [member] = reserve(one.scheduler, "g").members
    assert cell.server(member.node) is not cell.servers[away]


def test_who_is_told_that_a_reservation_is_placed_may_end_its_members() -> None:
    """Its agents know by then, also where the first order to say so was lost: else the others would pass for the rest of one
    that was never whole.
    """
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a", "b")
    arrive, lost = cell.broker.transit.arrive, []

    def lossy(letter: TransitMessage) -> None:
        order = decode_order(letter.body) if letter.kind == "order" else None
        if isinstance(order, Build) and order.in_place and len(lost) < 2:
            lost.append(order)
        else:
            arrive(letter)

    cell.broker.transit.arrive = lossy  # type: ignore[method-assign]
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert len(lost) == 2
    cell.replace_dead(one)
    [node] = cell.nodes_by_instance()["a"]
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([(node, "a")])
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance().keys() == {"b"}


def test_nobody_is_told_that_members_are_placed_before_a_view_shows_them() -> None:
    """A view from before could not have shown that somebody ended one meanwhile."""
    cell, (one, _) = cell_of(2)
    held = reserve(one.scheduler, "a", "b")
    cell.consumer_frozen = True
    with pytest.raises(TimeoutError, match="all members are built, and no view shows it"):
        one.scheduler.reservations.confirm(held.id, timeout_s=6.0)
    assert cell.nodes_by_instance().keys() == {"a", "b"}
    cell.consumer_frozen = False
    cell.run_for(2 * cell.config.claim_ttl_s)
    for [node] in cell.nodes_by_instance().values():
        [allocation] = cell.fleet.room(node).allocations.values()
        assert allocation["hints"]["placed"]


def test_a_member_that_is_booted_again_is_another_life() -> None:
    """What ended the first, or was to undo it, ends nothing of the second."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b", hold_s=600.0)
    cell.agent_frozen = True
    assert isinstance(one.scheduler.reservations.boot_member(held.id, "a"), Failed)
    cell.agent_frozen = False
    cell.run_for(2.0)
    first = one.scheduler.reservations.boot_member(held.id, "a")
    assert isinstance(first, Booted)
    cell.run_for(3.0)
    two.scheduler.terminations.terminate([(first.node, "a")])
    cell.run_for(8.0)
    assert cell.nodes_by_instance() == {}
    if (again := one.scheduler.claim([parse(wanted("a"))])[0]).claim is not None:
        one.scheduler.placer.give_back([again])
    second = boot(one.scheduler, "a")
    cell.run_for(20.0)
    assert cell.nodes_by_instance() == {"a": [second.node]}


def test_a_reservation_is_confirmed_once() -> None:
    """It holds nothing from then on."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert [claim for node in cell.fleet.nodes() for claim in cell.claims(node)] == []
    cell.run_for(0.5)
    [at] = cell.nodes_by_instance()["a"]
    two.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    with pytest.raises(NotFoundError):
        one.scheduler.reservations.confirm(held.id)
    cell.run_for(5.0)
    assert cell.nodes_by_instance().keys() == {"b"}


def test_who_confirms_again_after_agents_were_too_slow_builds_nothing_twice() -> None:
    """What they built meanwhile is what they were told the first time."""
    cell, (one, _) = cell_of(3)
    held = reserve(one.scheduler, "a", "b")
    cell.consumer_frozen = True
    with pytest.raises(TimeoutError):
        one.scheduler.reservations.confirm(held.id, timeout_s=2.0)
    cell.consumer_frozen = False
    cell.clock.advance(0.5)
    cell.step_agents()
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert {name: len(nodes) for name, nodes in cell.nodes_by_instance().items()} == {"a": 1, "b": 1}


def test_what_no_server_of_claims_says_is_an_error_that_says_so() -> None:
    cell, (one, _) = cell_of(8)
    held = reserve(one.scheduler, *"abcdef", hold_s=600.0)
    cell.servers[0].stop()
    for call in (one.scheduler.reservations.held, lambda: one.scheduler.reservations.confirm(held.id)):
        with pytest.raises((StoreUnavailableError, StaleViewError)):
            call()


@pytest.mark.parametrize("answers", ["come", "are lost"])
@pytest.mark.parametrize("view", ["is new", "is from before"])
@pytest.mark.parametrize("calls", range(2, 14, 2))
def test_who_confirms_after_one_that_died_over_it_has_all_or_none(calls: int, view: str, answers: str) -> None:
    """Wherever it died; what it built is known by the view, or by its agents' refusals."""
    cell, (one, two) = cell_of(3)
    held = reserve(one.scheduler, "a", "b", hold_s=120.0)
    if view == "is from before":
        behind(cell, two)
    with losing_answers(cell) if answers == "are lost" else nullcontext(), cell.crashing(one, calls):
        one.scheduler.reservations.confirm(held.id, timeout_s=12.0)
    cell.step_agents()
    second: object = None
    with suppress(NotFoundError):
        second = two.scheduler.reservations.confirm(held.id, timeout_s=20.0)
    two.reader.lagging = False
    cell.run_for(5 * cell.config.claim_ttl_s)
    placed = {instance: len(nodes) for instance, nodes in cell.nodes_by_instance().items()}
    assert placed in ({}, {"a": 1, "b": 1})
    assert bool(placed) or not isinstance(second, Confirmed)
