"""The reconciler finishes what other schedulers left unfinished, and ends no instance that a user counts on."""

from __future__ import annotations

from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.reservations import Confirmed
from tests.scheduling.cells import boot, cell_of, freeze_view, reserve


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
