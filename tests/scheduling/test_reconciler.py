"""Reconciler: what others left half done is finished, and nothing that lives is ended."""

from __future__ import annotations

from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.reservations import Confirmed
from tests.scheduling.cells import behind, boot, cell_of, reserve


def test_a_mark_that_is_late_undoes_no_resize() -> None:
    """The view of who tidies up was from before it."""
    cell, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    [node] = cell.nodes_by_instance()["a"]
    cell.run_for(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.session.orders.hint_updates.set_placed(node, "a")
    cell.run_for(2.0)
    assert cell.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3


def test_of_an_instance_that_was_booted_twice_the_later_boot_stays() -> None:
    """Who tries again with another scheduler, as the first one did not answer, was told of the later one."""
    cell, (one, two) = cell_of(2)
    behind(cell, two)
    first = boot(one.scheduler, "a")
    second = boot(two.scheduler, "a", ignore_nodes=[first.node])
    assert set(cell.nodes_by_instance()["a"]) == {first.node, second.node}
    cell.replace_dead(one)
    cell.run_for(2 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [second.node]}
