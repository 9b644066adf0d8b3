"""Migrations, resizes and ends against each other."""

from __future__ import annotations

import pytest

from nodestate.agent.admission import allocation_of
from nodestate.errors import NotFoundError
from nodestate.scheduling.orders.boot import Boot, Booted, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S
from nodestate.scheduling.reservations import Confirmed
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import behind, boot, cell_of, losing_answers, reserve


def begin_move(process: SchedulerProcess, instance: str) -> Boot:
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
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    cell.step_agents()
    two.scheduler.terminations.terminate([(node, "a")])
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_what_was_resized_unseen_ends_all_the_same() -> None:
    """The order of the view is not the one that built what is there; its life is."""
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    behind(cell, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.terminations.terminate([(node, "a")])
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_what_was_ended_stays_ended_though_somebody_moves_it_on_a_view_from_before() -> None:
    """Each of them did as told; the life of the instance is over."""
    cell, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    behind(cell, two)
    one.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    assert cell.nodes_by_instance() == {}
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert cell.nodes_by_instance() == {"a": [moved.node]}
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_a_move_looks_again_before_it_chooses_another_node() -> None:
    """Its instance was ended while the first node was silent."""
    cell, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    others = [node for node in cell.fleet.nodes() if node != at]
    for node in others:
        cell.fleet.kill(node)
    ended: list[str] = []

    def live() -> None:
        cell.step_agents()
        if not ended:
            ended.append("a")
            cell.clock.busy = True
            two.scheduler.terminations.terminate([(at, "a")])
            cell.clock.busy = False

    cell.clock.run_others = live
    moved = one.scheduler.migrations.migrate("a")
    assert isinstance(moved, Failed)
    assert str(moved.reason) == f"a was terminated, migrated or changed on {at} meanwhile"


def test_an_id_that_was_ended_may_be_booted_again_at_once() -> None:
    """It is another life of it, which nobody ended."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    one.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    two.scheduler.refresh()
    again = boot(two.scheduler, "a", force_nodes=[at])
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {"a": [again.node]}


def test_of_two_who_resize_at_once_the_second_is_told_and_undoes_nothing() -> None:
    """It computed from what the first one changed."""
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    behind(cell, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    second = two.scheduler.migrations.resize("a", {"VCPU": 2})
    assert isinstance(second, Failed)
    assert [refused.reason for refused in second.refusals] == ["not-here"]
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {"a": [node]}
    assert cell.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3


def test_a_member_moves_and_is_resized_once_all_are_placed() -> None:
    """Before that nobody knows whether it stays; and a copy that was told of no mark would look as if it were the last one."""
    cell, (one, two) = cell_of(4)
    held = reserve(one.scheduler, "a", "b")
    places = {member.instance: member.node for member in held.members}
    cell.fleet.kill(places["b"])
    refused: list[str] = []

    def live() -> None:
        cell.step_agents()
        if "a" in cell.nodes_by_instance() and len(refused) < 3:
            cell.clock.busy = True
            with pytest.raises(NotFoundError, match=f"a is of reservation {held.id}, which is not all placed yet"):
                two.scheduler.migrations.migrate("a")
            with pytest.raises(NotFoundError, match=f"a is of reservation {held.id}, which is not all placed yet"):
                two.scheduler.migrations.resize("a", {"VCPU": 2})
            [outcome] = two.scheduler.migrations.evacuate(places["a"])
            assert isinstance(outcome, Failed)
            cell.clock.busy = False
            refused.append("a")

    cell.clock.run_others = live
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert refused
    cell.clock.run_others = cell.step_agents
    cell.run_for(2.0)
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    [hints] = [cell.fleet.room(moved.node).allocations["a"]["hints"]]
    assert (hints["reservation"], hints["placed"], hints["boot"] < hints["order"]) == (held.id, True, True)
    cell.replace_dead(one)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance().keys() == {"a", "b"}


def test_a_resize_whose_answer_is_lost_is_known_by_the_view() -> None:
    """It names the order that built what is there."""
    cell, (one, _) = cell_of(2)
    node = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    with losing_answers(cell):
        outcome = one.scheduler.migrations.resize("a", {"VCPU": 3})
    assert (isinstance(outcome, Booted), outcome.refusals) == (True, ())
    assert cell.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3
    cell.run_for(2.0)
    assert cell.claims(node) == []


def test_a_boot_whose_answer_is_lost_is_known_by_the_view_also_where_somebody_resized_it_since() -> None:
    """Its life is what it began, though another order built what is there."""
    cell, (one, two) = cell_of(2)
    resized: list[str] = []

    def live() -> None:
        cell.step_agents()
        if "a" in cell.nodes_by_instance() and not resized:
            resized.append("a")
            cell.clock.busy = True
            cell.clock.advance(0.5)
            cell.consumer.step()
            cell.clock.run_others = cell.step_agents
            cell.clock.busy = False
            assert isinstance(two.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
            one.scheduler.refresh()

    cell.clock.run_others = live
    with losing_answers(cell):
        outcome = boot(one.scheduler, "a")
    assert (resized, outcome.refusals) == (["a"], ())
    assert cell.nodes_by_instance() == {"a": [outcome.node]}


def test_a_move_that_was_given_up_and_carried_out_all_the_same_costs_no_copy_too_many() -> None:
    """Its agent built it, said so, and hung: who tidies up sees a later order there, and who moved it told its user that it stays."""
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in cell.fleet.nodes() if node != at]
    behind(cell, one)
    one.scheduler.refresher.max_age = 20.0
    cell.broker.transit.holding = True
    began, lost = cell.clock.monotonic(), []

    def live() -> None:
        cell.step_agents()
        if cell.clock.monotonic() - began > 3.5 and not lost:
            lost.append(to)
            cell.clock.busy = True
            cell.broker.transit.deliver()
            cell.agent.step(0.0)
            cell.consumer.step()
            cell.broker.transit.under_way.clear()
            cell.power_off(to)
            cell.broker.transit.holding = False
            cell.clock.busy = False

    cell.clock.run_others = live
    assert isinstance(one.scheduler.migrations.migrate("a", to=to), Failed)
    assert cell.nodes_by_instance() == {"a": sorted([at, to])}
    cell.clock.run_others = cell.step_agents
    one.reader.lagging = False
    for _ in range(60):
        cell.run_for(1.0)
        assert at in cell.nodes_by_instance()["a"]
    cell.power_on_all()
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [at]}


def test_a_move_that_comes_after_that_of_somebody_else_ends_nothing() -> None:
    """Both go to the same node: the second order there is refused, so what is to undo it ends nothing."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in cell.fleet.nodes() if node != at]
    behind(cell, one)
    two.scheduler.refresh()
    cell.broker.transit.holding = True
    first, second = begin_move(one, "a"), begin_move(two, "a")
    cell.broker.transit.deliver(1)
    cell.agent.step(0.0)
    cell.broker.transit.deliver(1)
    two.scheduler.step()
    assert isinstance(second.outcome, Booted)
    cell.clock.advance(3.5)
    cell.broker.transit.deliver()
    cell.agent.step(0.0)
    cell.broker.transit.under_way.clear()
    cell.broker.transit.holding = False
    two.scheduler.session.orders.terminations.terminate_duplicates([(at, "a")])
    one.scheduler.run(lambda: first.outcome is not None, 20.0)
    one.reader.lagging = False
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [to]}


def test_what_was_evacuated_can_be_moved_and_is_evacuated_once_while_its_node_is_dead() -> None:
    """Its node says still what it said last."""
    cell, (one, two) = cell_of(4)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.power_off(at)
    [first] = one.scheduler.migrations.evacuate(at)
    assert isinstance(first, Booted)
    cell.run_for(2.0)
    [again] = two.scheduler.migrations.evacuate(at)
    assert isinstance(again, Booted)
    assert again.node == first.node
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": sorted([at, moved.node])}
    cell.power_on_all()
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [moved.node]}


def test_the_life_that_a_user_began_since_counts_more_than_what_was_moved_of_the_one_before() -> None:
    """The scheduler that ended it is gone, and the mover's view was from before."""
    cell, (one, two, three) = cell_of(3, 3)
    boot(one.scheduler, "a", 1)
    behind(cell, two)
    one.scheduler.terminations.terminate_everywhere(["a"], 20.0)
    cell.replace_dead(one)
    three.scheduler.refresh()
    again = boot(three.scheduler, "a", 4)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    two.reader.lagging = False
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [again.node]}
    assert cell.fleet.room(again.node).allocations["a"]["resources"]["VCPU"] == 4


def built_by(cell: SchedulingCell, moving: Boot) -> str:
    """The node of its order carries it out, and loses its power before it says so."""
    assert moving.order is not None
    node = moving.order.node
    cell.broker.transit.under_way.clear()
    cell.broker.transit.holding = False
    cell.fleet.build(node, moving.placing.instance, allocation_of(moving.order))
    cell.power_off(node)
    return node


@pytest.mark.parametrize("node_max_age", [None, 20.0])
def test_what_a_dead_node_said_last_ends_nothing_that_lives(node_max_age: float | None) -> None:
    """Whoever moved it there died, too; what it built has the later order."""
    cell, (one, two) = cell_of(2)
    two.scheduler.refresher.node_max_age = node_max_age
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    begin_move(one, "a")
    cell.agent.step(0.0)
    cell.consumer.step()
    [to] = [node for node in cell.nodes_by_instance()["a"] if node != at]
    cell.power_off(to)
    cell.processes.remove(one)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert at in cell.nodes_by_instance()["a"]
    [outcome] = two.scheduler.migrations.evacuate(at)
    assert isinstance(outcome, Failed)
    cell.run_for(5.0)
    assert at in cell.nodes_by_instance()["a"]
    cell.power_on_all()
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [to]}


def test_what_a_dead_node_built_of_an_instance_that_was_ended_since_ends_with_it() -> None:
    """Its user saw one node with it; who moved it knows of the other."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.broker.transit.holding = True
    moving = begin_move(one, "a")
    built_by(cell, moving)
    one.scheduler.run(lambda: moving.outcome is not None, 30.0)
    assert isinstance(moving.outcome, Failed)
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([(at, "a")])
    cell.run_for(120.0)
    cell.power_on_all()
    cell.run_for(60.0)
    assert cell.nodes_by_instance() == {}


def test_what_was_told_to_be_elsewhere_stays_there_when_the_node_it_was_on_is_back() -> None:
    """Its evacuation was given up, and carried out all the same."""
    cell, (one, two) = cell_of(2)
    for process in (one, two):
        process.scheduler.refresher.node_max_age = 25.0
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.power_off(at)
    cell.broker.transit.holding = True
    moving = begin_move(one, "a")
    to = built_by(cell, moving)
    one.scheduler.run(lambda: moving.outcome is not None, 30.0)
    cell.run_for(30.0)
    cell.powered_off.discard(to)
    cell.fleet.revive(to)
    cell.run_for(5.0)
    [outcome] = two.scheduler.migrations.evacuate(at)
    assert isinstance(outcome, Booted)
    assert outcome.node == to
    cell.processes.remove(two)
    cell.run_for(8.0)
    cell.power_on_all()
    cell.run_for(60.0)
    assert cell.nodes_by_instance() == {"a": [to]}
