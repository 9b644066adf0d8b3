"""Order ids: they sort by time, also if schedulers' clocks differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodestate.ports.ids import SystemIds
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.testing import ManualClock


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
    assert (order_id_of({"order": "o1"}), lifetime_id_of({"order": "o1"})) == ("o1", "o1")
    assert (order_id_of({"order": "o2", "boot": "o1"}), lifetime_id_of({"order": "o2", "boot": "o1"})) == ("o2", "o1")
    assert (order_id_of({}), lifetime_id_of({"zone": "az1"})) == ("", "")
