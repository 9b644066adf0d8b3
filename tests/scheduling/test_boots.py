"""Boots: each has its outcome in the end, and what was told to end ends."""

from __future__ import annotations

from nodestate.scheduling.boots import Booted
from nodestate.scheduling.request import parse
from tests.scheduling.cells import cell_of, wanted


def test_who_cancels_a_boot_that_is_under_way_stops_nobody() -> None:
    """``Future.cancel`` would make its outcome an error in ``step``, and others of the batch would never have theirs."""
    _, (one, _) = cell_of(2)
    boots = one.scheduler.submit(parse({"count": 2, "resources": {"VCPU": 1}}))
    assert not boots[0].future.cancel()
    one.scheduler.run(lambda: all(boot.future.done() for boot in boots), 5.0)
    assert all(isinstance(boot.outcome, Booted) for boot in boots)
