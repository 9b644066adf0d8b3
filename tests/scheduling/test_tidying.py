"""Reconciler: what others left half done is finished, and nothing that lives is ended."""

from __future__ import annotations

from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.reservations import Confirmed
from tests.scheduling.cells import behind, boot, cell_of, reserve


def test_a_mark_that_is_late_undoes_no_resize() -> None:
    """The view of who tidies up was from before it."""
    tenancy, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a")
    assert isinstance(one.scheduler.reservations.confirm(held.id), Confirmed)
    [node] = tenancy.placed()["a"]
    tenancy.rest(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.migrations.resize("a", {"VCPU": 3}), Booted)
    two.scheduler.session.orders.hint_updates.set_placed(node, "a")
    tenancy.rest(2.0)
    assert tenancy.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3


def test_of_an_instance_that_was_booted_twice_the_later_boot_stays() -> None:
    """Who tries again with another scheduler, as the first one did not answer, was told of the later one."""
    tenancy, (one, two) = cell_of(2)
    behind(tenancy, two)
    first = boot(one.scheduler, "a")
    second = boot(two.scheduler, "a", ignore_nodes=[first.node])
    assert set(tenancy.placed()["a"]) == {first.node, second.node}
    tenancy.bury(one)
    tenancy.rest(2 * tenancy.config.claim_ttl_s)
    assert tenancy.placed() == {"a": [second.node]}
