"""Tidying: what others left half done is finished, and nothing that lives is ended."""

from __future__ import annotations

from nodestate.scheduling.boots import Booted
from nodestate.scheduling.groups import Confirmed
from nodestate.scheduling.tidying import Duty
from tests.scheduling.cells import cell_of, reserve


def test_a_mark_that_is_late_undoes_no_resize() -> None:
    """The view of who tidies up was from before it."""
    tenancy, (one, two) = cell_of(2)
    held = reserve(one.scheduler, "a")
    assert isinstance(one.scheduler.confirm(held.id), Confirmed)
    [node] = tenancy.placed()["a"]
    tenancy.rest(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.resize("a", {"VCPU": 3}), Booted)
    two.scheduler._mark(two.scheduler.boots, Duty(node, "a", placed=True))
    tenancy.rest(2.0)
    assert tenancy.fleet.room(node).allocations["a"]["resources"]["VCPU"] == 3
