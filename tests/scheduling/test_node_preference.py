"""Node preference: about equally good nodes are divided among the active schedulers, so that their claims do not
collide.
"""

from __future__ import annotations

import numpy as np
import pytest

from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.node_preference import PREFERENCE_BONUS, NodePreference
from nodestate.testing import ManualClock
from tests.machines.scheduling_cell import SchedulingCell

NAMES = [f"compute-{number:04d}" for number in range(4_000)]


def active_schedulers(*names: str) -> list[NodePreference]:
    """The node preferences of schedulers that all have seen each other."""
    clock = ManualClock()
    preferences = [NodePreference(name, clock, 30.0) for name in names]
    for preference in preferences:
        for name in names:
            preference.observe_scheduler(name)
    return preferences


def own_nodes(node_preference: NodePreference) -> np.ndarray:  # type: ignore[type-arg]
    """Whether each node is the scheduler's own."""
    bonus = node_preference.bonus(NAMES)
    assert bonus is not None
    assert set(bonus.tolist()) == {0.0, PREFERENCE_BONUS}
    return bonus > 0


def test_single_scheduler_prefers_no_node() -> None:
    """Without another scheduler there is nothing to collide with."""
    [alone] = active_schedulers("one")
    assert alone.bonus(NAMES) is None
    assert alone.changes == 0


@pytest.mark.parametrize("count", [2, 3, 8])
def test_each_node_belongs_to_one_scheduler_and_each_scheduler_gets_its_share(count: int) -> None:
    """A node of two schedulers would still collide; a node of none would be used late."""
    shares = [
        own_nodes(preference) for preference in active_schedulers(*(f"scheduler-{number}" for number in range(count)))
    ]
    assert (sum(share.astype(int) for share in shares) == 1).all()
    assert all(share.sum() == pytest.approx(len(NAMES) / count, rel=0.15) for share in shares)


def test_new_scheduler_takes_nodes_and_moves_none_between_others() -> None:
    """Rendezvous hashing: the other schedulers' rankings stay as they were."""
    before = [own_nodes(preference) for preference in active_schedulers("one", "two")]
    after = [own_nodes(preference) for preference in active_schedulers("one", "two", "three")[:2]]
    for was, now in zip(before, after, strict=True):
        assert not (now & ~was).any()


def test_scheduler_without_recent_claims_is_no_longer_active() -> None:
    """The nodes of a scheduler that died must be preferred by others again."""
    clock = ManualClock()
    preference = NodePreference("one", clock, 30.0)
    preference.observe_scheduler("two")
    changes = preference.changes
    clock.advance(29.0)
    assert preference.bonus(NAMES) is not None
    preference.observe_scheduler("two")
    clock.advance(29.0)
    assert preference.bonus(NAMES) is not None
    assert preference.changes == changes, "or all would be weighed again"
    clock.advance(2.0)
    assert preference.bonus(NAMES) is None
    assert preference.changes == changes + 1


def test_nodes_that_appear_later_are_divided_as_well() -> None:
    """The bonus is extended to new rows without changing the old ones."""
    one, two = active_schedulers("one", "two")
    few = one.bonus(NAMES[:10])
    assert few is not None
    assert len(few) == 10
    assert (own_nodes(one) ^ own_nodes(two)).all()
    assert (own_nodes(one)[:10] == (few > 0)).all()


def test_schedulers_that_claim_in_turn_seldom_collide() -> None:
    """The best nodes are the same for all: without own nodes, half of each scheduler's claims met the other's."""
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
