"""Migrations, resizes and terminations that meet each other."""

from __future__ import annotations

import pytest
from msgspec import structs

from nodestate.agent.admission import allocation_of
from nodestate.errors import NotFoundError
from nodestate.scheduling.claims import UNSURE_S
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.node_removal import forget_node
from nodestate.scheduling.orders.boot import Boot, Booted, Failed
from nodestate.scheduling.orders.termination_orders import TERMINATION_RETRY_S, Termination
from nodestate.scheduling.request import parse
from nodestate.scheduling.reservations import Confirmed
from nodestate.testing import TransitMessage
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import STATE, boot, cell_of, freeze_view, losing_answers, reserve, wanted


def begin_migration(process: SchedulerProcess, instance: str) -> Boot:
    """Send the order of a migration; the test decides when it arrives."""
    migrations = process.scheduler.migrations
    resident = migrations.find(instance)
    moving = migrations.boot_of(resident, resident.request)
    moving.avoid(resident.row)
    process.scheduler.session.orders.boots.add([moving])
    process.scheduler.step()
    return moving


def test_an_instance_that_was_just_resized_can_be_terminated() -> None:
    """The terminating scheduler has read an older view, and ends by order id; it refreshes first."""
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    cell.step_agents()
    two.scheduler.terminations.terminate([(node, "a")])
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_an_instance_that_was_resized_after_the_last_view_can_be_terminated() -> None:
    """The allocation has a newer order id than in the view, and the same lifetime."""
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    freeze_view(cell, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.terminations.terminate([(node, "a")])
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_a_terminated_instance_stays_terminated_although_a_scheduler_with_an_old_view_migrates_it() -> None:
    """The terminating scheduler sees the same lifetime on the other node, and ends it there."""
    cell, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    freeze_view(cell, two)
    one.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    assert cell.nodes_by_instance() == {}
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    assert cell.nodes_by_instance() == {"a": [moved.node]}
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {}


def test_a_migration_checks_its_instance_again_before_it_chooses_another_node() -> None:
    """The instance was terminated while the first node did not answer."""
    cell, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    others = [node for node in cell.fleet.nodes() if node != at]
    for node in others:
        cell.fleet.kill(node)
    ended: list[str] = []

    def step_others() -> None:
        cell.step_agents()
        if not ended:
            ended.append("a")
            cell.clock.busy = True
            two.scheduler.terminations.terminate([(at, "a")])
            cell.clock.busy = False

    cell.clock.run_others = step_others
    moved = one.scheduler.migrations.migrate("a")
    assert isinstance(moved, Failed)
    assert str(moved.reason) == f"a was terminated, migrated or changed on {at} meanwhile"


def test_the_id_of_a_terminated_instance_can_be_booted_again_at_once() -> None:
    """The repeated ``End`` of the first lifetime does not end the second one."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    one.scheduler.terminations.terminate([(at, "a")])
    cell.step_agents()
    two.scheduler.refresh()
    again = boot(two.scheduler, "a", force_nodes=[at])
    cell.run_for(2 * TERMINATION_RETRY_S)
    assert cell.nodes_by_instance() == {"a": [again.node]}


def test_the_second_of_two_simultaneous_resizes_is_refused() -> None:
    """It was computed from the resources that the first one has changed."""
    cell, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    freeze_view(cell, two)
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    second = two.scheduler.migrations.resize("a", {"VCPU": 2})
    assert isinstance(second, Failed)
    assert [refused.reason for refused in second.refusals] == ["not-here"]
    two.reader.lagging = False
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {"a": [node]}
    assert cell.fleet.resources_of(node).allocations["a"]["resources"]["VCPU"] == 3


def test_a_member_of_a_reservation_can_be_migrated_and_resized_once_all_members_are_placed() -> None:
    """Before that the reservation may still be rolled back.

    A copy without the hint ``placed`` would also look like the last member of an incomplete reservation.
    """
    cell, (one, two) = cell_of(4)
    held = reserve(one.scheduler, "a", "b")
    places = {member.instance: member.node for member in held.members}
    cell.fleet.kill(places["b"])
    refused: list[str] = []

    def step_others() -> None:
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

    cell.clock.run_others = step_others
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    assert refused
    cell.clock.run_others = cell.step_agents
    cell.run_for(2.0)
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    [hints] = [cell.fleet.resources_of(moved.node).allocations["a"]["hints"]]
    assert (hints["reservation"], hints["placed"], hints["boot"] < hints["order"]) == (held.id, True, True)
    cell.replace_dead(one)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance().keys() == {"a", "b"}


def test_a_resize_whose_answer_is_lost_is_completed_by_the_view() -> None:
    """The view shows the allocation with the id of the resize's order."""
    cell, (one, _) = cell_of(2)
    node = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    with losing_answers(cell):
        outcome = one.scheduler.migrations.resize("a", {"VCPU": 3})
    assert (isinstance(outcome, Booted), outcome.refusals) == (True, ())
    assert cell.fleet.resources_of(node).allocations["a"]["resources"]["VCPU"] == 3
    cell.run_for(2.0)
    assert cell.claims(node) == []


def test_a_boot_whose_answer_is_lost_is_completed_by_the_view_although_another_scheduler_resized_it() -> None:
    """The view shows the boot's lifetime under the order id of the resize."""
    cell, (one, two) = cell_of(2)
    resized: list[str] = []

    def step_others() -> None:
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

    cell.clock.run_others = step_others
    with losing_answers(cell):
        outcome = boot(one.scheduler, "a")
    assert (resized, outcome.refusals) == (["a"], ())
    assert cell.nodes_by_instance() == {"a": [outcome.node]}


def test_a_failed_migration_that_was_carried_out_late_ends_only_the_copy() -> None:
    """The agent built the instance and died; the user was told that the migration failed.

    The reconciler sees the newer order id on the copy and must not end the original.
    """
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in cell.fleet.nodes() if node != at]
    freeze_view(cell, one)
    one.scheduler.refresher.max_age = 20.0
    cell.broker.transit.holding = True
    began, lost = cell.clock.monotonic(), []

    def step_others() -> None:
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

    cell.clock.run_others = step_others
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


def test_a_late_migration_after_another_scheduler_s_migration_ends_no_instance() -> None:
    """Both go to the same node, which refuses the second order; so the ``End`` that undoes it finds nothing to end."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    [to] = [node for node in cell.fleet.nodes() if node != at]
    freeze_view(cell, one)
    two.scheduler.refresh()
    cell.broker.transit.holding = True
    first, second = begin_migration(one, "a"), begin_migration(two, "a")
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


def test_an_instance_evacuated_from_a_dead_node_is_not_evacuated_again_and_can_be_migrated() -> None:
    """The view still shows the last report of the dead node."""
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


def test_a_newer_lifetime_takes_precedence_over_a_late_migration_of_an_older_one() -> None:
    """The terminating scheduler is gone, and the migrating one has a view from before the termination."""
    cell, (one, two, three) = cell_of(3, 3)
    boot(one.scheduler, "a", 1)
    freeze_view(cell, two)
    one.scheduler.terminations.terminate_everywhere(["a"], 20.0)
    cell.replace_dead(one)
    three.scheduler.refresh()
    again = boot(three.scheduler, "a", 4)
    assert isinstance(two.scheduler.migrations.migrate("a"), Booted)
    two.reader.lagging = False
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [again.node]}
    assert cell.fleet.resources_of(again.node).allocations["a"]["resources"]["VCPU"] == 4


def build_and_power_off(cell: SchedulingCell, moving: Boot) -> str:
    """Let the node carry out the order of a migration and lose its power before it answers; returns the node."""
    assert moving.order is not None
    node = moving.order.node
    cell.broker.transit.under_way.clear()
    cell.broker.transit.holding = False
    cell.fleet.build(node, moving.placing.instance, allocation_of(moving.order))
    cell.power_off(node)
    return node


@pytest.mark.parametrize("node_max_age", [None, 20.0])
def test_the_last_report_of_a_dead_node_does_not_end_the_living_instance(node_max_age: float | None) -> None:
    """The migrating scheduler died, too; the copy on the dead node has the newer order id."""
    cell, (one, two) = cell_of(2)
    two.scheduler.refresher.node_max_age = node_max_age
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    begin_migration(one, "a")
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


def test_a_copy_on_a_dead_node_is_ended_with_its_terminated_instance_when_the_node_returns() -> None:
    """The user saw the instance on one node; the migrating scheduler knows of the possible copy."""
    cell, (one, two) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.broker.transit.holding = True
    moving = begin_migration(one, "a")
    build_and_power_off(cell, moving)
    one.scheduler.run(lambda: moving.outcome is not None, 30.0)
    assert isinstance(moving.outcome, Failed)
    two.scheduler.refresh()
    two.scheduler.terminations.terminate([(at, "a")])
    cell.run_for(120.0)
    cell.power_on_all()
    cell.run_for(60.0)
    assert cell.nodes_by_instance() == {}


@pytest.mark.parametrize("resources", [{"VCPU": 1, "DISK_GB": 0}, {}])
def test_an_instance_with_no_amount_of_something_can_be_evacuated(resources: dict[str, int]) -> None:
    """C4: an agent reported it so, and no node has the class; nothing of it is needed elsewhere, either."""
    usage = {name: amount for name, amount in resources.items() if amount}
    full = {**STATE, "usage": usage, "allocations": {"i": {"resources": resources}}}
    cell = SchedulingCell({"n0": full, "n1": STATE})
    cell.wait_until_complete()
    process = cell.start_scheduler("s0")
    process.scheduler.refresh()
    cell.run_for(UNSURE_S + 2.0)
    [moved] = process.scheduler.migrations.evacuate("n0")
    assert isinstance(moved, Booted)
    assert moved.node == "n1"


def test_an_instance_of_a_node_that_left_keeps_its_id_and_is_evacuated() -> None:
    """The agent is gone, and the instance may still run: its id must not be given to another instance meanwhile."""
    cell, [process, _] = cell_of()
    node = boot(process.scheduler, "i").node
    cell.agent._leave(node)
    cell.agent._stop_listening_for(node)
    cell.run_for(3.0)
    process.scheduler.refresh()
    [again] = process.scheduler.boot(parse(wanted("i")))
    assert not isinstance(again, Booted)
    [moved] = process.scheduler.migrations.evacuate(node)
    assert isinstance(moved, Booted)
    assert moved.node != node
    assert not cell.overcommitments


def evacuated_cell() -> tuple[SchedulingCell, list[SchedulerProcess], str]:
    """Return a cell, its schedulers, and a node that left with instance i, which was evacuated since."""
    cell, processes = cell_of()
    node = boot(processes[0].scheduler, "i").node
    cell.agent._leave(node)
    cell.agent._stop_listening_for(node)
    cell.run_for(3.0)
    processes[0].scheduler.refresh()
    [moved] = processes[0].scheduler.migrations.evacuate(node)
    assert isinstance(moved, Booted)
    return cell, processes, node


def test_no_scheduler_sends_orders_to_a_node_that_left() -> None:
    """Regression: its copy of an evacuated instance stays in views, and all schedulers ended it for ever."""
    cell, _, node = evacuated_cell()
    sent: list[str] = []
    arrive = cell.broker.transit.arrive

    def note(message: TransitMessage) -> None:
        if message.kind == "order" and message.to == node:
            sent.append(node)
        arrive(message)

    cell.broker.transit.arrive = note  # type: ignore[method-assign]  # to look on
    cell.run_for(120.0)
    assert sent == []


def test_an_instance_of_a_node_that_left_is_terminated_when_the_node_is_forgotten() -> None:
    """Regression: the command waited, and told the operator to wait for the agent. Now it names the remedy at once."""
    cell, (process, _), node = evacuated_cell()
    began_at = cell.clock.monotonic()
    with pytest.raises(
        TimeoutError, match=f"i stays on {node}, which left with it: .* forget the node: nodestate node forget {node}$"
    ):
        process.scheduler.terminations.terminate_everywhere(["i"])
    assert cell.clock.monotonic() - began_at < 30.0
    assert "i" not in [name for name, nodes in cell.nodes_by_instance().items() if nodes != [node]]
    assert forget_node(cell.config, process.reader, cell.sink, node, clock=cell.clock) == 1
    assert node not in process.scheduler.refresh().nodes
    with pytest.raises(NotFoundError):
        process.scheduler.terminations.terminate_everywhere(["i"])


def test_an_evacuated_instance_stays_on_its_new_node_when_the_old_node_returns() -> None:
    """The first evacuation failed and was carried out late; the second one found the copy."""
    cell, (one, two) = cell_of(2)
    for process in (one, two):
        process.scheduler.refresher.node_max_age = 25.0
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    cell.power_off(at)
    cell.broker.transit.holding = True
    moving = begin_migration(one, "a")
    to = build_and_power_off(cell, moving)
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


def test_an_original_that_no_scheduler_ordered_may_be_gone_when_its_copies_are_to_be_ended() -> None:
    """Its former node has no allocation any longer, and another node reports the instance."""
    cell, (one, _) = cell_of(2)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    former = "n1" if at == "n0" else "n0"
    original = Exclusion(one.scheduler.fleet.rows[former], "a", {"VCPU": 1}, "")
    one.scheduler.session.orders.supersessions.supersede_original(original, "", [Termination(at, "a", "another order")])
    cell.run_for(10.0)
    assert cell.nodes_by_instance() == {"a": [at]}


def test_an_instance_whose_node_has_a_damaged_state_is_not_found() -> None:
    """Its allocation cannot be decoded, but the fleet still lists it as it was in the state before."""
    cell, [process] = cell_of(1, 1)
    scheduler = process.scheduler
    node = boot(scheduler, "a").node
    cell.run_for(2.0)
    scheduler.refresh()
    scheduler.fleet.reports.damaged.add(scheduler.fleet.rows[node])
    for call in (scheduler.migrations.migrate, lambda name: scheduler.updates.update(name, {"zone": "az1"})):
        with pytest.raises(NotFoundError, match=f"the stored state of {node}, which has a, is damaged"):
            call("a")


@pytest.mark.parametrize("place", ["in place", "on the same node", "on another node"])
def test_a_resize_whose_order_was_lost_fails_if_another_scheduler_changed_the_instance_meanwhile(place: str) -> None:
    """Regression: the later order of the other scheduler was taken for a successor of the lost one."""
    cell, (one, two) = cell_of(3)
    at = boot(one.scheduler, "a").node
    cell.run_for(2.0)
    others = [node for node in ("n0", "n1", "n2") if node != at]
    migrations, rows = one.scheduler.migrations, one.scheduler.fleet.rows
    resident = migrations.find("a")
    lost = migrations.boot_of(resident, structs.replace(resident.request, resources={"VCPU": 4, "MEMORY_MB": 100}))
    lost.pin_to(rows[at if place == "in place" else others[0]])
    one.scheduler.session.orders.boots.add([lost])
    cell.broker.transit.holding = True
    one.scheduler.step()
    cell.broker.transit.lose()
    cell.broker.transit.holding = False
    cell.clock.advance(0.1)
    if place == "in place":
        assert isinstance(two.scheduler.migrations.resize("a", {"VCPU": 2}), Booted)
    else:
        to = others[0 if place == "on the same node" else 1]
        assert isinstance(two.scheduler.migrations.migrate("a", to=to), Booted)
    cell.run_for(20.0)
    assert isinstance(lost.outcome, Failed), lost.outcome
    cell.run_for(60.0)
    [node] = cell.nodes_by_instance()["a"]
    assert cell.fleet.state(node)["allocations"]["a"]["resources"]["VCPU"] == (2 if place == "in place" else 1)
