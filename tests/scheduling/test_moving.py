"""Migrations, resizes and ends against each other."""

from __future__ import annotations

import pytest

from nodestate.agent.admission import allocation_of
from nodestate.errors import NotFoundError
from nodestate.scheduling.orders.boot import Boot, Booted, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S
from nodestate.scheduling.reservations import Confirmed
from tests.machines.tenancy import Process, Tenancy
from tests.scheduling.cells import behind, boot, cell_of, losing_answers, reserve


def begin_move(process: Process, instance: str) -> Boot:
    """Its order is sent; somebody else decides when it comes."""
    migrations = process.scheduler.migrations
    resident = migrations.find(instance)
    moving = migrations.boot_of(resident, resident.request)
    moving.avoid(resident.row)
    process.scheduler.session.orders.boots.add([moving])
    process.scheduler.step()
    return moving


def test_what_was_resized_a_moment_ago_ends_when_it_is_told_to() -> None:
    """Who ends it had read a view from before, and names the order that built what it is to end."""
    tenancy, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    tenancy.live()
    two.scheduler.terminations.terminate([(node, "a")])
    tenancy.rest(10.0)
    assert tenancy.placed() == {}


def test_what_was_resized_unseen_ends_all_the_same() -> None:
    """The order of the view is not the one that built what is there; its life is."""
    tenancy, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    behind(tenancy, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.terminations.terminate([(node, "a")])
    two.reader.lagging = False
    tenancy.rest(10.0)
    assert tenancy.placed() == {}


def test_what_was_ended_stays_ended_though_somebody_moves_it_on_a_view_from_before() -> None:
    """Each of them did as told; the life of the instance is over."""
    tenancy, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    behind(tenancy, two)
    one.scheduler.terminations.terminate([(at, "a")])
    tenancy.live()
    assert tenancy.placed() == {}
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert tenancy.placed() == {"a": [moved.node]}
    two.reader.lagging = False
    tenancy.rest(10.0)
    assert tenancy.placed() == {}


def test_a_move_looks_again_before_it_chooses_another_node() -> None:
    """Its instance was ended while the first node was silent."""
    tenancy, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    others = [node for node in tenancy.fleet.nodes() if node != at]
    for node in others:
        tenancy.fleet.kill(node)
    ended: list[str] = []

    def live() -> None:
        tenancy.live()
        if not ended:
            ended.append("a")
            tenancy.clock.busy = True
            two.scheduler.terminations.terminate([(at, "a")])
            tenancy.clock.busy = False

    tenancy.clock.others = live
    moved = one.scheduler.migrations.migrate("a")
    assert isinstance(moved, Failed)
    assert str(moved.reason) == f"a was terminated, migrated or changed on {at} meanwhile"


def test_an_id_that_was_ended_may_be_booted_again_at_once() -> None:
    """It is another life of it, which nobody ended."""
    tenancy, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    one.scheduler.terminations.terminate([(at, "a")])
    tenancy.live()
    two.scheduler.refresh()
    again = boot(two.scheduler, "a", force_nodes=[at])
    tenancy.rest(2 * TERMINATION_RETRY_S)
    assert tenancy.placed() == {"a": [again.node]}


def test_of_two_who_resize_at_once_the_second_is_told_and_undoes_nothing() -> None:
    """It computed from what the first one changed."""
    tenancy, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    behind(tenancy, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    second = two.scheduler.migrations.resize("a", {"VCPU": 2})
    assert isinstance(second, Failed)
    assert [refused.reason for refused in second.refusals] == ["not-here"]
    two.reader.lagging = False
    tenancy.rest(10.0)
    assert tenancy.placed() == {"a": [node]}
    assert tenancy.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3


def test_a_member_moves_and_is_resized_once_all_are_placed() -> None:
    """Before that nobody knows whether it stays; and a copy that was told of no mark would look as if it were the last one."""
    tenancy, (one, two) = cell_of(4)
    held = reserve(one.scheduler, "a", "b")
    places = {member.instance: member.node for member in held.members}
    tenancy.fleet.kill(places["b"])
    refused: list[str] = []

    def live() -> None:
        tenancy.live()
        if "a" in tenancy.placed() and len(refused) < 3:
            tenancy.clock.busy = True
            with pytest.raises(NotFoundError, match=f"a is of reservation {held.id}, which is not all placed yet"):
                two.scheduler.migrations.migrate("a")
            with pytest.raises(NotFoundError, match=f"a is of reservation {held.id}, which is not all placed yet"):
                two.scheduler.migrations.resize("a", {"VCPU": 2})
            [outcome] = two.scheduler.migrations.evacuate(places["a"])
            assert isinstance(outcome, Failed)
            tenancy.clock.busy = False
            refused.append("a")

    tenancy.clock.others = live
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert refused
    tenancy.clock.others = tenancy.live
    tenancy.rest(2.0)
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    [hints] = [tenancy.fleet.room(moved.node).allocations["a"]["hints"]]
    assert (hints["reservation"], hints["placed"], hints["boot"] < hints["order"]) == (held.id, True, True)
    tenancy.bury(one)
    tenancy.rest(3 * tenancy.config.claim_ttl_s)
    assert tenancy.placed().keys() == {"a", "b"}


def test_a_resize_whose_answer_is_lost_is_known_by_the_view() -> None:
    """It names the order that built what is there."""
    tenancy, (one, _) = cell_of(2)
    node = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    with losing_answers(tenancy):
        outcome = one.scheduler.migrations.resize("a", {"VCPU": 3})
    assert (isinstance(outcome, Booted), outcome.refusals) == (True, ())
    assert tenancy.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3
    tenancy.rest(2.0)
    assert tenancy.claims(node) == []


def test_a_boot_whose_answer_is_lost_is_known_by_the_view_also_where_somebody_resized_it_since() -> None:
    """Its life is what it began, though another order built what is there."""
    tenancy, (one, two) = cell_of(2)
    resized: list[str] = []

    def live() -> None:
        tenancy.live()
        if "a" in tenancy.placed() and not resized:
            resized.append("a")
            tenancy.clock.busy = True
            tenancy.clock.advance(0.5)
            tenancy.consumer.step()
            tenancy.clock.others = tenancy.live
            tenancy.clock.busy = False
            assert isinstance(two.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
            one.scheduler.refresh()

    tenancy.clock.others = live
    with losing_answers(tenancy):
        outcome = boot(one.scheduler, "a")
    assert (resized, outcome.refusals) == (["a"], ())
    assert tenancy.placed() == {"a": [outcome.node]}


def test_a_move_that_was_given_up_and_carried_out_all_the_same_costs_no_copy_too_many() -> None:
    """Its agent built it, said so, and hung: who tidies up sees a later order there, and who moved it told its user that it stays."""
    tenancy, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in tenancy.fleet.nodes() if node != at]
    behind(tenancy, one)
    one.scheduler.refresher.max_age = 20.0
    tenancy.broker.transit.holding = True
    began, lost = tenancy.clock.monotonic(), []

    def live() -> None:
        tenancy.live()
        if tenancy.clock.monotonic() - began > 3.5 and not lost:
            lost.append(to)
            tenancy.clock.busy = True
            tenancy.broker.transit.deliver()
            tenancy.agent.step(0.0)
            tenancy.consumer.step()
            tenancy.broker.transit.under_way.clear()
            tenancy.kill(to)
            tenancy.broker.transit.holding = False
            tenancy.clock.busy = False

    tenancy.clock.others = live
    assert isinstance(one.scheduler.migrations.migrate("a", to=to), Failed)
    assert tenancy.placed() == {"a": sorted([at, to])}
    tenancy.clock.others = tenancy.live
    one.reader.lagging = False
    for _ in range(60):
        tenancy.rest(1.0)
        assert at in tenancy.placed()["a"]
    tenancy.revive()
    tenancy.rest(2 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [at]}


def test_a_move_that_comes_after_that_of_somebody_else_ends_nothing() -> None:
    """Both go to the same node: the second order there is refused, so what is to undo it ends nothing."""
    tenancy, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in tenancy.fleet.nodes() if node != at]
    behind(tenancy, one)
    two.scheduler.refresh()
    tenancy.broker.transit.holding = True
    first, second = begin_move(one, "a"), begin_move(two, "a")
    tenancy.broker.transit.deliver(1)
    tenancy.agent.step(0.0)
    tenancy.broker.transit.deliver(1)
    two.scheduler.step()
    assert isinstance(second.outcome, Booted)
    tenancy.clock.advance(3.5)
    tenancy.broker.transit.deliver()
    tenancy.agent.step(0.0)
    tenancy.broker.transit.under_way.clear()
    tenancy.broker.transit.holding = False
    two.scheduler.session.orders.terminations.terminate_duplicates([(at, "a")])
    one.scheduler.run(lambda: first.outcome is not None, 20.0)
    one.reader.lagging = False
    tenancy.rest(2 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [to]}


def test_what_was_evacuated_can_be_moved_and_is_evacuated_once_while_its_node_is_dead() -> None:
    """Its node says still what it said last."""
    tenancy, (one, two) = cell_of(4)
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    tenancy.kill(at)
    [first] = one.scheduler.migrations.evacuate(at)
    assert isinstance(first, Booted)
    tenancy.rest(2.0)
    [again] = two.scheduler.migrations.evacuate(at)
    assert isinstance(again, Booted)
    assert again.node == first.node
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    tenancy.rest(2 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": sorted([at, moved.node])}
    tenancy.revive()
    tenancy.rest(2 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [moved.node]}


def test_the_life_that_a_user_began_since_counts_more_than_what_was_moved_of_the_one_before() -> None:
    """The scheduler that ended it is gone, and the mover's view was from before."""
    tenancy, (one, two, three) = cell_of(3, 3)
    boot(one.scheduler, "a", 1)
    behind(tenancy, two)
    one.scheduler.terminations.terminate_everywhere(["a"], 20.0)
    tenancy.bury(one)
    three.scheduler.refresh()
    again = boot(three.scheduler, "a", 4)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    two.reader.lagging = False
    tenancy.rest(3 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [again.node]}
    assert tenancy.fleet.room(again.node).allocations["a"]["resources"]["VCPU"] == 4


def built_by(tenancy: Tenancy, moving: Boot) -> str:
    """The node of its order carries it out, and loses its power before it says so."""
    assert moving.order is not None
    node = moving.order.node
    tenancy.broker.transit.under_way.clear()
    tenancy.broker.transit.holding = False
    tenancy.fleet.build(node, moving.placing.instance, allocation_of(moving.order))
    tenancy.kill(node)
    return node


@pytest.mark.parametrize("node_max_age", [None, 20.0])
def test_what_a_dead_node_said_last_ends_nothing_that_lives(node_max_age: float | None) -> None:
    """Whoever moved it there died, too; what it built has the later order."""
    tenancy, (one, two) = cell_of(2)
    two.scheduler.refresher.node_max_age = node_max_age
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    begin_move(one, "a")
    tenancy.agent.step(0.0)
    tenancy.consumer.step()
    [to] = [node for node in tenancy.placed()["a"] if node != at]
    tenancy.kill(to)
    tenancy.processes.remove(one)
    tenancy.rest(3 * tenancy.config.claim_ttl_s)
    assert at in tenancy.placed()["a"]
    [outcome] = two.scheduler.migrations.evacuate(at)
    assert isinstance(outcome, Failed)
    tenancy.rest(5.0)
    assert at in tenancy.placed()["a"]
    tenancy.revive()
    tenancy.rest(3 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [to]}


def test_what_a_dead_node_built_of_an_instance_that_was_ended_since_ends_with_it() -> None:
    """Its user saw one node with it; who moved it knows of the other."""
    tenancy, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    tenancy.broker.transit.holding = True
    moving = begin_move(one, "a")
    built_by(tenancy, moving)
    one.scheduler.run(lambda: moving.outcome is not None, 30.0)
    assert isinstance(moving.outcome, Failed)
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([(at, "a")])
    tenancy.rest(120.0)
    tenancy.revive()
    tenancy.rest(60.0)
    assert tenancy.placed() == {}


def test_what_was_told_to_be_elsewhere_stays_there_when_the_node_it_was_on_is_back() -> None:
    """Its evacuation was given up, and carried out all the same."""
    tenancy, (one, two) = cell_of(2)
    for process in (one, two):
        process.scheduler.refresher.node_max_age = 25.0
    at = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    tenancy.kill(at)
    tenancy.broker.transit.holding = True
    moving = begin_move(one, "a")
    to = built_by(tenancy, moving)
    one.scheduler.run(lambda: moving.outcome is not None, 30.0)
    tenancy.rest(30.0)
    tenancy.dead.discard(to)
    tenancy.fleet.revive(to)
    tenancy.rest(5.0)
    [outcome] = two.scheduler.migrations.evacuate(at)
    assert isinstance(outcome, Booted)
    assert outcome.node == to
    tenancy.processes.remove(two)
    tenancy.rest(8.0)
    tenancy.revive()
    tenancy.rest(60.0)
    assert tenancy.placed() == {"a": [to]}
