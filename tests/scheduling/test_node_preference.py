"""Nodes that are about equally good are shared out among the schedulers at work, so that they don't collide on them."""

from __future__ import annotations

import numpy as np
import pytest

from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.node_preference import PREFERENCE_BONUS, NodePreference
from nodestate.testing import ManualClock
from tests.machines.scheduling_cell import SchedulingCell

NAMES = [f"compute-{number:04d}" for number in range(4_000)]


def at_work(*names: str) -> list[NodePreference]:
    """Schedulers that all have seen each other."""
    clock = ManualClock()
    sharings = [NodePreference(name, clock, 30.0) for name in names]
    for sharing in sharings:
        for name in names:
            sharing.observe_scheduler(name)
    return sharings


def own(node_preference: NodePreference) -> np.ndarray:  # type: ignore[type-arg]
    worth = node_preference.bonus(NAMES)
    assert worth is not None
    assert set(worth.tolist()) == {0.0, PREFERENCE_BONUS}
    return worth > 0


def test_who_is_alone_prefers_nothing() -> None:
    [alone] = at_work("one")
    assert alone.bonus(NAMES) is None
    assert alone.changes == 0


@pytest.mark.parametrize("count", [2, 3, 8])
def test_each_node_is_one_schedulers_and_each_has_its_share(count: int) -> None:
    shares = [own(sharing) for sharing in at_work(*(f"scheduler-{number}" for number in range(count)))]
    assert (sum(share.astype(int) for share in shares) == 1).all()
    assert all(share.sum() == pytest.approx(len(NAMES) / count, rel=0.15) for share in shares)


def test_one_that_comes_takes_nodes_and_moves_none_between_others() -> None:
    before = [own(sharing) for sharing in at_work("one", "two")]
    after = [own(sharing) for sharing in at_work("one", "two", "three")[:2]]
    for was, now in zip(before, after, strict=True):
        assert not (now & ~was).any()


def test_one_that_is_not_seen_for_long_is_passed_over() -> None:
    clock = ManualClock()
    sharing = NodePreference("one", clock, 30.0)
    sharing.observe_scheduler("two")
    changes = sharing.changes
    clock.advance(29.0)
    assert sharing.bonus(NAMES) is not None
    sharing.observe_scheduler("two")
    clock.advance(29.0)
    assert sharing.bonus(NAMES) is not None
    assert sharing.changes == changes, "or all would be weighed again"
    clock.advance(2.0)
    assert sharing.bonus(NAMES) is None
    assert sharing.changes == changes + 1


def test_nodes_that_come_later_have_their_owners_too() -> None:
    one, two = at_work("one", "two")
    few = one.bonus(NAMES[:10])
    assert few is not None
    assert len(few) == 10
    assert (own(one) ^ own(two)).all()
    assert (own(one)[:10] == (few > 0)).all()


def test_schedulers_that_claim_in_turn_seldom_collide() -> None:
    """The best nodes are the same for all: without nodes of their own each of two met half of the other's claims."""
    states = {
        name: {
            "status": "up",
            "inventory": {"VCPU": {"total": 1_000}, "MEMORY_MB": {"total": 1_000_000}},
            "usage": {"VCPU": 2 * number, "MEMORY_MB": 2_000 * number},
            "allocations": {f"old-{number}": {"resources": {"VCPU": 2 * number, "MEMORY_MB": 2_000 * number}}},
        }
        for number, name in enumerate(NAMES[:400], 1)
    }
    cell = SchedulingCell(states)
    cell.wait_until_complete()
    schedulers = [cell.start_scheduler(name).scheduler for name in ("one", "two")]
    wanted = [Request(resources={"VCPU": 2, "MEMORY_MB": 2_000})] * 10
    for _ in range(40):
        for scheduler in schedulers:
            assert all(placing.claim is not None for placing in scheduler.claim(wanted))
    cell.check_claims()
    for scheduler in schedulers:
        assert scheduler.claim_table.stats.conflicts < 0.1 * scheduler.claim_table.stats.written
