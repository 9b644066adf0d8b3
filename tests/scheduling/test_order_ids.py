"""Names that tell their order, whatever clocks say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodestate.ports.ids import SystemIds
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.testing import ManualClock


@given(steps=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_each_is_later_than_the_one_it_comes_after_whatever_clocks_say(steps: list[float]) -> None:
    """Schedulers' clocks differ: what one gave, another takes the place of."""
    name = ""
    for step in steps:
        clock = ManualClock(time=2e9 + step)
        later = new_order_id(clock, SystemIds(), name)
        assert name < later
        assert len(later) == len(new_order_id(clock, SystemIds()))
        name = later


@given(after=st.text(max_size=30) | st.from_regex(r"[0-9a-f]{12}-[0-9a-f]{12}", fullmatch=True))
def test_whatever_it_comes_after_it_is_a_name_like_others(after: str) -> None:
    """Hints are anybody's: what is no name of ours moves no clock, and the last one there is breaks none."""
    assert len(new_order_id(ManualClock(), SystemIds(), after)) == len(new_order_id(ManualClock(), SystemIds()))


def test_a_life_is_named_by_its_first_order() -> None:
    """A move gives another order, and the same life."""
    assert (order_id_of({"order": "o1"}), lifetime_id_of({"order": "o1"})) == ("o1", "o1")
    assert (order_id_of({"order": "o2", "boot": "o1"}), lifetime_id_of({"order": "o2", "boot": "o1"})) == ("o2", "o1")
    assert (order_id_of({}), lifetime_id_of({"zone": "az1"})) == ("", "")
