"""Moves, resizes and ends against each other."""

from __future__ import annotations

from nodestate.scheduling.boots import Booted
from tests.scheduling.cells import boot, cell_of


def test_what_was_resized_a_moment_ago_ends_when_it_is_told_to() -> None:
    """Who ends it had read a view from before, and names the order that built what it is to end."""
    tenancy, (one, two) = cell_of(2)
    node = boot(one.scheduler, "a").node
    tenancy.rest(2.0)
    two.scheduler.refresh()
    assert isinstance(one.scheduler.resize("a", {"VCPU": 3}), Booted)
    tenancy.live()
    two.scheduler.end([(node, "a")])
    tenancy.rest(10.0)
    assert tenancy.placed() == {}
