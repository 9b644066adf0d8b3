"""The reconciler finishes what other schedulers left unfinished, and ends no instance that a user counts on."""

from __future__ import annotations

from typing import Any

from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.orders.reconciler import Reconciler, RepairAction
from nodestate.scheduling.reservations import Confirmed
from tests.scheduling.cells import boot, cell_of, freeze_view, reserve
from tests.scheduling.claim_tables import Parties, Party
from tests.scheduling.fleets import ChangingPartition, host


def test_a_late_placement_hint_does_not_undo_a_resize() -> None:
    """The scheduler that sends the hint has a view from before the resize."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    [node] = cell.nodes_by_instance()["a"]
    cell.run_for(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.session.orders.hint_updates.set_placed(node, "a")
    cell.run_for(2.0)
    assert cell.fleet.resources_of(node).allocations["a"]["resources"]["VCPU"] == 3


def test_of_an_instance_that_was_booted_twice_the_later_boot_stays() -> None:
    """A user who tried again with another scheduler, as the first did not answer, was told the node of the later
    boot."""
    cell, (one, two) = cell_of(2)
    freeze_view(cell, two)
    first = boot(one.scheduler, "a")
    second = boot(two.scheduler, "a", ignore_nodes=[first.node])
    assert set(cell.nodes_by_instance()["a"]) == {first.node, second.node}
    cell.replace_dead(one)
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [second.node]}


EARLIER, LATER, RESERVATION = "019aa9f00c19-44131d46be7b", "019aa9f00c4a-502f714d0bc0", "019aa9f00c18-42e4bc70aa0a"
GRACE_S = 10.0


def test_no_copy_is_ended_in_favour_of_a_member_whose_reservation_may_be_rolled_back() -> None:
    """A boot built the instance on n0, and then a reservation with the same instance built it on n1 and was left
    incomplete. First the copy on n1 is ended with the reservation. If both were ended, the instance would be lost.
    """
    member = {"reservation": RESERVATION, "members": 2, "placed": False, "order": LATER}

    def cell_with(hints: dict[str, Any]) -> tuple[Party, Reconciler]:
        party = Parties("one", servers=1).parties[0]
        booted = {"resources": {"VCPU": 1}, "hints": {"order": EARLIER}}
        again = {"resources": {"VCPU": 1}, "hints": hints}
        party.look(ChangingPartition(host("n0", instances={"a": booted}), host("n1", instances={"a": again})).view)
        return party, Reconciler(party.fleet, party.claim_table, GRACE_S)

    _, reconciler = cell_with({"order": LATER})
    assert reconciler.pending_actions(0.0) == []
    assert reconciler.pending_actions(GRACE_S) == [RepairAction("n0", "a", set_placed=False)]

    _, reconciler = cell_with({**member, "placed": True})  # it was complete once
    assert reconciler.pending_actions(0.0) == []
    assert RepairAction("n0", "a", set_placed=False) in reconciler.pending_actions(GRACE_S)

    _, reconciler = cell_with(member)
    ended = [action for at in range(100) for action in reconciler.pending_actions(float(at))]
    assert {action.node for action in ended} == {"n1"}
