"""Order ids: they sort by time, also if schedulers' clocks differ."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodestate.model import MAX_CLOCK_AHEAD_S
from nodestate.ports.ids import SystemIds
from nodestate.scheduling.order_ids import (
    lifetime_id_of,
    new_order_id,
    order_id_of,
    precedence_of,
    without_future_ids,
)
from nodestate.testing import ManualClock
from tests.scheduling.cells import boot, cell_of


@given(steps=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_new_order_id_is_larger_than_its_predecessor_by_any_clock(steps: list[float]) -> None:
    """Schedulers' clocks differ, and one scheduler's order supersedes another's."""
    name = ""
    for step in steps:
        clock = ManualClock(time=2e9 + step)
        later = new_order_id(clock, SystemIds(), name)
        assert name < later
        assert len(later) == len(new_order_id(clock, SystemIds()))
        name = later


@given(after=st.text(max_size=30) | st.from_regex(r"[0-9a-f]{12}-[0-9a-f]{12}", fullmatch=True))
def test_order_id_has_its_usual_form_after_any_text(after: str) -> None:
    """Hints may come from any service: a text that is no order id must not move the clock, and the last possible id
    must not break it.
    """
    assert len(new_order_id(ManualClock(), SystemIds(), after)) == len(new_order_id(ManualClock(), SystemIds()))


def test_lifetime_is_named_by_its_first_order() -> None:
    """A migration gives the instance another order within the same lifetime."""
    first, second = (f"{n:012x}-0123456789ab" for n in (1, 2))
    assert (order_id_of({"order": first}), lifetime_id_of({"order": first})) == (first, first)
    moved = {"order": second, "boot": first}
    assert (order_id_of(moved), lifetime_id_of(moved)) == (second, first)
    assert (order_id_of({}), lifetime_id_of({"zone": "az1"})) == ("", "")


@given(order=st.none() | st.integers() | st.text(), boot=st.none() | st.text() | st.lists(st.text()))
@example(order="~", boot="~")
@example(order="0199c1f2a3b4-0123456789ab\n", boot=None)
@example(order="0199C1F2A3B4-0123456789AB", boot=None)
def test_an_allocation_with_other_hints_was_not_ordered_by_a_scheduler(order: object, boot: object) -> None:
    assert precedence_of({"order": order, "boot": boot}) == ("", "")


def test_a_lifetime_does_not_begin_after_its_order() -> None:
    """Otherwise a node could report an old order of a lifetime that takes precedence over all others."""
    order, later = "0199c1f2a3b4-0123456789ab", "ffffffffffff-0123456789ab"
    assert precedence_of({"order": order, "boot": later}) == (order, order)
    assert precedence_of({"order": "~", "boot": order}) == ("", "")


@given(ahead_s=st.floats(-1e9, 1e9))
def test_an_order_of_the_future_does_not_count(ahead_s: float) -> None:
    """A scheduler's clock may be up to a day ahead."""
    clock = ManualClock()
    hints = {"order": new_order_id(ManualClock(time=clock.time() + ahead_s), SystemIds()), "zone": "az1"}
    expected = hints if ahead_s <= MAX_CLOCK_AHEAD_S else {"zone": "az1"}
    assert without_future_ids(hints, clock.time()) == expected


@pytest.mark.parametrize("forged", ["~", "ffffffffffff-ffffffffffff", "zone"])
def test_no_forged_order_id_ends_an_instance_on_another_node(forged: str) -> None:
    """The clean-up ends the allocations that are not authoritative."""
    cell, (one, _) = cell_of(2)
    booted = boot(one.scheduler, "a")
    [other] = {"n0", "n1"} - {booted.node}
    hints = {"order": forged, "boot": forged}
    cell.fleet.kill(other)
    cell.fleet.build(other, "a", {"resources": {"VCPU": 1}, "hints": hints})
    cell.fleet.revive(other)
    cell.run_for(3 * cell.config.claim_ttl_s)
    assert cell.nodes_by_instance() == {"a": [booted.node]}
